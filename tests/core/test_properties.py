"""Properties of generated programs under generated interleavings.

A few examples by default; ``HYPOTHESIS_PROFILE=thorough`` for minutes of them.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, Phase, given, note as remark, settings, strategies as st

from continuum.core.history import EventType
from continuum.exceptions import ReplayDriftError
from tests.core.driver import (
    EPOCH_US,
    Driver,
    Recorder,
    assert_replays,
    assert_sound,
    close_all,
    in_order,
    redeliver,
    scripted,
    shuffled,
)
from tests.core.programs import Generator, fate_of_child, mutated, outcome_of_attempt, program

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
_QUICK = settings(max_examples=150, derandomize=True, phases=[Phase.generate, Phase.shrink], **_COMMON)
_THOROUGH = settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "2000")), **_COMMON)
check = _THOROUGH if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else _QUICK

#: A source of choices that Hypothesis controls, and shrinks.
chances = st.randoms(use_true_random=False)


class Story:
    """A program, and all that will come to it from outside."""

    def __init__(self, chance):
        self.chance = chance
        self.code = Generator(chance.randrange, families=bool(chance.randrange(2))).program()
        count = chance.randrange(4)
        self.signals = [("ab"[chance.randrange(2)], number, chance.randrange(6)) for number in range(count)]
        self.cancel = chance.randrange(6) if chance.randrange(4) == 3 else None
        remark(f"program {json.dumps(self.code)}, signals {self.signals}, cancel {self.cancel}")

    def open(self, scheduler=None):
        driver = Driver(
            program,
            (self.code,),
            scheduler=scheduler or shuffled(self.chance.randrange),
            mocks={"offspring": fate_of_child},
            perform=outcome_of_attempt,
        ).open()
        for name, payload, after in self.signals:
            driver.signal(name, payload, after=after)
        if self.cancel is not None:
            driver.cancel("enough", after=self.cancel)
        return driver

    def tell(self):
        driver = self.open().go()
        remark(f"happened: {driver.choices}")
        return driver


@pytest.fixture(autouse=True, scope="module")
def _released():
    yield
    close_all()


@check
@given(chances)
def test_a_run_replays_from_every_prefix_and_goes_on_as_it_did(chance):
    driver = Story(chance).tell()
    assert_replays(driver)
    close_all()


@check
@given(chances)
def test_histories_are_sound_and_end_once(chance):
    driver = Story(chance).tell()
    assert_sound(driver.history)
    ends = [e for e in driver.history if e.type.startswith("run_")]
    assert len(ends) == (driver.outcome is not None)
    if driver.outcome is not None:
        assert driver.execution.pending == {}
        assert not driver.execution.signal_received("a", "1", driver.clock_us)
        assert not driver.execution.cancel_requested("late", driver.clock_us)
        assert driver.execution.take().journal == []
    close_all()


@check
@given(chances)
def test_children_end_or_are_cancelled_or_outlive_a_run_that_was_not_cancelled(chance):
    driver = Story(chance).tell()
    started = {child.reply_to: id_ for id_, child in driver.children.items()}
    assert len(started) == len(driver.children)
    heard = {e.command_id for e in driver.history if e.type in (EventType.CHILD_COMPLETED, EventType.CHILD_FAILED)}
    assert heard <= set(started)
    assert set(driver.cancelled) <= set(driver.children)
    if driver.outcome is not None and driver.outcome.state == "cancelled":
        assert {id_ for key, id_ in started.items() if key not in heard} <= set(driver.cancelled)
    close_all()


@check
@given(chances)
def test_what_succeeded_is_undone_once_at_most(chance):
    driver = Story(chance).tell()
    undone = [json.loads(e.data)["undoes"] for e in driver.history if '"undoes":"' in e.data]
    assert len(undone) == len(set(undone))
    ended = [
        e.command_id for e in driver.history if e.type in (EventType.ACTIVITY_COMPLETED, EventType.CHILD_COMPLETED)
    ]
    assert set(undone) <= set(ended)
    close_all()


@check
@given(chances)
def test_a_failed_run_that_is_retried_replays_from_everywhere_and_so_does_a_fork_of_it(chance):
    driver = Story(chance).tell()
    for _ in range(2):
        if driver.outcome is None or driver.outcome.state != "failed":
            break
        if chance.randrange(2):
            driver.perform = lambda command: 0
        driver.retry().go()
        assert_replays(driver)
    ids = [event.command_id for event in driver.history if event.command_id]
    if ids:
        fork = driver.fork(ids[chance.randrange(len(ids))])
        if chance.randrange(2):
            fork.crash()
        assert_replays(fork.go())
    close_all()


@check
@given(chances)
def test_every_command_is_known_by_one_identity(chance):
    driver = Story(chance).tell()
    ids = [asked.id for asked in driver.execution.asked]
    assert len(ids) == len(set(ids))
    close_all()


@check
@given(chances)
def test_a_crash_after_any_event_changes_nothing(chance):
    story = Story(chance)
    whole = story.tell()
    crashes = {chance.randrange(len(whole.choices) + 1) for _ in range(3)}
    remark(f"crashes after {sorted(crashes)} steps")
    driver = story.open(scripted(whole.choices))
    for number in range(len(whole.choices) + 1):
        if number in crashes:
            recorded = {event.command_id for event in driver.history}
            driver.crash()
            assert not recorded & set(driver.outstanding) - _retried(driver)
        driver.step()
    assert driver.history == whole.history
    assert driver.execution.state() == whole.execution.state()
    assert driver.children.keys() == whole.children.keys()
    assert driver.cancelled.keys() == whole.cancelled.keys()
    assert driver.calls == whole.calls  # nothing under way was lost in these crashes, and nothing done was done again
    close_all()


def _retried(driver):
    return {event.command_id for event in driver.history if event.type == EventType.ACTIVITY_RETRIED}


@check
@given(chances)
def test_an_attempt_lost_in_a_crash_is_made_again_and_one_that_is_recorded_never(chance):
    story = Story(chance)
    driver = story.open()
    while driver.step():
        if chance.randrange(3) == 0:
            # The bodies of all that is under way run, but the process dies before a result is recorded.
            for command in driver.outstanding.values():
                driver.calls[command.id, command.attempt] += 1
            driver.crash()
    recorded = {}
    for event in driver.history:
        if event.type in (EventType.ACTIVITY_COMPLETED, EventType.ACTIVITY_FAILED, EventType.ACTIVITY_RETRIED):
            attempt = json.loads(event.data).get("attempt", 1)
            assert (event.command_id, attempt) not in recorded
            recorded[event.command_id, attempt] = event
    assert set(recorded) <= set(driver.calls)
    assert_sound(driver.history)
    assert_replays_whole(driver)
    close_all()


def assert_replays_whole(driver):
    execution = Recorder(program, driver.run, driver.input)
    execution.begin(EPOCH_US, driver.history)
    assert execution.replay()
    assert execution.state() == driver.execution.state()


@check
@given(chances)
def test_a_history_is_the_same_whether_it_is_replayed_at_once_in_chunks_or_told_live(chance):
    driver = Story(chance).tell()
    chunked = Recorder(program, driver.run, driver.input)
    chunked.begin(EPOCH_US, driver.history)
    while not chunked.replay(1 + chance.randrange(3)):
        pass
    live = Recorder(program, driver.run, driver.input)
    live.begin(EPOCH_US)
    for event in driver.history:
        if live.seq < event.seq:
            redeliver(live, event)
    assert live.take().journal == driver.history
    assert chunked.state() == live.state() == driver.execution.state()
    close_all()


def _drifts(execution, history):
    try:
        execution.begin(EPOCH_US, history)
        return not execution.replay()
    except ReplayDriftError:
        return True


@check
@given(chances)
def test_changed_code_goes_on_alike_or_drifts_but_never_gets_the_results_of_other_commands(chance):
    driver = Story(chance).tell()
    asked = {command.id: command for command in driver.execution.asked}
    for _ in range(3):
        code = mutated(driver.arguments[0], chance.randrange)
        history = driver.history[: len(driver.history) - chance.randrange(len(driver.history) + 1)]
        remark(f"changed to {json.dumps(code)}, history of {len(history)}")
        execution = Recorder(program, driver.run, json.dumps([code]))
        if _drifts(execution, history):
            continue
        now_asked = {command.id: command for command in execution.asked}
        for event in history:
            if event.type in (EventType.SIDE_EFFECT, EventType.PATCHED) or event.command_id is None:
                continue
            # Id, kind, name and arguments; a signal that came does not tell of the timeout it beat.
            compared = 3 if event.type == EventType.SIGNAL_RECEIVED else 4
            assert asked[event.command_id][:compared] == now_asked[event.command_id][:compared]
    close_all()


@check
@given(chances)
def test_releasing_a_run_at_any_moment_records_nothing(chance):
    driver = Story(chance).open()
    for _ in range(chance.randrange(8)):
        driver.step()
    driver.close()
    assert driver.execution.take() == ([], [], [], driver.execution.outcome, [])
    close_all()


def test_the_quiet_order_of_things_is_one_of_them():
    driver = Driver(program, (["gather", ["act", "alpha", 1], ["sleep", 1]],), scheduler=in_order).open().go()
    assert_replays(driver)
