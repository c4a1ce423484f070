"""Children: started once, known by one id, heard once, and cancelled when nobody wants them any more."""

# ruff: noqa: RUF006  (a run holds its tasks itself)

import asyncio
import contextlib
import gc
import json
import logging
from dataclasses import replace
from uuid import UUID

import pytest

from continuum.core import gathering
from continuum.core.asks import MAX_DEPTH
from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.facts import run_info
from continuum.core.lineage import start_child
from continuum.exceptions import (
    ActivityError,
    ChildDepthError,
    ChildError,
    DurableValueError,
    NotInWorkflowError,
    ReplayDriftError,
    UnknownWorkflowError,
)
from continuum.ids import derived_child
from tests.core.driver import RUN_ID, Driver, assert_replays, drive, newest_first, note, replay, scripted


@activity(name="children.step")
def step(n: int = 0) -> int:
    return n


@workflow(name="children.double")
async def double(n: int) -> int:
    return 2 * await step(n)


@workflow(name="children.bad")
async def bad(text: str) -> None:
    error = ValueError(text)
    error.details = {"why": text}
    raise error


def run(flow, *arguments, **options):
    driver = drive(flow, *arguments, **options)
    assert_replays(driver)
    return driver


def started(driver):
    return [child.reply_to for child in driver.children.values()]


def cancelled(driver):
    """The commands whose children were asked to cancel themselves."""
    return [child.reply_to for id_, child in driver.children.items() if id_ in driver.cancelled]


# -- awaiting ---------------------------------------------------------------------------------------------------


def test_children_side_by_side_answer_in_any_order():
    @workflow
    async def flow():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(n)) for n in range(3)]
        return [await asyncio.gather(double(3), double(4)), [task.result() for task in tasks]]

    for scheduler in (scripted(["0.2:1", "0.3:1", "0.1:1", "0.5:1", "0.4:1"]), newest_first):
        assert run(flow, scheduler=scheduler).result == [[6, 8], [0, 2, 4]]


def test_a_failed_child_raises_what_is_known_of_it():
    @workflow
    async def flow():
        with pytest.raises(ChildError) as caught:
            await bad("no")
        exc = caught.value
        return [exc.workflow, str(exc.run_id), exc.state, exc.type, exc.message, exc.details, str(exc)]

    id_ = str(derived_child(RUN_ID, "0:1", None, 1_718_366_400_000_000))
    text = f"child children.bad ({id_}) failed: ValueError: no"
    assert run(flow).result == ["children.bad", id_, "failed", "ValueError", "no", {"why": "no"}, text]


def test_a_cancelled_child_raises_why_it_was_cancelled():
    @workflow
    async def flow():
        child = await start_child(double, 1)
        child.cancel("too late")
        with pytest.raises(ChildError) as caught:
            await child
        return [caught.value.state, caught.value.type, caught.value.message, child.done()]

    assert run(flow).result == ["cancelled", "", "too late", True]


def test_a_child_that_nobody_catches_fails_its_parent_and_is_named():
    @workflow
    async def flow():
        await asyncio.gather(double(1), bad("no"))

    driver = run(flow, scheduler=newest_first)
    assert driver.error["type"] == "ChildError"
    assert json.loads(driver.history[-1].data)["failed"] == ["0.2:1"]


def test_a_result_is_restored_as_the_childs_annotation_says():
    @workflow
    async def child() -> set[int]:
        return {1, 2}

    @workflow
    async def flow():
        return sorted(await child()) == [1, 2] and isinstance(await child(), set)

    assert run(flow).result is True


# -- handles ----------------------------------------------------------------------------------------------------


def test_a_handle_may_be_awaited_again_and_again_and_by_several_tasks():
    @workflow
    async def flow():
        child = await start_child(double, 4)

        async def waiter():
            return await child

        values = await asyncio.gather(waiter(), waiter(), child)
        return [
            *values,
            await child,
            await child,
            child.done(),
            child.workflow,
            repr(child) == f"<{'child'} {child.workflow} {child.id}>",
        ]

    driver = run(flow)
    assert driver.result == [8, 8, 8, 8, 8, True, "children.double", True]
    assert driver.types == ["child_completed", "activity_completed", "run_completed"][::2]


def test_each_waiter_of_a_failed_child_gets_the_error():
    @workflow
    async def flow():
        child = await start_child(bad, "x")
        values = await asyncio.gather(child, child, return_exceptions=True)
        with pytest.raises(ChildError):
            await child
        return [type(value).__name__ for value in values]

    assert run(flow).result == ["ChildError", "ChildError"]


def test_children_that_nobody_awaits_are_started_and_heard_and_nothing_is_logged(caplog):
    @workflow
    async def flow():
        for text in "xyz":
            await start_child(bad, text)
        await sleep(5)

    with caplog.at_level(logging.INFO):
        driver = run(flow)
        driver.close()
        gc.collect()
    assert driver.types == ["child_failed"] * 3 + ["timer_fired", "run_completed"]
    assert caplog.records == []


def test_giving_up_on_a_handle_leaves_the_child_alone():
    @workflow
    async def flow():
        child = await start_child(double, 4)
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await child
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child, 1)
        task = asyncio.ensure_future(child)
        await sleep(1)
        task.cancel()
        return await child

    driver = run(flow, scheduler=scripted(["0:2", "0:3", "0:4", "0:5", "0:1"]))
    assert driver.result == 8
    assert cancelled(driver) == []


@pytest.mark.parametrize("last", [0, 1, 2])
def test_handles_work_wherever_asyncio_takes_awaitables(last):
    @workflow
    async def flow():
        children = [await start_child(double, n) for n in range(3)]
        first, rest = await gathering.wait(children, return_when=asyncio.FIRST_COMPLETED)
        values = [task.result() for task in first]
        values += [await item for item in gathering.as_completed([asyncio.shield(task) for task in rest])]
        values += [await item for item in asyncio.as_completed(children)]
        return sorted(values)

    order = [f"0:{n + 1}" for n in range(3)]
    order.append(order.pop(last))
    assert run(flow, scheduler=scripted(order)).result == [0, 0, 2, 2, 4, 4]


def test_a_shielded_child_outlives_the_wait_for_it():
    @workflow
    async def flow():
        task = asyncio.ensure_future(double(4))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 1)
        return await task

    driver = run(flow, scheduler=newest_first)
    assert driver.result == 8
    assert cancelled(driver) == []


def test_start_child_takes_a_name_and_refuses_nonsense_before_anything_is_started():
    @workflow
    async def flow():
        with pytest.raises(UnknownWorkflowError):
            start_child("children.none")
        for wrong in (step, None, double.fn):
            with pytest.raises(TypeError, match="flow"):
                start_child(wrong)
        for name, value in (("id", 5), ("id", ""), ("namespace", ""), ("attributes", [])):
            with pytest.raises((TypeError, ValueError), match=name):
                start_child(double, 1, **{name: value})
        with pytest.raises(TypeError, match=r"children\.double"):
            await start_child(double)
        with pytest.raises(DurableValueError):
            await start_child(double, print)
        child = await start_child("children.double", 4)
        with pytest.raises(TypeError, match="reason"):
            child.cancel(5)
        return await child

    driver = run(flow)
    assert driver.result == 8
    assert len(started(driver)) == 1
    with pytest.raises(NotInWorkflowError):
        start_child(double, 1)


# -- identity ---------------------------------------------------------------------------------------------------


def test_an_id_follows_from_parent_place_and_key_and_is_the_same_in_every_replay():
    @workflow
    async def flow():
        children = [await start_child(double, 1, id=key) for key in ("a", "a", "b", None)]
        note([str(child.id) for child in children])
        await asyncio.gather(*children)
        note([str(child.id) for child in children])

    driver = run(flow)
    assert driver.notes[0] == driver.notes[1]
    assert len(set(driver.notes[0])) == 4
    assert {UUID(id_) for id_ in driver.notes[0]} == set(driver.children)
    other = run(flow, run=replace(driver.run, id=UUID(int=RUN_ID.int + 1)))
    assert not set(driver.children) & set(other.children)


@pytest.mark.parametrize("change", ["args", "id", "namespace", "attributes", "workflow", "awaited as an activity"])
def test_a_child_that_is_asked_for_otherwise_than_history_says_is_drift(change):
    told = {"args": 1, "id": "k", "namespace": "n", "attributes": {"a": 1}, "workflow": double}

    @workflow
    async def flow():
        if told["workflow"] is step:
            return await step(1)
        options = {key: told[key] for key in ("id", "namespace", "attributes")}
        return await (await start_child(told["workflow"], told["args"], **options))

    driver = run(flow)
    others = {"args": 2, "attributes": {"a": True}, "workflow": bad}
    if change == "awaited as an activity":
        told["workflow"] = step
    else:
        told[change] = others.get(change, "other")
    with pytest.raises(ReplayDriftError):
        replay(driver, driver.history)


def test_children_may_be_nested_so_deep_and_no_deeper():
    @workflow
    async def flow():
        with pytest.raises(ChildDepthError, match="continue_as_new"):
            await double(1)
        with pytest.raises(ChildDepthError):
            await start_child(double, 1)
        return "refused"

    deep = replace(Driver(flow).run, depth=MAX_DEPTH)
    driver = run(flow, run=deep)
    assert driver.result == "refused"
    assert started(driver) == []
    assert run(double, 1, run=deep).result == 2


# -- started and dropped ----------------------------------------------------------------------------------------


def test_a_child_abandoned_in_the_drain_it_was_asked_for_in_is_never_started():
    @workflow
    async def flow():
        task = asyncio.ensure_future(double(1))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await double(2)
        await step()

    driver = run(flow)
    assert {"0.1:1", "0:1"} <= {asked.id for asked in driver.execution.asked}
    assert (started(driver), cancelled(driver)) == ([], [])


def test_a_child_started_at_the_end_of_its_parent_is_started():
    @workflow
    async def flow(fails: bool):
        await start_child(double, 1)
        if fails:
            raise ValueError

    for fails in (False, True):
        driver = run(flow, fails)
        assert started(driver) == ["0:1"]
        assert cancelled(driver) == []


def test_a_child_started_as_its_parent_ends_cancelled_is_not():
    @workflow
    async def flow():
        try:
            await sleep(100)
        finally:
            await start_child(double, 1)

    driver = Driver(flow).open().cancel("enough").go()
    assert driver.outcome.state == "cancelled"
    assert_replays(driver)
    assert started(driver) == []


def test_an_awaited_child_is_cancelled_when_its_parent_completes_without_it():
    @workflow
    async def flow():
        asyncio.create_task(double(1))
        await start_child(double, 2)
        await sleep(1)

    driver = run(flow, scheduler=lambda occurrences: occurrences[-1])
    assert driver.outcome.state == "completed"
    assert cancelled(driver) == ["0.1:1"]


def test_a_failed_parent_leaves_its_children_alone():
    @workflow
    async def flow():
        asyncio.create_task(double(1))
        await start_child(double, 2)
        await sleep(1)
        raise ValueError

    driver = run(flow, scheduler=newest_first)
    assert driver.outcome.state == "failed"
    assert cancelled(driver) == []


@pytest.mark.parametrize("way", ["timeout", "wait_for", "task", "group", "first"])
def test_a_child_that_is_not_waited_for_any_more_is_cancelled_once(way):
    @workflow
    async def flow():
        match way:
            case "timeout":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await double(1)
            case "wait_for":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(double(1), 1)
            case "task":
                task = asyncio.create_task(double(1))
                await sleep(1)
                task.cancel()
            case "group":
                with contextlib.suppress(BaseExceptionGroup):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(double(1))
                        await sleep(1)
                        raise ValueError
            case _:
                tasks = [asyncio.create_task(double(1)), asyncio.create_task(sleep(1))]
                _, pending = await gathering.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                pending[0].cancel()
        await sleep(1)
        await wait_signal("never")

    driver = Driver(flow, scheduler=newest_first).open()
    sent = []
    take = driver.execution.take
    driver.execution.take = lambda: sent.append(take()) or sent[-1]
    driver.go()
    assert [[c.id for c in step_.cancels] for step_ in sent if step_.cancels] == [[*started(driver)]]
    assert_replays(driver)


def test_what_a_process_before_has_started_is_cancelled_when_it_is_dropped_after_a_crash():
    @workflow
    async def flow():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await double(1)

    driver = Driver(flow, scheduler=newest_first).open()
    driver.crash()
    driver.go()
    assert cancelled(driver) == ["0:2"]
    for length in range(len(driver.history) + 1):
        # What led to it is durable, and the cancellation with it.
        assert replay(driver, driver.history[:length]).take().cancels == []


def test_cancelling_a_handle_is_said_once_and_again_only_where_it_may_have_been_lost():
    @workflow
    async def flow():
        child = await start_child(double, 1)
        await step(1)
        child.cancel("first")
        child.cancel("second")
        await step(2)
        child.cancel("third")
        with contextlib.suppress(ChildError):
            await child
        child.cancel("after its end")

    driver = run(flow, scheduler=newest_first)
    assert list(driver.cancelled.values()) == ["first"]
    lost = [len(replay(driver, driver.history[:n]).take().cancels) for n in range(len(driver.history) + 1)]
    assert lost == [0, 1, 0, 0, 0]


# -- cancelling the parent --------------------------------------------------------------------------------------


def test_a_cancelled_parent_cancels_each_pending_child_once():
    @workflow
    async def flow():
        ended = await start_child(double, 0)
        await ended
        handle = await start_child(double, 1)
        cancelled_before = await start_child(double, 2)
        cancelled_before.cancel("by hand")
        shielded = asyncio.ensure_future(double(3))
        try:
            await asyncio.gather(double(4), asyncio.shield(shielded), handle)
        finally:
            await step(5)

    driver = Driver(flow, scheduler=scripted(["0:1", "m1", "0:4"])).open().cancel("enough").go()
    assert driver.outcome.state == "cancelled"
    assert_replays(driver)
    assert sorted(cancelled(driver)) == ["0.1:1", "0.2:1", "0:2", "0:3"]
    assert set(driver.cancelled.values()) == {"enough", "by hand"}


def test_a_parent_that_cleans_up_may_still_hear_what_its_cancelled_children_came_to():
    @workflow
    async def flow():
        child = await start_child(double, 1)
        try:
            await child
        except asyncio.CancelledError:
            with pytest.raises(ChildError) as caught:
                await child
            return [caught.value.state, caught.value.message, await double(21)]

    driver = Driver(flow, scheduler=newest_first).open().cancel("enough").go()
    assert driver.result == ["cancelled", "enough", 42]
    assert_replays(driver)


def test_a_parent_cancelled_before_it_began_starts_nothing():
    @workflow
    async def flow():
        await start_child(double, 1)

    driver = Driver(flow).open(cancelled="never mind")
    assert driver.outcome.state == "cancelled"
    assert started(driver) == []


# -- messages ---------------------------------------------------------------------------------------------------


def test_messages_that_nobody_waits_for_change_nothing():
    @workflow
    async def flow():
        await double(1)
        await step()
        await sleep(1)

    driver = Driver(flow).open()
    told = json.dumps({"child": str(RUN_ID), "state": "completed", "result": 7, "error": None})
    for reply_to in ("0:1#1", "0:2", "0:1:1", "", "0.1:1", "#", "~"):
        assert not driver.execution.child_ended(reply_to, told, driver.clock_us)
    driver.step()
    for reply_to in ("0:1", "0:2", "0:3"):
        assert not driver.execution.child_ended(reply_to, told, driver.clock_us)
    driver.go()
    assert not driver.execution.child_ended("0:1", told, driver.clock_us)
    assert_replays(driver)


def test_what_a_run_waits_for_names_its_children():
    @workflow
    async def flow():
        child = await start_child(double, 1)
        await child

    driver = Driver(flow).open()
    (entry,) = driver.execution.waiting_on()
    (child,) = driver.children
    assert (entry["kind"], entry["name"], entry["id"]) == ("child", "children.double", str(child))


def test_a_child_knows_its_parent_and_parents_of_failed_activities_do_not_blame_children():
    @workflow
    async def child() -> str:
        return str(run_info().parent_run_id)

    @workflow
    async def flow():
        return await child()

    assert run(flow).result == str(RUN_ID)
    assert ActivityError("a", 1, "T", "m").args
