"""Histories without their secrets, that replay all the same.

A replay compares what the code asks for, so values cannot simply be blotted out: the run is lived through once more
with other values, and what it records then is its history.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from continuum.core.execution import Execution
from continuum.core.history import DECISIONS, TERMINAL, Event, EventType
from continuum.exceptions import ReplayDriftError
from continuum.testing.history_files import RecordedHistory
from continuum.testing.redelivery import redeliver

__all__ = ["RedactionError", "redacted"]

Redact = Callable[[str, Any], Any]

# What can be lived through once more: the rest says that a run was taken up in another way, by a retry or a fork.
_RELIVED = (
    frozenset(
        {
            EventType.ACTIVITY_COMPLETED,
            EventType.ACTIVITY_FAILED,
            EventType.ACTIVITY_RETRIED,
            EventType.CHILD_COMPLETED,
            EventType.CHILD_FAILED,
            EventType.TIMER_FIRED,
            EventType.SIGNAL_RECEIVED,
            EventType.CANCEL_REQUESTED,
        }
    )
    | DECISIONS
    | TERMINAL
)
# What in the data of an event is the user's: the rest is the engine's account of it.
_VALUES = ("result", "payload", "reason")
_ERROR_VALUES = ("message", "details")


class RedactionError(ValueError):
    """A history cannot be redacted as asked; the message says what the matter is."""


def redacted(definition: Any, recorded: RecordedHistory, redact: Redact) -> RecordedHistory:
    """Return a history in which ``redact`` has had its say about every value.

    Args:
        definition: the workflow.
        recorded: the history.
        redact: called with the path of each string and number and with the value; returns what stands in its place.

    Raises:
        RedactionError: the code decides by what was replaced, so that the run goes another way; or the run was retried,
            forked or taken over by other code.
    """
    if others := sorted({event.type for event in recorded.events} - _RELIVED):
        raise RedactionError(
            f"the history of run {recorded.identity.id} holds {', '.join(others)}: one that was retried, forked or "
            "taken over by other code cannot be redacted"
        )
    input_ = _text(_replaced(json.loads(recorded.input), "input", redact))
    events = [_redact_event(event, redact) for event in recorded.events]
    execution = _Relived(definition, recorded.identity, input_, events)
    made: list[Event] = []
    try:
        first = json.loads(events[0].data) if events else {}
        execution.begin(recorded.began_us, cancelled=first["reason"] if first.get("before_start") else None)
        execution.replay()
        made += execution.take().journal
        for event in events:
            if event.seq > execution.seq and event.type not in DECISIONS and event.type not in TERMINAL:
                redeliver(execution, event)
                made += execution.take().journal
    except (AssertionError, ReplayDriftError) as error:
        raise RedactionError(_other_way(recorded, str(error))) from None
    finally:
        execution.close()
    made = made[: len(events)]
    for one, other in zip_longest(map(_shown, recorded.events), map(_shown, made), fillvalue="nothing"):
        if one != other:
            raise RedactionError(_other_way(recorded, f"it recorded {other} instead of {one}"))
    return replace(recorded, input=input_, events=tuple(made))


class _Relived(Execution):
    """An execution that decides as is written, and draws the same."""

    def __init__(self, definition: Any, run: Any, arguments: str, events: list[Event]) -> None:
        self._decided = {event.command_id: event.data for event in events if event.type == EventType.SIDE_EFFECT}
        super().__init__(definition, run, arguments)

    def decide(self, type_: str, command_id: str | None, name: str | None, data: str) -> Event:
        if type_ == EventType.SIDE_EFFECT:
            data = self._decided.get(command_id, data)
        return super().decide(type_, command_id, name, data)


def _redact_event(event: Event, redact: Redact) -> Event:
    data = json.loads(event.data)
    where = event.name or event.type
    if event.type in TERMINAL:
        return event
    for key in _VALUES:
        if key in data:
            data[key] = _replaced(data[key], f"{where}.{key}", redact)
    if isinstance(data.get("error"), dict):
        for key in _ERROR_VALUES:
            if key in data["error"]:
                data["error"][key] = _replaced(data["error"][key], f"{where}.error.{key}", redact)
    return event._replace(data=_text(data))


def _replaced(tree: Any, path: str, redact: Redact) -> Any:
    if isinstance(tree, dict):
        return {key: _replaced(value, f"{path}.{key}", redact) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replaced(value, f"{path}[{index}]", redact) for index, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool):
        return tree
    value = redact(path, tree)
    if type(value) is not type(tree):
        raise RedactionError(f"redact({path!r}, …) must return {type(tree).__name__}, not {value!r}")
    return value


def _other_way(recorded: RecordedHistory, why: str) -> str:
    return (
        f"without what was redacted, run {recorded.identity.id} goes another way: {why}. The workflow decides by a "
        "value that was replaced: have redact() keep it, or replace it by one of the same meaning"
    )


def _shown(event: Event) -> str:
    return " ".join(part for part in (event.type, event.command_id, event.name) if part is not None)


def _text(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))
