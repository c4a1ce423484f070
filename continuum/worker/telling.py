"""What a worker tells those who listen: taken from what has just become durable."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from continuum import telemetry
from continuum.core.history import EventType
from continuum.models import Run
from continuum.worker.live import Entry, LiveRun

__all__ = ["claimed", "telling"]

_OUTCOMES = {
    EventType.ACTIVITY_COMPLETED: "completed",
    EventType.ACTIVITY_RETRIED: "retried",
    EventType.ACTIVITY_FAILED: "failed",
}


def telling(on_durable: Callable[[list[Entry]], None]) -> Callable[[list[Entry]], None]:
    """Return a function that does what ``on_durable`` does, and then tells of it."""
    activity_ended, run_ended, run_parked = telemetry.activity_ended, telemetry.run_ended, telemetry.run_parked

    def told(entries: list[Entry]) -> None:
        on_durable(entries)
        if activity_ended.receivers:
            for entry in entries:
                _tell_activities(entry)
        if run_ended.receivers or run_parked.receivers:
            for entry in entries:
                if entry.update is not None and not entry.update.keep_owner:
                    _tell_run(entry)

    return told


def claimed(live: LiveRun, worker_id: int, is_new: bool) -> None:
    """Tell that a run was claimed."""
    if not telemetry.run_claimed.receivers:
        return
    telemetry.emit(telemetry.run_claimed, Run, **_about(live), worker_id=worker_id, is_new=is_new)


def _tell_activities(entry: Entry) -> None:
    for event in entry.events:
        outcome = _OUTCOMES.get(event.type)
        if outcome is not None:
            data = json.loads(event.data)
            telemetry.emit(
                telemetry.activity_ended,
                Run,
                **_about(entry.live),
                activity=event.name,
                command_id=event.command_id,
                attempt=data.get("attempt", 1),
                outcome=outcome,
                error=(data.get("error") or {}).get("type", ""),
                seconds=max(0, data["took"]) / 1e6,
            )


def _tell_run(entry: Entry) -> None:
    live, update = entry.live, entry.update
    assert update is not None
    error = json.loads(update.error)["type"] if update.error else ""
    if update.completed_us is not None:
        seconds = max(0, update.completed_us - live.claimed_us) / 1e6
        telemetry.emit(telemetry.run_ended, Run, **_about(live), state=update.state, error=error, seconds=seconds)
    elif update.state == Run.State.STUCK_UNKNOWN_VERSION:
        telemetry.emit(telemetry.run_parked, Run, **_about(live), error=error)


def _about(live: LiveRun) -> dict[str, Any]:
    return {"run_id": live.id, "workflow": live.definition.name, "namespace": live.execution.run.namespace}
