"""What workflow code can ask for, one construct at a time: live, and replayed from every prefix of its history."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from continuum.core import effects
from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, sleep_until, wait_signal
from continuum.core.facts import logger, now, patched, random, run_info, set_progress, side_effect, today, uuid4
from continuum.core.retry import Retry
from continuum.exceptions import (
    ActivityError,
    DurableValueError,
    NonDeterminismError,
    NonRetryableError,
    NotInWorkflowError,
    RetryAfterError,
    SignalTimeoutError,
)
from tests.core.driver import EPOCH_US, RUN_ID, Driver, assert_replays, drive, newest_first, note, replay, scripted

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = EPOCH + timedelta(microseconds=EPOCH_US)


@dataclass
class Receipt:
    order: str
    when: datetime


@activity
def add(a: int, b: int) -> int:
    return a + b


@activity
def receipt(order: str) -> Receipt:
    return Receipt(order, START)


@activity(retry=Retry(max_attempts=4, base=2.0))
def flaky(key: str) -> int:
    raise ValueError(f"no {key}")


def run(flow, *arguments, **options):
    """Drive a workflow to its end and check that it replays from everywhere."""
    driver = drive(flow, *arguments, **options)
    assert_replays(driver)
    return driver


# -- activities -------------------------------------------------------------------------------------------------


def test_an_activity_gives_its_result_as_annotated():
    @workflow
    async def flow(n: int):
        paid = await receipt("o1")
        assert paid == Receipt("o1", START)
        return await add(n, b=2)

    driver = run(flow, 40)
    assert driver.result == 42
    assert driver.types == ["activity_completed", "activity_completed", "run_completed"]
    assert driver.asked == [f'{__name__}.receipt["o1"]', f"{__name__}.add[40,2]"]


def test_an_event_carries_the_identity_of_the_command_it_answers():
    @workflow
    async def flow():
        return await add(1, 2)

    event = run(flow).history[0]
    assert (event.seq, event.type, event.command_id, event.name) == (1, "activity_completed", "0:1", f"{__name__}.add")
    assert event.data == '{"args":[1,2],"took":1000,"result":3}'
    assert event.time_us == EPOCH_US + 1000


def test_an_activity_is_tried_again_after_growing_delays_and_its_attempts_are_counted():
    @workflow
    async def flow():
        return await flaky("k")

    def third_time(key, attempts=[]):  # noqa: B006
        attempts.append(key)
        if len(attempts) < 3:
            raise ValueError("not yet")
        return len(attempts)

    driver = run(flow, mocks={flaky.name: third_time})
    assert driver.result == 3
    assert driver.types == ["activity_retried", "activity_retried", "activity_completed", "run_completed"]
    assert '"attempt":3' in driver.history[2].data
    first, second, last = (event.time_us for event in driver.history[:3])
    assert second - first >= 2_000_000
    assert last - second >= 4_000_000


def test_an_activity_that_fails_for_good_raises_what_is_known_of_its_last_error():
    @workflow
    async def flow():
        try:
            await flaky("k")
        except ActivityError as exc:
            return [exc.activity, exc.attempts, exc.type, exc.message, exc.details, str(exc)]

    driver = run(flow)
    name = flaky.name
    assert driver.result == [
        name, 4, "ValueError", "no k", None, f"activity {name} failed after 4 attempts: ValueError: no k",
    ]  # fmt: skip


def test_a_failure_that_nobody_catches_fails_the_run():
    @workflow
    async def flow():
        await flaky.options(retry=Retry())("k")

    driver = run(flow)
    assert driver.outcome.state == "failed"
    assert driver.error["type"] == "ActivityError"
    assert driver.error["message"].endswith("failed after 1 attempt: ValueError: no k")
    assert "test_effects.py" in driver.error["traceback"]
    assert "continuum/core" not in driver.error["traceback"]


def test_details_of_an_error_reach_the_workflow_and_non_retryable_ends_the_attempts():
    def refuse(key):
        raise NonRetryableError("never", details={"code": 7})

    @workflow
    async def flow():
        try:
            await flaky("k")
        except ActivityError as exc:
            return [exc.attempts, exc.details]

    assert run(flow, mocks={flaky.name: refuse}).result == [1, {"code": 7}]


def test_retry_after_sets_the_next_delay():
    def later(key, calls=[]):  # noqa: B006
        calls.append(key)
        if len(calls) == 1:
            raise RetryAfterError(100)
        return 1

    @workflow
    async def flow():
        await flaky("k")
        return (now() - START).total_seconds()

    assert 100 <= run(flow, mocks={flaky.name: later}).result < 101


def test_a_run_that_is_replayed_between_attempts_knows_which_comes_next():
    @workflow
    async def flow():
        return await flaky("k")

    driver = Driver(flow).open()
    driver.step()
    driver.crash()
    (command,) = driver.outstanding.values()
    assert command.attempt == 2
    assert command.not_before_us == driver.clock_us + 2_000_000
    (entry,) = driver.execution.waiting_on()
    assert entry == {
        "kind": "activity",
        "name": flaky.name,
        "since": "2024-06-14T12:00:00+00:00",
        "attempt": 2,
        "next_try": "2024-06-14T12:00:02.001000+00:00",
        "last_error": "ValueError: no k",
    }


def test_arguments_that_are_not_durable_fail_where_the_activity_is_awaited():
    @workflow
    async def flow():
        effect = add(1, print)
        try:
            await effect
        except DurableValueError as exc:
            return str(exc)

    assert run(flow).result == f"{add.name}[1]: function is not durable"


def test_a_result_that_cannot_be_read_fails_the_await_not_the_engine():
    @workflow
    async def flow():
        try:
            await receipt("o")
        except Exception as exc:
            return type(exc).__name__

    driver = Driver(flow).open()
    driver.execution.activity_completed(driver.outstanding["0:1"], '{"~uuid":"zz"}', EPOCH_US, EPOCH_US)
    driver._take()
    assert driver.result == "DurableValueError"


def test_an_effect_starts_when_it_is_awaited_and_only_once():
    @workflow
    async def flow():
        effect = add(1, 1)
        note("made")
        await sleep(5)
        assert await effect == 2
        try:
            await effect
        except RuntimeError as exc:
            return str(exc)

    driver = run(flow)
    assert [a.kind for a in driver.execution.asked] == ["timer", "activity"]
    assert "has been awaited before" in driver.result


def test_an_effect_never_awaited_asks_for_nothing():
    @workflow
    async def flow():
        add(1, 1)

    assert run(flow).types == ["run_completed"]


# -- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [90, 90.0, timedelta(seconds=90)])
def test_sleep_takes_seconds_or_a_timedelta(duration):
    @workflow
    async def flow(duration):
        before = now()
        await sleep(duration)
        return (now() - before).total_seconds()

    driver = run(flow, duration)
    assert 90 <= driver.result < 91
    assert driver.history[0].data == '{"args":[90.0]}'


def test_sleep_until_an_instant_in_any_time_zone_and_not_in_the_past():
    @workflow
    async def flow(when: datetime):
        await sleep_until(when)
        await sleep_until(START - timedelta(days=1))
        return now()

    from datetime import timezone

    when = (START + timedelta(hours=1)).astimezone(timezone(timedelta(hours=5)))
    driver = run(flow, when)
    assert START + timedelta(hours=1) <= driver.result < START + timedelta(hours=1, seconds=1)
    assert driver.history[0].data == '{"args":["2024-06-14T13:00:00+00:00"]}'


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "soon", None, True])
def test_a_duration_that_is_none_is_refused_at_the_call(wrong):
    @workflow
    async def flow():
        with pytest.raises((TypeError, ValueError), match="duration"):
            sleep(wrong)
        with pytest.raises((TypeError, ValueError), match="timeout") if wrong is not None else pytest.raises(TypeError):
            wait_signal("x" if wrong is not None else None, timeout=wrong)
        with pytest.raises((TypeError, ValueError)):
            sleep_until(wrong)
        with pytest.raises(ValueError, match="aware"):
            sleep_until(datetime(2024, 1, 1))

    assert drive(flow).outcome.state == "completed"


def test_a_timer_beyond_the_end_of_time_is_a_wait_for_ever():
    @workflow
    async def flow():
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep(1e15))
            group.create_task(asyncio.sleep(float("inf")))
            group.create_task(sleep_until(datetime.max.replace(tzinfo=UTC)))

    driver = Driver(flow).open()
    assert [entry["until"][:4] for entry in driver.execution.waiting_on()] == ["9999"] * 3
    driver.close()


def test_now_is_the_time_of_the_event_told_last():
    @workflow
    async def flow():
        times = [now()]
        await add(1, 1)
        times += [now(), now()]
        await sleep(86_400)
        return [*times, now(), today()]

    driver = run(flow)
    first, second, again, third, day = driver.result
    assert first == START
    assert second == again == START + timedelta(milliseconds=1)
    assert third == EPOCH + timedelta(microseconds=driver.history[1].time_us)
    assert day == date(2024, 6, 15)


# -- signals ----------------------------------------------------------------------------------------------------


def test_a_signal_reaches_who_waits_for_its_name():
    @workflow
    async def flow():
        return await wait_signal("go")

    driver = Driver(flow).open().signal("stop", 1).signal("go", {"by": "me"}).go()
    assert driver.result == {"by": "me"}
    assert driver.types == ["signal_received", "signal_received", "run_completed"]
    assert [event.command_id for event in driver.history[:2]] == [None, "0:1"]
    assert_replays(driver)


def test_signals_that_came_early_are_kept_in_order():
    @workflow
    async def flow():
        await sleep(10)
        return [await wait_signal("n") for _ in range(3)]

    driver = Driver(flow).open().signal("n", 1).signal("n", 2).signal("n", 3, after=20).go()
    assert driver.result == [1, 2, 3]
    assert_replays(driver)


def test_several_waiters_are_served_in_the_order_they_began():
    @workflow
    async def flow():
        async def wait(number):
            return [number, await wait_signal("n")]

        return await asyncio.gather(*(wait(n) for n in range(3)))

    driver = Driver(flow).open().signal("n", "a").signal("n", "b").signal("n", "c").go()
    assert driver.result == [[0, "a"], [1, "b"], [2, "c"]]
    assert_replays(driver)


def test_a_waiter_that_gave_up_takes_no_signal():
    @workflow
    async def flow():
        first = asyncio.create_task(wait_signal("n"))
        second = asyncio.create_task(wait_signal("n", timeout=5))
        third = asyncio.create_task(wait_signal("n"))
        await asyncio.sleep(1)
        first.cancel()
        return [await third, second.done()]

    driver = Driver(flow).open().signal("n", "for the third", after=10).go()
    assert driver.result == ["for the third", True]
    assert_replays(driver)


def test_a_signal_in_time_beats_its_timeout_and_a_late_one_is_kept():
    @workflow
    async def flow():
        try:
            return ["in time", await wait_signal("go", timeout=timedelta(seconds=5))]
        except SignalTimeoutError as exc:
            note(isinstance(exc, TimeoutError))
            return [str(exc), await wait_signal("go", timeout=0)]

    early = Driver(flow).open().signal("go", 1, after=4).go()
    assert early.result == ["in time", 1]
    assert_replays(early)
    late = Driver(flow).open().signal("go", 1, after=6)
    late.scheduler = scripted(["0:1", "m1"])
    late.go()
    assert late.result == ["no signal 'go' came within 5 seconds", 1]
    assert late.notes == [True]
    assert_replays(late)


def test_a_signal_and_a_timeout_due_together_are_decided_once():
    @workflow
    async def flow():
        try:
            return await wait_signal("go", timeout=5)
        except SignalTimeoutError:
            return "timeout"

    results = set()
    for winner in ("message", "timer"):
        driver = Driver(flow, scheduler=lambda os, winner=winner: next(o for o in os if o.kind == winner))
        driver.open().signal("go", "signal", after=5).go()
        assert_replays(driver)
        results.add(driver.result)
    assert results == {"signal", "timeout"}


def test_declared_signals_are_restored_by_their_type_and_others_refused():
    @workflow(signals={"paid": Receipt})
    async def flow():
        with pytest.raises(ValueError, match=r"signal 'piad' is not declared by .* paid"):
            wait_signal("piad")
        return (await wait_signal("paid")).order

    driver = Driver(flow).open()
    driver.execution.signal_received("paid", '{"order":"o1","when":{"~datetime":"2024-01-01T00:00:00"}}', EPOCH_US)
    driver._take()
    assert driver.result == "o1"


def test_a_payload_that_cannot_be_read_fails_the_wait_not_the_engine():
    @workflow(signals={"paid": Receipt})
    async def flow():
        problems = []
        for _ in range(2):
            try:
                await wait_signal("paid")
            except DurableValueError:
                problems.append("refused")
            await sleep(1)
        return problems

    driver = Driver(flow).open()
    for _ in range(2):
        driver.execution.signal_received("paid", '{"~uuid":"zz"}', EPOCH_US)
        driver._take()
    driver.go()
    assert driver.result == ["refused", "refused"]
    assert_replays(driver)


# -- randomness, decisions --------------------------------------------------------------------------------------


def test_randomness_differs_from_draw_to_draw_and_run_to_run_but_not_from_replay_to_replay():
    @workflow
    async def flow():
        async def draw():
            return [str(uuid4()), random(), random()]

        return [await draw(), await draw(), *await asyncio.gather(draw(), draw())]

    driver = run(flow)
    drawn = [value for draws in driver.result for value in draws]
    assert len(set(drawn)) == 12
    assert all(0 <= value < 1 for value in drawn if isinstance(value, float))
    assert all(UUID(value).version == 4 for value in drawn if isinstance(value, str))
    assert driver.types == ["run_completed"]
    other = Driver(flow, run=driver.run.__class__(UUID(int=5))).open()
    assert not {str(v) for draws in other.result for v in draws} & set(map(str, drawn))


def test_draws_do_not_depend_on_how_concurrent_tasks_interleave():
    @workflow
    async def flow():
        async def draw(n):
            await add(n, n)
            return str(uuid4())

        return await asyncio.gather(*(draw(n) for n in range(3)))

    assert run(flow).result == run(flow, scheduler=newest_first).result


def test_a_side_effect_runs_once_and_is_replayed():
    calls = []

    def setting(name) -> Receipt:
        calls.append(name)
        return Receipt(name, START)

    @workflow
    async def flow():
        value = side_effect(setting, "a")
        await add(1, 1)
        return value.order

    driver = drive(flow)
    assert driver.result == "a"
    assert driver.types == ["side_effect", "activity_completed", "run_completed"]
    replay(driver, driver.history)
    assert calls == ["a"]


def test_a_side_effect_that_raises_raises_the_same_in_every_replay():
    calls = []

    def failing():
        calls.append(1)
        raise LookupError("gone")

    @workflow
    async def flow():
        try:
            side_effect(failing)
        except ActivityError as exc:
            await add(1, 1)
            return [exc.type, exc.message]

    driver = drive(flow)
    assert driver.result == ["LookupError", "gone"]
    replay(driver, driver.history)
    assert calls == [1]


@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_side_effect_cannot_end_the_run_or_the_worker(failure):
    def failing():
        raise failure

    @workflow
    async def flow():
        try:
            side_effect(failing)
        except ActivityError as exc:
            return exc.type

    assert run(flow).result == failure.__name__


def test_a_side_effect_whose_value_is_not_durable_is_refused_alike_in_every_replay():
    def opened():
        return print

    @workflow
    async def flow():
        try:
            side_effect(opened)
        except DurableValueError as exc:
            await add(1, 1)
            return str(exc)

    assert run(flow).result.startswith("side_effect test_a_side_effect_whose_value")


def test_what_a_side_effect_draws_does_not_shift_what_the_workflow_draws():
    def token():
        return str(uuid4())

    @workflow
    async def flow():
        return [str(uuid4()), side_effect(token), str(uuid4()), random()]

    driver = drive(flow)
    replayed = replay(driver, driver.history)
    assert replayed.outcome.result == driver.outcome.result
    assert len(set(driver.result)) == 4


@pytest.mark.parametrize("what", ["task", "timer", "side_effect", "patched"])
def test_a_side_effect_cannot_do_what_a_replay_would_not(what):
    async def nothing():
        pass

    def sneaky():
        loop = asyncio.get_running_loop()
        match what:
            case "task":
                note(loop.create_task(nothing()))
            case "timer":
                loop.call_later(1, print)
            case "side_effect":
                side_effect(str)
            case "patched":
                patched("p")

    @workflow
    async def flow():
        try:
            side_effect(sneaky)
        except ActivityError as exc:
            await sleep(1)
            return [exc.type, exc.message]

    kind, message = run(flow).result
    assert kind == "NonDeterminismError"
    assert "inside a function given to side_effect()" in message


# -- patches ----------------------------------------------------------------------------------------------------


def version(patched_twice=False, with_patch=True):
    async def flow():
        await add(1, 1)
        if with_patch and patched("better"):
            note("new")
            await add(2, 2)
        else:
            note("old")
        await add(3, 3)
        if patched_twice:
            note(patched("better"))

    return flow


def test_a_new_run_takes_the_new_branch_and_says_so_once():
    driver = run(workflow(name="p1")(version(patched_twice=True)))
    assert driver.notes == ["new", True]
    assert driver.types.count("patched") == 1


def test_an_old_history_takes_the_old_branch_for_good():
    driver = drive(workflow(name="p2")(version(with_patch=False)))
    new = workflow(name="p3")(version(patched_twice=True))
    replayed = replay(driver, driver.history[:-1], definition=new)
    assert replayed.notes == ["old", False]
    assert replayed.take().journal[-1].type == "run_completed"


def test_an_old_run_that_has_not_got_there_takes_the_new_branch():
    driver = drive(workflow(name="p4")(version(with_patch=False)))
    replayed = replay(driver, driver.history[:1], definition=workflow(name="p5")(version()))
    assert replayed.notes == ["new"]


def test_a_patch_may_be_removed_once_its_old_branch_is_gone():
    driver = drive(workflow(name="p6")(version()))

    async def flow():
        await add(1, 1)
        note("new")
        await add(2, 2)
        await add(3, 3)
        note(patched("better"))

    replayed = replay(driver, driver.history, definition=workflow(name="p7")(flow))
    assert replayed.notes == ["new", True]


# -- the rest ---------------------------------------------------------------------------------------------------


def test_the_logger_speaks_once(caplog):
    @workflow
    async def flow():
        logger.info("before")
        await add(1, 1)
        logger.info("after %s", "it", extra={"order": "o1"})

    with caplog.at_level(logging.INFO, "continuum.workflow"):
        driver = drive(flow)
        assert [r.getMessage() for r in caplog.records] == ["before", "after it"]
        record = caplog.records[1]
        assert (record.run_id, record.workflow, record.order) == (str(RUN_ID), flow.name, "o1")
        caplog.clear()
        replay(driver, driver.history)
        assert caplog.records == []
        replay(driver, driver.history[:1])
        assert [r.getMessage() for r in caplog.records] == ["after it"]


def test_run_info_states_the_facts():
    seen = []

    @workflow(version=4)
    async def flow():
        seen.append(run_info())
        await sleep(1)
        seen.append(run_info())

    driver = drive(flow)
    first, second = seen
    assert (first.run_id, first.workflow, first.namespace, first.parent_run_id) == (RUN_ID, flow.name, "default", None)
    assert first.started_at == START - timedelta(seconds=5)
    assert (first.replaying, second.replaying) == (False, False)
    seen.clear()
    replay(driver, driver.history[:1])
    assert [info.replaying for info in seen] == [True, False]


def test_progress_is_published_and_leaves_no_history():
    @workflow
    async def flow():
        set_progress({"done": 0})
        await sleep(1)
        set_progress({"done": 1})
        with pytest.raises(DurableValueError, match=r"^progress"):
            set_progress(print)
        await sleep(1)

    driver = Driver(flow).open()
    assert driver.execution.progress == '{"done":0}'
    driver.step()
    assert driver.execution.progress == '{"done":1}'
    driver.go()
    assert driver.types == ["timer_fired", "timer_fired", "run_completed"]
    assert_replays(driver)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sleep(1),
        lambda: sleep_until(START),
        lambda: wait_signal("x"),
        now,
        today,
        uuid4,
        random,
        run_info,
        lambda: side_effect(str),
        lambda: patched("p"),
        lambda: set_progress(1),
    ],
)
def test_outside_a_workflow_everything_says_where_it_belongs(call):
    with pytest.raises(
        NotInWorkflowError, match=r"inside a workflow only.*continuum\.start\(\.\.\.\).*\.call\(\.\.\.\)"
    ):
        call()


def test_the_logger_works_outside_a_workflow(caplog):
    with caplog.at_level(logging.INFO, "continuum.workflow"):
        logger.info("plain")
    assert caplog.messages == ["plain"]


@pytest.mark.parametrize("wrong", ["", None, 3])
def test_names_are_checked(wrong):
    @workflow
    async def flow():
        with pytest.raises(TypeError, match="non-empty string"):
            wait_signal(wrong)
        with pytest.raises(TypeError, match="non-empty string"):
            patched(wrong)

    assert drive(flow).outcome.state == "completed"


def test_a_workflow_called_in_a_workflow_is_a_child_and_its_result_comes_back():
    @workflow
    async def child(n: int) -> int:
        return n * 2

    @workflow
    async def flow():
        return await child(21)

    assert drive(flow).result == 42


async def test_workflow_code_is_recognised_only_while_it_runs():
    seen = []

    @workflow
    async def flow():
        seen.append(effects.in_workflow())

    drive_in_callback(flow)
    assert not effects.in_workflow()
    assert seen == [True]


def drive_in_callback(flow):
    """Drive a workflow from within a running loop, as a worker does."""
    assert drive(flow).outcome.state == "completed"


def test_effects_are_coroutines_that_say_what_they_are():
    from collections.abc import Coroutine

    @workflow
    async def flow():
        assert isinstance(add(1, 1), Coroutine)
        assert asyncio.iscoroutine(add(1, 1))
        return [repr(add(1, 1)), repr(sleep(1)), repr(wait_signal("go"))]

    assert drive(flow).result == [f"<activity {add.name}>", "<timer>", "<signal go>"]


def test_workflow_code_must_not_refuse_drift_or_io_by_accident():
    @workflow
    async def flow():
        try:
            await asyncio.to_thread(print)
        except NonDeterminismError as exc:
            return str(exc)

    assert drive(flow).result.startswith("loop.run_in_executor() is not available in a workflow")
