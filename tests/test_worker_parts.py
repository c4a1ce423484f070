"""The small parts of a worker on their own: clock, timers, arrays, retries."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from types import SimpleNamespace

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings, strategies as st

from continuum.core.commands import Command
from continuum.core.definitions import ActivityOptions
from continuum.core.retry import Retry
from continuum.worker import node
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.budget import Budget
from continuum.worker.clock import Clock
from continuum.worker.options import NodeOptions
from continuum.worker.retries import next_attempt_us
from continuum.worker.timers import Timers


class TestClock:
    @pytest.fixture
    def monotonic(self, monkeypatch):
        """A monotonic clock that stands still until it is set, in microseconds."""

        class Fake:
            us = 1_000_000

        monkeypatch.setattr("continuum.worker.clock.time.monotonic_ns", lambda: Fake.us * 1000)
        return Fake

    def test_takes_the_middle_of_the_round_trip(self, monotonic):
        clock = Clock()
        clock.synchronise(50_000_000, 400)
        assert clock.now_us() == 50_000_200

    def test_counts_on_between_answers(self, monotonic):
        clock = Clock()
        clock.synchronise(50_000_000_000_000_000, 0)
        monotonic.us += 1_234
        assert clock.now_us() == 50_000_000_000_001_234

    def test_a_slow_answer_does_not_replace_a_good_one(self, monotonic):
        clock = Clock()
        clock.synchronise(50_000_000_000_000_000, 200)
        monotonic.us += 1_000_000
        clock.synchronise(50_000_000_000_900_000, 200_000)
        assert clock.now_us() == 50_000_000_001_000_100

    def test_a_good_answer_replaces_a_slow_one(self, monotonic):
        clock = Clock()
        clock.synchronise(50_000_000_000_000_000, 200_000)
        monotonic.us += 1_000_000
        clock.synchronise(50_000_000_001_100_000, 200)
        assert clock.now_us() == 50_000_000_001_100_100

    def test_never_goes_back(self, monotonic):
        clock = Clock()
        clock.synchronise(50_000_000_000_000_000, 1_000)
        before = clock.now_us()
        clock.synchronise(49_999_999_000_000_000, 0)
        assert clock.now_us() == before


class TestTimers:
    def test_call_back_in_order_of_due_time(self):
        async def scenario():
            clock = Clock()
            timers = Timers(asyncio.get_running_loop(), clock)
            done = asyncio.Event()
            fired = []

            def fire(subject, due_us):
                fired.append(subject)
                if len(fired) == 3:
                    done.set()

            now = clock.now_us()
            for name, delay in (("b", 20_000), ("c", 30_000), ("a", 1_000)):
                timers.schedule(now + delay, fire, name)
            async with asyncio.timeout(30):
                await done.wait()
            return fired

        assert asyncio.run(scenario()) == ["a", "b", "c"]

    def test_nothing_fires_early(self):
        async def scenario():
            clock = Clock()
            timers = Timers(asyncio.get_running_loop(), clock)
            fired = asyncio.get_running_loop().create_future()
            due = clock.now_us() + 10_000
            timers.schedule(due, lambda subject, due_us: fired.set_result(clock.now_us()), None)
            return await asyncio.wait_for(fired, 30) - due

        assert asyncio.run(scenario()) >= -500

    def test_a_due_time_beyond_all_calendars_is_no_trouble(self):
        async def scenario():
            timers = Timers(asyncio.get_running_loop(), Clock())
            timers.schedule(10**24, lambda *_: None, None)
            assert len(timers) == 1

        asyncio.run(scenario())


@pytest.mark.django_db
class TestArrays:
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.none() | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"))))
    def test_texts_arrive_as_they_are(self, texts):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::text[]", [text_array(texts)])
            assert cursor.fetchone()[0] == texts

    def test_json_arrives_as_it_is(self):
        texts = [json.dumps(value) for value in ({"a": 'quoted " and \\ back'}, "NULL", [], "{}")]
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_json(%s::json[]::text[])::text", [text_array(texts)])
            assert json.loads(cursor.fetchone()[0]) == texts

    def test_numbers_booleans_and_null(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT %s::bigint[], %s::boolean[]", [plain_array([1, None, -(2**63)]), plain_array([True, False])]
            )
            assert cursor.fetchone() == ([1, None, -(2**63)], [True, False])


class TestNextAttempt:
    def command(self, attempt=1, **retry):
        command = Command("0:1", "activity", "charge", 0)
        command.attempt = attempt
        command.options = ActivityOptions(Retry(**retry))
        return command

    def test_is_due_after_the_policys_delay(self):
        command = self.command(attempt=2, max_attempts=3, base=0.5)
        assert next_attempt_us(command, {"retryable": True}, 1_000_000) == 2_000_000

    def test_is_none_after_the_last(self):
        assert next_attempt_us(self.command(attempt=3, max_attempts=3), {"retryable": True}, 0) is None

    def test_is_none_for_what_must_not_be_retried(self):
        assert next_attempt_us(self.command(max_attempts=3), {"retryable": False}, 0) is None

    def test_comes_when_the_activity_says(self):
        command = self.command(max_attempts=3, base=60)
        assert next_attempt_us(command, {"retryable": True, "retry_after": 2.5}, 0) == 2_500_000

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
    def test_never_exceeds_the_longest_delay(self, attempt, randomness, jitter):
        retry = Retry(max_attempts=1000, base=1, factor=3, jitter=jitter, max_delay=30)
        assert 0 <= retry.delay(attempt, randomness) <= 30


class TestBudget:
    @pytest.fixture
    def now(self, monkeypatch):
        """The time, to be moved on."""
        now = [100.0]
        monkeypatch.setattr("continuum.worker.budget.time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def spend(self, budget, now, seconds, fails=False):
        async def takes_time():
            now[0] += seconds
            if fails:
                raise OSError("it broke")
            return "found"

        return asyncio.run(budget.charging(takes_time)())

    def test_what_took_long_has_to_wait_long(self, now):
        budget = Budget(0.1, longest=60)
        assert self.spend(budget, now, 2) == "found"
        now[0] += 19.9
        assert not budget.allows()
        now[0] += 0.2
        assert budget.allows()

    def test_a_slow_moment_does_not_put_it_off_for_long(self, now):
        budget = Budget(0.1, longest=5)
        self.spend(budget, now, 30)
        now[0] += 5.1
        assert budget.allows()

    def test_what_failed_and_is_done_again_costs_nothing(self, now):
        budget = Budget(0.1, longest=60)
        with pytest.raises(OSError):
            self.spend(budget, now, 2, fails=True)
        assert budget.allows()


class TestProcess:
    """What a process becomes that is a worker."""

    @pytest.fixture(autouse=True)
    def as_it_was(self):
        interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
        yield
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()

    @pytest.mark.parametrize(("before", "after"), [(0.005, 0.001), (0.0002, 0.0002)])
    def test_threads_let_each_other_go_soon_or_as_soon_as_the_project_says(self, monkeypatch, before, after):
        sys.setswitchinterval(before)
        served = []

        async def run(self):
            served.append(sys.getswitchinterval())
            return 3

        monkeypatch.setattr(node.Node, "run", run)
        assert node.run_node(NodeOptions()) == 3
        assert served == [pytest.approx(after, rel=0.01)]
