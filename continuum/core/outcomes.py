"""What comes out of an execution: the steps it makes, and how the run ended."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from continuum import values
from continuum.core.commands import Command
from continuum.core.failures import describe_exception
from continuum.core.history import Event, EventType, fingerprint
from continuum.exceptions import DurableValueError

__all__ = ["END_EVENTS", "Outcome", "Step", "failure_of", "outcome_of"]

END_EVENTS = {
    "completed": EventType.RUN_COMPLETED,
    "failed": EventType.RUN_FAILED,
    "cancelled": EventType.RUN_CANCELLED,
}


class Outcome(NamedTuple):
    """How a run ended: ``completed`` with ``result`` (JSON text), ``failed`` or ``cancelled`` with ``error``."""

    state: str
    result: str | None
    error: dict[str, Any] | None

    @property
    def event_type(self) -> str:
        """The type of the event that records it."""
        return END_EVENTS[self.state]

    @property
    def event_data(self) -> str:
        """What that event holds: enough for a replay to compare, as the run's row has the rest."""
        if self.error is not None:
            return json.dumps({"type": self.error["type"]})
        return f'{{"result":{fingerprint(self.result)}}}' if self.result is not None else "{}"


class Step(NamedTuple):
    """What an execution wants since the last step was taken.

    Attributes:
        journal: events to write, in order.
        commands: activities to start, once the journal is durable.
        abandoned: commands taken before whose results nobody wants any more.
        outcome: how the run ended, or None.
    """

    journal: list[Event]
    commands: list[Command]
    abandoned: list[Command]
    outcome: Outcome | None


def failure_of(exc: BaseException) -> Outcome:
    """The outcome of a run that an exception ended."""
    return Outcome("failed", None, describe_exception(exc))


def outcome_of(root: Any, cancel_reason: str | None, returns: Any, max_bytes: int | None) -> Outcome:
    """Tell how the run of a finished root task ended.

    Args:
        root: the task.
        cancel_reason: why the run was to be cancelled, or None.
        returns: the workflow's return annotation.
        max_bytes: largest result, in bytes of JSON text; None for no limit.
    """
    if root.cancelled():
        if cancel_reason is None:
            return Outcome("failed", None, _cancelled("the workflow cancelled itself"))
        return Outcome("cancelled", None, _cancelled(cancel_reason))
    exc = root.exception()
    if exc is not None:
        return failure_of(exc)
    try:
        return Outcome("completed", values.encode(root.result(), returns, path="result", max_bytes=max_bytes), None)
    except DurableValueError as refused:
        return failure_of(refused)


def _cancelled(message: str) -> dict[str, Any]:
    return {"type": "CancelledError", "message": message, "traceback": "", "details": None}
