"""Replay: from any history, however it was cut, a run stands where it stood and asks for what it had asked for."""

import asyncio
import itertools
from dataclasses import replace
from uuid import UUID

import pytest

from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, wait_signal
from continuum.core.execution import Execution
from continuum.core.facts import now, side_effect, uuid4
from tests.core.driver import (
    EPOCH_US,
    Driver,
    Recorder,
    assert_replays,
    assert_sound,
    drive,
    in_order,
    newest_first,
    note,
    redeliver,
    replay,
    scripted,
)


@activity(name="replay.step")
def step(n: int) -> int:
    return n


@workflow(name="replay.busy")
async def busy():
    async def worker(n):
        note([n, await step(n)])
        note(str(uuid4()))
        async with asyncio.timeout(60):
            note([n, await wait_signal("go")])
        note(side_effect(int))
        await sleep(n)
        note(str(now()))
        return n

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker(n)) for n in range(3)]
    return [task.result() for task in tasks]


def drive_busy(**options):
    driver = Driver(busy, **options).open()
    for n in range(3):
        driver.signal("go", n, after=n)
    return driver.go()


def test_what_is_outstanding_is_asked_for_again():
    driver = Driver(busy).open()
    assert sorted(driver.outstanding) == ["0.1:1", "0.2:1", "0.3:1"]
    driver.step()
    step_ = replay(driver, driver.history).take()
    assert [command.id for command in step_.commands] == ["0.2:1", "0.3:1"]
    assert (step_.journal, step_.abandoned, step_.outcome) == ([], [], None)


def test_what_was_answered_is_never_asked_for_again():
    driver = drive_busy()
    step_ = replay(driver, driver.history).take()
    assert (step_.commands, step_.journal) == ([], [])
    assert step_.outcome == driver.outcome


def test_timers_keep_the_instant_they_were_set_for():
    @workflow
    async def flow():
        await step(1)
        await sleep(100)

    driver = Driver(flow).open()
    driver.step()
    due = driver.execution.next_timer().due_us
    driver.clock_us += 90_000_000
    driver.crash()
    assert driver.execution.next_timer().due_us == due == EPOCH_US + 1_000 + 100_000_000


def test_timers_that_are_due_together_fire_in_the_order_they_were_set():
    @workflow
    async def flow():
        async def timer(n):
            await sleep(10)
            note(n)

        await asyncio.gather(*(timer(n) for n in range(5)))

    driver = drive(flow)
    assert driver.notes == [0, 1, 2, 3, 4]
    assert_replays(driver)


@pytest.mark.parametrize("order", list(itertools.permutations(["0.1:1", "0.2:1", "0.3:1"])))
def test_every_order_of_completion_is_a_history_that_replays_to_itself(order):
    @workflow
    async def flow():
        finished = []

        async def worker(n):
            finished.append(await step(n))

        await asyncio.gather(*(worker(n) for n in range(3)))
        return finished

    driver = drive(flow, scheduler=scripted(order))
    assert [f"0.{n + 1}:1" for n in driver.result] == list(order)
    assert_replays(driver)


def test_the_identity_of_a_command_does_not_depend_on_the_order_of_completion():
    one, other = drive_busy(), drive_busy(scheduler=newest_first)
    assert [e.command_id for e in one.history] != [e.command_id for e in other.history]
    assert {a[:4] for a in one.execution.asked} == {a[:4] for a in other.execution.asked}


def test_a_replay_may_be_taken_in_pieces():
    driver = drive_busy()
    execution = Recorder(busy, driver.run, "[]")
    execution.begin(EPOCH_US, driver.history)
    pieces = 1
    while not execution.replay(2):
        assert execution.replaying
        pieces += 1
    assert pieces == (len(driver.history) + 1) // 2
    assert not execution.replaying
    assert execution.outcome == driver.outcome


def test_a_run_goes_on_after_its_replay_as_if_it_had_never_been_away():
    whole = drive_busy()
    for length in (0, 1, 4):
        execution = replay(whole, whole.history[:length])
        journal = execution.take().journal
        for event in whole.history[length:]:
            if execution.seq < event.seq:
                redeliver(execution, event)
        journal += execution.take().journal
        assert journal == whole.history[length:]
        assert_sound([*whole.history[:length], *journal])


def test_a_decision_that_was_lost_with_its_commit_is_made_again():
    values = iter(range(10))

    @workflow
    async def flow():
        await step(1)
        first = side_effect(next, values)
        return [first, side_effect(next, values)]

    driver = drive(flow)
    assert driver.result == [0, 1]
    lost_one = replay(driver, driver.history[:2])
    assert lost_one.outcome.result == "[0,2]"
    lost_both = replay(driver, driver.history[:1])
    assert lost_both.outcome.result == "[3,4]"


def test_deep_in_a_replay_nothing_is_decided_anew():
    calls = []

    @workflow
    async def flow():
        for n in range(3):
            side_effect(calls.append, n)
            await step(n)

    driver = drive(flow)
    calls.clear()
    for length in range(2, len(driver.history) + 1, 2):
        calls.clear()
        replay(driver, driver.history[:length])
        assert calls == [length // 2][: length < 6]


def test_a_fork_that_keeps_the_seed_draws_what_its_origin_drew():
    @workflow
    async def flow():
        return str(uuid4())

    origin = drive(flow)
    fork = drive(flow, run=replace(origin.run, id=UUID(int=7), seed=origin.run.id))
    assert fork.result == origin.result


def test_a_cancelled_run_replays_through_its_cleanup():
    @workflow
    async def flow():
        try:
            await asyncio.gather(sleep(100), step(1), wait_signal("x"))
        finally:
            note(await step(9))
            await asyncio.sleep(3)
            note("end of cleanup")

    for scheduler in (newest_first, in_order):
        driver = Driver(flow, scheduler=scheduler).open().cancel("x", after=2).go()
        assert driver.outcome.state == "cancelled"
        assert driver.notes == [9, "end of cleanup"]
        assert_replays(driver)


def test_five_thousand_steps_replay_to_the_same_end():
    @workflow
    async def flow(steps: int):
        total = 0
        for n in range(steps):
            total += await step(n)
        return total

    execution = Execution(flow, drive(flow, 0).run, "[5000]")
    execution.begin(EPOCH_US)
    history = []
    while execution.outcome is None:
        taken = execution.take()
        history += taken.journal
        (command,) = taken.commands
        execution.activity_completed(command, command.args[1:-1], EPOCH_US, EPOCH_US + len(history))
    history += execution.take().journal
    assert_sound(history)
    again = Execution(flow, execution.run, "[5000]")
    again.begin(EPOCH_US, history)
    assert again.replay()
    assert again.outcome == execution.outcome
    assert again.outcome.result == str(sum(range(5000)))
