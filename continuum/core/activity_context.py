"""What an activity may ask about the attempt it is part of."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuum.exceptions import ContinuumError

__all__ = [
    "ActivityInfo",
    "NotInActivityError",
    "activity_info",
    "current_activity",
    "current_heartbeat",
    "heartbeat",
]


class NotInActivityError(ContinuumError, RuntimeError):
    """Something that only works inside a running activity was called outside one."""


@dataclass(frozen=True, slots=True)
class ActivityInfo:
    """One attempt of an activity.

    Attributes:
        run_id: the run that asked for it.
        activity: the activity's name.
        attempt: 1 for the first attempt.
        heartbeat_details: what the last attempt's last heartbeat recorded, or None.
        idempotency_key: the key of the call, the same for each attempt, or None.
    """

    run_id: UUID
    activity: str
    attempt: int
    heartbeat_details: Any = None
    idempotency_key: str | None = None


current_activity: ContextVar[ActivityInfo] = ContextVar("continuum_activity")
"""Set by whoever runs an attempt, in the context the attempt runs in."""

current_heartbeat: ContextVar[Callable[[Any], None]] = ContextVar("continuum_heartbeat")
"""Likewise: what takes the attempt's heartbeats. It may be called from any thread, thousands of times a second."""


def activity_info() -> ActivityInfo:
    """Return the attempt this code is part of.

    It follows the attempt's context: ``asyncio.to_thread`` and tasks started inside the activity see it, a thread
    the activity starts by hand does not.

    Raises:
        NotInActivityError: no activity is running here.
    """
    try:
        return current_activity.get()
    except LookupError:
        raise NotInActivityError(
            "activity_info() only works inside an activity that a worker runs. A plain call, such as "
            "`my_activity.call(...)` in a test, is no attempt: nothing is known about it."
        ) from None


def heartbeat(details: Any = None) -> None:
    """Say that the attempt this code is part of is alive, and how far it has come.

    The details of the last call are durable within a second. The next attempt finds them as
    ``activity_info().heartbeat_details``, also when the worker of this one dies. Only the newest are kept, so it may be
    called as often as is convenient. An activity that names a ``heartbeat_timeout`` has to call it at least that often.

    Args:
        details: a durable value of at most 16 KiB, such as the number of the last row that was exported.

    Raises:
        ActivityCancelledError: the attempt is not wanted any more: its run was cancelled or has gone on without it, it
            has timed out, or its worker lost its lease. Let it pass, and clean up on its way.
        DurableValueError: the details cannot be recorded, or are too large; the path names what is wrong.
        NotInActivityError: no activity is running here.

    Example::

        for page in range(activity_info().heartbeat_details or 0, pages):
            export(page)
            heartbeat(page + 1)
    """
    try:
        beat = current_heartbeat.get()
    except LookupError:
        raise NotInActivityError(
            "heartbeat() only works inside an activity that a worker runs. A plain call, such as "
            "`my_activity.call(...)` in a test, is no attempt: nobody waits for its heartbeats."
        ) from None
    beat(details)
