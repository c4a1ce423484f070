"""What an event of the history does to the run whose code lives through it, fresh or replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from continuum.core.commands import Command
from continuum.core.drift import same, told
from continuum.core.history import Event, EventType, fingerprint
from continuum.core.outcomes import blamed
from continuum.exceptions import ActivityError, ChildError, SignalTimeoutError

if TYPE_CHECKING:
    from continuum.core.execution import Execution

__all__ = ["HANDLERS", "compare_end", "complete"]


def complete(command: Command, result: Any) -> None:
    """Give a result (a JSON tree) to whoever awaits a command."""
    future = command.future
    if not future.done():
        try:
            value = command.definition.restore_result(result)
        except Exception as exc:
            future.set_exception(exc)
        else:
            future.set_result(value)


# Kinds of commands.
_ACTIVITY, _CHILD, _TIMED = ("activity",), ("child",), ("timer", "signal")

# Errors that ended a run from outside its code.
_IMPOSED = ("JournalError", "PoisonRunError", "WorkflowDeadlockError")


def compare_end(run: Execution, event: Event) -> None:
    """Check that the code has ended as history says.

    Raises:
        ReplayDriftError: it has not.
    """
    if json.loads(event.data).get("type") in _IMPOSED:
        return  # not the code's doing: it may say anything here
    if run.outcome is None:
        raise run.drifted(event, told(event), run.asked_instead())
    ended = run.outcome.event_data
    if event.type != run.outcome.event_type or not same(_told_of_end(event.data), _told_of_end(ended)):
        state = run.outcome.state
        raise run.drifted(event, f"{told(event)} {event.data}", f"the code has ended {state} {ended}")


def _told_of_end(data: str) -> dict[str, Any]:
    parsed = json.loads(data)
    return {key: parsed.get(key) for key in ("type", "result", "to", "input")}


def _activity_completed(run: Execution, event: Event, data: dict[str, Any]) -> None:
    complete(_answer(run, event, _ACTIVITY, data), data["result"])


def _activity_failed(run: Execution, event: Event, data: dict[str, Any]) -> None:
    command = _answer(run, event, _ACTIVITY, data)
    if not command.future.done():
        error = data["error"]
        failure = ActivityError(command.name, data["attempt"], error["type"], error["message"], error.get("details"))
        command.future.set_exception(blamed(failure, command.id))


def _activity_retried(run: Execution, event: Event, data: dict[str, Any]) -> None:
    command = _match(run, event, _ACTIVITY, data)
    command.attempt = data["attempt"] + 1
    command.not_before_us = data["next_us"]
    command.last_error = data["error"]


def _child_completed(run: Execution, event: Event, data: dict[str, Any]) -> None:
    complete(_answer(run, event, _CHILD, data), data["result"])


def _child_failed(run: Execution, event: Event, data: dict[str, Any]) -> None:
    command = _answer(run, event, _CHILD, data)
    if not command.future.done():
        error = data.get("error") or {}
        failure = ChildError(
            command.name or "",
            UUID(data["child"]),
            data["state"],
            "" if data["state"] == "cancelled" else error.get("type", ""),
            error.get("message", ""),
            error.get("details"),
        )
        command.future.set_exception(blamed(failure, command.id))


def _timer_fired(run: Execution, event: Event, data: dict[str, Any]) -> None:
    command = _answer(run, event, _TIMED, data)
    if command.handle is not None:
        run.loop.fire(command.handle)
    elif not command.future.done():
        if command.kind == "signal":
            run.asks.leave_line(command)
            timeout = (command.due_us - command.issued_us) / 1e6
            command.future.set_exception(blamed(SignalTimeoutError(command.name, timeout), command.id))
        else:
            command.future.set_result(None)


def _signal_received(run: Execution, event: Event, data: dict[str, Any]) -> None:
    name = event.name or ""
    if event.command_id is None:
        waiter = run.asks.first_waiter(name)
        if waiter is not None:
            raise run.drifted(event, f"{told(event)}, kept for later", str(waiter))
        run.asks.keep(name, data["payload"])
        return
    command = run.pending.get(event.command_id)
    if command is None or command.kind != "signal" or command.name != name:
        raise run.drifted(event, told(event), run.asked_instead() if command is None else str(command))
    run.asks.settle(command)
    run.asks.leave_line(command)
    run.asks.hand_over(command, data["payload"])


def _cancel_requested(run: Execution, event: Event, data: dict[str, Any]) -> None:
    run.cancel(data.get("reason") or "")


def _run_resumed(run: Execution, event: Event, data: dict[str, Any]) -> None:
    run.asks.known.update(data.get("again", {}))
    for command_id in data.get("renewed", ()):
        run.asks.renew(command_id, run.run.id)


def _run_forked(run: Execution, event: Event, data: dict[str, Any]) -> None:
    run.become(run.identities.pop(0))


def _match(run: Execution, event: Event, kinds: tuple[str, ...], data: dict[str, Any]) -> Command:
    """Find the pending command an event answers, and check that it is the one history means."""
    _, _, command_id, name, text, _ = event
    command = run.pending.get(command_id)
    if command is None:
        raise run.drifted(event, told(event), run.asked_instead())
    if command.kind not in kinds or command.name != name:
        raise run.drifted(event, told(event), str(command))
    asked = fingerprint(command.args)
    # The same text is the common case and costs no parsing; otherwise what counts is what it says.
    if not text.startswith(f'{{"args":{asked}') and not same(json.loads(asked), data.get("args")):
        raise run.drifted(event, told(event), str(command))
    return command


def _answer(run: Execution, event: Event, kinds: tuple[str, ...], data: dict[str, Any]) -> Command:
    command = _match(run, event, kinds, data)
    run.asks.settle(command)
    return command


#: What each type of event does; those that are missing do nothing to the code.
HANDLERS: dict[str, Callable[[Execution, Event, dict[str, Any]], None]] = {
    EventType.ACTIVITY_COMPLETED: _activity_completed,
    EventType.ACTIVITY_FAILED: _activity_failed,
    EventType.ACTIVITY_RETRIED: _activity_retried,
    EventType.CHILD_COMPLETED: _child_completed,
    EventType.CHILD_FAILED: _child_failed,
    EventType.TIMER_FIRED: _timer_fired,
    EventType.SIGNAL_RECEIVED: _signal_received,
    EventType.CANCEL_REQUESTED: _cancel_requested,
    EventType.RUN_RESUMED: _run_resumed,
    EventType.RUN_FORKED: _run_forked,
}
