"""Letting what a history holds happen once more to a live run."""

from __future__ import annotations

import json
from typing import Any

from continuum.core.execution import Execution
from continuum.core.history import Event, EventType

__all__ = ["redeliver"]


def redeliver(execution: Execution, event: Event) -> None:
    """Let an event of a recorded history happen to a live run, unless its code decides it by itself.

    Raises:
        AssertionError: the run has no use for it: it waits for something else, or for nothing.
    """
    data = json.loads(event.data)
    command: Any = execution.pending.get(event.command_id or "")
    taken = True
    match event.type:
        case EventType.ACTIVITY_COMPLETED:
            taken = bool(command) and execution.activity_completed(
                command, _text(data["result"]), event.time_us - data["took"], event.time_us
            )
        case EventType.ACTIVITY_FAILED:
            taken = bool(command) and execution.activity_failed(
                command, data["error"], event.time_us - data["took"], event.time_us
            )
        case EventType.ACTIVITY_RETRIED:
            taken = bool(command) and execution.activity_retried(
                command, data["error"], event.time_us - data["took"], event.time_us, data["next_us"]
            )
        case EventType.CHILD_COMPLETED | EventType.CHILD_FAILED:
            told = {key: value for key, value in data.items() if key not in ("args", "undoes")}
            taken = bool(command and command.child) and execution.child_ended(
                command.child.reply_to, json.dumps(told), event.time_us
            )
        case EventType.TIMER_FIRED:
            taken = bool(command) and execution.timer_fired(command, event.time_us)
        case EventType.SIGNAL_RECEIVED:
            taken = execution.signal_received(event.name or "", _text(data["payload"]), event.time_us)
        case EventType.CANCEL_REQUESTED:
            taken = execution.cancel_requested(data["reason"], event.time_us)
    if not taken:
        raise AssertionError(f"event {event.seq} finds nobody who waits for it")


def _text(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))
