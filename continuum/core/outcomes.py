"""What comes out of an execution: the steps it makes, and how the run ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from continuum import values
from continuum.core.children import Successor
from continuum.core.commands import Command
from continuum.core.failures import describe_exception
from continuum.core.history import Event, EventType, fingerprint
from continuum.core.releasing import ContinueAsNew
from continuum.exceptions import DurableValueError, WorkflowDeadlockError

__all__ = ["END_EVENTS", "Outcome", "Step", "blamed", "continuation_of", "failure_of", "outcome_of", "step_of"]

END_EVENTS = {
    "completed": EventType.RUN_COMPLETED,
    "failed": EventType.RUN_FAILED,
    "cancelled": EventType.RUN_CANCELLED,
}


class Outcome(NamedTuple):
    """How a run ended: ``completed`` with ``result`` (JSON text), ``failed`` or ``cancelled`` with ``error``.

    ``failed`` names the commands whose failures led to that of the run, ``cancelled`` those whose children a failed run
    has had cancelled; ``successor`` is the run that goes on.
    """

    state: str
    result: str | None
    error: dict[str, Any] | None
    failed: tuple[str, ...] = ()
    successor: Successor | None = None
    cancelled: tuple[str, ...] = ()

    @property
    def event_type(self) -> str:
        """The type of the event that records it."""
        return EventType.RUN_CONTINUED if self.successor is not None else END_EVENTS[self.state]

    @property
    def event_data(self) -> str:
        """What that event holds: enough for a replay to compare, as the run's row has the rest."""
        if self.successor is not None:
            return f'{{"to":"{self.successor.id}","input":{fingerprint(self.successor.input)}}}'
        if self.error is not None:
            more = {"failed": self.failed, "cancelled": self.cancelled}
            return json.dumps({"type": self.error["type"], **{key: ids for key, ids in more.items() if ids}})
        return f'{{"result":{fingerprint(self.result)}}}' if self.result is not None else "{}"


class Step(NamedTuple):
    """What an execution wants since the last step was taken.

    Attributes:
        journal: events to write, in order.
        commands: activities to start, once the journal is durable.
        abandoned: activities taken before whose results nobody wants any more.
        outcome: how the run ended, or None.
        cancels: commands whose children are to be cancelled; ``cancelled`` says why.
    """

    journal: list[Event]
    commands: list[Command]
    abandoned: list[Command]
    outcome: Outcome | None
    cancels: list[Command]


#: Makes a step of a tuple of its fields, as ``event_of`` does with an event.
step_of: Callable[[tuple[Any, ...]], Step] = partial(tuple.__new__, Step)


def failure_of(exc: BaseException) -> Outcome:
    """The outcome of a run that an exception ended."""
    error = describe_exception(exc)
    if isinstance(exc, WorkflowDeadlockError):
        error["traceback"] = exc.stack  # where the code was; the exception was made elsewhere
    return Outcome("failed", None, error, tuple(_failed_commands(exc)))


def blamed(error: Exception, command_id: str) -> Exception:
    """Note on an error which command it is the outcome of."""
    error.command_id = command_id  # type: ignore[attr-defined]
    return error


def _failed_commands(exc: BaseException) -> dict[str, None]:
    """Find the commands whose failures an exception tells of, be they its cause or parts of a group."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    stack: list[BaseException | None] = [exc]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        command_id = getattr(part, "command_id", None)
        if isinstance(command_id, str):
            found[command_id] = None
        stack += [part.__cause__, part.__context__, *reversed(getattr(part, "exceptions", ()))]
    return found


def continuation_of(exc: BaseException | None) -> ContinueAsNew | None:
    """Return the wish to go on as another run that ended the workflow function, also from within a task group."""
    if isinstance(exc, ContinueAsNew):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        found = [continuation_of(part) for part in exc.exceptions]
        return found[0] if all(found) else None
    return None


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
