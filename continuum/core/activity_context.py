"""What an activity may ask about the attempt it is part of."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from continuum.exceptions import ContinuumError

__all__ = ["ActivityInfo", "NotInActivityError", "activity_info", "current_activity"]


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
