"""What a run's journal is made of: events, and the identity of the command an event answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

__all__ = [
    "DECISIONS",
    "INLINE_ARGUMENTS",
    "MARKS",
    "RESTARTS",
    "TERMINAL",
    "WALKED_PAST",
    "Event",
    "EventType",
    "event_of",
    "fingerprint",
    "types_of",
]


class EventType:
    """Names of event types as they stand in ``continuum_events.type``."""

    ACTIVITY_COMPLETED = "activity_completed"
    ACTIVITY_FAILED = "activity_failed"
    ACTIVITY_RETRIED = "activity_retried"
    CHILD_COMPLETED = "child_completed"
    CHILD_FAILED = "child_failed"
    TIMER_FIRED = "timer_fired"
    SIGNAL_RECEIVED = "signal_received"
    CANCEL_REQUESTED = "cancel_requested"
    SIDE_EFFECT = "side_effect"
    PATCHED = "patched"
    RUN_RETRIED = "run_retried"
    RUN_RESUMED = "run_resumed"
    RUN_FORKED = "run_forked"
    VERSION_ADOPTED = "version_adopted"
    RUN_COMPLETED = "run_completed"
    RUN_CONTINUED = "run_continued"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"


#: Events the code decides while it runs, as opposed to what reaches it from outside. In a replay they are looked up
#: at the place that made them, never delivered.
DECISIONS = frozenset({EventType.SIDE_EFFECT, EventType.PATCHED})

#: Events that a replay does not deliver to the code: its decisions, and what is told of it to people.
WALKED_PAST = DECISIONS | {EventType.VERSION_ADOPTED}

#: Events that end a run. Nothing follows them, but for what a person has retried.
TERMINAL = frozenset({EventType.RUN_COMPLETED, EventType.RUN_CONTINUED, EventType.RUN_FAILED, EventType.RUN_CANCELLED})

#: Events after which a history goes on that had come to a halt. The time between does not count for durations.
RESTARTS = frozenset({EventType.RUN_RESUMED, EventType.RUN_FORKED})

#: Events that say who goes on from here, and how. At the end of a history they are no history the code has yet to live.
MARKS = frozenset({EventType.RUN_FORKED, EventType.VERSION_ADOPTED})


class Event(NamedTuple):
    """One journal record.

    Attributes:
        seq: place in the run's history, from 1, without gaps.
        type: one of :class:`EventType`.
        command_id: identity of the command it answers (``"0.2:3"``), or None.
        name: activity, signal or patch name, or None.
        data: JSON text of an object.
        time_us: when it was recorded, integer microseconds since the epoch, UTC. Never falls within a run.
    """

    seq: int
    type: str
    command_id: str | None
    name: str | None
    data: str
    time_us: int


# By place, as a history may be long: asking each event by name takes several times as long.
_TYPE = itemgetter(1)


def types_of(events: Iterable[Event]) -> frozenset[str]:
    """Return the types that occur among events."""
    return frozenset(map(_TYPE, events))


#: Makes an event of a tuple of its fields: what ``Event(…)`` does too, by way of a function in Python.
event_of: Callable[[tuple[int, str, str | None, str | None, str, int]], Event] = partial(tuple.__new__, Event)

#: Arguments up to this many bytes are journaled as they are, which a person can read; longer ones as a hash.
INLINE_ARGUMENTS = 64


def fingerprint(arguments: str) -> str:
    """Return what the journal keeps of a command's arguments, as JSON text.

    Short arguments stand for themselves; of longer ones a 64-bit BLAKE2b hash is kept, as the string ``"#<hex>"``.
    An argument list is always a JSON array or object, so that the two cannot be confused.
    """
    if len(arguments) <= INLINE_ARGUMENTS:
        return arguments
    return f'"#{blake2b(arguments.encode(), digest_size=8).hexdigest()}"'
