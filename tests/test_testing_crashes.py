"""``continuum_env.crash_everywhere``: workflows are killed and replayed at each step, and what differs is said."""

import asyncio
import itertools
import re

import pytest

from continuum import (
    Retry,
    activity,
    continue_as_new,
    now,
    random,
    saga,
    set_progress,
    side_effect,
    sleep,
    start_child,
    wait_signal,
    workflow,
)
from continuum.testing.environment import StuckError

counter = itertools.count()


@activity(retry=Retry(max_attempts=2))
def step(n: int) -> int:
    return n + 1


@activity
async def slow(n: int) -> int:
    await asyncio.sleep(5)
    return n * 2


@activity
def undo(n: int) -> None: ...


@workflow
async def leaf(n: int) -> int:
    return await step(n)


@workflow
async def sound(n: int) -> dict:
    """A bit of everything that replays."""
    number = side_effect(lambda: next(counter))
    child = await start_child(leaf, n)
    values = await asyncio.gather(step(n), slow(n), leaf(n))
    set_progress(values)
    try:
        async with saga():
            await step(number).compensated_by(undo.bind(1))
            async with asyncio.timeout(2):
                await slow(1)
    except TimeoutError:
        pass
    await sleep(random())
    await step(side_effect(lambda: next(counter)))
    return {"at": now(), "values": values, "child": await child, "go": await wait_signal("go"), "number": number}


def tell(env, flow, *args, **more):
    with pytest.raises(AssertionError) as caught:
        env.crash_everywhere(flow, *args, **more)
    return str(caught.value)


def test_a_workflow_that_replays_survives(continuum_env):
    continuum_env.mock(step, side_effect=[ValueError("no"), *range(20)])
    report = continuum_env.crash_everywhere(sound, 1, signals={"go": "on"})
    assert [run.workflow.rpartition(".")[2] for run in report.runs] == ["sound", "leaf", "leaf"]
    assert report.crashes == 15
    assert report.runs[0].result["go"] == "on"


def test_so_do_chains_and_runs_that_fail_or_are_cancelled(continuum_env):
    @workflow(name="crashes.chain")
    async def chain(n: int) -> int:
        await sleep(1)
        if n < 3:
            continue_as_new(n + 1)
        return await step(n)

    @workflow(name="crashes.fails")
    async def fails() -> None:
        await step(1)
        raise ValueError("no")

    def scenario(env):
        env.start(chain, 1)
        env.start(fails)
        stopped = env.start(sound, 1)
        env.cancel(stopped)
        late = env.start(leaf, 1, start_at=env.now.replace(year=2030))
        env.cancel(late)
        env.run_until_idle()

    report = continuum_env.crash_everywhere(scenario)
    states = [run.state for run in report.runs if run.parent_run_id is None]
    assert states == ["completed", "failed", "cancelled", "cancelled", "completed", "completed"]
    assert report.crashes > 10


def test_one_that_was_retried_does(continuum_env):
    def scenario(env):
        env.mock(step, raises=ValueError("no"))
        run = env.start(leaf, 1)
        env.run_until_idle()
        assert run.state == "failed"
        env.unmock(step)
        env.retry(run)
        assert env.result(run) == 2

    assert continuum_env.crash_everywhere(scenario).crashes == 2


def test_code_that_counts_for_itself_is_found(continuum_env):
    count = itertools.count()

    @workflow(name="crashes.counts")
    async def counts() -> None:
        await step(next(count))
        await sleep(1)

    told = tell(continuum_env, counts)
    assert "crashes.counts" in told
    assert "killed before its first event, it asked for something else" in told
    one, other = told.split("with the crash:")
    assert re.search(r"without the crash:  0:1 activity \S+step \[0\]", one)
    assert re.search(r"0:1 activity \S+step \[1\]", other)


def test_a_history_that_cannot_be_replayed_is_found(continuum_env):
    numbers = iter([0, 0, 1])

    @workflow(name="crashes.lucky_at_first")
    async def lucky_at_first() -> None:
        await step(next(numbers))
        await sleep(1)

    told = tell(continuum_env, lucky_at_first)
    assert "killed after event 1 activity_completed 0:1" in told
    assert "its history could not be replayed" in told
    assert "[0]" in told
    assert "[1]" in told


def test_code_that_waits_for_something_else_is_found(continuum_env):
    kinds = iter(["step", "step", "leaf"])

    @workflow(name="crashes.branches")
    async def branches() -> int:
        await step(1)
        return await (step(2) if next(kinds) == "step" else leaf(2))

    told = tell(continuum_env, branches)
    assert "killed after event 1 activity_completed" in told
    assert "without the crash:  0:2 activity" in told
    assert "with the crash:     0:2 child" in told


def test_an_end_that_differs_is_found(continuum_env):
    seen = []

    @workflow(name="crashes.ends")
    async def ends() -> int:
        await step(1)
        seen.append(1)
        return len(seen)

    told = tell(continuum_env, ends)
    assert "recorded something else" in told
    assert '{"result":1}' in told
    assert '{"result":2}' in told


def test_progress_that_differs_is_found(continuum_env):
    seen = []

    @workflow(name="crashes.progress")
    async def progress() -> None:
        await step(1)
        seen.append(1)
        set_progress(len(seen))
        await sleep(1)

    assert "published as progress something else" in tell(continuum_env, progress)


def test_children_are_killed_too(continuum_env):
    count = itertools.count()

    @workflow(name="crashes.bad_child")
    async def bad_child() -> None:
        await step(next(count))
        await step(0)

    @workflow(name="crashes.good_parent")
    async def good_parent() -> None:
        await bad_child()

    assert "crashes.bad_child" in tell(continuum_env, good_parent)


def test_what_does_not_end_is_said(continuum_env):
    with pytest.raises(StuckError, match="waits for signal 'go'"):
        continuum_env.crash_everywhere(sound, 1)


def test_a_scenario_takes_no_arguments(continuum_env):
    with pytest.raises(TypeError, match="given the environment alone"):
        continuum_env.crash_everywhere(lambda env: None, 1)
