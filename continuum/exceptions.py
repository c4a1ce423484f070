"""Every error Continuum raises, under one base class.

The arguments of each class are kept in ``args``, so that errors survive ``pickle`` and ``copy``; the message is
composed from them on demand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

__all__ = [
    "ActivityCancelledError", "ActivityError", "ActivityTimeoutError", "AlreadyStartedError", "ChildDepthError",
    "ChildError", "ContinuumError", "DurableValueError", "InvalidQueryError", "NonDeterminismError",
    "NonRetryableError", "NotInWorkflowError", "PoisonRunError", "ReplayDriftError", "RetryAfterError",
    "RunCancelledError", "RunFailedError", "RunNotActiveError", "RunNotFoundError", "RunStateError",
    "SignalRefusedError", "SignalTimeoutError", "UnknownActivityError", "UnknownWorkflowError", "WorkflowDeadlockError",
]  # fmt: skip


class ContinuumError(Exception):
    """Base of every error of this package."""


class DurableValueError(ContinuumError, TypeError):
    """A value cannot be journaled.

    Attributes:
        path: where in the value, for example ``input[0].lines[3].fn``.
        reason: what is wrong there, for example ``function is not durable``.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _UnknownNameError(ContinuumError, LookupError):
    kind = "name"

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(name, self.known)

    def __str__(self) -> str:
        if not self.known:
            return (
                f"unknown {self.kind} {self.name!r}: none is registered. Workflow modules are `workflows.py` of every "
                f'installed app and the modules named in CONTINUUM["WORKFLOW_MODULES"].'
            )
        from difflib import get_close_matches

        close = get_close_matches(self.name, self.known, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown {self.kind} {self.name!r}.{guess} Known: {', '.join(self.known)}"


class UnknownWorkflowError(_UnknownNameError):
    """No workflow of that name (or version) is loaded; the message lists those that are (``known``)."""

    kind = "workflow"


class UnknownActivityError(_UnknownNameError):
    """No activity of that name is loaded; the message lists those that are (``known``)."""

    kind = "activity"


# Inside a workflow


class NotInWorkflowError(ContinuumError, RuntimeError):
    """Something that only works inside a running workflow was called outside one."""


class NonDeterminismError(ContinuumError, RuntimeError):
    """Workflow code did what cannot be replayed, such as I/O, or starting a thread or a process."""


class ReplayDriftError(ContinuumError):
    """The code asks for something else than the history of the run (its id, or None) holds.

    Attributes:
        position: the path of the command, for example ``0.2:3``.
        history: what history holds there, as text.
        code: what the code asked for, as text.
        report: all there is to say, as text for people: where, what differs, what lies around it, what to do.
        details: the same as JSON values.
    """

    def __init__(
        self, run: UUID | str | None, position: str, history: str, code: str, report: str = "", details: Any = None
    ) -> None:
        super().__init__(run, position, history, code, report, details)
        self.run, self.position, self.history, self.code = run, position, history, code
        self.report, self.details = report, details

    def __str__(self) -> str:
        run = f"run {self.run}" if self.run else "the run"
        sides = _indented("- history holds:   ", self.history), _indented("+ the code asks:   ", self.code)
        text = "\n".join([f"replay of {run} drifted at command {self.position}:", *sides])
        return self.report or f'{text}\nRestore the code, or guard the change with patched("name"): the run goes on.'


class SignalTimeoutError(ContinuumError, TimeoutError):
    """No signal of that name came in time.

    Attributes:
        name: the signal's name.
        timeout: how long the workflow waited, in seconds, if known.
    """

    def __init__(self, name: str, timeout: float | None = None) -> None:
        super().__init__(name, timeout)
        self.name, self.timeout = name, timeout

    def __str__(self) -> str:
        within = "in time" if self.timeout is None else f"within {self.timeout:g} seconds"
        return f"no signal {self.name!r} came {within}"


class ActivityError(ContinuumError):
    """An activity failed for good.

    Attributes:
        activity: its name.
        attempts: how many attempts were made.
        type: the class name of the last attempt's error.
        message: the message of the last attempt's error.
        details: what the last attempt's error had to say beyond that, or None.
    """

    def __init__(self, activity: str, attempts: int, type: str, message: str, details: Any = None) -> None:
        super().__init__(activity, attempts, type, message, details)
        self.activity, self.attempts, self.type, self.message, self.details = activity, attempts, type, message, details

    def __str__(self) -> str:
        attempts = f"{self.attempts} attempt{'' if self.attempts == 1 else 's'}"
        return f"activity {self.activity} failed after {attempts}: {_described(self.type, self.message)}"


class ChildError(ContinuumError):
    """A child workflow failed or was cancelled.

    Attributes:
        workflow: the child's workflow name.
        run_id: the child's run id.
        state: ``failed`` or ``cancelled``.
        type: the class name of the child's error; empty for a cancelled child.
        message: the message of the child's error, or the reason of the cancellation.
        details: what the error had to say beyond that, or None.
    """

    def __init__(
        self, workflow: str, run_id: UUID | str, state: str, type: str = "", message: str = "", details: Any = None
    ) -> None:
        super().__init__(workflow, run_id, state, type, message, details)
        self.workflow, self.run_id, self.state = workflow, run_id, state
        self.type, self.message, self.details = type, message, details

    def __str__(self) -> str:
        what = "was cancelled" if self.state == "cancelled" else self.state
        why = _described(self.type, self.message)
        return f"child {self.workflow} ({self.run_id}) {what}" + (f": {why}" if why else "")


class ChildDepthError(ContinuumError, RecursionError):
    """A run nested ``depth`` deep, a child of a child of a child …, wants to start a child of ``workflow``."""

    def __init__(self, workflow: str, depth: int) -> None:
        super().__init__(workflow, depth)
        self.workflow, self.depth = workflow, depth

    def __str__(self) -> str:
        where = f"{self.workflow} cannot be started as a child: runs are nested {self.depth} deep already"
        return f"{where}. A workflow that goes on for ever calls continue_as_new()"


# Inside an activity


class NonRetryableError(ContinuumError):
    """Raise it in an activity to fail at once, whatever its retry policy says.

    Args:
        message: what went wrong.
        details: a durable value for the workflow, which finds it as ``ActivityError.details``.
    """

    def __init__(self, message: str = "", details: Any = None) -> None:
        super().__init__(message, details)
        self.message, self.details = message, details

    def __str__(self) -> str:
        return self.message


class RetryAfterError(ContinuumError):
    """Raise it in an activity to say when the next attempt is to be made, instead of the policy's backoff.

    Args:
        delay: seconds, or a timedelta; not negative.
        message: what went wrong.

    Attributes:
        delay: seconds, as a float.
    """

    def __init__(self, delay: float | timedelta, message: str = "") -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"delay: must be zero or more seconds, not {delay!r}")
        super().__init__(seconds, message)
        self.delay = seconds
        self.message = message

    def __str__(self) -> str:
        return self.message or f"try again in {self.delay:g} seconds"


class ActivityCancelledError(ContinuumError):
    """The attempt is no longer wanted: its run was cancelled, or its lease is lost."""


class ActivityTimeoutError(ContinuumError, TimeoutError):
    """An attempt of an activity took longer than it may.

    Attributes:
        activity: the activity's name.
        timeout: the limit, in seconds.
        heartbeat: the limit is that between two heartbeats, not that of the whole attempt.
    """

    def __init__(self, activity: str, timeout: float, heartbeat: bool = False) -> None:
        super().__init__(activity, timeout, heartbeat)
        self.activity, self.timeout, self.heartbeat = activity, timeout, heartbeat

    def __str__(self) -> str:
        what = "sent no heartbeat for" if self.heartbeat else "did not finish within"
        return f"{self.activity} {what} {self.timeout:g} seconds"


# From application code


class AlreadyStartedError(ContinuumError):
    """The idempotency key is taken within its namespace and workflow.

    Attributes:
        run_id: the run that holds the key.
        workflow: the workflow's name.
        key: the idempotency key.
    """

    def __init__(self, run_id: UUID, workflow: str = "", key: str = "") -> None:
        super().__init__(run_id, workflow, key)
        self.run_id, self.workflow, self.key = run_id, workflow, key

    def __str__(self) -> str:
        what = f"{self.workflow} with idempotency key {self.key!r}" if self.workflow else "a run with this key"
        return f"{what} was already started as run {self.run_id}"


class RunNotFoundError(ContinuumError, LookupError):
    """There is no such run (``run_id``), or not in that namespace."""

    def __init__(self, run_id: UUID | str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"there is no run {self.run_id}"


class RunStateError(ContinuumError):
    """The run is not in a state that allows this.

    Attributes:
        run_id: the run.
        state: the state it is in.
        needed: what it would have to be, in words.
    """

    def __init__(self, run_id: UUID, state: str, needed: str = "") -> None:
        super().__init__(run_id, state, needed)
        self.run_id, self.state, self.needed = run_id, state, needed

    def __str__(self) -> str:
        return f"run {self.run_id} is {self.state}" + (f", not {self.needed}" if self.needed else "")


class RunNotActiveError(RunStateError):
    """The run has ended: it takes no signal and cannot be cancelled.

    Attributes:
        run_id: the run.
        state: its terminal state.
    """

    def __init__(self, run_id: UUID, state: str, needed: str = "active") -> None:
        super().__init__(run_id, state, needed)


class SignalRefusedError(ContinuumError):
    """The workflow does not declare this signal, or not with such a payload.

    Attributes:
        run_id: the run.
        name: the signal's name.
        reason: why it was refused, in words.
    """

    def __init__(self, run_id: UUID, name: str, reason: str) -> None:
        super().__init__(run_id, name, reason)
        self.run_id, self.name, self.reason = run_id, name, reason

    def __str__(self) -> str:
        return f"run {self.run_id} refused signal {self.name!r}: {self.reason}"


class RunFailedError(ContinuumError):
    """The run whose result was asked for has failed.

    Attributes:
        run_id: the run.
        error: ``{"type", "message", "traceback", "details"}``.
    """

    def __init__(self, run_id: UUID, error: dict[str, Any] | None = None) -> None:
        super().__init__(run_id, error)
        self.run_id = run_id
        self.error: dict[str, Any] = {"type": "", "message": "", "traceback": "", "details": None} | (error or {})

    def __str__(self) -> str:
        why = _described(self.error["type"], self.error["message"])
        return f"run {self.run_id} failed" + (f": {why}" if why else "")


class RunCancelledError(ContinuumError):
    """The run (``run_id``) whose result was asked for was cancelled, for a ``reason`` that may be empty."""

    def __init__(self, run_id: UUID, reason: str = "") -> None:
        super().__init__(run_id, reason)
        self.run_id, self.reason = run_id, reason

    def __str__(self) -> str:
        return f"run {self.run_id} was cancelled" + (f": {self.reason}" if self.reason else "")


class PoisonRunError(ContinuumError):
    """The run's worker died again and again without the run getting any further.

    Attributes:
        run_id: the run.
        recoveries: how many times in a row it was taken over.
    """

    def __init__(self, run_id: UUID | str, recoveries: int) -> None:
        super().__init__(run_id, recoveries)
        self.run_id, self.recoveries = run_id, recoveries

    def __str__(self) -> str:
        return (
            f"run {self.run_id} was given up: it lost its worker {self.recoveries} times in a row "
            "without recording anything new"
        )


class WorkflowDeadlockError(ContinuumError):
    """Workflow code ran for ``timeout`` seconds without letting go of its worker; ``stack`` says where it was."""

    def __init__(self, timeout: float, stack: str = "") -> None:
        super().__init__(timeout, stack)
        self.timeout, self.stack = timeout, stack

    def __str__(self) -> str:
        return (
            f"the workflow ran for more than {self.timeout:g} seconds without waiting for anything: mend the loop, or "
            "do long computations in an activity"
        )


class InvalidQueryError(ContinuumError, ValueError):
    """A query cannot be answered; the message names the offending condition."""


def _described(type: str, message: str) -> str:
    return f"{type}: {message}" if type and message else type or message


def _indented(label: str, text: object) -> str:
    """Return ``text`` behind ``label``, further lines of it below its first."""
    return "  " + label + str(text).replace("\n", "\n" + " " * (len(label) + 2))
