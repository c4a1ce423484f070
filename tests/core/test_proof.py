"""A proof replays a history as a worker would, and does nothing beyond it."""

import asyncio

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.execution import Execution
from continuum.core.facts import logger, now, patched, set_progress, side_effect, uuid4
from continuum.core.proof import prove
from continuum.exceptions import ReplayDriftError
from tests.core.driver import EPOCH_US, Driver
from tests.core.programs import program
from tests.core.record_golden import generated

runs = []


@activity(name="proof.work")
def work(n: int) -> int:
    return n + 1


def reading() -> int:
    runs.append("read")
    return 7


async def old(n: int) -> int:
    n = await work(n)
    n += side_effect(reading)
    await sleep(30)
    await wait_signal("go")
    return await work(n)


def flow(fn):
    return workflow(name=f"test_proof.{fn.__qualname__}")(fn)


def proven(driver, fn=None, history=None, arguments=None):
    definition = driver.definition if fn is None else flow(fn)
    events = driver.history if history is None else history
    prove(definition, driver.run, arguments or driver.input, events, began_us=EPOCH_US)


@pytest.fixture(scope="module")
def recorded():
    return Driver(flow(old), (1,)).open().signal("go", after=60).go()


def test_every_prefix_of_a_history_is_proven_by_the_code_that_made_it(recorded):
    for length in range(len(recorded.history) + 1):
        proven(recorded, history=recorded.history[:length])


@pytest.mark.parametrize("seed", range(25))
def test_so_are_those_of_generated_programs(seed, monkeypatch):
    monkeypatch.setattr(Execution, "notes", [], raising=False)  # what these programs note is not of interest here
    driver = generated(seed, families=seed % 2 == 0)
    assert driver.definition is program
    for length in range(len(driver.history) + 1):
        proven(driver, history=driver.history[:length])


def test_code_that_asks_for_something_else_is_refuted(recorded):
    async def other(n: int) -> int:
        n = await work(n + 1)
        n += side_effect(reading)
        await sleep(30)
        await wait_signal("go")
        return await work(n)

    with pytest.raises(ReplayDriftError) as caught:
        proven(recorded, other)
    assert caught.value.position == "0:1 (event 1)"
    assert "[1]" in caught.value.history
    assert "[2]" in caught.value.code


def test_code_that_ends_in_another_way_is_refuted(recorded):
    async def other(n: int) -> int:
        n = await work(n)
        n += side_effect(reading)
        await sleep(30)
        await wait_signal("go")
        return await work(n) + 1

    with pytest.raises(ReplayDriftError, match="completed"):
        proven(recorded, other)


def test_code_that_does_not_take_the_arguments_is_refuted_also_where_there_is_no_history_yet(recorded):
    async def other(n: int, m: int) -> int: ...

    with pytest.raises(ReplayDriftError, match=r"(?s)arguments \[1\].*other\(n: int, m: int\).*missing a required"):
        proven(recorded, other, history=[])


def test_a_record_that_the_code_does_not_ask_for_is_refuted(recorded):
    async def other(n: int) -> int:
        n = await work(n)
        await sleep(30)

    with pytest.raises(ReplayDriftError, match="side effect"):
        proven(recorded, other, history=recorded.history[:2])


def test_beyond_the_history_nothing_is_done(recorded, caplog):
    async def goes_on(n: int) -> int:
        await work(n)
        runs.append(patched("new"))
        logger.warning("going on")
        set_progress(1)
        runs.append(side_effect(reading))
        return await work(n)

    runs.clear()
    proven(recorded, goes_on, history=recorded.history[:1])
    assert runs == [False]
    assert not caplog.records


def test_code_added_where_the_history_ends_is_no_drift(recorded):
    async def longer(n: int) -> int:
        await work(n)
        side_effect(reading)
        await sleep(30)
        await asyncio.gather(work(1), wait_signal("go"))

    proven(recorded, longer, history=recorded.history[:3])


def test_the_clock_stands_where_it_stood():
    async def told_the_time() -> str:
        await work(now().year)
        return str(uuid4())

    driver = Driver(flow(told_the_time)).open().go()
    proven(driver)
    with pytest.raises(ReplayDriftError):
        prove(driver.definition, driver.run, driver.input, driver.history, began_us=0)


def test_a_run_that_was_retried_is_proven():
    tries = []

    async def fails_at_first() -> int:
        await work(1)
        return await work(2)

    def unlucky(n):
        tries.append(n)
        if tries == [1, 2]:
            raise ValueError(n)
        return n

    driver = Driver(flow(fails_at_first), mocks={"proof.work": unlucky}).open().go()
    driver.retry().go()
    assert driver.result == 2
    for length in range(len(driver.history) + 1):
        proven(driver, history=driver.history[:length])
