"""Histories recorded on every supported Python version replay on this one, from every prefix."""

import json
from pathlib import Path

import pytest

from continuum.core.history import Event
from tests.core.constructs import CONSTRUCTS
from tests.core.driver import Driver, replay
from tests.core.programs import program

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))
GENERATED = ("programs", "families")


def definition_of(path):
    name = path.name.split(".")[0]
    return program if name in GENERATED else CONSTRUCTS[name]


def shown(execution):
    """What a recording says of a run, as JSON has it."""
    outcome = execution.outcome and [execution.outcome.state, execution.outcome.result]
    return json.loads(json.dumps([execution.asked, execution.notes, outcome]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_history_of_any_version_replays_here(path):
    for recording in json.loads(path.read_text()):
        driver = Driver(definition_of(path), recording["input"])
        history = [Event(*event) for event in recording["history"]]
        for length in range(len(history) + 1):
            execution = replay(driver, history[:length])
            if str(length) in recording["open"]:
                assert list(execution.pending) == recording["open"][str(length)]
            asked, notes, _ = shown(execution)
            assert asked == recording["asked"][: len(asked)]
            assert notes == recording["notes"][: len(notes)]
            if length < len(history):
                execution.close()
        assert shown(execution) == [recording["asked"], recording["notes"], recording["outcome"]]
        execution.close()


def test_every_construct_was_recorded_on_every_version():
    names = {path.stem for path in FILES}
    assert names == {f"{name}.{version}" for name in [*CONSTRUCTS, *GENERATED] for version in ("3.11", "3.12", "3.13")}


def test_the_recordings_of_all_versions_are_the_same():
    for name in [*CONSTRUCTS, *GENERATED]:
        texts = {path.read_text() for path in FILES if path.name.startswith(f"{name}.")}
        assert len(texts) == 1, name
