"""The deterministic loop: identities, isolation, what it refuses, how a run ends and how it is released."""

# ruff: noqa: RUF006  (a run holds its tasks itself)

import asyncio
import contextlib
import contextvars
import gc
import inspect
import logging
import sys
import time
import warnings
import weakref
from asyncio import _get_running_loop
from collections import Counter
from uuid import UUID, uuid5

import pytest

from continuum.core import facts
from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.execution import Execution, RunIdentity
from continuum.core.facts import now, patched, side_effect, uuid4
from continuum.core.loop import DeterministicLoop
from continuum.exceptions import NonDeterminismError
from tests.core.driver import EPOCH_US, RUN_ID, Driver, assert_replays, drive, note


@activity
def step(n: int = 0) -> int:
    return n


@workflow
async def idle():
    await wait_signal("never")


@pytest.fixture
def silence(caplog, monkeypatch):
    """Nothing may be logged, warned about, or raised where nobody can catch it."""
    gc.collect()  # what earlier tests left behind
    caplog.clear()
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        yield
        gc.collect()
    assert [str(u.exc_value) for u in unraisable] == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO] == []


def ids(driver):
    return [asked.id for asked in driver.execution.asked]


# -- identities -------------------------------------------------------------------------------------------------


def test_a_command_is_known_by_the_path_of_its_task_and_its_place_in_it():
    @workflow
    async def flow():
        async def child(n):
            await step(n)
            await asyncio.gather(step(n), step(n))

        await step()
        tasks = [asyncio.create_task(child(n)) for n in range(2)]
        await asyncio.sleep(5)
        await asyncio.wait(tasks)

    assert ids(drive(flow)) == ["0:1", "0:2", "0.1:1", "0.2:1", "0.1.1:1", "0.1.2:1", "0.2.1:1", "0.2.2:1"]


def test_what_wait_for_awaits_belongs_to_the_task_that_waits():
    @workflow
    async def flow():
        async def inner():
            await step()
            await asyncio.wait_for(step(), 5)

        await asyncio.wait_for(inner(), 10)
        await step()

    assert ids(drive(flow)) == ["0:1", "0:2", "0:3", "0:4", "0:5"]


def test_tasks_made_inside_wait_for_have_identities_of_their_own():
    @workflow
    async def flow():
        async def inner():
            loop = asyncio.get_running_loop()
            async with asyncio.TaskGroup() as group:
                group.create_task(step())
                asyncio.create_task(step())
                loop.create_task(step())
                asyncio.ensure_future(step())
            await asyncio.gather(step())

        await asyncio.wait_for(inner(), 10)
        await asyncio.wait_for(asyncio.gather(step(), step()), 10)

    assert ids(drive(flow)) == ["0:1", "0.1:1", "0.2:1", "0.3:1", "0.4:1", "0.5:1", "0:2", "0.6:1", "0.7:1"]


def test_a_chain_of_tasks_that_start_tasks_keeps_its_identities_short():
    @workflow
    async def flow(depth: int):
        async def link(left):
            await step(left)
            if left:
                await asyncio.create_task(link(left - 1))

        await link(depth)

    driver = drive(flow, 200)
    assert len(set(ids(driver))) == 201
    assert max(map(len, ids(driver))) < 120
    assert_replays_end(driver)


def assert_replays_end(driver):
    """Replay the whole history only: every prefix would take a long time."""
    execution = Execution(driver.definition, driver.run, driver.input)
    execution.begin(EPOCH_US, driver.history)
    assert execution.replay()
    assert execution.outcome == driver.outcome


def test_callbacks_outside_tasks_have_an_identity_too():
    @workflow
    async def flow():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        drawn = []

        def later():
            drawn.append(str(uuid4()))
            loop.create_task(step(7)).add_done_callback(lambda task: done.set_result([*drawn, task.result()]))

        loop.call_later(3, later)
        return await done

    driver = drive(flow)
    assert driver.result[1] == 7
    assert ids(driver) == ["0:1", "~.1:1"]
    assert_replays(driver)


def test_tasks_hash_by_run_and_creation_not_by_address():
    hashes = []

    @workflow
    async def flow():
        tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(3)]
        hashes.append([hash(task) for task in tasks])
        await asyncio.gather(*tasks)

    for run_id in (RUN_ID, RUN_ID, UUID(int=9)):
        Driver(flow, run=RunIdentity(run_id)).open()
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_the_tasks_of_many_runs_hardly_collide(silence):
    # asyncio keeps the tasks of all loops in one set: with hashes that collide, it turns quadratic.
    live = []
    for n in range(4_000):
        execution = Execution(idle, RunIdentity(uuid5(RUN_ID, f"{n}")), "[]")
        execution.begin(EPOCH_US)
        live.append(execution)
    places = Counter(hash(task) & 0xFFFF for execution in live for task in execution.loop.tasks)
    for execution in live:
        execution.close()
    assert places.total() == 4_000
    assert max(places.values()) <= 5


# -- isolation --------------------------------------------------------------------------------------------------

VARIABLE = contextvars.ContextVar("variable", default="unset")


def test_context_variables_do_not_leak_between_runs_nor_from_the_process():
    @workflow
    async def flow(value: str):
        note(VARIABLE.get())
        VARIABLE.set(value)
        await step()
        note(VARIABLE.get())

    token = VARIABLE.set("of the process")
    try:
        drivers = [Driver(flow, (name,)).open() for name in "ab"]
        for driver in reversed(drivers):
            driver.go()
        assert [driver.notes for driver in drivers] == [["unset", "a"], ["unset", "b"]]
        assert VARIABLE.get() == "of the process"
    finally:
        VARIABLE.reset(token)


def test_tasks_copy_the_context_and_wait_for_shares_it():
    @workflow
    async def flow():
        async def put(value):
            VARIABLE.set(value)

        VARIABLE.set("own")
        await asyncio.create_task(put("task"))
        note(VARIABLE.get())
        await asyncio.wait_for(put("wait_for"), 5)
        note(VARIABLE.get())

    assert drive(flow).notes == ["own", "wait_for"]


async def test_a_run_driven_from_a_loop_leaves_that_loop_as_it_was():
    outer = asyncio.get_running_loop()
    done = outer.create_future()

    def in_callback():
        driver = drive(stream)
        done.set_result((driver.result, asyncio.get_running_loop() is outer))

    @workflow(name="stream")
    async def stream():
        async def numbers():
            for n in range(3):
                yield await step(n)

        return [n async for n in numbers()]

    outer.call_soon(in_callback)
    assert await done == ([0, 1, 2], True)
    assert _get_running_loop() is outer


def test_two_runs_may_take_turns():
    @workflow
    async def flow(n: int):
        return [await step(n + i) for i in range(3)]

    drivers = [Driver(flow, (n,)).open() for n in (0, 10)]
    for _ in range(3):
        for driver in drivers:
            driver.step()
    assert [driver.result for driver in drivers] == [[0, 1, 2], [10, 11, 12]]


# -- what is refused --------------------------------------------------------------------------------------------

ALLOWED = {
    "call_at", "call_exception_handler", "call_later", "call_soon", "create_future", "create_task",
    "default_exception_handler", "get_debug", "get_task_factory", "is_closed", "is_running", "set_debug", "time",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(n for n, _ in inspect.getmembers(asyncio.AbstractEventLoop, callable) if not n.startswith("_"))
)
def test_every_method_of_a_loop_works_or_is_refused_by_name(name):
    @workflow
    async def flow():
        loop = asyncio.get_running_loop()
        assert type(loop) is DeterministicLoop
        with pytest.raises(NonDeterminismError, match=rf"loop\.{name}\(\) is not available in a workflow.*activity"):
            getattr(loop, name)()

    if name in ALLOWED:
        assert name in vars(DeterministicLoop)
    else:
        assert drive(flow).outcome.state == "completed", drive(flow).error


@pytest.mark.parametrize(
    "io",
    [
        lambda: asyncio.to_thread(print),
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.start_server(print, "localhost", 0),
    ],
)
def test_io_of_asyncio_is_refused(io):
    @workflow
    async def flow():
        with pytest.raises(NonDeterminismError):
            await io()

    assert drive(flow).outcome.state == "completed"


# -- how a run ends ---------------------------------------------------------------------------------------------


def test_a_workflow_that_raises_fails_with_a_traceback_that_starts_in_its_code():
    @workflow
    async def flow():
        try:
            n = 0
            n = 1 / n
        except ZeroDivisionError as exc:
            raise ValueError("bad \x00 text \ud800") from exc

    driver = drive(flow)
    assert driver.outcome.state == "failed"
    assert driver.types == ["run_failed"]
    assert (driver.error["type"], driver.error["details"]) == ("ValueError", None)
    assert driver.error["message"] == "bad \\x00 text \\ud800"
    assert "ZeroDivisionError" in driver.error["traceback"]
    assert "direct cause" in driver.error["traceback"]
    assert "continuum/core" not in driver.error["traceback"]
    assert_replays(driver)


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["root", "task", "callback"])
def test_leaving_the_process_ends_the_run_never_the_worker(leaving, where, silence):
    @workflow
    async def flow():
        await step()

        def leave(*_):
            raise leaving("bye")

        async def leaving_task():
            await step()
            leave()

        match where:
            case "root":
                leave()
            case "task":
                await asyncio.gather(leaving_task(), sleep(9))
            case "callback":
                asyncio.get_running_loop().call_soon(leave)
                await sleep(9)

    driver = drive(flow)
    assert (driver.outcome.state, driver.error["type"], driver.error["message"]) == ("failed", leaving.__name__, "bye")
    assert driver.types[-1] == "run_failed"
    assert_replays(driver)
    driver.close()


def test_an_exception_group_fails_the_run_with_all_its_parts():
    @workflow
    async def flow():
        async with asyncio.TaskGroup() as group:
            for n in range(2):
                group.create_task(fail(n))

    async def fail(n):
        await step(n)
        raise ValueError(f"part {n}")

    driver = drive(flow)
    assert driver.error["type"] == "ExceptionGroup"
    assert "part 0" in driver.error["traceback"]
    assert_replays(driver)


def test_a_failure_whose_attributes_are_odd_is_described_all_the_same():
    class OddError(Exception):
        def __str__(self):
            raise RuntimeError

        @property
        def details(self):
            cycle = []
            cycle.append(cycle)
            return cycle

    @workflow
    async def flow():
        raise OddError

    driver = drive(flow)
    assert driver.error["type"] == "OddError"
    assert "text cannot be made" in driver.error["message"]


def test_a_result_that_is_not_durable_fails_the_run_with_its_path():
    @workflow
    async def flow():
        await step()
        return {"a": [1, print]}

    driver = drive(flow)
    assert (driver.error["type"], driver.error["message"]) == (
        "DurableValueError",
        "result.a[1]: function is not durable",
    )
    assert_replays(driver)


def test_a_value_beyond_the_limit_fails_that_run():
    @workflow
    async def flow():
        return "x" * 100

    driver = drive(flow, max_bytes=50)
    assert driver.error["type"] == "DurableValueError"
    assert "the limit is 50 bytes" in driver.error["message"]


@pytest.mark.parametrize("arguments", ["[]", "[1,2]", '[{"~uuid":"zz"}]', "[1", '{"args":[1],"kwargs":{"x":1}}'])
def test_input_that_does_not_fit_fails_the_run_before_its_code_runs(arguments):
    @workflow
    async def flow(n: int):
        note("begun")

    execution = Execution(flow, RunIdentity(RUN_ID), arguments)
    execution.begin(EPOCH_US)
    (event,) = execution.take().journal
    assert (event.type, execution.outcome.state) == ("run_failed", "failed")
    again = Execution(flow, RunIdentity(RUN_ID), arguments)
    again.begin(EPOCH_US, [event])
    assert again.replay()
    assert again.take().journal == []


def test_a_workflow_that_ends_leaves_its_other_tasks_behind():
    @workflow
    async def flow():
        asyncio.create_task(step())
        asyncio.create_task(wait_signal("never"))
        await sleep(0)
        return "done"

    driver = drive(flow, scheduler=lambda possible: possible[-1])
    assert driver.result == "done"
    assert driver.abandoned == ["0.1:1"]
    assert driver.execution.pending == {}
    assert_replays(driver)


def test_a_callback_that_raises_is_reported_and_does_not_fail_the_run(caplog):
    @workflow
    async def flow():
        asyncio.create_task(step()).add_done_callback(lambda _: 1 / 0)
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await sleep(1)
        return "fine"

    driver = drive(flow)
    assert driver.result == "fine"
    assert [r.levelname for r in caplog.records if r.name == "continuum.run"] == ["WARNING"] * 2
    caplog.clear()
    assert_replays_end(driver)
    assert caplog.records == []


def test_a_task_whose_exception_nobody_asked_for_is_reported_but_not_by_replays(caplog):
    @workflow
    async def flow():
        async def fail():
            raise ValueError("unseen")

        for _ in range(200):  # the loop lets go of finished tasks in batches
            asyncio.create_task(fail())
            await asyncio.sleep(0)
        await sleep(1)

    driver = Driver(flow).open()
    assert "Task exception was never retrieved" in caplog.text
    driver.go()
    driver.close()
    caplog.clear()
    assert_replays_end(driver)
    assert caplog.text == ""


# -- cancelling -------------------------------------------------------------------------------------------------


def test_cancelling_raises_at_the_current_await_and_lets_cleanup_await():
    @workflow
    async def flow():
        try:
            await sleep(1000)
        finally:
            await step(1)
            note("cleaned up")

    driver = Driver(flow).open().cancel("changed my mind", after=5).go()
    assert driver.outcome.state == "cancelled"
    assert (driver.error["type"], driver.error["message"]) == ("CancelledError", "changed my mind")
    assert driver.types == ["cancel_requested", "activity_completed", "run_cancelled"]
    assert driver.notes == ["cleaned up"]
    assert_replays(driver)


def test_a_workflow_may_swallow_it_and_complete():
    @workflow
    async def flow():
        try:
            await sleep(1000)
        except asyncio.CancelledError as exc:
            return str(exc)

    driver = Driver(flow).open().cancel("why").go()
    assert driver.result == "why"
    assert_replays(driver)


def test_a_second_cancel_changes_nothing():
    @workflow
    async def flow():
        try:
            await sleep(1000)
        finally:
            await sleep(50)

    driver = Driver(flow).open().cancel("one").cancel("two").go()
    assert driver.types == ["cancel_requested", "timer_fired", "run_cancelled"]
    assert driver.error["message"] == "one"
    assert_replays(driver)


def test_a_run_cancelled_before_it_began_runs_no_code():
    @workflow
    async def flow():
        note("begun")
        await step()

    driver = Driver(flow).open(cancelled="never mind")
    assert (driver.outcome.state, driver.notes) == ("cancelled", [])
    assert driver.types == ["cancel_requested", "run_cancelled"]
    assert driver.error["message"] == "never mind"
    assert_replays(driver)


def test_a_reason_that_talks_about_the_start_is_only_a_reason():
    @workflow
    async def flow():
        note("begun")
        await step()

    driver = Driver(flow, scheduler=lambda possible: possible[-1]).open().cancel("before_start of the shop").go()
    assert driver.notes == ["begun"]
    assert_replays(driver)


def test_cancelling_reaches_the_tasks_of_a_group():
    @workflow
    async def flow():
        async def child(n):
            try:
                await sleep(100 + n)
            finally:
                note(n)
                await step(n)

        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(child(n))

    driver = Driver(flow).open().cancel("").go()
    assert driver.outcome.state == "cancelled"
    assert sorted(driver.notes) == [0, 1, 2]
    assert_replays(driver)


def test_an_error_during_cleanup_fails_the_run():
    @workflow
    async def flow():
        try:
            await sleep(1000)
        finally:
            raise ValueError("cleanup")

    driver = Driver(flow).open().cancel("x").go()
    assert (driver.outcome.state, driver.error["type"]) == ("failed", "ValueError")
    assert_replays(driver)


def test_a_workflow_that_cancels_itself_has_failed():
    @workflow
    async def flow():
        raise asyncio.CancelledError

    driver = drive(flow)
    assert (driver.outcome.state, driver.error["message"]) == ("failed", "the workflow cancelled itself")


def test_cancelling_abandons_what_was_under_way():
    @workflow
    async def flow():
        await asyncio.gather(step(1), step(2))

    driver = Driver(flow, scheduler=lambda possible: possible[-1]).open().cancel("x").go()
    assert driver.abandoned == ["0.1:1", "0.2:1"]


def test_a_result_that_comes_too_late_changes_nothing():
    @workflow
    async def flow():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(step(1), 5)
        await sleep(5)

    driver = Driver(flow, scheduler=lambda possible: possible[-1]).open()
    command = driver.outstanding["0:2"]
    driver.step()
    assert driver.abandoned == ["0:2"]
    assert driver.execution.activity_completed(command, "1", EPOCH_US, EPOCH_US) is False
    assert driver.execution.activity_failed(command, {}, EPOCH_US, EPOCH_US) is False
    driver.go()
    assert driver.types == ["timer_fired", "timer_fired", "run_completed"]


# -- being released ---------------------------------------------------------------------------------------------


def test_releasing_runs_cleanup_and_records_nothing(silence):
    closed = []

    @workflow
    async def flow():
        async def child():
            try:
                await wait_signal("x")
            finally:
                closed.append("child")
                note(str(uuid4()))
                await step()
                closed.append("not reached")

        try:
            asyncio.create_task(child())
            async with asyncio.timeout(100):
                await asyncio.wait_for(sleep(1000), 500)
        finally:
            closed.append("root")
            facts.set_progress("released")
            facts.logger.warning("released")
            assert not patched("p")
            side_effect(closed.append, "not reached")

    driver = Driver(flow).open()
    progress = driver.execution.progress
    driver.close()
    assert closed == ["child", "root"]
    assert driver.execution.take() == ([], [], [], None, [])
    assert driver.execution.progress == progress
    driver.close()  # again: nothing is left to do


def test_cleanup_that_awaits_what_never_comes_is_cut_short(silence):
    closed = []

    @workflow
    async def flow():
        async def inner():
            try:
                await sleep(10)
            finally:
                closed.append("inner")
                try:
                    await asyncio.sleep(1)
                finally:
                    closed.append("inner, later")
                    async with asyncio.timeout(3):
                        await asyncio.Event().wait()

        async def outer():
            try:
                await inner()
            finally:
                closed.append("outer")
                async with asyncio.TaskGroup() as group:
                    group.create_task(inner())
                    await asyncio.gather(inner(), inner())

        async with asyncio.TaskGroup() as group:
            group.create_task(outer())
            await outer()

    driver = Driver(flow).open()
    driver.close()
    assert closed == ["inner", "inner, later", "outer"] * 2
    assert driver.execution.take().journal == []
    del driver


def test_async_generators_are_closed_with_their_run(silence):
    closed = []

    @workflow
    async def flow():
        async def numbers(name):
            try:
                while True:
                    yield await step()
                    await sleep(5)
            finally:
                closed.append(name)
                await step()

        paused = numbers("paused")
        await anext(paused)
        async for _ in numbers("running"):
            note(1)

    driver = Driver(flow).open()
    driver.step()
    driver.step()
    driver.close()
    assert sorted(closed) == ["paused", "running"]


def test_an_async_generator_that_is_dropped_half_way_cleans_up_in_a_task_of_its_own(silence):
    @workflow
    async def flow():
        async def numbers():
            try:
                for n in range(3):
                    yield await step(n)
            finally:
                note(await step(99))

        async for n in numbers():
            if n == 1:
                break
        return await step(5)

    driver = drive(flow)
    assert ids(driver) == ["0:1", "0:2", "0:3", "~.1:1"]
    assert driver.notes == []  # the run ended before its cleanup did
    assert_replays(driver)
    assert drive(flow, scheduler=lambda possible: possible[-1]).notes == [99]


def test_an_async_generator_that_the_garbage_collector_finds_ends_without_a_word(silence):
    @workflow
    async def flow():
        async def numbers():
            try:
                yield 1
            finally:
                note("at any time")
                await step(99)

        generator = numbers()
        await anext(generator)
        cycle = [generator]
        cycle.append(cycle)
        del generator, cycle
        gc.collect()
        await step(1)

    driver = drive(flow)
    assert (ids(driver), driver.notes) == (["0:1"], [])
    assert_replays(driver)


def test_a_task_made_by_hand_is_told_how_to_be_made():
    @workflow
    async def flow():
        async def child():
            await step()

        with pytest.raises(NonDeterminismError, match=r"use asyncio\.create_task\(\)"):
            await asyncio.Task(child(), loop=asyncio.get_running_loop())

    assert drive(flow).outcome.state == "completed"


def test_code_that_refuses_to_be_released_is_dropped_with_a_warning(caplog):
    @workflow
    async def flow():
        for _ in range(5_000):
            with contextlib.suppress(BaseException):
                await wait_signal("x")

    driver = Driver(flow).open()
    driver.close()
    assert driver.execution.take().journal == []
    assert "goes on awaiting while it is being released" in caplog.text


def test_a_released_run_takes_no_news():
    driver = Driver(idle).open()
    driver.close()
    assert driver.execution.signal_received("never", "1", EPOCH_US) is False
    assert driver.execution.cancel_requested("x", EPOCH_US) is False


def test_a_run_is_freed_without_the_garbage_collector():
    @workflow
    async def flow():
        await step()
        await asyncio.wait_for(step(), 50)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(step())
        await asyncio.gather(step(), step())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sleep(100), 50)
        await wait_signal("last")

    def freed(ended):
        driver = Driver(flow).open().go()
        if ended:
            driver.signal("last").go()
            assert driver.outcome.state == "completed"
        gone = weakref.ref(driver.execution.loop)
        driver.close()
        driver.execution = None
        return gone() is None

    gc.disable()
    try:
        assert freed(ended=True)
        assert freed(ended=False)
    finally:
        gc.enable()


# -- bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("construct", ["plain", "timeout", "wait_for", "task", "signal", "signals of many names"])
def test_state_does_not_grow_with_the_number_of_steps(construct):
    @workflow
    async def flow(construct: str, steps: int):
        for n in range(steps):
            match construct:
                case "plain":
                    await step(n)
                case "timeout":
                    async with asyncio.timeout(3600):
                        await step(n)
                case "wait_for":
                    await asyncio.wait_for(step(n), 3600)
                case "task":
                    await asyncio.gather(asyncio.create_task(step(n)), step(n))
                case "signal":
                    await wait_signal("s", timeout=3600)
                case _:
                    await wait_signal(f"s{n}", timeout=3600)

    steps = 5_000 if construct in ("plain", "timeout") else 1_500
    execution = Execution(flow, RunIdentity(RUN_ID), f'["{construct}",{steps}]')
    execution.begin(EPOCH_US)
    asks = execution.asks
    largest = 0
    turn = 0
    while execution.outcome is None:
        execution.next_timer()
        step_ = execution.take()
        for command in step_.commands:
            execution.activity_completed(command, "0", EPOCH_US, EPOCH_US + turn)
        if construct.startswith("signal"):
            execution.signal_received("s" if construct == "signal" else f"s{turn}", "1", EPOCH_US + turn)
        turn += 1
        held = (
            execution.loop.tasks, execution.loop._ready, asks._timers, asks.pending, asks._mailbox, asks._waiters,
            asks.issued, asks._abandoned, execution.recorded, execution._history, execution.journal,
        )  # fmt: skip
        largest = max(largest, sum(map(len, held)))
    assert execution.outcome.state == "completed"
    assert largest < 800


def test_a_step_costs_the_same_at_the_end_as_at_the_start():
    @workflow
    async def flow(steps: int):
        for n in range(steps):
            async with asyncio.timeout(3600):
                await step(n)

    execution = Execution(flow, RunIdentity(RUN_ID), "[4000]")
    execution.begin(EPOCH_US)
    taken = []
    while execution.outcome is None:
        begun = time.process_time()
        for _ in range(500):
            for command in execution.take().commands:
                execution.activity_completed(command, "0", EPOCH_US, EPOCH_US)
            execution.next_timer()
        taken.append(time.process_time() - begun)
    assert min(taken[-3:]) < 2.5 * min(taken[:3])


def test_time_never_falls_whatever_the_clock_of_the_worker_says():
    @workflow
    async def flow():
        times = [now()]
        for n in range(3):
            await step(n)
            times.append(now())
        return times == sorted(times)

    execution = Execution(flow, RunIdentity(RUN_ID), "[]")
    execution.begin(EPOCH_US)
    events = []
    for offset in (100, 50, -100):
        (command,) = (done := execution.take()).commands
        events += done.journal
        execution.activity_completed(command, "0", EPOCH_US, EPOCH_US + offset)
    events += execution.take().journal
    assert execution.outcome.result == "true"
    assert [event.time_us - EPOCH_US for event in events] == [100, 100, 100, 100]
