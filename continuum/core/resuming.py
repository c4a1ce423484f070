"""Histories that were taken up again: of runs that failed and were retried, and of runs forked from others.

A retry never deletes a record. It appends ``run_retried``; whoever claims the run next lives through the history once
more without what failed, takes of it what still fits, and records in ``run_resumed`` what it has left out. From then on
the history without these records is what replays, as strictly as any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from continuum.core.history import TERMINAL, Event, EventType
from continuum.core.identity import RunIdentity

__all__ = ["Retry", "effective", "identities", "prepare"]

_ENDINGS = frozenset(
    {
        EventType.ACTIVITY_COMPLETED,
        EventType.ACTIVITY_FAILED,
        EventType.ACTIVITY_RETRIED,
        EventType.CHILD_COMPLETED,
        EventType.CHILD_FAILED,
    }
)


@dataclass(slots=True)
class Retry:
    """A retry that is about to be taken up.

    Attributes:
        seq: of the last event of the whole history.
        time_us: when the run was retried.
        again: commands whose outcomes are withheld: those that failed the run, and those that were undone.
        dropped: the events left out.
        renewed: commands whose children were cancelled, so that others are started in their place.
        signals: signals that nobody waits for yet on the new way: they are received again, after the history.
    """

    seq: int
    time_us: int
    again: frozenset[str] = frozenset()
    dropped: list[int] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    signals: list[tuple[str, str]] = field(default_factory=list)
    _deferred: set[str] = field(default_factory=set)

    def withholds(self, event: Event) -> bool:
        """Whether an event is left out whatever the code asks for."""
        if event.type == EventType.SIGNAL_RECEIVED:
            return event.name in self._deferred  # signals of one name stay in order
        return event.type in TERMINAL or (event.type in _ENDINGS and event.command_id in self.again)

    def drop(self, event: Event) -> None:
        """Leave an event out."""
        self.dropped.append(event.seq)
        if event.type == EventType.SIGNAL_RECEIVED:
            self._deferred.add(event.name or "")
            self.signals.append((event.name or "", json.dumps(json.loads(event.data)["payload"])))
        elif event.type == EventType.CHILD_FAILED and json.loads(event.data)["state"] == "cancelled":
            self.renewed.append(event.command_id or "")

    def record(self) -> str:
        """Return the data of the event that records it, as JSON text."""
        renewed = {"renewed": self.renewed} if self.renewed else {}
        return json.dumps({"dropped": self.dropped, **renewed})


def effective(events: Iterable[Event]) -> list[Event]:
    """Return the events that count: without those that a retry has left out, and without the requests to retry."""
    kept: list[Event] = []
    for event in events:
        if event.type == EventType.RUN_RESUMED:
            dropped = set(json.loads(event.data)["dropped"])
            kept = [each for each in kept if each.seq not in dropped]
        if event.type != EventType.RUN_RETRIED:
            kept.append(event)
    return kept


def prepare(events: Iterable[Event]) -> tuple[list[Event], Retry | None]:
    """Return the events to live through, and the retry to be taken up after them, if there is one."""
    events = list(events)
    asked = None
    for event in events:
        if event.type == EventType.RUN_RETRIED:
            asked = event
        elif event.type == EventType.RUN_RESUMED:
            asked = None
    kept = effective(events) if any(event.type == EventType.RUN_RESUMED for event in events) or asked else events
    if asked is None:
        return kept, None
    return kept, Retry(events[-1].seq, asked.time_us, frozenset(_to_run_again(kept)))


def _to_run_again(events: list[Event]) -> set[str]:
    again: set[str] = set()
    for event in events:
        if event.type == EventType.RUN_FAILED:
            again.update(json.loads(event.data).get("failed", ()))
        elif event.type in (EventType.ACTIVITY_COMPLETED, EventType.CHILD_COMPLETED):
            undone = json.loads(event.data).get("undoes")
            if undone is not None:
                again.add(undone)
    return again


def identities(own: RunIdentity, events: Iterable[Event]) -> list[RunIdentity]:
    """Return who the code believes to be: first, and after each ``run_forked``.

    Up to the fork a history is that of another run: its code has seen that run's id, start and randomness.
    """
    found = [_source(own, json.loads(event.data)) for event in events if event.type == EventType.RUN_FORKED]
    return [*found, own]


def _source(own: RunIdentity, data: dict[str, Any]) -> RunIdentity:
    parent = data.get("parent")
    return replace(
        own,
        id=UUID(data["from"]),
        seed=None,
        started_us=data["started"],
        parent_run_id=None if parent is None else UUID(parent),
    )
