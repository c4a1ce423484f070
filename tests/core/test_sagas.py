"""Sagas: what has succeeded is undone once, the latest first, whatever happens meanwhile."""

# ruff: noqa: RUF006  (a run holds its tasks itself)

import asyncio
import contextlib
import json
import logging

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.lineage import continue_as_new, start_child
from continuum.core.retry import Retry
from continuum.core.sagas import compensate, compensate_all, saga
from continuum.exceptions import ActivityError, ChildError, NotInWorkflowError
from tests.core.driver import Driver, assert_replays, drive, in_order, newest_first, note, scripted


@activity(name="sagas.do")
def do(n: int) -> str:
    return f"done {n}"


@activity(name="sagas.undo")
def undo(what: object) -> str:
    return f"undone {what}"


@activity(name="sagas.stuck", retry=Retry(max_attempts=2))
def stuck(what: object) -> None:
    raise ValueError(f"{what} stays")


@activity(name="sagas.refuse")
def refuse() -> None:
    raise ValueError("refused")


@workflow(name="sagas.undoing")
async def undoing(what: object) -> str:
    return await undo(what)


@workflow(name="sagas.doing")
async def doing(n: int) -> str:
    return await do(n)


def reserve(n):
    return do(n).compensated_by(undo.bind(n))


def undone(driver):
    """What was undone, in order."""
    prefixes = ("sagas.undo[", "sagas.stuck[")
    return [json.loads(a[a.index("[") :])[0] for a in driver.asked if a.startswith(prefixes)]


def run(flow, *arguments, cancel=None, **options):
    driver = Driver(flow, arguments, **options).open()
    if cancel is not None:
        driver.cancel("enough", after=cancel)
    driver.go()
    assert_replays(driver)
    for n in range(len(driver.choices)):
        again = Driver(flow, arguments, **(options | {"scheduler": scripted(driver.choices)})).open()
        if cancel is not None:
            again.cancel("enough", after=cancel)
        for _ in range(n):
            again.step()
        again.crash()
        again.go()
        assert again.history == driver.history
        assert again.calls == driver.calls
        again.close()
    return driver


# -- order ------------------------------------------------------------------------------------------------------


def test_the_latest_to_succeed_is_undone_first():
    @workflow
    async def flow():
        async with saga():
            await asyncio.gather(*(reserve(n) for n in range(3)))
            await refuse()

    driver = run(flow, scheduler=scripted(["0.2:1", "0.3:1", "0.1:1", "0:1", *(f"0.4:{n}" for n in (1, 2, 3))]))
    assert undone(driver) == [0, 2, 1]
    assert driver.error["type"] == "ActivityError"
    assert "refused" in driver.error["message"]


def test_in_parallel_all_are_undone_at_the_same_time():
    @workflow
    async def flow(everything: bool):
        async with contextlib.AsyncExitStack() as stack:
            if not everything:
                await stack.enter_async_context(saga(parallel=True))
            for n in range(3):
                await reserve(n)
            if everything:
                return await compensate_all(parallel=True)
            await refuse()

    for everything in (True, False):
        driver = Driver(flow, (everything,)).open()
        for _ in range(3 if everything else 4):
            driver.step()
        assert {c.name for c in driver.outstanding.values()} == {"sagas.undo"}
        assert len(driver.outstanding) == 3
        driver.go()
        assert undone(driver) == [2, 1, 0]
        assert_replays(driver)


def test_without_an_error_nothing_is_undone():
    @workflow
    async def flow():
        async with saga():
            return await reserve(1)

    driver = run(flow)
    assert (driver.result, undone(driver)) == ("done 1", [])


def test_what_an_inner_saga_keeps_an_outer_one_undoes_in_its_order():
    @workflow
    async def flow():
        async with saga():
            await reserve(1)
            async with saga():
                await reserve(2)
            await reserve(3)
            raise KeyError

    assert undone(run(flow)) == [3, 2, 1]


def test_what_an_inner_saga_has_undone_an_outer_one_leaves():
    @workflow
    async def flow(fails: bool):
        async with saga():
            await reserve(1)
            with contextlib.suppress(KeyError):
                async with saga():
                    await reserve(2)
                    raise KeyError
            await reserve(3)
            if fails:
                raise KeyError

    assert undone(run(flow, False)) == [2]
    assert undone(run(flow, True)) == [2, 3, 1]


def test_a_saga_holds_what_its_tasks_do_and_those_of_others_do_not():
    @workflow
    async def flow():
        async def one(n):
            async with saga():
                await reserve(n)
                if n == 2:
                    await refuse()
                await sleep(10)

        return [type(e).__name__ for e in await asyncio.gather(*(one(n) for n in range(4)), return_exceptions=True)]

    driver = run(flow)
    assert undone(driver) == [2]
    assert driver.result == ["NoneType", "NoneType", "ActivityError", "NoneType"]


def test_a_task_group_inside_a_saga_is_undone_and_its_group_of_errors_goes_on():
    @workflow
    async def flow():
        async with saga(), asyncio.TaskGroup() as group:
            group.create_task(reserve(1))
            group.create_task(reserve(2))
            group.create_task(sleep(100))
            await sleep(1)
            group.create_task(refuse())

    driver = run(flow)
    assert undone(driver) == [2, 1]
    assert driver.error["type"] == "ExceptionGroup"


def test_what_goes_on_when_its_saga_is_left_belongs_to_the_one_around():
    @workflow
    async def flow():
        async with saga():
            async with saga():
                await reserve(1)
                task = asyncio.create_task(reserve(2))
            await task
            raise KeyError

    assert undone(run(flow)) == [2, 1]


def test_what_succeeds_while_others_are_undone_is_undone_too():
    @workflow
    async def flow():
        async with saga():
            await reserve(1)
            asyncio.create_task(reserve(2))
            await sleep(1)
            raise KeyError

    driver = run(flow, scheduler=scripted(["0:1", "0:2", "0.1:1", "0.2:1", "0.2:2"]))
    assert undone(driver) == [1, 2]


# -- what is undone ---------------------------------------------------------------------------------------------


def test_one_effect_is_undone_by_itself_and_once():
    @workflow
    async def flow():
        effect = reserve(1)
        before = await compensate(effect)
        await effect
        first = await compensate(effect)
        return [before, first, await compensate(effect), await compensate_all()]

    driver = run(flow)
    assert driver.result == [None, "undone 1", None, []]
    assert json.loads(driver.history[1].data)["undoes"] == "0:1"


def test_two_that_undo_the_same_at_once_undo_it_once():
    @workflow
    async def flow():
        async with saga():
            effect = reserve(1)
            await effect
            values = await asyncio.gather(compensate(effect), compensate(effect), compensate_all())
            note([str(value) for value in values])
            raise KeyError

    driver = run(flow)
    assert undone(driver) == [1]
    assert driver.notes == [["undone 1", "None", "[]"]]


def test_what_has_failed_or_was_given_up_or_never_begun_is_not_undone():
    @workflow
    async def flow():
        failed = refuse().compensated_by(undo.bind("failed"))
        with contextlib.suppress(ActivityError):
            await failed
        given_up = do(2).compensated_by(undo.bind("given up"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(given_up, 1)
        idle = do(3).compensated_by(undo.bind("never begun"))
        values = [await compensate(effect) for effect in (failed, given_up, idle)]
        return [values, await compensate_all(), idle.close()]

    driver = run(flow, scheduler=newest_first)
    assert driver.result == [[None] * 3, [], None]
    assert undone(driver) == []


def test_an_undo_may_be_made_of_the_result():
    @workflow
    async def flow():
        effect = do(5).compensated_by(lambda receipt: undo.bind(receipt))
        await effect
        return await compensate(effect)

    assert run(flow).result == "undone done 5"


async def undoes(result):
    return undo.bind(result)


@pytest.mark.parametrize("wrong", [5, undo, undoing, undo.options(priority=3), undoes, None])
def test_what_is_no_call_and_makes_none_is_refused_at_once(wrong):
    @workflow
    async def flow():
        with pytest.raises(TypeError, match=r"undo must be made with .bind\(...\), or be a function that does so, not"):
            do(5).compensated_by(wrong)

    assert run(flow).result is None


def test_bind_itself_makes_a_call_of_the_result():
    @workflow
    async def flow():
        effect = do(5).compensated_by(undo.bind)
        await effect
        return await compensate(effect)

    assert run(flow).result == "undone done 5"


def test_children_can_be_undone_and_undo():
    @workflow
    async def flow():
        async with saga():
            await doing(1).compensated_by(undoing.bind("child 1"))
            await do(2).compensated_by(lambda result: undoing.bind(result))
            await doing(3).compensated_by(undo.bind("child 3"))
            await refuse()

    driver = run(flow)
    assert [json.loads(e.data).get("undoes") for e in driver.history] == [None] * 4 + ["0:3", "0:2", "0:1", None]
    assert driver.types[4:7] == ["activity_completed", "child_completed", "child_completed"]


def test_options_and_methods_of_calls_can_be_bound():
    @workflow
    async def flow():
        effect = do(1).compensated_by(undo.options(priority=3).bind("with options"))
        await effect
        return await compensate(effect)

    assert run(flow).result == "undone with options"


def test_wrong_uses_are_refused():
    @workflow
    async def flow():
        for wrong in (undo("x"), "undo", None):
            with pytest.raises(TypeError, match="bind"):
                do(1).compensated_by(wrong)
            if hasattr(wrong, "close"):
                wrong.close()
        with pytest.raises(TypeError, match=r"sagas\.undo"):
            do(1).compensated_by(undo.bind())
        for effect in (sleep(1), wait_signal("a")):
            with pytest.raises(TypeError, match="no effect"):
                effect.compensated_by(undo.bind(1))
        with pytest.raises(TypeError, match="start_child"):
            start_child(doing, 1).compensated_by(undo.bind(1))
        effect = do(1)
        await effect
        with pytest.raises(RuntimeError, match="awaited before"):
            effect.compensated_by(undo.bind(1))
        with pytest.raises(ValueError, match="compensated_by"):
            await compensate(effect)
        with pytest.raises(TypeError, match="effect"):
            await compensate("effect")
        block = saga()
        async with block:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with block:
                pass

    driver = run(flow)
    assert driver.outcome.state == "completed", driver.outcome
    for outside in (compensate(None), compensate_all(), saga().__aenter__()):
        with pytest.raises(NotInWorkflowError):
            outside.send(None)


# -- failures of compensations ----------------------------------------------------------------------------------


def test_a_compensation_that_fails_is_recorded_and_the_others_run_and_the_first_error_wins(caplog):
    @workflow
    async def flow(parallel: bool):
        async with saga(parallel=parallel):
            await reserve(1)
            await do(2).compensated_by(stuck.bind(2))
            await do(3).compensated_by(lambda result: "nonsense")
            await reserve(4)
            raise KeyError("first")

    for parallel in (False, True):
        with caplog.at_level(logging.ERROR):
            driver = run(flow, parallel)
        assert set(undone(driver)) == {4, 2, 1}
        assert driver.error["type"] == "KeyError"
        assert driver.types.count("activity_retried") == driver.types.count("activity_failed") == 1
        assert "0:2" in caplog.text
        assert "0:3" in caplog.text


def test_compensate_raises_what_fails_and_compensate_all_returns_it():
    @workflow
    async def flow():
        effects = [do(n).compensated_by(stuck.bind(n)) for n in range(2)]
        for effect in effects:
            await effect
        with pytest.raises(ActivityError, match="1 stays"):
            await compensate(effects[1])
        assert await compensate(effects[1]) is None
        return [error.message for error in await compensate_all()]

    assert run(flow).result == ["0 stays"]


# -- cancelling -------------------------------------------------------------------------------------------------


def test_a_cancelled_run_undoes_what_it_has_done():
    @workflow
    async def flow():
        async with saga():
            await reserve(1)
            await reserve(2)
            await sleep(100)

    driver = run(flow, cancel=1)
    assert driver.outcome.state == "cancelled"
    assert undone(driver) == [2, 1]


def cancel_while_undoing(driver):
    driver.go = None
    while not any("undo" in (c.name or "") for c in driver.outstanding.values()):
        driver.step()
    driver.execution.cancel_requested("enough", driver.clock_us)
    driver._take()
    while driver.step():
        pass
    assert_replays(driver)
    return driver


@pytest.mark.parametrize("parallel", [False, True])
def test_a_cancellation_waits_for_the_compensations_and_the_first_error_wins(parallel):
    @workflow
    async def flow():
        async with saga(parallel=parallel):
            for n in range(3):
                await reserve(n)
            raise KeyError

    driver = cancel_while_undoing(Driver(flow).open())
    assert undone(driver) == [2, 1, 0]
    assert driver.types[-5:] == ["cancel_requested", *["activity_completed"] * 3, "run_failed"]
    assert driver.error["type"] == "KeyError"


def test_a_run_that_goes_on_after_its_saga_learns_that_it_was_cancelled_meanwhile():
    @workflow
    async def flow(more: bool):
        try:
            async with saga():
                await reserve(1)
                raise KeyError
        except KeyError:
            note("caught")
        if more:
            await do(2)

    for more in (False, True):
        driver = cancel_while_undoing(Driver(flow, (more,)).open())
        assert driver.outcome.state == "cancelled"
        assert driver.notes == ["caught"]
        assert undone(driver) == [1]
        assert "sagas.do[2]" not in "".join(c for c in driver.asked if driver.calls["0:2", 1])


def test_nested_sagas_are_undone_to_the_outermost_when_cancelled_meanwhile():
    @workflow
    async def flow():
        async with saga():
            await reserve(1)
            async with saga():
                await reserve(2)
                raise KeyError

    driver = cancel_while_undoing(Driver(flow).open())
    assert undone(driver) == [2, 1]
    assert driver.error["type"] == "KeyError"


@pytest.mark.parametrize("how", ["compensate", "compensate_all", "stuck"])
def test_compensating_by_hand_is_finished_and_then_cancelled(how):
    @workflow
    async def flow():
        effects = [reserve(1), do(2).compensated_by(stuck.bind("undo 2")) if how == "stuck" else reserve(2)]
        for effect in effects:
            await effect
        try:
            await (compensate_all() if how == "compensate_all" else compensate(effects[1]))
        except asyncio.CancelledError as error:
            note([how, *error.args])
            raise

    driver = Driver(flow).open()
    driver.step()
    driver.step()
    driver.execution.cancel_requested("enough", driver.clock_us)
    driver._take()
    driver.go()
    assert_replays(driver)
    assert driver.outcome.state == "cancelled"
    assert driver.notes == [[how, "enough"]]
    assert undone(driver) == {"compensate_all": [2, 1], "compensate": [2], "stuck": ["undo 2"]}[how]


def test_a_timeout_waits_for_the_compensations_too():
    @workflow
    async def flow():
        try:
            async with asyncio.timeout(5), saga():
                await reserve(1)
                await sleep(100)
        except TimeoutError:
            await sleep(1)
            return "over"

    driver = run(flow)
    assert (driver.result, undone(driver)) == ("over", [1])


def test_a_timeout_that_is_over_while_undoing_leaves_the_error_and_cancels_nothing_later():
    @workflow
    async def flow():
        try:
            async with asyncio.timeout(5), saga():
                await reserve(1)
                raise KeyError
        except KeyError:
            await sleep(1)
            return await do(3)

    driver = run(flow, scheduler=scripted(["0:2", "0:1", "0.1:1", "0:3", "0:4"]))
    assert (driver.result, undone(driver)) == ("done 3", [1])


# -- other ways out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["here", "in a group", "in a group in a group"])
def test_going_on_as_another_run_undoes_nothing(how):
    @workflow
    async def flow(how: str):
        async def leave():
            continue_as_new("here")

        async with saga():
            await reserve(1)
            match how:
                case "here":
                    continue_as_new("here")
                case "in a group":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(leave())
                case _:
                    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as group:
                        group.create_task(leave())
                        outer.create_task(sleep(100))

    driver = run(flow, how)
    assert driver.types == ["activity_completed", "run_continued"]
    assert undone(driver) == []


@pytest.mark.parametrize("moment", range(6))
def test_a_run_that_is_released_undoes_nothing_and_says_nothing(moment, caplog):
    seen = []

    @workflow
    async def flow():
        try:
            async with saga():
                await reserve(1)
                await reserve(2)
                await asyncio.gather(reserve(3), refuse())
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        finally:
            await compensate_all()

    driver = Driver(flow).open()
    for _ in range(moment):
        driver.step()
    asked, events = len(driver.execution.asked), len(driver.history)
    with caplog.at_level(logging.DEBUG):
        driver.close()
    assert seen == []
    assert len(driver.execution.asked) == asked
    assert driver.execution.take().journal == []
    assert [r.getMessage() for r in caplog.records if r.name == "continuum.run"] == []
    driver.open()
    assert len(driver.history) == events
    driver.go()
    assert undone(driver) == [3, 2, 1]
    assert seen == ["ActivityError"]


def test_a_saga_in_a_generator_that_is_dropped_half_way_keeps_what_it_did():
    @workflow
    async def flow():
        async def numbers():
            async with saga():
                for n in range(3):
                    await reserve(n)
                    yield n

        async for n in numbers():
            if n == 1:
                break
        await sleep(1)
        return await compensate_all()

    driver = run(flow)
    assert driver.result == []
    assert undone(driver) == [1, 0]


def test_everything_undone_again_and_again_stays_undone():
    @workflow
    async def flow():
        for n in range(3):
            await reserve(n)
            await compensate_all()
        return await compensate_all()

    driver = run(flow, scheduler=in_order)
    assert undone(driver) == [0, 1, 2]


def test_a_child_that_does_not_undo_is_an_error_like_any_other():
    @workflow(name="sagas.stuck_child")
    async def stuck_child():
        raise ValueError("stays")

    @workflow
    async def flow():
        effect = do(1).compensated_by(stuck_child.bind())
        await effect
        with pytest.raises(ChildError, match="stays"):
            await compensate(effect)

    assert drive(flow).outcome.state == "completed"
