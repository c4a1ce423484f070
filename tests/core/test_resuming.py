"""Retry: a failed run goes on from where it failed. Fork: another run shares the history before a command."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, note as remark, settings

from continuum.core import facts
from continuum.core.definitions import activity, workflow
from continuum.core.effects import sleep, sleep_until, wait_signal
from continuum.core.facts import now, patched, run_info, side_effect, uuid4
from continuum.core.history import Event, EventType
from continuum.core.lineage import continue_as_new, start_child
from continuum.core.resuming import effective, forked
from continuum.core.retry import Retry
from continuum.core.sagas import compensate, saga
from continuum.exceptions import ActivityError, ChildError, ReplayDriftError
from tests.core.driver import (
    Driver,
    assert_replays,
    assert_sound,
    close_all,
    in_order,
    note,
    replay,
    scripted,
)
from tests.core.test_properties import _THOROUGH, chances, check as thoroughly

check = thoroughly if thoroughly is _THOROUGH else settings(thoroughly, max_examples=60)


@activity(name="resuming.step")
def step(n: object) -> object:
    return n


@activity(name="resuming.fragile", retry=Retry(max_attempts=2))
def fragile(n: object = 0) -> object:
    return n


@activity(name="resuming.undo")
def undo(n: object) -> str:
    return f"undone {n}"


@workflow(name="resuming.child")
async def child(n: int) -> int:
    return n


class World:
    """Activities and children that fail until they are mended, and how often each was carried out."""

    def __init__(self, *broken):
        self.broken = set(broken)
        self.done = Counter()

    def stand_in(self, name, value=lambda n: n):
        def perform(n=0):
            if name in self.broken or (name, n) in self.broken:
                raise ValueError(f"{name} is broken")
            self.done[name, n] += 1
            return value(n)

        return perform

    @property
    def mocks(self):
        names = ("resuming.step", "resuming.fragile", "resuming.undo", "resuming.child")
        return {name: self.stand_in(name.partition(".")[2]) for name in names}

    def mend(self, *mended):
        self.broken -= set(mended) or self.broken


def broken(flow, *what, arguments=(), signals=(), scheduler=in_order):
    """Drive a workflow to its failure."""
    world = World(*what or ("fragile",))
    driver = Driver(flow, arguments, mocks=world.mocks, scheduler=scheduler).open()
    for name, payload in signals:
        driver.signal(name, payload)
    driver.go()
    assert driver.outcome.state == "failed", driver.outcome
    assert_replays(driver)
    return driver, world


def resumed(driver):
    """What the last retry has left out: the types of the events."""
    event = next(e for e in reversed(driver.history) if e.type == EventType.RUN_RESUMED)
    dropped = json.loads(event.data)["dropped"]
    return [e.type for e in driver.history if e.seq in dropped]


def retry(driver, world, *mended, **options):
    if world is not None:
        world.mend(*mended)
    driver.retry(**options).go()
    assert_replays(driver)
    return driver


# -- what fails and what stays ----------------------------------------------------------------------------------


def test_what_failed_runs_again_and_what_succeeded_does_not():
    @workflow
    async def flow():
        return [await step(1), await fragile(2), await step(3)]

    driver, world = broken(flow)
    retry(driver, world)
    assert driver.result == [1, 2, 3]
    assert world.done == {("step", 1): 1, ("fragile", 2): 1, ("step", 3): 1}
    assert driver.types == [
        "activity_completed", "activity_retried", "activity_failed", "run_failed", "run_retried", "run_resumed",
        "activity_completed", "activity_completed", "run_completed",
    ]  # fmt: skip
    assert resumed(driver) == ["activity_retried", "activity_failed", "run_failed"]
    assert "attempt" not in json.loads(driver.history[6].data)  # attempts are counted anew


def test_a_retry_that_fails_can_be_retried():
    @workflow
    async def flow():
        return [await fragile(1), await fragile(2), await fragile(3)]

    driver, world = broken(flow, ("fragile", 1), ("fragile", 2), ("fragile", 3))
    retry(driver, None)
    assert driver.outcome.state == "failed"
    for n in (1, 2):
        retry(driver, world, ("fragile", n))
        assert driver.outcome.state == "failed"
    retry(driver, world)
    assert driver.result == [1, 2, 3]
    assert driver.types.count("run_resumed") == 4
    assert world.done == {("fragile", n): 1 for n in (1, 2, 3)}


@pytest.mark.parametrize("how", ["gather", "group", "as exceptions"])
def test_all_that_failed_side_by_side_run_again_and_their_completed_siblings_do_not(how):
    @workflow
    async def flow():
        calls = [step(1), fragile(2), fragile(3), step(4)]
        match how:
            case "gather":
                return await asyncio.gather(*calls)
            case "group":
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(call) for call in calls]
                return [task.result() for task in tasks]
            case _:
                values = await asyncio.gather(*calls, return_exceptions=True)
                errors = [value for value in values if isinstance(value, Exception)]
                if errors:
                    raise ExceptionGroup("several", errors)
                return values

    driver, world = broken(flow)
    retry(driver, world)
    assert driver.result == [1, 2, 3, 4]
    assert all(count == 1 for (name, n), count in world.done.items() if n != 4)


def test_a_cause_that_was_wrapped_is_found():
    @workflow
    async def flow():
        try:
            await fragile(1)
        except ActivityError as error:
            raise RuntimeError("wrapped") from error

    driver, world = broken(flow)
    assert json.loads(driver.history[-1].data) == {"type": "RuntimeError", "failed": ["0:1"]}
    assert retry(driver, world).outcome.state == "completed"


def test_a_failure_that_the_code_had_handled_stays_handled():
    @workflow
    async def flow():
        with contextlib.suppress(ActivityError):
            await fragile(1)
        await step("instead")
        return await fragile(2)

    driver, world = broken(flow)
    retry(driver, world)
    assert driver.result == 2
    assert ("fragile", 1) not in world.done
    assert world.done["step", "instead"] == 1


def test_clean_up_that_ran_because_of_the_failure_runs_again_if_need_be():
    @workflow
    async def flow():
        await step(0)
        try:
            await fragile(1)
        finally:
            await step("clean up")

    driver, world = broken(flow)
    assert world.done["step", "clean up"] == 1
    retry(driver, None)
    assert world.done["step", "clean up"] == 2
    retry(driver, world)
    assert world.done["step", "clean up"] == 3
    assert driver.outcome.state == "completed"


def test_a_failed_side_effect_runs_again():
    world = {"broken": True}

    def look(refused: bool):
        if world["broken"]:
            if refused:
                return print
            raise ValueError("broken")
        return 7

    @workflow
    async def flow(refused: bool):
        await step(1)
        return side_effect(look, refused)

    for refused in (False, True):
        world["broken"] = True
        driver, _ = broken(flow, arguments=(refused,))
        assert retry(driver, None).outcome.state == "failed"
        world["broken"] = False
        assert retry(driver, None).result == 7


def test_facts_decided_after_the_failure_are_decided_anew():
    looked = [0]

    def look() -> int:
        return looked[0]

    @workflow
    async def flow():
        before = side_effect(look)
        draws = str(uuid4())
        try:
            await fragile(1)
        except ActivityError:
            note(["after", side_effect(look), patched("p"), str(uuid4())])
            raise
        return [before, draws, side_effect(look), patched("p"), patched("q")]

    driver, world = broken(flow)
    draws = driver.notes[0][3]
    looked[0] = 2
    retry(driver, world)
    assert driver.result[0] == 0
    assert driver.result[2:] == [2, True, True]
    assert driver.result[1] != draws


# -- code that was wrong ----------------------------------------------------------------------------------------


def test_mended_code_goes_on_with_the_old_results_and_code_that_was_not_fails_again():
    mended = [False]

    @workflow
    async def flow():
        value = await step(1)
        if not mended[0]:
            raise KeyError("bug")
        return [value, await step(2)]

    driver, world = broken(flow)
    retry(driver, world)
    assert driver.error["type"] == "KeyError"
    mended[0] = True
    retry(driver, world)
    assert driver.result == [1, 2]
    assert world.done == {("step", 1): 1, ("step", 2): 1}


def test_code_may_be_mended_behind_a_patch():
    patching = [False]

    @workflow
    async def flow():
        value = await step(1)
        if patching[0] and patched("mended"):
            return value
        raise KeyError("bug")

    driver, world = broken(flow)
    patching[0] = True
    assert retry(driver, world).result == 1


@pytest.mark.parametrize("change", ["arguments", "another activity", "a side effect for an activity", "other function"])
def test_what_does_not_fit_the_mended_code_is_left_out(change):
    mended = [False]

    def one():
        return 1

    def two():
        return 2

    @workflow
    async def flow():
        await step(0)
        value = side_effect(one if not (mended[0] and change == "other function") else two)
        if not mended[0]:
            await step("wrong")
            raise KeyError
        match change:
            case "arguments":
                return await step("right")
            case "another activity":
                return await fragile("right")
            case "a side effect for an activity":
                return side_effect(str, "right")
            case _:
                return "right" if value == 2 else "wrong"

    driver, world = broken(flow, "nothing")
    mended[0] = True
    retry(driver, world)
    assert driver.result == "right"
    assert world.done["step", 0] == 1


def test_a_run_that_was_retried_drifts_like_any_other():
    mended = [0]

    @workflow
    async def flow():
        await step(mended[0])
        await fragile(1)
        await sleep(100)

    driver, world = broken(flow)
    world.mend()
    driver.retry()
    driver.step()
    mended[0] = 5
    with pytest.raises(ReplayDriftError):
        replay(driver, driver.history)


# -- compensations ----------------------------------------------------------------------------------------------


def book(n):
    return step(n).compensated_by(undo.bind(n))


def test_steps_that_were_undone_run_again():
    @workflow
    async def flow():
        async with saga():
            values = [await book(1), await step("kept"), await book(2), await fragile(3)]
        return values

    driver, world = broken(flow)
    assert [world.done["undo", n] for n in (1, 2)] == [1, 1]
    retry(driver, world)
    assert driver.result == [1, "kept", 2, 3]
    assert world.done == {
        ("step", 1): 2, ("step", 2): 2, ("step", "kept"): 2, ("undo", 1): 1, ("undo", 2): 1, ("fragile", 3): 1,
    } or world.done["step", "kept"] == 1  # fmt: skip


def test_a_step_whose_compensation_failed_is_not_run_again():
    @workflow
    async def flow():
        async with saga():
            return [await book(1), await book(2), await fragile(3)]

    driver, world = broken(flow, "fragile", ("undo", 1))
    retry(driver, world)
    assert driver.result == [1, 2, 3]
    assert (world.done["step", 1], world.done["step", 2]) == (1, 2)


def test_steps_undone_on_purpose_stay_undone():
    @workflow
    async def flow():
        effect = book(1)
        await effect
        verdict = await wait_signal("verdict")
        await compensate(effect)
        return [verdict, await fragile(2)]

    driver, world = broken(flow, signals=[("verdict", "no")])
    retry(driver, world)
    assert driver.result == ["no", 2]
    assert world.done == {("step", 1): 1, ("undo", 1): 1, ("fragile", 2): 1}


def test_a_run_that_broke_while_undoing_goes_on_undoing_first():
    @workflow
    async def flow():
        async with saga():
            return [await book(1), await book(2), await fragile(3)]

    driver, world = broken(flow)
    first_undone = next(e.seq for e in driver.history if "undoes" in e.data)
    del driver.history[first_undone:]
    poison = Event(first_undone + 1, EventType.RUN_FAILED, None, None, '{"type":"PoisonRunError"}', driver.clock_us)
    driver.history.append(poison)
    world.mend()
    driver.retry().go()
    assert driver.outcome.state == "failed"
    assert world.done["undo", 2] == 1
    retry(driver, None)
    assert driver.result == [1, 2, 3]
    assert world.done["fragile", 3] == 1


# -- signals ----------------------------------------------------------------------------------------------------


def test_signals_taken_after_the_failure_are_not_lost_and_stay_in_order():
    @workflow
    async def flow():
        first = await wait_signal("a")
        try:
            await fragile(1)
        except ActivityError:
            note([await wait_signal("a"), await wait_signal("b")])
            raise
        return [first, *[await wait_signal("a") for _ in range(3)], await wait_signal("b")]

    signals = [("a", 1), ("a", 2), ("b", "x"), ("a", 3), ("a", 4)]
    world = World("fragile")
    driver = Driver(flow, mocks=world.mocks, scheduler=scripted(["m1", "0:2", "0:2", "m2", "m3"])).open()
    for name, payload in signals:
        driver.signal(name, payload)
    while driver.outcome is None:
        driver.step()
    assert_replays(driver)
    driver.scheduler = in_order
    retry(driver, world)
    assert resumed(driver).count("signal_received") == 2
    assert driver.result == [1, 2, 3, 4, "x"]


def test_signals_of_a_failed_life_that_nobody_wants_yet_go_on_to_the_successor():
    mended = [False]

    @workflow
    async def flow():
        await wait_signal("a")
        if mended[0]:
            continue_as_new()
        note(await wait_signal("a"))
        raise KeyError

    driver, world = broken(flow, signals=[("a", 1), ("b", 2), ("a", 3)])
    mended[0] = True
    retry(driver, world)
    assert sorted(driver.outcome.successor.signals) == [("a", "3"), ("b", "2")]


def test_a_signal_that_did_not_come_in_time_is_waited_for_as_long_again():
    @workflow
    async def flow():
        await step(1)
        return await wait_signal("a", timeout=20)

    driver, _ = broken(flow, "nothing")
    driver.clock_us += 86_400_000_000
    driver.retry()
    assert driver.execution.next_timer().due_us - driver.clock_us == 20_000_000
    driver.signal("a", "late").go()
    assert driver.result == "late"
    assert_replays(driver)


# -- time -------------------------------------------------------------------------------------------------------


def test_the_time_between_failure_and_retry_does_not_count_for_timeouts_but_for_instants():
    @workflow
    async def flow():
        begun = now()
        instant = asyncio.ensure_future(sleep_until(begun.replace(hour=23)))
        sleeper = asyncio.ensure_future(sleep(30))
        signal = asyncio.ensure_future(wait_signal("a", timeout=40))
        async with asyncio.timeout(60):
            value = await fragile(1)
        await asyncio.wait([sleeper, instant, signal])
        return [value, str(signal.exception())]

    driver, world = broken(flow)
    driver.clock_us += 86_400_000_000
    world.mend()
    driver.retry()
    due = {c.id: c.due_us - driver.clock_us for c in driver.execution.pending.values() if c.due_us}
    assert sorted(round(us / 1e6) for us in due.values() if us > 0) == [30, 40, 60]
    assert sum(us < 0 for us in due.values()) == 1
    driver.crash()
    assert due == {c.id: c.due_us - driver.clock_us for c in driver.execution.pending.values() if c.due_us}
    driver.go()
    assert driver.result == [1, "no signal 'a' came within 40 seconds"]
    assert_replays(driver)


def test_time_never_falls_across_a_retry_and_decisions_in_it():
    @workflow
    async def flow():
        await step(1)
        with contextlib.suppress(KeyError):
            side_effect(int)
        await fragile(now().isoformat())
        return now().isoformat()

    driver, world = broken(flow)
    retry(driver, world, "fragile")
    assert_sound(driver.history)


# -- children ---------------------------------------------------------------------------------------------------


def test_a_child_that_failed_is_waited_for_again():
    @workflow
    async def flow():
        return [await child(1), await step(2)]

    driver, world = broken(flow, "child")
    retry(driver, world)
    assert driver.result == [1, 2]
    assert len(driver.children) == 1
    assert "renewed" not in driver.history[-4].data


def test_a_child_that_was_cancelled_is_started_anew_and_keeps_its_generation():
    cancels = [True]

    @workflow
    async def flow():
        handle = await start_child(child, 1)
        if cancels[0]:
            handle.cancel("x")
        note(str(handle.id))
        value = await handle
        note(str(handle.id))
        await fragile(2)
        return [value, str(handle.id)]

    driver, world = broken(flow)
    retry(driver, None)
    assert [c.reply_to for c in driver.children.values()] == ["0:1", "0:1#1"]
    cancels[0] = False
    retry(driver, None)
    assert "ActivityError" in driver.error["type"]
    assert [c.reply_to for c in driver.children.values()] == ["0:1", "0:1#1", "0:1#2"]
    retry(driver, world)
    assert driver.result == [1, str(list(driver.children)[2])]
    assert driver.notes[1] == driver.result[1]


@pytest.mark.parametrize("how", ["group", "timeout", "by hand", "in except"])
def test_children_cancelled_because_of_the_failure_are_started_anew(how):
    @workflow
    async def flow():
        match how:
            case "group":
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(child(1)), group.create_task(fragile(2))]
                return [task.result() for task in tasks]
            case "timeout":
                task = asyncio.ensure_future(child(1))
                try:
                    return [await fragile(2), await task][::-1]
                except ActivityError:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(task, 1)
                    raise
            case "by hand":
                handle = await start_child(child, 1)
                try:
                    return [await fragile(2), await handle][::-1]
                except ActivityError:
                    handle.cancel("in vain")
                    raise
            case _:
                handle = await start_child(child, 1)
                try:
                    return [await fragile(2), await handle][::-1]
                except ActivityError:
                    handle.cancel("in vain")
                    with contextlib.suppress(ChildError):
                        await handle
                    raise

    def children_last(occurrences):
        order = {"attempt": 0, "timer": 1, "child": 2}
        return min(occurrences, key=lambda o: order[o.kind])

    driver, world = broken(flow, scheduler=children_last)
    assert len(driver.cancelled) == 1
    driver.crash()
    retry(driver, None)
    assert driver.outcome.state == "failed"
    retry(driver, world)
    assert driver.result == [1, 2]
    assert len(driver.children) == 3
    assert len(driver.cancelled) == 2


def test_a_child_that_completed_after_the_failure_is_started_anew_when_it_is_asked_for_again():
    @workflow
    async def flow():
        try:
            return await fragile(1)
        except ActivityError:
            note(await child(7))
            raise

    driver, world = broken(flow)
    retry(driver, None)
    assert driver.outcome.state == "failed"
    assert [c.reply_to for c in driver.children.values()] == ["0:2", "0:2#1"]
    driver.retry()
    driver.crash()
    driver.go()
    assert [c.reply_to for c in driver.children.values()] == ["0:2", "0:2#1", "0:2#2"]
    assert retry(driver, world).result == 1


def test_children_that_were_undone_by_children_are_started_anew():
    @workflow(name="resuming.undoing")
    async def undoing(n: int) -> str:
        return f"undone {n}"

    @workflow
    async def flow():
        async with saga():
            first = await child(1).compensated_by(undoing.bind(1))
            return [first, await fragile(2)]

    driver, world = broken(flow)
    retry(driver, None)
    assert driver.outcome.state == "failed"
    assert [c.reply_to for c in driver.children.values()] == ["0:1", "0.1:1", "0:1#1", "0.1:1#1"]
    retry(driver, world)
    assert driver.result == [1, 2]


def test_children_that_go_on_are_not_started_again():
    @workflow
    async def flow():
        handle = await start_child(child, 1)
        return await asyncio.gather(fragile(2), handle, child(3))

    driver, world = broken(flow, scheduler=scripted(["0.1:1", "0.1:1"]))
    driver.scheduler = in_order
    assert len(driver.children) == 2
    retry(driver, world)
    assert driver.result == [2, 1, 3]
    assert len(driver.children) == 2
    assert driver.cancelled == {}


# -- histories that end otherwise -------------------------------------------------------------------------------


def test_a_run_whose_events_were_refused_goes_on_from_what_is_recorded():
    @workflow
    async def flow():
        return [await step(1), await step(2)]

    driver, world = broken_by_the_journal(flow, 1)
    retry(driver, world)
    assert driver.result == [1, 2]
    assert world.done == {("step", 1): 1, ("step", 2): 2}


def broken_by_the_journal(flow, length):
    world = World()
    driver = Driver(flow, mocks=world.mocks).open().go()
    kept = driver.history[:length]
    error = Event(length + 1, EventType.RUN_FAILED, None, None, '{"type":"JournalError"}', kept[-1].time_us)
    driver.history = [*kept, error]
    driver.outcome = driver.outcome._replace(state="failed")
    return driver, world


def test_a_retry_whose_first_commit_is_refused_can_be_retried():
    @workflow
    async def flow():
        return await fragile(1)

    driver, world = broken(flow)
    driver.retry()
    refused = driver.history[-1]
    assert refused.type == EventType.RUN_RESUMED
    driver.history[-1] = refused._replace(type=EventType.RUN_FAILED, data='{"type":"JournalError"}')
    driver.outcome = None
    driver.execution.close()
    driver.clock_us += 1000
    event = Event(len(driver.history) + 1, EventType.RUN_RETRIED, None, None, "{}", driver.clock_us)
    driver.history.append(event)
    driver.taken_up, driver.states = len(driver.history), {}
    world.mend()
    driver.open().go()
    assert_replays(driver)
    assert driver.result == 1


def test_a_run_that_failed_before_anything_happened_begins_anew():
    mended = [False]

    @workflow
    async def flow():
        if not mended[0]:
            raise KeyError
        return "mended"

    driver, world = broken(flow)
    mended[0] = True
    assert retry(driver, world).result == "mended"


def test_a_retry_may_be_taken_in_pieces():
    @workflow
    async def flow():
        async with saga():
            for n in range(5):
                await book(n)
            return await fragile(9)

    driver, _ = broken(flow)
    driver.retry()
    execution = type(driver.execution)(flow, driver.run, driver.input)
    execution.begin(1_718_366_400_000_000, driver.history[: driver.taken_up])
    pieces = 0
    while not execution.replay(2):
        pieces += 1
    assert pieces > 5
    assert execution.take().journal == driver.history[driver.taken_up :]


def test_every_crash_after_a_retry_comes_to_the_same():
    @workflow
    async def flow():
        async with saga():
            await book(1)
            values = await asyncio.gather(step(2), fragile(3), child(4), return_exceptions=True)
            if any(isinstance(value, Exception) for value in values):
                raise ExceptionGroup("several", [v for v in values if isinstance(v, Exception)])
            return [*values, await fragile(5), side_effect(int), str(uuid4())]

    whole, world = broken(flow, "fragile", "child")
    retry(whole, world)
    assert whole.outcome.state == "completed"
    for moment in range(len(whole.choices)):
        driver, world = broken(flow, "fragile", "child")
        world.mend()
        driver.retry()
        for _ in range(moment):
            driver.step()
        driver.crash()
        driver.go()
        assert driver.history == whole.history
        driver.close()


# -- forks ------------------------------------------------------------------------------------------------------


@workflow(name="resuming.forkable")
async def forkable():
    values = [str(run_info().run_id), str(uuid4())]
    values.append(await step(1))
    values += [str(uuid4()), side_effect(str, "a"), patched("p")]
    handle = await start_child(child, 7)
    values.append(await step(2))
    values += [str(run_info().run_id), str(uuid4()), str(run_info().started_at), str(run_info().parent_run_id)]
    values += [await fragile(3), await handle, str(handle.id)]
    return values


def fork(driver, before, number=1):
    other = driver.fork(before, number=number)
    other.go()
    assert_sound(other.history)
    assert_replays(other)
    return other


def test_a_fork_shares_the_past_and_has_an_identity_of_its_own_from_then_on():
    origin = Driver(forkable, mocks=World().mocks).open().go()
    other = fork(origin, "0:4")
    assert other.history[:4] == origin.history[:4]
    assert other.types[4] == "run_forked"
    assert other.result[:6] == origin.result[:6]
    assert other.result[6] == 2
    changed = (7, 8, 9)
    assert [i for i, (a, b) in enumerate(zip(origin.result, other.result, strict=True)) if a != b] == [*changed]
    assert other.result[7] == str(other.run.id)
    assert not other.children  # what has ended has ended
    earlier = fork(origin, "0:3")
    assert not set(earlier.children) & set(origin.children)


@pytest.mark.parametrize("before", ["0:1", "0:2", "patch:p", "0:3", "0:4", "0:5"])
def test_a_fork_before_anything_at_all_goes_on_to_the_end(before):
    origin = Driver(forkable, mocks=World().mocks).open().go()
    clock_us = origin.clock_us
    other = fork(origin, before)
    assert other.outcome.state == "completed"
    for moment in range(len(other.choices) + 1):
        origin.clock_us = clock_us
        again = origin.fork(before)
        for _ in range(moment):
            again.step()
        again.crash()
        again.go()
        assert again.result == other.result
        again.close()


def test_a_fork_of_a_fork_has_lived_as_three():
    origin = Driver(forkable, mocks=World().mocks).open().go()
    other = fork(origin, "0:4")
    third = fork(other, "0:5", number=2)
    assert third.types.count("run_forked") == 2
    assert third.result[:11] == other.result[:11]
    assert set(third.children) & set(other.children) == set()
    fourth = fork(third, "0:4", number=3)
    assert fourth.types.count("run_forked") == 2
    twice = fork(other, "0:4", number=4)
    assert twice.types.count("run_forked") == 2
    assert twice.outcome.state == "completed"


def test_a_fork_before_the_last_decision_of_a_run_that_failed_there():
    @workflow
    async def flow():
        await step(1)
        side_effect(str, "last")
        raise KeyError

    driver, _ = broken(flow)
    other = fork(driver, "0:2")
    assert other.types == ["activity_completed", "run_forked", "side_effect", "run_failed"]


def test_a_fork_in_the_middle_of_what_drifts_is_noticed():
    asks = ["a"]

    @workflow
    async def flow():
        await step(1)
        side_effect(str, "one")
        if asks[0] == "more":
            side_effect(str, "two")
        await step(2)

    origin = Driver(flow, mocks=World().mocks).open().go()
    other = fork(origin, "0:2")
    asks[0] = "more"
    with pytest.raises(ReplayDriftError):
        replay(other, other.history)


def test_a_fork_leaves_what_the_source_waited_for_its_time():
    @workflow
    async def flow():
        async with asyncio.timeout(60):
            return await fragile(1)

    driver, world = broken(flow)
    world.mend()
    driver.clock_us += 86_400_000_000
    other = driver.fork("0:2")
    assert other.execution.next_timer().due_us - other.clock_us > 59_000_000
    assert other.go().result == 1
    assert_replays(other)


def test_a_fork_of_a_retried_run_has_the_history_that_counts():
    @workflow
    async def flow():
        try:
            handle = await start_child(child, 0)
            return [await step(1), await fragile(2), await step(3), await fragile(4), await handle]
        except ActivityError:
            await child(9)
            raise

    driver, world = broken(flow)
    retry(driver, None)
    retry(driver, world)
    assert driver.outcome.state == "completed"
    for before in [f"0:{n}" for n in range(2, 6)]:
        other = fork(driver, before)
        assert other.result == driver.result
        assert not any(e.type == EventType.RUN_FAILED for e in other.history)


def test_a_fork_can_be_retried_and_a_retried_fork_forked():
    @workflow
    async def flow():
        return [await step(1), str(uuid4()), await fragile(2), await fragile(3)]

    driver, world = broken(flow)
    other = driver.fork("0:2").go()
    assert other.outcome.state == "failed"
    world.mend()
    retry(other, None)
    assert other.result[0] == 1
    third = fork(other, "0:3", number=2)
    assert third.result == other.result


def test_a_pending_child_that_was_cancelled_is_cancelled_for_the_fork_as_well():
    @workflow
    async def flow():
        handle = await start_child(child, 1)
        await step(1)
        handle.cancel("stop")
        await step(2)
        with contextlib.suppress(ChildError):
            return await handle
        return "cancelled"

    driver = Driver(flow, mocks=World().mocks, scheduler=scripted(["0:2", "0:3", "0:1"])).open().go()
    assert driver.result == "cancelled"
    driver.scheduler = in_order
    other = driver.fork("0:3")
    assert list(other.cancelled) == list(other.children)
    assert other.go().result == "cancelled"
    assert_replays(other)


def test_a_fork_before_a_command_without_events_shares_the_whole_history():
    @workflow
    async def flow():
        await step(1)
        await sleep(100)

    driver = Driver(flow, mocks=World().mocks).open()
    driver.step()
    history, known = forked(driver.history, driver.run, replace(driver.run).id, "0:2", driver.clock_us)
    assert (len(history), known) == (2, False)
    assert forked(driver.history, driver.run, driver.run.id, "0:1", driver.clock_us)[1]
    assert fork(driver, "0:2").outcome.state == "completed"


# -- at random --------------------------------------------------------------------------------------------------


@workflow(name="resuming.planned")
async def planned(plan: list):
    return await _carry_out(plan)


async def _carry_out(plan):
    kind, *parts = plan
    match kind:
        case "step":
            return await step(parts[0])
        case "child":
            return await child(parts[0])
        case "started":
            handle = await start_child(child, parts[0])
            return [await step(parts[0]), await handle]
        case "booked":
            return await book(parts[0])
        case "booked child":
            return await child(parts[0]).compensated_by(child.bind(-parts[0]))
        case "facts":
            return [side_effect(str, "x"), str(uuid4()), facts.random(), patched("p")]
        case "sleep":
            await sleep(parts[0])
        case "gather":
            return await asyncio.gather(*map(_carry_out, parts))
        case "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_carry_out(part)) for part in parts]
            return [task.result() for task in tasks]
        case "saga":
            async with saga():
                return [await _carry_out(part) for part in parts]
        case "parallel saga":
            async with saga(parallel=True):
                return await asyncio.gather(*map(_carry_out, parts))
        case "timeout":
            async with asyncio.timeout(1000):
                return [await _carry_out(part) for part in parts]
        case "cleanup":
            try:
                return [await _carry_out(part) for part in parts[1:]]
            except BaseException:
                await _carry_out(parts[0])
                raise
        case _:
            return [await _carry_out(part) for part in parts]


def make_plan(pick, counter, depth=0):
    if depth == 3 or pick(3) == 0:
        counter[0] += 1
        kinds = ("step", "child", "started", "booked", "booked child", "facts", "sleep")
        return [kinds[pick(len(kinds))], counter[0]]
    kinds = ("seq", "gather", "group", "saga", "parallel saga", "timeout", "cleanup")
    return [kinds[pick(len(kinds))], *(make_plan(pick, counter, depth + 1) for _ in range(1 + pick(4)))]


def timers_last(pick):
    """A scheduler that lets ``pick`` choose, and time go on only when there is nothing else."""

    def choose(occurrences):
        others = [o for o in occurrences if o.kind != "timer"]
        return others[pick(len(others))] if others else occurrences[0]

    return choose


class Fate(World):
    """Each step and child fails in so many lives of the run as its lot says."""

    def __init__(self, lots):
        super().__init__()
        self.lots = lots
        self.life = 0

    def stand_in(self, name, value=lambda n: n):
        def perform(n=0):
            if self.life < self.lots.get((name, n), 0):
                raise ValueError("broken")
            self.done[name, n] += 1
            return value(n)

        return perform


@check
@given(chances)
def test_a_run_that_is_retried_until_it_succeeds_comes_to_what_it_would_have_come_to_at_once(chance):
    pick = chance.randrange
    counter = [0]
    plan = ["seq", *(make_plan(pick, counter) for _ in range(1 + pick(3)))]
    lots = {}
    for n in range(1, counter[0] + 1):
        for name in ("step", "child"):
            if pick(4) == 3:
                lots[name, n] = 1 + pick(3)
    remark(f"{json.dumps(plan)} failing {lots}")
    never = Driver(planned, (plan,), mocks=World().mocks).open().go()
    fate = Fate(lots)
    driver = Driver(planned, (plan,), mocks=fate.mocks, scheduler=timers_last(pick)).open()
    while True:
        driver.go()
        assert driver.outcome is not None, f"it waits for {driver.execution.waiting_on()} after {driver.choices}"
        assert_replays(driver)
        if driver.outcome.state == "completed":
            break
        fate.life += 1
        assert fate.life < 20
        if pick(2):
            driver.crash()
        driver.retry()
        if pick(2):
            driver.crash()
    assert driver.result == never.result
    if not any(word in json.dumps(plan) for word in ("saga", "cleanup")):
        # Whatever came of the lives before, no step that succeeded was carried out again.
        assert all(count == 1 for (name, _), count in fate.done.items() if name == "step"), fate.done
    close_all()


@check
@given(chances)
def test_a_fork_before_any_command_comes_to_what_its_source_came_to(chance):
    pick = chance.randrange
    counter = [0]
    plan = ["seq", *(make_plan(pick, counter) for _ in range(1 + pick(3)))]
    lots = {("step", n): 1 for n in range(1, counter[0] + 1) if pick(6) == 5}
    remark(f"{json.dumps(plan)} failing {lots}")
    fate = Fate(lots)
    driver = Driver(planned, (plan,), mocks=fate.mocks, scheduler=timers_last(pick)).open().go()
    if driver.outcome.state == "failed":
        fate.life += 1
        if pick(2):
            driver.retry().go()
    ids = [e.command_id for e in effective(driver.history) if e.command_id]
    for number in range(2):
        if not ids:
            break
        driver = driver.fork(ids[pick(len(ids))], number=number)
        for _ in range(pick(4)):
            driver.step()
        if pick(2):
            driver.crash()
        driver.go()
        assert driver.outcome is not None, f"it waits for {driver.execution.waiting_on()}"
        assert_replays(driver)
        ids = [e.command_id for e in effective(driver.history) if e.command_id]
    close_all()
