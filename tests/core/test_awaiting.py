"""Whether code is awaited by its task alone is found out from where its callers stand."""

import asyncio
import sys
import types
from contextlib import asynccontextmanager, suppress

import pytest

from continuum.core import awaiting
from continuum.core.awaiting import awaited_by_its_task
from continuum.core.definitions import WorkflowDefinition
from continuum.core.effects import Effect
from continuum.core.execution import Execution
from continuum.core.identity import RunIdentity
from tests.core.driver import EPOCH_US, RUN_ID

FOUND: list[bool] = []


class Asks:
    """Stands in for a call: finds out how it is awaited."""

    def __await__(self):
        FOUND.append(awaited_by_its_task(sys._getframe().f_back))
        return len(FOUND)
        yield


class AnEffect(Effect):
    """An effect that does so where it would be issued."""

    def __init__(self):
        super().__init__(asyncio.get_running_loop().execution, "activity", "asks")

    def _drive(self):
        FOUND.append(awaited_by_its_task(sys._getframe().f_back))
        return len(FOUND)
        yield


async def asks():
    return await Asks()


async def plainly():
    await Asks()


async def through_others():
    async def between():
        return await asks()

    await between()


async def in_a_generator():
    async def numbers():
        yield await asks()
        yield await asks()

    async for _ in numbers():
        await asks()
    assert [number async for number in numbers()] == [5, 6]
    assert await anext(numbers()) == 7


async def in_a_context_manager():
    @asynccontextmanager
    async def around():
        await asks()
        yield
        await asks()

    async with around():
        await asks()


@types.coroutine
def _generator_based():
    return (yield from Asks().__await__())


async def in_a_generator_based_coroutine():
    await _generator_based()


async def in_tasks():
    await asyncio.gather(asks(), AnEffect(), AnEffect())
    await asyncio.create_task(AnEffect())
    async with asyncio.TaskGroup() as group:
        group.create_task(through_others())


async def with_a_limit():
    await asyncio.wait_for(asks(), 10)
    await asyncio.wait_for(AnEffect(), 10)
    async with asyncio.timeout(10):
        await asks()


async def after_a_turn_of_the_loop():
    await asyncio.sleep(0)
    await through_others()


async def in_a_lambda_and_a_comprehension():
    await (lambda: asks())()
    assert [await asks() for _ in range(2)] == [2, 3]


@pytest.fixture(autouse=True)
def _none_found_yet():
    FOUND.clear()


def run(code) -> None:
    execution = Execution(WorkflowDefinition(code), RunIdentity(RUN_ID, started_us=EPOCH_US), "[]")
    execution.begin(EPOCH_US)
    assert execution.outcome is not None
    assert execution.outcome.state == "completed", execution.outcome.error
    execution.close()


@pytest.mark.parametrize(
    ("code", "times"),
    [
        (plainly, 1),
        (through_others, 1),
        (in_a_generator, 7),
        (in_a_context_manager, 3),
        (in_a_generator_based_coroutine, 1),
        (in_tasks, 5),
        (with_a_limit, 3),
        (after_a_turn_of_the_loop, 1),
        (in_a_lambda_and_a_comprehension, 3),
    ],
)
def test_an_await_is_seen_through(code, times):
    run(code)
    assert [True] * times == FOUND


def sent(coroutine):
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def driven_by_hand():
    sent(asks())


async def driven_by_hand_in_place():
    with suppress(StopIteration):
        asks().send(None)


async def driven_by_hand_further_out():
    async def between():
        return await asks()

    sent(between())


async def an_effect_driven_by_hand():
    sent(AnEffect())
    with suppress(StopIteration):
        AnEffect().send(None)


async def a_generator_driven_by_hand():
    async def numbers():
        yield await asks()

    sent(numbers().asend(None))


async def within_a_callback():
    asyncio.get_running_loop().call_soon(sent, asks())
    await asyncio.sleep(0)


class ByHand:
    def __await__(self):
        sent(asks())
        return
        yield


async def by_what_is_awaited():
    await ByHand()


@pytest.mark.parametrize(
    ("code", "times"),
    [
        (driven_by_hand, 1),
        (driven_by_hand_in_place, 1),
        (driven_by_hand_further_out, 1),
        (an_effect_driven_by_hand, 2),
        (a_generator_driven_by_hand, 1),
        (within_a_callback, 1),
        (by_what_is_awaited, 1),
    ],
)
def test_who_drives_by_hand_is_noticed(code, times):
    run(code)
    assert [False] * times == FOUND


def test_outside_a_run_nothing_is():
    assert not awaited_by_its_task(sys._getframe())
    assert not awaited_by_its_task(None)


def test_what_is_known_of_code_is_bounded(monkeypatch):
    monkeypatch.setattr(awaiting, "_MOST", len(awaiting._places) + 3)
    for number in range(8):
        namespace: dict = {"Asks": Asks}
        exec(f"async def made_{number}():\n    await Asks()", namespace)
        run(namespace[f"made_{number}"])
    assert FOUND == [True] * 8
    assert len(awaiting._places) <= awaiting._MOST
