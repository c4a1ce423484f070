"""History and code side by side, in words that are read once, by somebody who was asleep a minute ago."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from continuum.core import placing
from continuum.core.commands import Command
from continuum.core.history import Event, EventType, fingerprint
from continuum.exceptions import ReplayDriftError

__all__ = ["asked", "asked_otherwise", "parted", "same", "told"]

# How many events are shown before the place where history and code part, and after it.
_BEFORE, _AFTER = 3, 2
# The longest piece of text that is shown of one thing, and the width of a column.
_LONGEST, _WIDTH = 200, 52
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def asked(pending: Collection[Command], state: str | None) -> str:
    """Say what the code asked for instead; ``state`` is how it has ended, or None."""
    if state is not None:
        return f"nothing: the code has ended {state}"
    if not pending:
        return "nothing: the code waits for nothing that history could answer"
    return "something else: " + "; ".join(str(command) for command in list(pending)[:5])


def same(one: Any, other: Any) -> bool:
    """Whether two JSON trees say the same: unlike in Python, 1, 1.0 and true are not equal."""
    return json.dumps(one) == json.dumps(other)


def told(event: Event) -> str:
    """Say what history holds."""
    args = _data(event).get("args")
    kind = event.type.replace("_", " ")
    shown = "" if args is None else f" with arguments {_arguments(args)}"
    return f"{event.command_id or ''} {kind} {event.name or ''}".strip() + shown


def parted(run: Any, event: Event, history: str, code: str) -> ReplayDriftError:
    """Return the error that says that the code did not ask for what an event answers.

    Args:
        run: the execution, as it stands.
        event: what was to be delivered.
        history: what it says.
        code: what the code asks for.
    """
    position = f"{event.command_id or event.type} (event {event.seq})"
    command = run.pending.get(event.command_id)
    return _drift(run, position, event.command_id, event, command, history, code)


def asked_otherwise(run: Any, command_id: str, history: str, code: str) -> ReplayDriftError:
    """Return the error that says that the code asks, right now, for what history does not hold, or not there."""
    event = next((event for event in run.events if event.command_id == command_id), None)
    if event is not None:
        history = told(event)
    return _drift(run, command_id, command_id, event, None, history, code, at=placing.caller())


def _drift(
    run: Any,
    position: str,
    command_id: str | None,
    event: Event | None,
    command: Command | None,
    history: str,
    code: str,
    at: str | None = None,
) -> ReplayDriftError:
    ended = run.outcome is not None
    at = at or (None if ended else placing.asker(run.loop, command_id))
    details: dict[str, Any] = {
        "position": position,
        "history": history,
        "code": code,
        "location": at,
        "command_id": command_id,
        "event": event.seq if event else None,
        "events": len(run.events),
        "recorded_at": _moment(event.time_us).isoformat() if event else None,
        "difference": _difference(event, command),
        "around": _around(run, command_id, event, code),
        "workflow": run.definition.name,
    }
    return ReplayDriftError(run.id, position, history, code, _report(run, details), details)


# -- what differs ---------------------------------------------------------------------------------------------------


def _difference(event: Event | None, command: Command | None) -> str | None:
    """Say what differs between what an event answers and what the code asks for in its place."""
    if event is None or command is None:
        return None
    data = _data(event)
    kind = _kind(event)
    if kind != command.kind and not (kind == "timer" and command.kind == "signal" and event.name == command.name):
        return f"the kind: history has {_a(kind)} here, the code asks for {_a(command.kind)}"
    if event.name != command.name:
        return f"the {kind}: {event.name} in the history, {command.name} in the code"
    if "args" not in data:
        return None
    then, now = data["args"], json.loads(fingerprint(command.args))
    if same(then, now):
        return None
    if kind == "timer" and isinstance(then, list) and isinstance(now, list) and then and now:
        return f"how long: {_length(then[0])} in the history, {_length(now[0])} in the code"
    if isinstance(then, str) or isinstance(now, str):
        return "the arguments; of long ones history keeps a hash only, so which of them cannot be said"
    return _differing(then, now, command)


def _differing(then: Any, now: Any, command: Command) -> str:
    if not (isinstance(then, list) and isinstance(now, list)):
        return f"the arguments: {_brief(then)} in the history, {_brief(now)} in the code"
    names = _parameters(command)
    found = []
    for index in range(max(len(then), len(now))):
        old, new = (_brief(args[index]) if index < len(args) else "none" for args in (then, now))
        if old != new:
            name = f" ({names[index]})" if index < len(names) else ""
            found.append(f"argument {index + 1}{name}: {old} in the history, {new} in the code")
    return "; ".join(found)


def _parameters(command: Command) -> list[str]:
    try:
        return list(command.definition.signature.parameters)
    except (AttributeError, ValueError, TypeError):
        return []


def _kind(event: Event) -> str:
    """The kind of command an event answers."""
    kinds = {EventType.SIDE_EFFECT: "side effect", EventType.CANCEL_REQUESTED: "request to cancel"}
    return kinds.get(event.type) or event.type.partition("_")[0]


# -- what lies around -----------------------------------------------------------------------------------------------


def _around(run: Any, command_id: str | None, event: Event | None, code: str) -> list[list[Any]]:
    """Return the events around the place: number, what history says, what the code does."""
    events: Sequence[Event] = run.events
    if event is None:
        # Nothing stands there: what the code has lived through, and what would come next.
        here = next((index for index, each in enumerate(events) if each.seq > run.seq), len(events))
        shown: list[list[Any]] = [_lived(each) for each in events[max(0, here - _BEFORE) : here]]
        shown.append([None, "nothing of this kind", code])
        return shown + [_ahead(run, each) for each in events[here : here + _AFTER]]
    here = next((index for index, each in enumerate(events) if each.seq == event.seq), len(events))
    shown = [_lived(each) for each in events[max(0, here - _BEFORE) : here]]
    shown.append([event.seq, _line(event), code])
    return shown + [_ahead(run, each) for each in events[here + 1 : here + 1 + _AFTER]]


def _lived(event: Event) -> list[Any]:
    return [event.seq, _line(event), "the same"]


def _ahead(run: Any, event: Event) -> list[Any]:
    command = run.pending.get(event.command_id)
    return [event.seq, _line(event), "not reached" if command is None else str(command)]


def _line(event: Event) -> str:
    if event.type == EventType.VERSION_ADOPTED:
        data = _data(event)
        return f"version adopted, from {data.get('from')} to {data.get('to')}"
    return told(event)


# -- the whole ------------------------------------------------------------------------------------------------------


def _report(run: Any, details: dict[str, Any]) -> str:
    command_id, seq, recorded = details["command_id"], details["event"], details["recorded_at"]
    where = f"command {command_id}" if command_id else "what came in from outside, or the end of the run"
    if seq is not None:
        where += f", event {seq} of {details['events']}"
    lines = [
        f"run {run.id} of {details['workflow']} cannot go on: its history and its code do not fit together.",
        "",
        f"Where:       {where}",
        f"Asked at:    {details['location'] or 'nowhere: ' + _why_nowhere(run)}",
        f"In history:  {_indented(details['history'])}{', recorded ' + _readable(recorded) if recorded else ''}",
        f"In code:     {_indented(details['code'])}",
    ]
    if details["difference"]:
        lines.append(f"Different:   {details['difference']}")
    lines += ["", *_columns(details), "", *_advice(details)]
    return "\n".join(lines)


def _why_nowhere(run: Any) -> str:
    return "the code has ended" if run.outcome is not None else "no code of the workflow waits just now"


def _columns(details: dict[str, Any]) -> list[str]:
    lines = [f"  {'event':>7}  {'history':<{_WIDTH}}  code"]
    for seq, history, code in details["around"]:
        mark = ">" if seq == details["event"] else " "
        text = f"{mark} {'' if seq is None else seq:>7}  {_cut(history):<{_WIDTH}}  {_cut(code)}"
        lines.append(text.rstrip())
    return lines


def _advice(details: dict[str, Any]) -> list[str]:
    lines = [
        "Nothing was recorded, nothing is lost: the run waits, and goes on by itself once code that fits is deployed.",
        '- Was the change meant? Keep the old way for such runs: if patched("name-of-the-change"): the new way, else: '
        "the old. Then deploy.",
        "- Was it not? Mend the workflow, and deploy.",
        "- Or give the run up: continuum.cancel(run).",
    ]
    if details["command_id"] and details["event"]:
        lines.append(
            "- Or do this step and all after it anew, as another run with the code at hand: "
            f'continuum.fork(run, before="{details["command_id"]}").'
        )
    return lines


# -- pieces ---------------------------------------------------------------------------------------------------------


def _data(event: Event) -> dict[str, Any]:
    try:
        data = json.loads(event.data)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _arguments(args: Any) -> str:
    return args if isinstance(args, str) else json.dumps(args, separators=(",", ":"))


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 13)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _length(value: Any) -> str:
    return f"{value:g} s" if isinstance(value, int | float) else f"until {value}"


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


def _readable(moment: str) -> str:
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M:%S UTC")
