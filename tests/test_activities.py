"""Attempts of activities: in threads and on the loop, with results, errors, timeouts and clean connections."""

import asyncio
import contextvars
import json
import logging
import threading
import time
import uuid
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connections, transaction

from continuum.core.activity_context import ActivityInfo, NotInActivityError, activity_info
from continuum.core.definitions import ActivityDefinition, ActivityOptions, Retry
from continuum.exceptions import ContinuumError, NonRetryableError, RetryAfterError
from continuum.worker import activities, attempt as attempts, hygiene
from continuum.worker.activities import ActivityExecutor, Attempt
from continuum.worker.connections import connect
from continuum.worker.threads import ThreadPool
from tests.waiting_for import eventually, eventually_async

RUN = uuid.uuid4()


def defined(fn, **options):
    """An activity that no registry knows."""
    return ActivityDefinition(fn, name=fn.__name__, options=ActivityOptions(**options))


def attempt_of(fn, *args, retry=None, timeout=None, key=None, number=1, **kwargs):
    definition = fn if isinstance(fn, ActivityDefinition) else defined(fn)
    return Attempt(
        RUN, "0:1", definition, definition.encode_arguments(args, kwargs), number, timeout=timeout, key=key, retry=retry
    )


class Reported(list):
    """The results an executor reported, and how many times it called."""

    calls = 0

    def __call__(self, results):
        self.calls += 1
        self.extend(results)


@asynccontextmanager
async def executor(threads=4, **arguments):
    reported = Reported()
    running = ActivityExecutor(
        asyncio.get_running_loop(),
        threads=threads,
        on_results=reported,
        clock=lambda: time.time_ns() // 1000,
        **arguments,
    )
    try:
        yield running, reported
    finally:
        await running.close(5)


def results_of(*attempts, threads=4, **arguments):
    """Run attempts to their end and return their results, in the order of their ends."""

    async def scenario():
        async with executor(threads, **arguments) as (running, reported):
            for attempt in attempts:
                running.submit(attempt)
            await eventually_async(lambda: len(reported) == len(attempts))
            assert running.busy == 0
            return list(reported)

    return asyncio.run(scenario())


def error_of(fn, *args, **options):
    [result] = results_of(attempt_of(fn, *args, **options))
    assert not result.ok
    assert result.value_json is None
    return result.error


# Values in, values out


def test_a_result_is_reported_with_its_attempt_and_its_times():
    def double(x: int) -> int:
        return 2 * x

    before = time.time_ns() // 1000
    [result] = results_of(attempt_of(double, 21, key="mine"))
    assert (result.ok, result.value_json, result.error, result.attempt.key) == (True, "42", None, "mine")
    assert before <= result.started_us <= result.ended_us <= time.time_ns() // 1000


def test_an_async_activity_runs_on_the_workers_loop():
    threads = []

    async def double(x: int) -> int:
        await asyncio.sleep(0)
        threads.append(threading.current_thread())
        return 2 * x

    [result] = results_of(attempt_of(double, 21))
    assert (result.ok, result.value_json, threads) == (True, "42", [threading.current_thread()])


def test_a_plain_activity_runs_in_another_thread():
    threads = []

    def where():
        threads.append(threading.current_thread())

    results_of(attempt_of(where))
    assert threads != [threading.current_thread()]
    assert threads[0].daemon


def test_arguments_are_restored_and_results_encoded_by_the_annotations():
    def later(when: datetime, *, days: int) -> datetime:
        assert isinstance(when, datetime)
        return when.replace(day=when.day + days)

    [result] = results_of(attempt_of(later, datetime(2024, 5, 1, tzinfo=UTC), days=2))
    assert result.ok, result.error
    assert "2024-05-03" in result.value_json


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_result_that_cannot_be_journaled_fails_for_good_with_its_path(kind):
    def plain():
        return {"a": [object()]}

    async def awaited():
        return {"a": [object()]}

    error = error_of(plain if kind == "def" else awaited, retry=Retry(max_attempts=5))
    assert error["type"] == "DurableValueError"
    assert "result.a[0]" in error["message"]
    assert error["retryable"] is False


def test_a_result_that_is_too_large_fails_for_good():
    def large():
        return "x" * 1000

    [result] = results_of(attempt_of(large), max_value_bytes=100)
    assert (result.error["type"], result.error["retryable"]) == ("DurableValueError", False)


def test_arguments_that_no_longer_fit_the_annotations_fail_for_good():
    def when(moment: datetime):
        raise AssertionError("must not be called")

    broken = Attempt(RUN, "0:1", defined(when), '[{"~datetime":"never"}]', 1)
    [result] = results_of(broken)
    assert result.error["retryable"] is False
    assert result.error["type"] == "DurableValueError"


# Errors


def fail(error):
    raise error


def test_an_exception_is_a_retryable_error_a_person_can_read():
    def charge():
        fail(ValueError("no such card"))

    error = error_of(charge)
    assert (error["type"], error["message"], error["retryable"]) == ("ValueError", "no such card", True)
    assert error["retry_after"] is None
    frames = [line for line in error["traceback"].splitlines() if line.startswith("  File")]
    assert len(frames) == 2
    assert "in charge" in frames[0]
    assert "in fail" in frames[1]


def test_the_same_goes_for_an_async_activity():
    async def charge():
        await asyncio.sleep(0)
        fail(ValueError("no such card"))

    error = error_of(charge)
    assert (error["type"], error["message"], error["retryable"]) == ("ValueError", "no such card", True)
    assert "continuum/worker" not in error["traceback"]
    assert error["traceback"].count("  File") == 2


class Declined(Exception):
    pass


class InsufficientFunds(Declined):
    pass


@pytest.mark.parametrize(
    ("raised", "non_retryable", "retryable"),
    [
        (NonRetryableError("no"), (), False),
        (Declined("no"), (Declined,), False),
        (InsufficientFunds("no"), (Declined,), False),
        (InsufficientFunds("no"), ("Declined",), False),
        (Declined("no"), (InsufficientFunds,), True),
        (ValueError("no"), (), True),
    ],
)
def test_the_policy_says_what_is_not_worth_another_attempt(raised, non_retryable, retryable):
    def charge():
        raise raised

    assert error_of(defined(charge, retry=Retry(non_retryable=non_retryable)))["retryable"] is retryable


def test_the_policy_of_the_call_goes_before_the_activitys_own():
    def charge():
        raise Declined("no")

    declared = defined(charge, retry=Retry(non_retryable=(Declined,)))
    assert error_of(declared, retry=Retry())["retryable"] is True


def test_an_error_may_say_when_to_try_again():
    def charge():
        raise RetryAfterError(7.5, "busy")

    error = error_of(charge)
    assert (error["retryable"], error["retry_after"]) == (True, 7.5)


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("mine"), GeneratorExit()])
def test_what_would_end_a_process_only_fails_the_attempt(kind, error):
    def plain():
        raise error

    async def awaited():
        raise error

    found = error_of(plain if kind == "def" else awaited)
    assert (found["type"], found["retryable"]) == (type(error).__name__, True)


# Many at once


def test_plain_attempts_begin_in_the_order_of_their_submission():
    begun = []

    def note(n: int) -> None:
        begun.append(n)

    results_of(*[attempt_of(note, n) for n in range(200)], threads=1)
    assert begun == list(range(200))


def test_blocking_attempts_run_side_by_side_up_to_the_number_of_threads():
    together = threading.Barrier(4)

    def meet():
        together.wait(10)

    results = results_of(*[attempt_of(meet) for _ in range(8)], threads=4)
    assert [result.ok for result in results] == [True] * 8


def test_never_more_than_the_number_of_threads_run_at_once():
    running = []
    most = []
    lock, together = threading.Lock(), threading.Barrier(3)

    def count():
        with lock:
            running.append(1)
            most.append(len(running))
        together.wait(30)
        time.sleep(0.001)  # lets others in, if there are any
        with lock:
            running.pop()

    results = results_of(*[attempt_of(count) for _ in range(51)], threads=3)
    assert all(result.ok for result in results)
    assert max(most) == 3


def test_async_attempts_run_side_by_side_up_to_eight_for_each_thread():
    async def scenario():
        inside, most, gate = 0, [], asyncio.Event()

        async def count():
            nonlocal inside
            inside += 1
            most.append(inside)
            await gate.wait()
            inside -= 1

        async with executor(threads=1) as (running, reported):
            for _ in range(20):
                running.submit(attempt_of(count))
            await eventually_async(lambda: inside == 8)
            busy = running.busy
            gate.set()
            await eventually_async(lambda: len(reported) == 20)
            return busy, max(most)

    assert asyncio.run(scenario()) == (20, 8)


def test_results_of_a_burst_reach_the_loop_together():
    done = threading.Semaphore(0)

    def nothing():
        done.release()

    async def scenario():
        async with executor(threads=4) as (running, reported):
            for _ in range(500):
                running.submit(attempt_of(nothing))
            for _ in range(500):
                assert done.acquire(timeout=30)  # keeps the loop busy
            await eventually_async(lambda: len(reported) == 500)
            return reported.calls

    # The last of each thread may come after the others.
    assert asyncio.run(scenario()) <= 1 + 4


def test_short_attempts_wake_no_more_threads_than_it_takes():
    class Short:
        running = stuck = False

    class Gate(Short):
        pass

    begun, go, done = threading.Event(), threading.Event(), []

    def work(job):
        if isinstance(job, Gate):
            begun.set()
            go.wait(10)
        done.append(threading.get_ident())

    pool = ThreadPool(100, work)
    pool.submit(Gate())
    begun.wait(10)
    go.set()
    for _ in range(200):
        pool.submit(Short())
    eventually(lambda: len(done) == 201)
    # A few: each calls the next before it takes a job, and so do those until the first is back at it.
    assert pool.alive < 50
    pool.close()
    eventually(lambda: pool.alive == 0)


def test_a_failing_report_does_not_end_the_executor(caplog):
    def nothing():
        pass

    async def scenario():
        calls = []

        def refuse(results):
            calls.append(results)
            if len(calls) == 1:
                raise RuntimeError("no")

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        running = ActivityExecutor(loop, threads=1, on_results=refuse, clock=lambda: 0)
        for expected in (1, 2):
            running.submit(attempt_of(nothing))
            await eventually_async(lambda expected=expected: len(calls) == expected)
        await running.close(1)

    asyncio.run(scenario())


# What an activity may ask


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_activity_can_ask_about_its_attempt(kind):
    seen = []

    def plain():
        seen.append(activity_info())

    async def awaited():
        seen.append(await asyncio.to_thread(activity_info))

    fn = plain if kind == "def" else awaited
    attempt = attempt_of(fn, number=3)
    attempt.heartbeat_details, attempt.idempotency_key = {"page": 4}, "k"
    results_of(attempt)
    assert seen == [ActivityInfo(RUN, fn.__name__, 3, {"page": 4}, "k")]


def test_outside_an_activity_there_is_nothing_to_ask_about():
    with pytest.raises(NotInActivityError, match=r"only works inside an activity"):
        activity_info()
    assert issubclass(NotInActivityError, ContinuumError)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_one_attempt_sets_in_its_context_does_not_reach_the_next(kind):
    language = contextvars.ContextVar("language", default="en")
    seen = []

    def plain():
        seen.append(language.get())
        language.set("de")

    async def awaited():
        plain()

    fn = plain if kind == "def" else awaited
    results_of(*[attempt_of(fn) for _ in range(3)], threads=1)
    assert seen == ["en"] * 3


# Timeouts


@pytest.fixture
def later(monkeypatch):
    """Have time pass for an attempt, and look at it then: ``later(seconds, running, attempt)``."""
    passed = 0.0
    for module in (activities, attempts):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))

    def later(seconds, running, attempt):
        nonlocal passed
        passed += seconds
        running._check_timeout(attempt)

    return later


def test_a_plain_attempt_that_takes_too_long_fails_at_once_and_its_late_result_is_ignored(later):
    begun, release = threading.Event(), threading.Event()

    def hang():
        begun.set()
        release.wait(30)
        return "late"

    async def scenario():
        async with executor(threads=1) as (running, reported):
            attempt = attempt_of(hang, timeout=3600)
            running.submit(attempt)
            await eventually_async(begun.is_set)
            later(3000, running, attempt)
            assert reported == []
            later(700, running, attempt)
            assert len(reported) == 1
            stuck = running.stuck
            release.set()
            await eventually_async(lambda: running.stuck == 0)
            return [result.error for result in reported], stuck, running.busy

    [error], stuck, busy = asyncio.run(scenario())
    assert (error["type"], error["retryable"], stuck, busy) == ("ActivityTimeoutError", True, 1, 0)
    assert "3600 seconds" in error["message"]
    assert "in hang" in error["traceback"]
    assert "continuum/worker" not in error["traceback"]


def test_the_place_of_a_hanging_thread_is_taken_by_another():
    release = threading.Event()

    def hang():
        release.wait(10)

    def nothing():
        pass

    async def scenario():
        async with executor(threads=1) as (running, reported):
            running.submit(attempt_of(hang, timeout=0.05))
            running.submit(attempt_of(nothing, key="next"))
            await eventually_async(lambda: len(reported) == 2)
            release.set()
            # The spare thread is given back.
            await eventually_async(lambda: running._pool.alive == 1)
            return [result.attempt.key for result in reported if result.ok]

    assert asyncio.run(scenario()) == ["next"]


def test_there_are_never_more_than_twice_the_threads():
    release = threading.Event()

    def hang():
        release.wait(10)

    def nothing():
        pass

    async def scenario():
        async with executor(threads=2) as (running, reported):
            for _ in range(4):
                running.submit(attempt_of(hang, timeout=0.05))
            await eventually_async(lambda: len(reported) == 4)
            running.submit(attempt_of(nothing))
            most = running._pool.alive, running.stuck, running.busy
            release.set()
            await eventually_async(lambda: len(reported) == 5)
            return most, reported[-1].ok

    assert asyncio.run(scenario()) == ((4, 4, 1), True)


def test_the_timeout_counts_from_the_start_and_not_from_the_queue(later):
    release = threading.Event()

    def first():
        release.wait(30)

    def second():
        pass

    async def scenario():
        async with executor(threads=1) as (running, reported):
            running.submit(attempt_of(first))
            queued = attempt_of(second, timeout=60)
            running.submit(queued)
            later(3600, running, queued)
            release.set()
            await eventually_async(lambda: len(reported) == 2)
            return [result.ok for result in reported]

    assert asyncio.run(scenario()) == [True, True]


def test_a_timely_attempt_leaves_no_timer_behind():
    def nothing():
        pass

    attempt = attempt_of(nothing, timeout=3600)
    results_of(attempt)
    assert attempt.timer is None


def test_an_async_attempt_that_takes_too_long_is_cancelled_and_may_clean_up():
    cleaned = []

    async def hang():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    error = error_of(hang, timeout=0.02)
    assert (error["type"], error["retryable"], cleaned) == ("ActivityTimeoutError", True, [True])
    assert "in hang" in error["traceback"]


def test_an_async_attempt_that_will_not_be_cancelled_is_reported_without_it(monkeypatch):
    monkeypatch.setattr(activities, "CANCEL_GRACE", 0.02)

    async def scenario():
        release = asyncio.Event()

        async def stubborn():
            while not release.is_set():
                with suppress(asyncio.CancelledError):
                    await release.wait()
            return "late"

        async with executor(threads=1) as (running, reported):
            running.submit(attempt_of(stubborn, timeout=0.02))
            await eventually_async(lambda: reported)
            release.set()
            await eventually_async(lambda: not running._tasks)
            return [result.error["type"] for result in reported]

    assert asyncio.run(scenario()) == ["ActivityTimeoutError"]


# Abandoned attempts


def test_an_abandoned_attempt_that_has_not_begun_is_never_run():
    release, ran = threading.Event(), []

    def first():
        release.wait(10)

    async def scenario():
        async with executor(threads=1) as (running, reported):
            running.submit(attempt_of(first, key="first"))
            unwanted = attempt_of(lambda: ran.append("unwanted"))
            running.submit(unwanted)
            running.submit(attempt_of(lambda: ran.append("wanted"), key="wanted"))
            running.abandon(unwanted)
            release.set()
            await eventually_async(lambda: len(reported) == 2)
            return [result.attempt.key for result in reported], running.busy

    assert asyncio.run(scenario()) == (["first", "wanted"], 0)
    assert ran == ["wanted"]


def test_an_abandoned_attempt_that_runs_is_ignored_when_it_ends_and_holds_nobody_up():
    release, begun, ended = threading.Event(), threading.Event(), []

    def hang():
        begun.set()
        release.wait(60)
        ended.append(True)

    async def scenario():
        async with executor(threads=1) as (running, reported):
            unwanted = attempt_of(hang)
            running.submit(unwanted)
            await eventually_async(begun.is_set)
            running.abandon(unwanted)
            running.submit(attempt_of(lambda: None, key="next"))
            await eventually_async(lambda: reported)
            release.set()
            await eventually_async(lambda: ended and running.stuck == 0)
            return [result.attempt.key for result in reported]

    assert asyncio.run(scenario()) == ["next"]


def test_an_abandoned_async_attempt_is_cancelled_and_not_reported():
    cancelled = []

    async def hang():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario():
        async with executor() as (running, reported):
            unwanted = attempt_of(hang)
            running.submit(unwanted)
            await eventually_async(lambda: unwanted.started)
            running.abandon(unwanted)
            running.abandon(unwanted)
            await eventually_async(lambda: cancelled)
            return list(reported), running.busy

    assert asyncio.run(scenario()) == ([], 0)


# The end


def test_closing_lets_running_attempts_end_and_drops_queued_ones():
    begun, release, ran = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        release.wait(10)

    async def scenario():
        reported = Reported()
        running = ActivityExecutor(
            asyncio.get_running_loop(), threads=1, on_results=reported, clock=lambda: 0, max_value_bytes=1000
        )
        running.submit(attempt_of(first, key="first"))
        running.submit(attempt_of(lambda: ran.append(True)))
        await eventually_async(begun.is_set)
        closing = asyncio.create_task(running.close(10))
        await asyncio.sleep(0)
        running.submit(attempt_of(lambda: ran.append(True)))
        release.set()
        left = await closing
        return left, [result.attempt.key for result in reported]

    assert asyncio.run(scenario()) == (0, ["first"])
    assert ran == []


def test_closing_gives_up_on_what_does_not_end_in_time():
    begun, release = threading.Event(), threading.Event()

    async def hang():
        await asyncio.sleep(3600)

    def block():
        begun.set()
        release.wait(10)

    async def scenario():
        reported = Reported()
        running = ActivityExecutor(
            asyncio.get_running_loop(), threads=1, on_results=reported, clock=lambda: 0, max_value_bytes=1000
        )
        running.submit(attempt_of(hang))
        running.submit(attempt_of(block))
        await eventually_async(lambda: begun.is_set() and running._tasks)
        left = await running.close(0.01)
        # Nor is it said to have failed: it will run again elsewhere.
        return left, running._tasks, list(reported)

    assert asyncio.run(scenario()) == (2, set(), [])
    release.set()


# Django's connections


def own_session() -> int:
    """The server session of the thread's connection."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


async def own_session_async() -> int:
    """That of asgiref's shared thread, where the ORM's async methods run."""
    return await sync_to_async(own_session)()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("use", [own_session, own_session_async])
def test_a_connection_is_closed_after_the_attempt_as_after_a_request(use):
    async def scenario():
        async with executor(threads=2) as (running, reported), await connect("default", application_name="x") as other:
            running.submit(attempt_of(use))
            await eventually_async(lambda: reported)

            async def closed():
                pid = int(reported[0].value_json)
                cursor = await other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
                return await cursor.fetchone() is None

            return await eventually_async(closed)

    assert asyncio.run(scenario())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("age", "kept"), [(None, True), (0.05, False)])
def test_a_connection_that_grew_too_old_while_the_thread_was_idle_is_replaced(age, kept, monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", age)

    async def scenario():
        async with executor(threads=1) as (running, reported):
            running.submit(attempt_of(own_session))
            await eventually_async(lambda: reported)
            due = time.monotonic() + 0.06
            await eventually_async(lambda: time.monotonic() > due)
            running.submit(attempt_of(own_session))
            await eventually_async(lambda: len(reported) == 2)
            return [result.value_json for result in reported]

    first, second = asyncio.run(scenario())
    assert (first == second) is kept


@pytest.mark.django_db(transaction=True)
def test_what_django_notes_down_of_an_activity_with_debug_is_not_kept_for_the_next(settings, monkeypatch):
    settings.DEBUG = True
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", None)

    def noted() -> int:
        own_session()
        return len(connections["default"].queries_log)

    async def scenario():
        async with executor(threads=1) as (running, reported):
            for number in (1, 2, 3):
                running.submit(attempt_of(noted))
                await eventually_async(lambda number=number: len(reported) == number)
            return [int(result.value_json) for result in reported]

    first, second, third = asyncio.run(scenario())
    assert first > 0
    assert second == third <= first


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("use", [own_session, own_session_async])
def test_a_dropped_connection_costs_one_attempt(use, monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", None)

    async def scenario():
        async with executor(threads=1) as (running, reported):

            async def once():
                seen = len(reported)
                running.submit(attempt_of(use))
                await eventually_async(lambda: len(reported) > seen)
                return reported[-1]

            first, second = await once(), await once()
            await sync_to_async(drop, thread_sensitive=False)(json.loads(second.value_json))
            return first.value_json == second.value_json, (await once()).ok, (await once()).ok

    def drop(pid):
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        connections.close_all()

    kept, third, fourth = asyncio.run(scenario())
    asyncio.run(sync_to_async(connections.close_all)())
    assert (kept, third, fourth) == (True, False, True)


@pytest.fixture
def breaks_while_set_up(monkeypatch):
    """The next connection breaks while it is set up. Django keeps it, and does not say that it has opened one."""
    monkeypatch.setattr(hygiene, "_elsewhere", threading.Event())
    backend = type(connections["default"])
    set_up = backend.init_connection_state
    broken = []

    def break_once(self):
        if not broken:
            broken.append(self)
            self.connection.close()
            self.connection.execute("SELECT")
        set_up(self)

    monkeypatch.setattr(backend, "init_connection_state", break_once)


def results_in_turn(*fns):
    async def scenario():
        async with executor(threads=1) as (running, reported):
            for number, fn in enumerate(fns, 1):
                running.submit(attempt_of(fn))
                await eventually_async(lambda number=number: len(reported) == number)
            return reported

    results = asyncio.run(scenario())
    asyncio.run(sync_to_async(connections.close_all)())
    return results


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("age", [0, None])
@pytest.mark.parametrize("use", [own_session, own_session_async])
def test_a_connection_that_breaks_while_it_is_set_up_costs_one_attempt(use, age, breaks_while_set_up, monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", age)
    first, second = results_in_turn(use, use)
    assert (first.ok, second.ok) == (False, True)


@pytest.mark.django_db(transaction=True)
def test_a_broken_connection_of_which_an_activity_says_nothing_is_replaced_in_a_while(breaks_while_set_up, monkeypatch):
    def keeps_it_to_itself() -> int:
        with suppress(DatabaseError):
            return own_session()
        return 0

    monkeypatch.setattr(hygiene.ThreadConnections, "EVERY", 0)
    first, second = results_in_turn(keeps_it_to_itself, keeps_it_to_itself)
    assert int(first.value_json) == 0 < int(second.value_json)


@pytest.mark.django_db(transaction=True)
def test_a_transaction_an_activity_leaves_open_is_rolled_back(caplog):
    def leave_open():
        transaction.atomic().__enter__()
        ContentType.objects.create(app_label="left", model="open")

    def look() -> bool:
        return connections["default"].in_atomic_block

    caplog.set_level(logging.WARNING, logger="continuum.worker")
    _, second = results_of(attempt_of(leave_open), attempt_of(look), threads=1)
    assert second.value_json == "false"
    assert not ContentType.objects.filter(app_label="left").exists()
    assert "left a transaction open" in caplog.text


def test_attempts_that_leave_the_database_alone_do_not_pay_for_it(monkeypatch):
    looks, ran = [], []
    monkeypatch.setattr(hygiene, "close_old_connections", lambda: looks.append(threading.get_ident()))
    monkeypatch.setattr(hygiene.ThreadConnections, "EVERY", 3600)
    monkeypatch.setattr(hygiene, "_elsewhere", threading.Event())

    def blocking():
        ran.append(threading.get_ident())

    async def waiting():
        pass

    attempts = [attempt_of(fn) for fn in (blocking, waiting) for _ in range(20)]
    assert all(result.ok for result in results_of(*attempts, threads=1))
    # The thread when it was new, and whoever bore its number before; but not at each of the attempts.
    assert len(set(ran)) == 1
    assert len([thread for thread in looks if thread in ran]) < 5
