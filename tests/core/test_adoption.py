"""The record that other code has a run from now on: where it stands, and that no replay is any different for it."""

import json

import pytest

from continuum.core.adoption import adopt
from continuum.core.definitions import activity, workflow
from continuum.core.effects import wait_signal
from continuum.core.facts import now, patched, side_effect
from continuum.core.history import EventType
from tests.core.driver import EPOCH_US, STEP_US, Driver, Recorder, assert_replays, note, replay

LATE_US = EPOCH_US + 3_600_000_000


@activity(name="adopted.act")
def act(what: str) -> str:
    if what == "fails":
        raise ValueError("a bug")
    return what


def flow(fn, version=1):
    return workflow(name=f"test_adoption.{fn.__qualname__}", version=version)(fn)


async def waits():
    await act("a")
    return await wait_signal("go")


async def notes():
    await act("a")
    note(str(now()))
    note(patched("fix"))
    note(side_effect(str, "told"))
    go = await wait_signal("go")
    note(str(now()))
    return go


async def ends():
    await act("a")
    return side_effect(str, "over")


def adopted(driver, definition):
    """The same run, adopted by other code as a worker does it."""
    driver.close()
    later = Driver(definition)
    later.history, later.clock_us, later.messages = list(driver.history), driver.clock_us, driver.messages
    later.execution = Recorder(definition, later.run, later.input)
    later.execution.begin(EPOCH_US, later.history)
    assert later.execution.replay()
    adopt(later.execution, 1, "old", LATE_US)
    later._take()
    later.taken_up = len(later.history)
    return later


def test_it_names_both_versions_and_when():
    definition = flow(waits, 3)
    driver = adopted(Driver(flow(waits)).open().go(), definition)
    event = driver.history[1]
    assert (event.seq, event.type, event.command_id, event.name) == (2, "version_adopted", None, None)
    assert json.loads(event.data) == {
        "from": "old",
        "to": definition.version_hash,
        "from_version": 1,
        "to_version": 3,
        "at": "2024-06-14T13:00:00+00:00",
    }


def test_it_stands_before_all_that_the_new_code_did():
    driver = adopted(Driver(flow(waits)).open().go(), flow(notes))
    assert driver.types == ["activity_completed", "version_adopted", "patched", "side_effect"]
    assert [event.seq for event in driver.history] == [1, 2, 3, 4]
    assert_replays(driver.signal("go").go())


def test_also_if_that_was_its_end():
    driver = adopted(Driver(flow(waits)).open().go(), flow(ends))
    assert driver.types == ["activity_completed", "version_adopted", "side_effect", "run_completed"]
    assert driver.result == "over"
    assert_replays(driver)


def test_of_a_run_that_has_not_begun_it_is_the_first_event():
    driver = adopted(Driver(flow(waits)).open(), flow(notes)).signal("go").go()
    assert driver.types[0] == EventType.VERSION_ADOPTED
    assert_replays(driver)


def test_it_does_not_move_the_clock_of_the_run():
    driver = adopted(Driver(flow(waits)).open().go(), flow(notes))
    assert driver.history[1].time_us == driver.history[0].time_us == EPOCH_US + STEP_US
    driver.signal("go", after=100).go()
    assert driver.notes == replay(driver, driver.history).notes


def test_after_it_the_code_is_as_live_as_before_it():
    """A patch that a third version adds right there is new: no history was lived through without it."""
    driver = adopted(Driver(flow(waits)).open().go(), flow(waits, 2))
    assert replay(driver, driver.history, definition=flow(notes)).patches == {"fix": True}
    driver.signal("go").go()
    assert replay(driver, driver.history[:-1], definition=flow(waits)).outcome.state == "completed"


@pytest.mark.parametrize("decided", [0, 1])
def test_a_retry_that_is_taken_up_by_other_code_is_recorded_first(decided):
    async def fails():
        await act("a")
        await act("fails")

    async def mended():
        await act("a")
        if decided:
            note(patched("fix"))
        return await act("b")

    driver = Driver(flow(fails)).open().go()
    assert driver.outcome.state == "failed"
    driver.execution.close()
    driver.history.append(driver.history[-1]._replace(seq=4, type=EventType.RUN_RETRIED, data="{}"))
    later = adopted(driver, flow(mended))
    made = ["patched"] * decided + ["run_resumed", "version_adopted"]
    assert later.types[3:] == ["run_retried", *made]
    later.go()
    assert later.result == "b"
    assert_replays(later)
