"""continue_as_new: one run ends, its successor goes on with what nobody has taken yet."""

# ruff: noqa: RUF006  (a run holds its tasks itself)

import asyncio
import contextlib
import json

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.lineage import continue_as_new, start_child
from continuum.core.outcomes import continuation_of
from continuum.core.releasing import ContinueAsNew
from continuum.exceptions import DurableValueError, NonDeterminismError, NotInWorkflowError, ReplayDriftError
from continuum.ids import derived_child
from tests.core.driver import RUN_ID, Driver, assert_replays, drive, replay, scripted


@activity(name="continue.step")
def step(n: int) -> int:
    return n


@workflow(name="continue.child")
async def child() -> None:
    await sleep(1)


def run(flow, *arguments, signals=(), **options):
    driver = Driver(flow, arguments, **options).open()
    for name, payload in signals:
        driver.signal(name, payload)
    driver.go()
    assert_replays(driver)
    return driver


def test_the_run_is_completed_and_its_successor_begins_with_the_arguments():
    @workflow
    async def flow(n: int, *, more: str = "no"):
        await step(n)
        continue_as_new(n + 1)

    driver = run(flow, 1)
    assert driver.types == ["activity_completed", "run_continued"]
    outcome = driver.outcome
    assert (outcome.state, outcome.result, outcome.error, outcome.failed) == ("completed", None, None, ())
    assert outcome.successor.input == "[2]"
    assert outcome.successor.id == derived_child(RUN_ID, "continued", None, driver.execution.loop.time_us)
    assert json.loads(driver.history[-1].data) == {"to": str(outcome.successor.id), "input": [2]}
    assert run(flow, 5).outcome.successor.input == "[6]"


LEAVING = {}


def leaving(fn):
    LEAVING[fn.__name__] = workflow(fn, name=f"continue.{fn.__name__}")


@leaving
async def from_a_nested_task(n: int):
    async def leave():
        await step(1)
        continue_as_new(7)

    await asyncio.create_task(leave())


@leaving
async def from_a_gathering(n: int):
    async def leave():
        await step(1)
        continue_as_new(7)

    await asyncio.gather(sleep(100), leave(), sleep(100))


@leaving
async def from_a_group_whose_others_clean_up(n: int):
    async def other():
        try:
            await sleep(100)
        finally:
            await step(9)

    async def leave():
        await step(1)
        continue_as_new(7)

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        group.create_task(leave())


@leaving
async def from_a_group_in_a_group(n: int):
    async def leave():
        continue_as_new(7)

    async with asyncio.TaskGroup() as outer:
        outer.create_task(sleep(100))
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
            group.create_task(leave())


@leaving
async def past_finally_blocks_that_await(n: int):
    try:
        try:
            await step(1)
            continue_as_new(7)
        finally:
            await step(2)
            await sleep(5)
    finally:
        await step(3)


@leaving
async def inside_an_except_block(n: int):
    try:
        raise ValueError
    except ValueError:
        await step(1)
        continue_as_new(7)


@leaving
async def inside_an_except_of_a_group(n: int):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child.fn("too many"))
    except* TypeError:
        continue_as_new(7)


@leaving
async def past_handlers_of_exceptions(n: int):
    with contextlib.suppress(Exception):
        async with asyncio.timeout(50):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(step(1))), 5)
            continue_as_new(7)


@leaving
async def while_being_cancelled(n: int):
    try:
        async with asyncio.timeout(2):
            await sleep(100)
    except TimeoutError:
        continue_as_new(7)


@pytest.mark.parametrize("name", LEAVING)
def test_it_leaves_the_workflow_from_wherever_it_is_called(name):
    driver = run(LEAVING[name], 1)
    assert driver.types[-1] == "run_continued"
    assert driver.outcome.successor.input == "[7]"
    assert set(driver.execution.pending) == set()


def test_finally_blocks_run_before_it_goes_on():
    assert run(LEAVING["past_finally_blocks_that_await"], 1).asked == [f"continue.step[{n}]" for n in (1, 2, 3)]
    assert run(LEAVING["from_a_group_whose_others_clean_up"], 1).asked == [f"continue.step[{n}]" for n in (1, 9)]


def test_a_group_in_which_something_else_fails_too_fails():
    @workflow
    async def flow():
        async def other():
            try:
                await sleep(100)
            finally:
                raise KeyError

        async def leave():
            await step(1)
            continue_as_new()

        async with asyncio.TaskGroup() as group:
            group.create_task(other())
            group.create_task(leave())

    driver = run(flow)
    assert driver.outcome.state == "failed"
    assert driver.error["type"] == "BaseExceptionGroup"


def test_code_that_swallows_everything_swallows_this_too():
    @workflow
    async def flow():
        try:
            continue_as_new()
        except BaseException:
            return "stayed"

    assert run(flow).result == "stayed"


def test_a_cancelled_run_may_go_on_if_its_code_says_so():
    @workflow
    async def flow():
        try:
            await sleep(100)
        except asyncio.CancelledError:
            continue_as_new()

    driver = Driver(flow).open().cancel("enough").go()
    assert driver.types == ["cancel_requested", "run_continued"]
    assert_replays(driver)


def test_wrong_arguments_are_refused_where_they_are_given():
    @workflow
    async def flow(n: int):
        with pytest.raises(TypeError, match="flow"):
            continue_as_new()
        with pytest.raises(TypeError):
            continue_as_new(1, 2)
        with pytest.raises(DurableValueError, match=r"input\[0\]"):
            continue_as_new(print)
        with pytest.raises(DurableValueError, match="bytes"):
            continue_as_new("x" * 500)
        return "stayed"

    assert run(flow, 1, max_bytes=200).result == "stayed"
    with pytest.raises(NotInWorkflowError):
        continue_as_new(1)


def test_it_is_refused_inside_a_side_effect():
    from continuum.core.facts import side_effect
    from continuum.exceptions import ActivityError

    @workflow
    async def flow():
        with pytest.raises(ActivityError, match=NonDeterminismError.__name__):
            side_effect(continue_as_new)
        return "stayed"

    assert run(flow).result == "stayed"


def test_signals_nobody_has_taken_go_along_in_their_order():
    @workflow
    async def flow():
        await wait_signal("a")
        await wait_signal("go")
        continue_as_new()

    sent = [("a", 1), ("b", {"n": 2}), ("a", "drei"), ("b", None), ("a", [4]), ("go", None)]
    driver = run(flow, signals=sent)
    signals = driver.outcome.successor.signals
    assert [json.loads(payload) for name, payload in signals if name == "a"] == ["drei", [4]]
    assert [json.loads(payload) for name, payload in signals if name == "b"] == [{"n": 2}, None]
    assert len(signals) == 4


def test_signals_that_come_while_it_cleans_up_go_along_too():
    @workflow
    async def flow():
        try:
            continue_as_new()
        finally:
            await step(1)

    driver = Driver(flow).open()
    driver.execution.signal_received("a", "1", driver.clock_us)
    driver._take()
    driver.go()
    assert driver.outcome.successor.signals == (("a", "1"),)
    assert_replays(driver)


def test_children_started_go_along_and_awaited_ones_are_cancelled():
    @workflow
    async def flow():
        await start_child(child)
        asyncio.create_task(child())
        await step(1)
        await start_child(child)
        continue_as_new()

    driver = run(flow, scheduler=scripted(["0:2"]))
    assert [c.reply_to for c in driver.children.values()] == ["0:1", "0.1:1", "0:3"]
    assert [driver.children[id_].reply_to for id_ in driver.cancelled] == ["0.1:1"]


def test_going_on_otherwise_than_history_says_is_drift():
    said = [1]

    @workflow
    async def flow(n: int):
        await step(n)
        if said[0] is None:
            return n
        continue_as_new(said[0])

    driver = run(flow, 1)
    for other in (2, True, None):
        said[0] = other
        with pytest.raises(ReplayDriftError):
            replay(driver, driver.history)


def test_a_lost_end_is_made_again_alike():
    @workflow
    async def flow():
        await step(1)
        continue_as_new()

    driver = run(flow)
    execution = replay(driver, driver.history[:1])
    assert execution.take().outcome == driver.outcome


def test_only_what_is_nothing_else_counts_as_going_on():
    leave = ContinueAsNew("[]")
    assert continuation_of(leave) is leave
    assert continuation_of(BaseExceptionGroup("", [BaseExceptionGroup("", [leave]), leave])) is leave
    assert continuation_of(BaseExceptionGroup("", [leave, KeyError()])) is None
    assert continuation_of(KeyError()) is None
    assert continuation_of(None) is None


def test_what_a_lost_task_says_does_not_end_the_run():
    @workflow
    async def flow():
        async def leave():
            continue_as_new()

        asyncio.create_task(leave())
        values = await asyncio.gather(leave(), return_exceptions=True)
        return [type(value).__name__ for value in values]

    assert drive(flow).result == ["ContinueAsNew"]
