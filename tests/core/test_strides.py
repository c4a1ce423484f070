"""Many events of a history are delivered in one go; nothing but the time that takes may tell."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from continuum.core import strides
from continuum.core.definitions import activity, workflow
from continuum.core.effects import in_workflow, sleep, wait_signal
from continuum.core.execution import Execution
from continuum.core.facts import now, side_effect
from continuum.core.history import Event, EventType
from continuum.core.identity import RunIdentity
from continuum.core.retry import Retry
from continuum.core.watching import Watch
from continuum.exceptions import ReplayDriftError, WorkflowDeadlockError
from tests.core.driver import EPOCH_US, RUN_ID, Driver, Recorder, drive, in_order, newest_first, note


@activity(name="strides.same")
def same(value):
    return value


@activity(name="strides.add_one")
def add_one(value: int) -> int:
    return value + 1


@activity(name="strides.flaky", retry=Retry(max_attempts=2))
def flaky(value: int) -> int:
    return value


@dataclass
class Parcel:
    weight: int
    restored_inside: ClassVar[list[bool]] = []

    def __post_init__(self):
        self.restored_inside.append(in_workflow())


@activity(name="strides.pack")
def pack(weight: int) -> Parcel:
    return Parcel(weight)


PLAIN = [0, -1, 2**80, 1.5, True, None, "", 'a,"took":1,"result":2', "é\n", [], [1, "2", None], {"a": [{}]}, "x" * 100]
TAGGED = [(1, 2), {1: 2}, {"~x": 1}, [(1,)], {"a": {3}}, "~tuple"]


@workflow(name="strides.everything")
async def everything():
    for value in [*PLAIN, *TAGGED]:
        note(await same(value))
    note(await flaky(1))
    note(await asyncio.gather(*(add_one(n) for n in range(5)), sleep(0.001), pack(3)))
    for n in range(5):
        await sleep(n)
        note(str(now()))
        note(side_effect(int))
        note(await add_one(n))
    losing = asyncio.create_task(add_one(10))
    await asyncio.sleep(0)
    losing.cancel()
    note(await add_one(11))
    note(await wait_signal("go"))
    async with asyncio.timeout(0.5):
        note(await same([1]))
    return await add_one(12)


@workflow(name="strides.steps")
async def steps(count: int) -> int:
    value = 0
    for _ in range(count):
        value = await add_one(value)
    return value


@pytest.fixture(params=[True, False], ids=["in strides", "one by one"])
def in_strides(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(strides, "_PLAIN", frozenset())
    return request.param


def failing_once(command):
    if command.name == "strides.flaky" and command.attempt == 1:
        raise ValueError("once")
    args, _ = command.definition.decode_arguments(command.args)
    return command.definition.fn(*args)


def history_of(count: int) -> list[Event]:
    return drive(steps, count).history


def replaying(history: list[Event], count: int, **options: Any) -> Execution:
    run = Recorder(steps, RunIdentity(RUN_ID, started_us=EPOCH_US), f"[{count}]", **options)
    run.begin(EPOCH_US, history)
    return run


def assert_same_at_each_event(driver: Driver) -> None:
    for length, state in driver.states.items():
        run = Recorder(driver.definition, driver.run, driver.input)
        run.begin(EPOCH_US, driver.history[:length])
        assert run.replay()
        assert run.state() == state
        assert not run.take().journal


def test_a_history_of_all_kinds_leads_to_the_same_place_at_each_of_its_events(in_strides):
    driver = Driver(everything, perform=failing_once).open().signal("go", 1).go()
    assert driver.outcome.state == "completed", driver.outcome
    assert_same_at_each_event(driver)


def test_most_events_of_a_long_history_are_delivered_in_one_stretch_of_the_loop(monkeypatch):
    run = replaying(history_of(50), 50)
    drains = []
    drain = run.loop.drain
    monkeypatch.setattr(run.loop, "drain", lambda stretch=None: (drains.append(1), drain(stretch)))
    assert run.replay()
    assert run.outcome.result == "50"
    assert len(drains) <= 4


def answered_at_once(run: Execution) -> list[str]:
    """Have the run note the effects that are answered without a command."""
    noted, issue = [], run.issue

    def noting(effect):
        command = issue(effect)
        if command is None:
            noted.append(effect.name)
        return command

    run.issue = noting
    return noted


def test_what_is_asked_for_last_and_comes_next_is_answered_at_once():
    run = Recorder(steps, RunIdentity(RUN_ID, started_us=EPOCH_US), "[50]")
    at_once = answered_at_once(run)
    run.begin(EPOCH_US, history_of(50))
    assert run.replay()
    assert run.outcome.result == "50"
    # Not the first, which begins the stride, nor the last two, which the end and no replay follow.
    assert len(at_once) >= 47


@activity(name="strides.keyed", idempotency_key=lambda value: f"key {value}")
def keyed(value: int) -> int:
    return value


class First:
    """Awaits two calls at once, without a task, and takes the result that comes first."""

    def __init__(self, *calls):
        self.calls = calls

    def __await__(self):
        try:
            waits = {self.begin(call): call for call in self.calls}
            done, _ = yield from asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED).__await__()
            (first,) = done
            try:
                waits[first].send(None)
            except StopIteration as end:
                return end.value
        finally:
            for call in self.calls:
                call.close()

    def begin(self, call):
        future = call.send(None)
        future._asyncio_future_blocking = False
        return future


async def beyond(value: int) -> int:
    return await add_one(value)


@workflow(name="strides.by_hand")
async def by_hand():
    for number in range(4):
        note(await First(beyond(number), add_one(number + 10)))
        note(await First(add_one(number), beyond(number + 10)))
        note(await keyed(number))
    return await add_one(20)


@workflow(name="strides.cancels_itself")
async def cancels_itself():
    for number in range(4):
        note(await add_one(number))
        asyncio.current_task().cancel()
        try:
            note(await add_one(number))
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            note("cancelled")
        asyncio.get_running_loop().call_soon(note, "called")
        note(await add_one(number))
    return await add_one(20)


@pytest.mark.parametrize("definition", [by_hand, cancels_itself], ids=["by hand", "cancels itself"])
@pytest.mark.parametrize("scheduler", [in_order, newest_first])
def test_what_does_more_than_await_is_not_answered_at_once(definition, scheduler, in_strides):
    driver = Driver(definition, scheduler=scheduler).open().go()
    assert driver.outcome.result == "21"
    assert_same_at_each_event(driver)


def test_driven_by_hand_it_would_part_from_its_history_if_it_were_answered_at_once(monkeypatch):
    driver = Driver(by_hand).open().go()
    monkeypatch.setattr(strides, "awaited_by_its_task", lambda frame: True)
    run = Recorder(by_hand, driver.run, driver.input)
    run.begin(EPOCH_US, driver.history)
    with pytest.raises(ReplayDriftError):
        run.replay()


def test_no_more_events_are_delivered_than_asked_for(in_strides):
    run = replaying(history_of(20), 20)
    for delivered in (3, 6, 9):
        assert not run.replay(3)
        assert list(run.pending) == [f"0:{delivered + 1}"]
    assert not run.replay(0)
    assert list(run.pending) == ["0:10"]
    assert run.replay(12)


def test_values_of_classes_are_restored_outside_the_run(in_strides):
    @workflow(name="strides.packs")
    async def packs():
        return [(await pack(n)).weight for n in range(5)]

    history = drive(packs).history
    Parcel.restored_inside.clear()
    run = Recorder(packs, Driver(packs).run, "[]")
    run.begin(EPOCH_US, history)
    assert run.replay()
    assert run.outcome.result == "[0,1,2,3,4]"
    assert Parcel.restored_inside == [False] * 5


def changed(event: Event, what: str) -> Event:
    data = json.loads(event.data)
    match what:
        case "name":
            return event._replace(name="strides.other")
        case "kind":
            return event._replace(type=EventType.TIMER_FIRED)
        case "command":
            return event._replace(command_id="0:77")
        case "argument":
            data["args"] = [77]
        case "type of the argument":
            data["args"] = [float(data["args"][0])]
        case "result":
            data["result"] = 77
    return event._replace(data=json.dumps(data, separators=(",", ":")))


CHANGES = ["name", "kind", "command", "argument", "type of the argument", "result"]


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_told_as_it_is_of_a_single_event(what, monkeypatch):
    history = history_of(12)
    history[5] = changed(history[5], what)
    told = []
    for plain in (strides._PLAIN, frozenset()):
        monkeypatch.setattr(strides, "_PLAIN", plain)
        run = replaying(history, 12)
        with pytest.raises(ReplayDriftError) as caught:
            run.replay()
        told.append((str(caught.value), caught.value.details))
        assert not run.take().journal
    assert told[0] == told[1]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,", " :")])
def test_how_the_text_is_set_does_not_matter(separators, in_strides):
    history = [e._replace(data=json.dumps(json.loads(e.data), separators=separators)) for e in history_of(12)]
    run = replaying(history, 12)
    assert run.replay()
    assert run.outcome.result == "12"


def test_a_result_that_is_no_json_is_refused(in_strides):
    history = history_of(12)
    history[5] = history[5]._replace(data=history[5].data.replace('"result":6', '"result":NaN'))
    with pytest.raises(Exception, match="no JSON"):
        replaying(history, 12).replay()


class Impatient(Watch):
    """Interrupts, as it were, the stretch of code that has a number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen: list[int] = []
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "serial":
            self.seen.append(value)
            if value == self.number:
                self.raised = True

    def settle(self) -> bool:
        self.raised = False
        return True

    def verdict(self) -> Exception:
        return WorkflowDeadlockError(0.3, "")


def test_the_watchdog_sees_each_event_by_itself():
    run = replaying(history_of(20), 20)
    watch = run.loop.watch = Impatient(-1)
    before = watch.serial
    assert run.replay()
    assert watch.serial - before >= 20


def test_a_stretch_of_code_that_is_interrupted_is_the_last_that_runs():
    run = replaying(history_of(20), 20)
    watch = run.loop.watch = Impatient(8)
    with pytest.raises(WorkflowDeadlockError):
        run.replay()
    assert watch.seen[-1] == 8
    assert not watch.active
    assert len(run.pending) == 1


def test_what_was_answered_in_a_replay_is_not_kept():
    run = replaying(history_of(20)[:15], 20)
    assert run.replay()
    assert len(run.asks.issued) <= 2
    assert [command.id for command in run.take().commands] == ["0:16"]
    assert run.id == RUN_ID
