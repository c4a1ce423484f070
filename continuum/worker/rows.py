"""What a run's row says when the run ends, is given back, is parked, or is merely quiet."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from continuum.core.execution import Outcome
from continuum.core.failures import describe_exception
from continuum.core.history import Event
from continuum.core.loop import LAST_US
from continuum.exceptions import NonDeterminismError
from continuum.worker.live import LiveRun, RowUpdate

__all__ = ["cancelled_without_code", "ended", "parked", "quarantined", "refused", "released", "summary"]

# A fan-out of thousands is told in numbers beyond this many entries.
_MOST_WAITS = 100


def ended(live: LiveRun, outcome: Outcome, time_us: int) -> RowUpdate:
    """The run has reached its end."""
    return RowUpdate(
        outcome.state,
        False,
        progress=live.execution.progress,
        result=outcome.result,
        error=None if outcome.error is None else json.dumps(outcome.error),
        completed_us=time_us,
        retention_us=_retention_us(live, time_us),
    )


def refused(live: LiveRun, failure: Event, error: Exception) -> RowUpdate:
    """What the run wanted recorded could not be."""
    described = describe_exception(error)
    described["type"] = "JournalError"
    described["message"] = f"PostgreSQL refused to record a step of this run: {described['message']}"
    return RowUpdate(
        "failed",
        False,
        error=json.dumps(described),
        completed_us=failure.time_us,
        retention_us=_retention_us(live, failure.time_us),
    )


def parked(live: LiveRun, why: Exception, until_us: int | None) -> RowUpdate:
    """The run waits for other code, or until its time limit is over."""
    nondeterministic = isinstance(why, NonDeterminismError)
    error = {
        "type": "NonDeterminismError" if nondeterministic else getattr(why, "kind", type(why).__name__),
        "message": str(why),
        "traceback": getattr(why, "stack", ""),
        "details": _where(live, why),
    }
    return RowUpdate("stuck_unknown_version", False, next_wakeup_us=until_us, error=json.dumps(error))


def cancelled_without_code(live: LiveRun, reason: str, why: Exception) -> dict[str, Any]:
    """The error of a run that was cancelled without its code, and why that was so."""
    return {
        "type": "CancelledError",
        "message": (
            f"{reason or 'cancelled'}; the run's code could not be replayed, so nothing of it was run to clean up: "
            f"{why}"
        ),
        "traceback": "",
        "details": _where(live, why),
    }


def _where(live: LiveRun, why: Exception) -> dict[str, Any]:
    code = {"version": live.definition.version, "version_hash": live.definition.version_hash}
    sides = {key: getattr(why, key) for key in ("position", "history", "code") if hasattr(why, key)}
    return {"workflow": live.definition.name, **sides, **(getattr(why, "details", None) or {}), **code}


def quarantined(live: LiveRun, until_us: int, error: dict[str, Any], *, recoveries: int | None = None) -> RowUpdate:
    """Something went wrong that is not the run's doing, or cannot be told: try again later, whatever mail there is.

    A suspended run with an error is one that is left alone. A request to cancel it that it has not seen yet wakes it.
    """
    said = json.dumps({**error, "details": {"last_message": max(live.seen, default=0)}})
    return RowUpdate("suspended", False, next_wakeup_us=until_us, error=said, recoveries=recoveries)


def released(live: LiveRun) -> RowUpdate:
    """The run is given back: its row says when to take it up again."""
    execution = live.execution
    due = [live.deadline_us] if live.deadline_us is not None and execution.cancel_reason is None else []
    timer = execution.next_timer()
    if timer is not None:
        due.append(timer.due_us)
    # An activity that has no result yet runs wherever the run goes on: at once, or when its next attempt is due.
    # Of one that is out as a task news comes by mail.
    here = [c for c in execution.pending.values() if c.kind == "activity" and c.id not in live.queued]
    due += [c.not_before_us for c in here if c.not_before_us is not None]
    at_work = live.replaying or any(c.not_before_us is None for c in here)
    return RowUpdate(
        "suspended",
        False,
        waiting_on=_waiting_on(live),
        next_wakeup_us=None if at_work or not due else min(due),
        progress=execution.progress,
        first_in_line=at_work,
    )


def summary(live: LiveRun) -> RowUpdate:
    """What people see of a run that is live but quiet."""
    execution = live.execution
    due = [
        command.not_before_us
        for command in execution.pending.values()
        if command.not_before_us is not None and command.id not in live.queued
    ]
    timer = execution.next_timer()
    if timer is not None:
        due.append(timer.due_us)
    return RowUpdate(
        "running" if live.attempts else "suspended",
        True,
        waiting_on=_waiting_on(live),
        next_wakeup_us=min(due) if due else None,
        progress=execution.progress,
        # One that waits for others to do something has done what it could, and its worker lives.
        recoveries=None if live.attempts and live.recoveries else 0,
    )


def _waiting_on(live: LiveRun) -> str:
    execution = live.execution
    waits: list[dict[str, Any]] = execution.waiting_on(_MOST_WAITS)
    if (left := len(execution.pending) - len(waits)) > 0:
        waits.append({"kind": "more", "count": left})
    return json.dumps(waits)


def _retention_us(live: LiveRun, time_us: int) -> int | None:
    retention = live.definition.retention
    return None if retention is None else min(time_us + retention // timedelta(microseconds=1), LAST_US)
