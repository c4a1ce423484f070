"""``continuum_env``: workflows in memory, without a database, in virtual time."""

import asyncio
import inspect
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import AsyncMock
from uuid import uuid4 as random_uuid

import pytest
from django.contrib.auth.models import Group
from django.db import connection

import continuum
from continuum import (
    ActivityCancelledError,
    ActivityError,
    ActivityTimeoutError,
    AlreadyStartedError,
    ChildError,
    DurableValueError,
    ModelRef,
    NonDeterminismError,
    NonRetryableError,
    Retry,
    RetryAfterError,
    RunCancelledError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    RunStateError,
    SignalRefusedError,
    SignalTimeoutError,
    activity,
    activity_info,
    compensate_all,
    continue_as_new,
    heartbeat,
    now,
    run_info,
    set_progress,
    side_effect,
    sleep,
    start_child,
    wait_signal,
    workflow,
)
from continuum.determinism import guards
from continuum.testing.environment import Environment, StuckError
from continuum.testing.mocks import MockExhaustedError
from tests.waiting_for import eventually


@activity(retry=Retry(max_attempts=3, base=10.0))
def charge(order: str, cents: int) -> str:
    return f"{order}:{cents}"


@activity
def refund(order: str) -> None: ...


@activity(transactional=True)
def ship(order: str) -> str:
    return f"parcel of {order}"


@activity(timeout=timedelta(seconds=30))
async def ask(carrier: str) -> str:
    await asyncio.sleep(20 if carrier == "slow" else 60 if carrier == "dead" else 0)
    return f"{carrier} says yes"


@workflow(signals={"review": str})
async def order(number: str) -> dict:
    receipt = await charge(number, 900).compensated_by(refund.bind(number))
    set_progress("waiting for a review")
    try:
        verdict = await wait_signal("review", timeout=timedelta(hours=24))
    except SignalTimeoutError:
        verdict = "approved"
    if verdict != "approved":
        await compensate_all()
        return {"state": "rejected"}
    return {"state": "shipped", "receipt": receipt, "parcel": await ship(number)}


@workflow
async def asks(carrier: str) -> str:
    return await ask(carrier)


@workflow
async def charges(number: str, cents: int = 1) -> str:
    return await charge(number, cents)


async def later(order: str, cents: int) -> str:
    await asyncio.sleep(1)
    return f"{order}!"


@workflow
async def sleeps(seconds: float) -> datetime:
    await sleep(seconds)
    return now()


class TestResults:
    def test_a_workflow_runs_to_its_end(self, continuum_env):
        run = continuum_env.start(order, "o1")
        assert run.state == "suspended"
        continuum_env.signal(run, "review", "approved")
        assert continuum_env.result(run) == {"state": "shipped", "receipt": "o1:900", "parcel": "parcel of o1"}
        assert (run.state, run.is_terminal) == ("completed", True)

    def test_the_result_is_of_the_annotated_type(self, continuum_env):
        @dataclass
        class Receipt:
            cents: int

        @workflow(name="env.typed")
        async def typed() -> Receipt:
            return Receipt(5)

        run = continuum_env.start(typed)
        assert continuum_env.result(run) == Receipt(5)
        # Its row knows no annotation, as in production.
        assert run.result == {"cents": 5}

    def test_a_failure_is_raised_as_in_production(self, continuum_env):
        @workflow(name="env.fails")
        async def fails() -> None:
            raise ValueError("no")

        run = continuum_env.start(fails)
        with pytest.raises(RunFailedError, match="ValueError: no") as caught:
            continuum_env.result(run)
        assert caught.value.run_id == run.id
        assert "raise ValueError" in run.error["traceback"]

    def test_arguments_that_are_not_durable_are_refused_at_the_start(self, continuum_env):
        with pytest.raises(DurableValueError, match=r"input\[0\].*not durable"):
            continuum_env.start(order, lambda: None)
        assert continuum_env.runs() == []

    def test_arguments_that_do_not_fit_are_refused_at_the_start(self, continuum_env):
        with pytest.raises(TypeError, match="order"):
            continuum_env.start(order)

    def test_a_result_that_is_not_durable_fails_the_run(self, continuum_env):
        @workflow(name="env.undurable")
        async def undurable():
            return lambda: None

        with pytest.raises(RunFailedError, match="DurableValueError"):
            continuum_env.result(continuum_env.start(undurable))

    def test_values_are_copied_on_their_way(self, continuum_env):
        @activity(name="env.changes")
        def changes(items: list) -> list:
            items.append(2)
            return items

        @workflow(name="env.shares")
        async def shares() -> list:
            items = [1]
            await changes(items)
            return items

        assert continuum_env.result(continuum_env.start(shares)) == [1]

    def test_what_it_waits_for_is_named_when_nothing_can_happen(self, continuum_env):
        @workflow(name="env.waits")
        async def waits() -> None:
            await wait_signal("go")

        run = continuum_env.start(waits)
        with pytest.raises(StuckError, match=r"env\.waits .* waits for signal 'go'.*continuum_env\.signal\(run, 'go'"):
            continuum_env.result(run)

    def test_a_workflow_without_an_end_is_noticed(self, continuum_env, monkeypatch):
        monkeypatch.setattr("continuum.testing.environment.MOST_STEPS", 50)

        @workflow(name="env.endless")
        async def endless() -> None:
            while True:
                await sleep(1)

        with pytest.raises(StuckError, match="has not ended after 50 steps"):
            continuum_env.result(continuum_env.start(endless))

    def test_the_facts_about_a_run_are_those_it_was_started_with(self, continuum_env):
        @workflow(name="env.facts")
        async def facts() -> list:
            info = run_info()
            return [info.run_id, info.namespace, info.workflow, info.started_at]

        run = continuum_env.start(facts, namespace="billing", attributes={"plan": "pro"}, priority=3)
        assert continuum_env.result(run) == [run.id, "billing", "env.facts", run.started_at]
        assert (run.attributes, run.priority, run.input) == ({"plan": "pro"}, 3, [])
        assert continuum_env.get_run(str(run.id), namespace="billing") is run
        with pytest.raises(RunNotFoundError):
            continuum_env.get_run(run.id, namespace="other")
        with pytest.raises(RunNotFoundError):
            continuum_env.result(random_uuid())

    def test_progress_and_history_can_be_read(self, continuum_env):
        run = continuum_env.start(order, "o1")
        assert run.progress == "waiting for a review"
        (wait,) = continuum_env.waiting_on(run)
        assert (wait["kind"], wait["name"]) == ("signal", "review")
        (event,) = continuum_env.history(run)
        assert (event.seq, event.type, event.name) == (1, "activity_completed", charge.name)
        assert event.data["result"] == "o1:900"

    def test_a_run_is_running_while_something_of_it_is_under_way(self, continuum_env):
        continuum_env.mock(charge, side_effect=[OSError(), "ch_1"], takes=3)
        run = continuum_env.start(charges, "o1")
        began = continuum_env.now
        assert (run.state, run.next_wakeup_at) == ("running", None)
        continuum_env.advance(3)
        assert (run.state, run.next_wakeup_at) == ("suspended", began + timedelta(seconds=13))
        continuum_env.advance(10)
        assert run.state == "running"
        continuum_env.crash()
        assert run.state == "running"
        assert continuum_env.result(run) == "ch_1"

    def test_a_run_says_when_it_goes_on_and_how_long_it_is_kept(self, continuum_env):
        @workflow(name="env.kept", retention=timedelta(days=1))
        async def kept() -> None:
            await sleep(60)

        @workflow(name="env.kept_for_ever", retention=None)
        async def kept_for_ever() -> None: ...

        later = continuum_env.now + timedelta(hours=1)
        run = continuum_env.start(kept, start_at=later)
        assert (run.next_wakeup_at, run.retention_until) == (later, None)
        continuum_env.advance(timedelta(hours=1))
        assert run.next_wakeup_at == later + timedelta(seconds=60)
        continuum_env.result(run)
        assert (run.next_wakeup_at, run.retention_until) == (None, run.completed_at + timedelta(days=1))
        assert continuum_env.start(kept_for_ever).retention_until is None

    def test_a_run_has_what_a_row_has(self, continuum_env):
        run = continuum_env.start(order, "o1")
        documented = (
            "id, workflow, version, version_hash, namespace, attributes, state, input, result, error, progress, "
            "waiting_on, started_at, completed_at, next_wakeup_at, parent_run_id, correlation_id, "
            "continued_from_run_id, retention_until"
        )
        assert [name for name in documented.split(", ") if not hasattr(run, name)] == []

    def test_two_runs_of_a_test_are_the_same_every_time(self, continuum_env):
        other = Environment()
        assert continuum_env.start(order, "o1").id == other.start(order, "o1").id
        other.close()


class TestIdempotencyKeysOfRuns:
    def test_a_key_is_taken_once_in_each_namespace(self, continuum_env):
        run = continuum_env.start(order, "o1", idempotency_key="o1")
        with pytest.raises(AlreadyStartedError) as caught:
            continuum_env.start(order, "o2", idempotency_key="o1")
        assert caught.value.run_id == run.id
        assert continuum_env.get_or_start(order, "o1", idempotency_key="o1") == (run, False)
        assert continuum_env.get_or_start(order, "o1", idempotency_key="o1", namespace="b")[1]


class TestTime:
    def test_it_skips_to_whatever_is_due_next(self, continuum_env):
        began = continuum_env.now
        assert continuum_env.result(continuum_env.start(sleeps, 86_400.0)) == began + timedelta(days=1)
        assert continuum_env.now == began + timedelta(days=1)

    def test_it_stands_still_otherwise(self, continuum_env):
        began = continuum_env.now
        run = continuum_env.start(order, "o1")
        continuum_env.signal(run, "review", "approved")
        assert continuum_env.now == began
        assert run.state == "completed"

    def test_advancing_lets_happen_what_is_due_meanwhile(self, continuum_env):
        short, long = continuum_env.start(sleeps, 30.0), continuum_env.start(sleeps, 90.0)
        began = continuum_env.now
        assert continuum_env.advance(60) == began + timedelta(seconds=60)
        assert (short.state, long.state) == ("completed", "suspended")
        assert short.completed_at == began + timedelta(seconds=30)

    def test_a_run_starts_when_it_is_to(self, continuum_env):
        run = continuum_env.start(sleeps, 0.0, start_at=continuum_env.now + timedelta(hours=1))
        assert run.state == "pending"
        assert continuum_env.result(run) == run.started_at + timedelta(hours=1)

    def test_a_run_is_cancelled_at_its_time_limit(self, continuum_env):
        run = continuum_env.start(sleeps, 90.0, timeout=60)
        with pytest.raises(RunCancelledError, match="timeout is over"):
            continuum_env.result(run)
        assert run.completed_at == run.started_at + timedelta(seconds=60)

    def test_a_result_may_be_waited_for_as_long_as_one_likes(self, continuum_env):
        run = continuum_env.start(sleeps, 90.0)
        began = continuum_env.now
        with pytest.raises(TimeoutError, match="still suspended after 60 seconds: it waits for timer") as caught:
            continuum_env.result(run, timeout=60)
        assert isinstance(caught.value, continuum.ContinuumError)
        assert continuum_env.now == began + timedelta(seconds=60)
        assert continuum_env.result(run, timeout=60)

    def test_asyncios_own_timeouts_skip_too(self, continuum_env):
        @workflow(name="env.patience")
        async def patience(carrier: str) -> str:
            try:
                async with asyncio.timeout(10):
                    return await ask(carrier)
            except TimeoutError:
                return "no answer"

        assert continuum_env.result(continuum_env.start(patience, "quick")) == "quick says yes"
        began = continuum_env.now
        assert continuum_env.result(continuum_env.start(patience, "slow")) == "no answer"
        assert continuum_env.now == began + timedelta(seconds=10)
        assert continuum_env.calls(ask)[-1].state == "abandoned"


class TestSignals:
    def test_a_signal_may_come_before_it_is_waited_for(self, continuum_env):
        @workflow(name="env.later")
        async def later() -> list:
            await sleep(60)
            return [await wait_signal("a"), await wait_signal("a")]

        run = continuum_env.start(later)
        continuum_env.signal(run, "a", 1)
        continuum_env.signal(run, "a", 2)
        assert continuum_env.result(run) == [1, 2]

    def test_what_the_workflow_does_not_declare_is_refused(self, continuum_env):
        run = continuum_env.start(order, "o1")
        with pytest.raises(SignalRefusedError, match="declares review"):
            continuum_env.signal(run, "reviewed", "approved")
        with pytest.raises(SignalRefusedError, match="str, not int"):
            continuum_env.signal(run, "review", 1)

    def test_a_repeated_delivery_is_dropped(self, continuum_env):
        @workflow(name="env.two")
        async def two() -> list:
            return [await wait_signal("a"), await wait_signal("a")]

        run = continuum_env.start(two)
        assert [continuum_env.signal(run, "a", n, delivery_id="d1") for n in (1, 2)] == [True, False]
        continuum_env.signal(run, "a", 3)
        assert continuum_env.result(run) == [1, 3]
        assert continuum_env.signal(run, "a", 4, delivery_id="d1") is False
        with pytest.raises(RunNotActiveError):
            continuum_env.signal(run, "a", 4)

    def test_payloads_must_be_durable(self, continuum_env):
        @workflow(name="env.any")
        async def takes_any() -> None:
            await wait_signal("a")

        with pytest.raises(DurableValueError, match="payload"):
            continuum_env.signal(continuum_env.start(takes_any), "a", object())


class TestCancelling:
    def test_a_cancelled_run_cleans_up(self, continuum_env):
        @workflow(name="env.cleans")
        async def cleans() -> None:
            try:
                await sleep(60)
            finally:
                await refund("o1")

        run = continuum_env.start(cleans)
        continuum_env.cancel(run, reason="the customer called")
        with pytest.raises(RunCancelledError, match="the customer called"):
            continuum_env.result(run)
        assert len(continuum_env.calls(refund)) == 1
        with pytest.raises(RunNotActiveError):
            continuum_env.cancel(run)

    def test_a_run_that_has_not_begun_ends_without_its_code(self, continuum_env):
        run = continuum_env.start(charges, "o1", start_at=continuum_env.now + timedelta(hours=1))
        continuum_env.cancel(run)
        assert run.state == "cancelled"
        assert continuum_env.calls(charge) == []

    def test_it_reaches_the_children(self, continuum_env):
        @workflow(name="env.parent")
        async def parent() -> None:
            await asyncio.gather(sleeps(60.0), sleeps(90.0))

        run = continuum_env.start(parent)
        continuum_env.cancel(run)
        assert [child.state for child in continuum_env.runs(sleeps)] == ["cancelled", "cancelled"]


class TestActivities:
    def test_a_value_stands_in_for_the_real_thing(self, continuum_env):
        continuum_env.mock(charge, return_value="ch_1")
        assert continuum_env.result(continuum_env.start(charges, "o1", 5)) == "ch_1"
        continuum_env.unmock(charge)
        assert continuum_env.result(continuum_env.start(charges, "o1", 5)) == "o1:5"

    def test_calls_are_recorded(self, continuum_env):
        mock = continuum_env.mock(charge, side_effect=[ValueError("busy"), "ch_1"])
        run = continuum_env.start(charges, "o1", 5)
        assert continuum_env.result(run) == "ch_1"
        (call,) = continuum_env.calls(charge)
        assert (call.args, call.kwargs, call.attempts) == (("o1", 5), {}, 2)
        assert (call.run_id, call.command_id, call.state, call.result) == (run.id, "0:1", "completed", "ch_1")
        assert call.error["message"] == "busy"
        assert mock.calls == [call]
        assert mock.call_count == 1
        assert continuum_env.calls(refund) == []

    @pytest.mark.parametrize(
        "behaviour",
        [
            {"side_effect": lambda order, cents: f"{order}!"},
            {"fn": lambda order, cents: f"{order}!"},
            {"side_effect": ["o1!"]},
            {"return_value": "o1!"},
            {"side_effect": AsyncMock(return_value="o1!"), "takes": 1},
            {"side_effect": AsyncMock(return_value="o1!")},
            {"fn": later},
        ],
        ids=lambda behaviour: next(iter(behaviour)),
    )
    def test_a_mock_can_be_said_in_several_ways(self, continuum_env, behaviour):
        continuum_env.mock(charge, **behaviour)
        assert continuum_env.result(continuum_env.start(charges, "o1")) == "o1!"

    @pytest.mark.parametrize(
        "behaviour", [{"side_effect": ValueError("no")}, {"raises": ValueError("no")}, {"raises": ValueError}]
    )
    def test_a_mock_can_fail(self, continuum_env, behaviour):
        continuum_env.mock(charge, **behaviour)
        with pytest.raises(RunFailedError, match="failed after 3 attempts: ValueError"):
            continuum_env.result(continuum_env.start(charges, "o1"))

    def test_a_mock_that_runs_out_of_outcomes_fails_the_test(self, continuum_env):
        continuum_env.mock(charge, side_effect=[])
        with pytest.raises(MockExhaustedError, match="more often than it has outcomes"):
            continuum_env.start(charges, "o1")

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            ({}, "none of them"),
            ({"return_value": 1, "raises": ValueError}, "not raises and return_value"),
            ({"raises": "no"}, "raises must be an exception"),
            ({"side_effect": "no"}, "side_effect must be a function"),
            ({"fn": 5}, "no function"),
        ],
    )
    def test_a_mock_that_makes_no_sense_is_refused(self, continuum_env, given, complaint):
        with pytest.raises(TypeError, match=complaint):
            continuum_env.mock(charge, **given)
        with pytest.raises(TypeError, match="neither an @activity nor a @workflow"):
            continuum_env.mock(print, return_value=1)

    def test_retries_follow_their_policy(self, continuum_env):
        tries = []

        def fails(order, cents):
            tries.append(continuum_env.now)
            raise ValueError

        continuum_env.mock(charge, fails)
        run = continuum_env.start(charges, "o1")
        assert continuum_env.waiting_on(run)[0]["attempt"] == 2
        with pytest.raises(RunFailedError):
            continuum_env.result(run)
        assert [(at - tries[0]).total_seconds() for at in tries] == [0, 10, 30]

    def test_an_activity_may_say_when_it_is_tried_again(self, continuum_env):
        continuum_env.mock(charge, side_effect=[RetryAfterError(77), "ch_1"])
        began = continuum_env.now
        continuum_env.result(continuum_env.start(charges, "o1"))
        assert continuum_env.now == began + timedelta(seconds=77)

    def test_an_activity_may_refuse_to_be_tried_again(self, continuum_env):
        continuum_env.mock(charge, raises=NonRetryableError("no such card", details={"card": 1}))

        @workflow(name="env.details")
        async def details() -> list:
            try:
                await charge("o1", 1)
            except ActivityError as error:
                return [error.attempts, error.type, error.details]

        assert continuum_env.result(continuum_env.start(details)) == [1, "NonRetryableError", {"card": 1}]

    def test_async_activities_run_in_virtual_time(self, continuum_env):
        began = continuum_env.now
        assert continuum_env.result(continuum_env.start(asks, "slow")) == "slow says yes"
        assert continuum_env.now == began + timedelta(seconds=20)

    def test_an_attempt_that_takes_too_long_is_cancelled(self, continuum_env):
        began = continuum_env.now
        run = continuum_env.start(asks, "dead")
        with pytest.raises(RunFailedError, match=r"ActivityTimeoutError: .*did not finish within 30 seconds"):
            continuum_env.result(run)
        assert continuum_env.now == began + timedelta(seconds=30)

    def test_a_mock_may_take_its_time(self, continuum_env):
        began = continuum_env.now
        continuum_env.mock(ask, return_value="yes", takes=29)
        assert continuum_env.result(continuum_env.start(asks, "a")) == "yes"
        assert continuum_env.now == began + timedelta(seconds=29)
        continuum_env.mock(ask, return_value="yes", takes=31)
        with pytest.raises(RunFailedError, match=ActivityTimeoutError.__name__):
            continuum_env.result(continuum_env.start(asks, "a"))

    def test_many_attempts_are_under_way_at_the_same_time(self, continuum_env):
        @workflow(name="env.fan_out")
        async def fan_out() -> list:
            return await asyncio.gather(*(ask("slow") for _ in range(5)))

        began = continuum_env.now
        assert len(continuum_env.result(continuum_env.start(fan_out))) == 5
        assert continuum_env.now == began + timedelta(seconds=20)

    def test_an_activity_knows_its_attempt_and_what_the_last_one_left(self, continuum_env):
        seen = []

        @activity(name="env.export", retry=Retry(max_attempts=2), idempotency_key=lambda: "k")
        def export() -> int:
            info = activity_info()
            seen.append((info.attempt, info.heartbeat_details, info.idempotency_key, info.run_id))
            heartbeat({"page": info.attempt})
            if info.attempt == 1:
                raise ValueError
            return info.heartbeat_details["page"]

        @workflow(name="env.exports")
        async def exports() -> int:
            return await export()

        run = continuum_env.start(exports)
        assert continuum_env.result(run) == 1
        assert seen == [(1, None, "k", run.id), (2, {"page": 1}, "k", run.id)]

    def test_an_attempt_that_sends_no_heartbeat_has_failed(self, continuum_env):
        @activity(name="env.silent", heartbeat_timeout=5)
        async def silent(beats: bool) -> str:
            for _ in range(4):
                await asyncio.sleep(3)
                if beats:
                    heartbeat()
            return "done"

        @workflow(name="env.listens")
        async def listens(beats: bool) -> str:
            return await silent(beats)

        assert continuum_env.result(continuum_env.start(listens, True)) == "done"
        with pytest.raises(RunFailedError, match="no heartbeat for 5 seconds"):
            continuum_env.result(continuum_env.start(listens, False))

    def test_an_attempt_nobody_wants_learns_of_it(self, continuum_env):
        learned = []

        @activity(name="env.long")
        async def long() -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                with pytest.raises(ActivityCancelledError):
                    heartbeat()
                learned.append(True)
                raise

        @workflow(name="env.cut")
        async def cut() -> None:
            await long()

        run = continuum_env.start(cut)
        continuum_env.cancel(run)
        assert learned == [True]
        assert run.state == "cancelled"

    def test_a_result_that_is_not_durable_fails_the_activity(self, continuum_env):
        continuum_env.mock(refund, return_value=object())

        @workflow(name="env.refunds")
        async def refunds() -> None:
            await refund("o1")

        with pytest.raises(RunFailedError, match="DurableValueError"):
            continuum_env.result(continuum_env.start(refunds))

    def test_an_idempotency_key_has_one_result(self, continuum_env):
        @activity(name="env.once", idempotency_key=lambda key: key)
        async def once(key: str) -> str:
            await asyncio.sleep(10)
            return str(activity_info().run_id)

        @workflow(name="env.asks_once")
        async def asks_once(key: str) -> str:
            return await once(key)

        runs = [continuum_env.start(asks_once, key) for key in ("k", "k", "other")]
        first, second, third = map(continuum_env.result, runs)
        assert first == second == str(runs[0].id)
        assert third == str(runs[2].id)
        assert continuum_env.result(continuum_env.start(asks_once, "k")) == first
        assert len(continuum_env.calls(once)) == 2

    def test_a_key_whose_call_failed_is_free_again(self, continuum_env):
        @activity(name="env.try_once", idempotency_key=lambda: "k")
        def try_once() -> str: ...

        @workflow(name="env.tries_once")
        async def tries_once() -> str:
            return await try_once()

        continuum_env.mock(try_once, side_effect=[ValueError("no"), "yes"], takes=1)
        one, two = continuum_env.start(tries_once), continuum_env.start(tries_once)
        with pytest.raises(RunFailedError):
            continuum_env.result(one)
        assert continuum_env.result(two) == "yes"

    def test_an_activity_may_steer_runs(self, continuum_env):
        @workflow(name="env.steered")
        async def steered() -> str:
            await refund("o1")
            return await wait_signal("go")

        continuum_env.mock(refund, lambda order: continuum_env.signal(run_ids[0], "go", "on") and None)
        run_ids = []
        run = continuum_env.start(steered, start_at=continuum_env.now + timedelta(seconds=1))
        run_ids.append(run.id)
        assert continuum_env.result(run) == "on"
        continuum_env.mock(refund, lambda order: continuum_env.advance(1))
        with pytest.raises(RunFailedError, match=r"advance\(\) cannot be called by an activity"):
            continuum_env.result(continuum_env.start(steered))


class TestDatabase:
    @activity(name="env.greet")
    def greet(group: Group) -> str:
        return f"hello {group.name}"

    @activity(name="env.agreet")
    async def agreet(group: Group) -> str:
        return f"hello {group.name} of {await Group.objects.acount()}"

    @workflow(name="env.greets")
    async def greets(group: ModelRef) -> list:
        return [await TestDatabase.greet(group), await TestDatabase.agreet(group)]

    def test_none_is_needed_where_activities_are_mocked(self, continuum_env):
        continuum_env.mock(self.greet, lambda group: group.label)
        continuum_env.mock(self.agreet, return_value="hello")
        group = ModelRef("auth.Group", 7, "default")
        assert continuum_env.result(continuum_env.start(self.greets, group)) == ["auth.Group", "hello"]

    def test_activities_see_what_the_test_has_written_in_its_transaction(self, db, continuum_env):
        group = Group.objects.create(name="us")
        assert connection.in_atomic_block
        assert continuum_env.result(continuum_env.start(self.greets, group)) == ["hello us", "hello us of 1"]

    def test_one_that_may_not_use_it_says_so(self, continuum_env):
        group = ModelRef("auth.Group", 7, "default")
        with pytest.raises(RunFailedError, match="Database access not allowed"):
            continuum_env.result(continuum_env.start(self.greets, group))


class TestFamilies:
    def test_children_run_for_real(self, continuum_env):
        @workflow(name="env.has_children")
        async def has_children() -> list:
            child = await start_child(charges, "o2", 5, attributes={"n": 2})
            return [await charges("o1", 4), await child, str(child.id)]

        run = continuum_env.start(has_children, attributes={"n": 1}, namespace="billing")
        one, two, child_id = continuum_env.result(run)
        assert (one, two) == ("o1:4", "o2:5")
        child = continuum_env.get_run(child_id)
        assert (child.parent_run_id, child.attributes, child.namespace) == (run.id, {"n": 2}, "billing")
        assert [c.attributes["n"] for c in continuum_env.runs(charges)] == [2, 1]

    def test_or_are_mocked(self, continuum_env):
        @workflow(name="env.asks_children")
        async def asks_children() -> list:
            return [await charges("o1"), await charges("o2")]

        continuum_env.mock(charges, side_effect=["a", "b"], takes=5)
        began = continuum_env.now
        assert continuum_env.result(continuum_env.start(asks_children)) == ["a", "b"]
        assert continuum_env.now == began + timedelta(seconds=10)
        assert [call.args for call in continuum_env.calls(charges)] == [("o1",), ("o2",)]
        assert continuum_env.calls(charge) == []

    def test_a_mocked_child_can_fail(self, continuum_env):
        @workflow(name="env.catches")
        async def catches() -> list:
            try:
                await charges("o1")
            except ChildError as error:
                return [error.state, error.type, error.message]

        continuum_env.mock(charges, raises=ValueError("no"))
        assert continuum_env.result(continuum_env.start(catches)) == ["failed", "ValueError", "no"]

    def test_a_chain_is_followed(self, continuum_env):
        @workflow(name="env.chain")
        async def chain(n: int) -> list:
            await wait_signal("next")
            if n == 2:
                return [n, await wait_signal("rest")]
            continue_as_new(n + 1)

        run = continuum_env.start(chain, 1)
        continuum_env.signal(run, "rest", "kept")
        continuum_env.signal(run, "next")
        assert run.state == "completed"
        continuum_env.signal(run, "next")
        assert continuum_env.result(run) == [2, "kept"]
        second = continuum_env.get_run(run.continued_to_run_id)
        assert (second.continued_from_run_id, second.correlation_id) == (run.id, run.id)

    def test_what_was_sent_to_a_run_reaches_the_one_that_continues_it(self, continuum_env):
        @workflow(name="env.relay")
        async def relay(n: int) -> list:
            payload = await wait_signal("next")
            if n == 2:
                return [n, payload]
            continue_as_new(n + 1)

        run = continuum_env.start(relay, 1, start_at=continuum_env.now + timedelta(seconds=1))
        assert continuum_env.signal(run, "next", "a", delivery_id="d1")
        continuum_env.signal(run, "next", "b")
        assert continuum_env.result(run) == [2, "b"]
        assert continuum_env.signal(run, "next", "c", delivery_id="d1") is False

    def test_so_do_its_children_when_it_is_cancelled(self, continuum_env):
        @workflow(name="env.leaves_a_child")
        async def leaves_a_child(first: bool) -> None:
            if first:
                await start_child(sleeps, 60.0)
                continue_as_new(False)
            await wait_signal("never")

        run = continuum_env.start(leaves_a_child, True)
        continuum_env.cancel(run)
        (child,) = continuum_env.runs(sleeps)
        assert child.state == "cancelled"
        assert child.parent_run_id == run.continued_to_run_id

    def test_a_child_that_goes_on_as_another_run_answers_in_the_end(self, continuum_env):
        @workflow(name="env.loops")
        async def loops(n: int) -> int:
            await sleep(1)
            if n < 3:
                continue_as_new(n + 1)
            return n

        @workflow(name="env.waits_for_loop")
        async def waits_for_loop() -> int:
            return await loops(1)

        assert continuum_env.result(continuum_env.start(waits_for_loop)) == 3


class TestGoingOn:
    def test_a_failed_run_is_retried_from_where_it_failed(self, continuum_env):
        @workflow(name="env.two_steps")
        async def two_steps() -> list:
            return [await charge("o1", 1), await ship("o1")]

        continuum_env.mock(ship, raises=ValueError("no"))
        run = continuum_env.start(two_steps)
        with pytest.raises(RunFailedError):
            continuum_env.result(run)
        continuum_env.unmock(ship)
        assert continuum_env.retry(run) is run
        assert continuum_env.result(run) == ["o1:1", "parcel of o1"]
        assert len(continuum_env.calls(charge)) == 1
        with pytest.raises(RunStateError, match="completed, not failed"):
            continuum_env.retry(run)

    def test_so_are_the_children_it_failed_of(self, continuum_env):
        @workflow(name="env.one_child")
        async def one_child() -> str:
            return await charges("o1")

        continuum_env.mock(charge, raises=NonRetryableError("no"))
        run = continuum_env.start(one_child)
        with pytest.raises(RunFailedError):
            continuum_env.result(run)
        continuum_env.unmock(charge)
        continuum_env.advance(1)
        continuum_env.retry(run)
        assert continuum_env.result(run) == "o1:1"
        assert len(continuum_env.runs(charges)) == 1

    def test_so_are_they_without_time_having_passed_and_fail_once_more_if_they_do(self, continuum_env):
        @workflow(name="env.one_grandchild")
        async def one_grandchild() -> str:
            return await has_child()

        @workflow(name="env.has_child")
        async def has_child() -> str:
            return await charges("o1")

        continuum_env.mock(charge, raises=NonRetryableError("no"))
        run = continuum_env.start(one_grandchild)
        for attempts in (2, 3):
            continuum_env.retry(run)
            with pytest.raises(RunFailedError):
                continuum_env.result(run)
            assert len(continuum_env.calls(charge)) == attempts
            assert run.completed_at == run.started_at
        continuum_env.unmock(charge)
        continuum_env.retry(run)
        assert continuum_env.result(run) == "o1:1"
        assert len(continuum_env.runs()) == 3

    def test_a_run_is_forked(self, continuum_env):
        run = continuum_env.start(order, "o1")
        continuum_env.signal(run, "review", "rejected")
        assert continuum_env.result(run) == {"state": "rejected"}
        other = continuum_env.fork(run, before="0:2")
        assert continuum_env.result(other)["state"] == "shipped"
        assert other.forked_from_run_id == run.id
        with pytest.raises(ValueError, match="nothing about a command '0:77'"):
            continuum_env.fork(run, before="0:77")

    def test_attributes_are_merged(self, continuum_env):
        run = continuum_env.start(order, "o1", attributes={"a": 1})
        continuum_env.set_attributes(run, {"b": 2})
        assert run.attributes == {"a": 1, "b": 2}
        with pytest.raises(TypeError, match="attributes"):
            continuum_env.set_attributes(run, {"c": object()})

    def test_a_lost_worker_changes_nothing(self, continuum_env):
        run = continuum_env.start(order, "o1")
        continuum_env.crash()
        assert run.progress == "waiting for a review"
        continuum_env.signal(run, "review", "approved")
        assert continuum_env.result(run)["state"] == "shipped"
        assert len(continuum_env.calls(charge)) == 1

    def test_but_what_was_under_way_begins_anew(self, continuum_env):
        run = continuum_env.start(asks, "slow")
        continuum_env.advance(15)
        continuum_env.crash()
        began = continuum_env.now
        assert continuum_env.result(run) == "slow says yes"
        assert continuum_env.now == began + timedelta(seconds=20)
        assert continuum_env.calls(ask)[0].attempts == 2


@activity(name="env.busy_at_first", retry=Retry(max_attempts=2, base=0.01))
def busy_at_first() -> str:
    if activity_info().attempt == 1:
        raise ValueError("busy")
    return "done"


@activity(name="env.refused")
def refused() -> None:
    raise NonRetryableError("no", details=[1])


@workflow(name="env.everything")
async def everything(n: int) -> list:
    values = await asyncio.gather(busy_at_first(), charges("o1", n), ask("quick"), sleep(0.01))
    try:
        await refused()
    except ActivityError as error:
        values.append(error.details)
    try:
        await wait_signal("never", timeout=0.01)
    except SignalTimeoutError:
        values.append(side_effect(len, "abc"))
    child = await start_child(charges, "o2")
    if n < 2:
        continue_as_new(n + 1)
    return [*values, await child]


def test_what_happens_in_memory_is_what_happens_in_a_worker(transactional_db, continuum_env, continuum_worker):
    continuum_worker.start()
    real = continuum.start(everything, 1)
    assert continuum.result(real, timeout=60) == continuum_env.result(continuum_env.start(everything, 1))
    # Nobody waits for the child of the run that was continued.
    eventually(lambda: not continuum.Run.objects.active().exists())

    def told(run):
        keys = ("result", "error", "attempt", "state", "reason")
        return sorted(
            (event.type, event.command_id or "", event.name or "", str([strip(event.data.get(key)) for key in keys]))
            for event in run.history()
        )

    def strip(value):
        return {**value, "traceback": ""} if isinstance(value, dict) and "traceback" in value else value

    ours = {run.workflow + str(run.input): run for run in continuum_env.runs()}
    theirs = {run.workflow + str(run.input): run for run in continuum.Run.objects.all()}
    assert sorted(ours) == sorted(theirs)
    for name, run in ours.items():
        assert told(run) == told(theirs[name]), name
        assert run.state == theirs[name].state


async def test_it_works_in_async_tests(continuum_env):
    assert continuum_env.result(continuum_env.start(asks, "slow")) == "slow says yes"
    assert asyncio.get_running_loop() is not None


def test_the_real_clock_is_left_alone(continuum_env):
    continuum_env.advance(86_400 * 365)
    assert abs(datetime.now(UTC) - continuum_env.now) > timedelta(days=1)


def test_side_effects_run(continuum_env):
    @workflow(name="env.effects")
    async def effects() -> int:
        return side_effect(len, "abc")

    assert continuum_env.result(continuum_env.start(effects)) == 3


def test_the_environment_has_the_names_of_the_package(continuum_env):
    for name in ("start", "get_or_start", "get_run", "signal", "cancel", "retry", "fork", "wait_run", "result"):
        real = inspect.signature(getattr(continuum, name)).parameters
        ours = inspect.signature(getattr(continuum_env, name)).parameters
        assert set(ours) - {"options"} <= set(real), name
        assert "options" in ours or set(real) - set(ours) == {"using"}, name


_drawn = iter(range(1_000_000))


@workflow
async def peeks() -> int:
    return len(Path(__file__).read_text())  # continuum: allow[D301] a test of the guard that stops it


@workflow
async def counts_up() -> None:
    await sleep(next(_drawn) + 1)  # continuum: allow[D502] a test of paranoid mode, which finds it


class TestWhatAWorkerWouldRefuse:
    def test_files_and_the_like_are_stopped(self, continuum_env):
        with pytest.raises(RunFailedError, match="NonDeterminismError") as failed:
            continuum_env.result(continuum_env.start(peeks))
        assert Path(__file__).name in str(failed.value)

    def test_so_are_they_in_an_environment_of_ones_own(self):
        env = Environment()
        with pytest.raises(RunFailedError, match="NonDeterminismError"):
            env.result(env.start(peeks))
        env.close()
        env.close()
        assert not guards._undo  # what was put up is taken down, once

    def test_the_test_itself_may_do_anything(self, continuum_env):
        assert Path(__file__).exists()

    def test_under_paranoia_what_cannot_be_repeated_is_found(self, continuum_env, monkeypatch):
        monkeypatch.setenv("CONTINUUM_PARANOID", "1")
        with pytest.raises(NonDeterminismError, match="cannot be repeated"):
            continuum_env.result(continuum_env.start(counts_up))

    def test_under_paranoia_what_can_be_is_left_alone(self, continuum_env, monkeypatch):
        monkeypatch.setenv("CONTINUUM_PARANOID", "1")
        assert continuum_env.result(continuum_env.start(everything, 1))
