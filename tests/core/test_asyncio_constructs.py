"""asyncio in workflows: each construct gives what asyncio gives, and replays, whatever order things happen in."""

import asyncio
import random

import pytest

from continuum.core.definitions import workflow
from continuum.core.gathering import as_completed, wait
from tests.core.constructs import CONSTRUCTS, work
from tests.core.driver import Driver, assert_replays, in_order, newest_first, shuffled

SCHEDULERS = {"in order": in_order, "newest first": newest_first} | {
    f"shuffled {seed}": shuffled(random.Random(seed).randrange) for seed in range(4)
}


def drive(name, scheduler=in_order):
    driver = Driver(CONSTRUCTS[name], scheduler=scheduler).open()
    for number in (1, 2, 3):
        driver.signal("a", number, after=number)
    return driver.signal("b", 4, after=30).go()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_it_replays_from_every_prefix_in_whatever_order_things_happen(name, scheduler):
    driver = drive(name, SCHEDULERS[scheduler])
    assert driver.outcome is not None, driver.execution.waiting_on()
    assert_replays(driver)


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_it_goes_on_after_a_crash_at_any_moment_as_if_nothing_had_happened(name):
    whole = drive(name)
    for moment in range(len(whole.choices)):
        driver = Driver(CONSTRUCTS[name]).open()
        for number in (1, 2, 3):
            driver.signal("a", number, after=number)
        driver.signal("b", 4, after=30)
        for _ in range(moment):
            driver.step()
        driver.crash()
        driver.go()
        assert driver.history == whole.history
        driver.close()


RESULTS = {
    "sequence": [0, 10, 20],
    "gather": [10, 20, None, "slept"],
    "gather_with_exceptions": [10, "ActivityError", None],
    "gather_that_fails": ["f", True, False, 10],
    "task_group": [0, 10, 20, 1],
    "nested_groups": [[0, 10], [100, 110], [200, 210]],
    "task_group_that_fails": [[0, 0], [1, 10], [2, 20], ["f"]],
    "wait_for": [10, "over", "over after 0", "over after -1", 30, 40],
    "wait_for_around_wait_for": [20, "outer", "inner", 70],
    "wait_for_around_gather": [[10, 20], "over", 70],
    "wait_for_around_a_task": [10, True, 70],
    "wait_for_around_a_group": [[0, 10, 50], "over", 70],
    "wait_for_with_slow_cleanup": ["over", "kept", 70],
    "wait_for_in_concurrent_tasks": [[["one", 1], ["two", 2], ["three", 3]], [[1, 0], [2, 10], [3, 20]]],
    "wait_for_cancelled_from_outside": [[0, 0], [1, 10], [2, 20]],
    "priority_queue": [2, 1, 0],
    "event": [[0, 0], [1, 10], [2, 20]],
    "lock": [0, 0, 1, 10, 2, 20],
    "semaphore": [[0, 10, 20, 30, 40], 2],
    "bounded_semaphore_with_timeouts": [-2, 10, -5, 10],
    "condition": [[0, 0], [1, 10], [2, 20]],
    "shield": [True, 10],
    "ordered_wait": [["0"], ["1", "2", "3"], ["1", "2", "3"], 1, 1],
    "plain_wait": [[True, False, False], [0, 10, 20], [True, False], "ActivityError"],
    "ordered_as_completed": [0, 10, 20, 30, 90, None, None, None, "over"],
    "plain_as_completed": [0, 10, 20, 30],
    "race_of_timers_signals_and_work": [["work", 0], ["work", 10], ["work", 20], ["work", 30]],
    "fire_and_forget": [0, 10, 100, 110],
    "async_generators": [[10, 20], [30, 90]],
    "async_context_managers": [["open", 0], ["open", 10], ["close", 10], ["close", 0]],
    "exception_groups": [[2, 3], [1]],
    "callbacks": ["done", ["soon", "middle", "late"]],
    "cancelled_tasks": ["stayed", 1, True],
    "signals_with_timeouts": [1, 2, 3] + ["no signal 'a' came within 20 seconds"] * 2 + [4],
    "retries_and_failures": ["ValueError 2", "over"],
}


@pytest.mark.parametrize("name", RESULTS)
def test_it_gives_what_asyncio_gives(name):
    assert drive(name).result == RESULTS[name]


def test_timeouts_cost_no_event_unless_they_are_over():
    driver = drive("timeout")
    assert driver.result[:-1] == [10, "over", "the outer one", 20]
    assert sum(asked.kind == "timer" for asked in driver.execution.asked) == 6
    assert driver.types.count("timer_fired") == 2


def test_completion_order_decides_races_not_creation_order():
    assert drive("ordered_wait", newest_first).result[0] != ["0"]


@pytest.mark.parametrize("aws", ["tasks", "effects", "coroutines", "repeated"])
def test_wait_takes_whatever_asyncio_takes_and_each_once(aws):
    @workflow
    async def flow(aws: str):
        async def plain():
            return await work(1)

        match aws:
            case "tasks":
                items = [asyncio.create_task(work(1)), asyncio.create_task(plain())]
            case "effects":
                items = [work(1), work(1)]
            case "coroutines":
                items = [plain(), plain()]
            case _:
                task = asyncio.create_task(work(1))
                items = [task, task]
        done, pending = await wait(items)
        assert not pending
        return [[task.result() for task in done], [await item for item in as_completed(done * 2)]]

    expected = 1 if aws == "repeated" else 2
    assert Driver(flow, (aws,)).open().go().result == [[10] * expected, [10] * expected]


def test_wait_refuses_what_asyncio_refuses():
    @workflow
    async def flow():
        with pytest.raises(ValueError, match="empty"):
            await wait([])
        with pytest.raises(ValueError, match="return_when"):
            await wait([asyncio.create_task(work(1))], return_when="SOMEDAY")
        with pytest.raises(ValueError, match="timeout"):
            await wait([asyncio.create_task(work(1))], timeout=-1)

    assert Driver(flow).open().go().outcome.state == "completed"
