"""Runs and histories as text, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from continuum.management.drawing import draw
from continuum.models import Run
from continuum.moments import aware
from continuum.timeline import timeline
from continuum.wording import duration

__all__ = ["event_lines", "list_lines", "run_lines"]

_LONGEST_VALUE = 2_000
_FACTS = (
    ("version", "version"),
    ("namespace", "namespace"),
    ("started_at", "started"),
    ("completed_at", "ended"),
    ("next_wakeup_at", "next wake-up"),
    ("deadline_at", "deadline"),
    ("retention_until", "kept until"),
    ("owner_id", "worker"),
    ("recoveries", "recoveries"),
    ("idempotency_key", "idempotency key"),
    ("parent_run_id", "parent"),
    ("continued_from_run_id", "continued from"),
    ("continued_to_run_id", "continued to"),
    ("forked_from_run_id", "forked from"),
)


def list_lines(runs: Iterable[Run], now: datetime) -> Iterator[str]:
    """Yield a table of runs."""
    rows = [
        (
            str(run.id),
            run.state,
            duration(now - aware(run.started_at)),
            run.workflow,
            run.namespace,
            " ".join(f"{name}={_short(value)}" for name, value in run.attributes.items()),
        )
        for run in runs
    ]
    heads = ("run", "state", "age", "workflow", "namespace", "attributes")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def run_lines(run: Run, described: dict[str, Any], values: dict[str, Any], width: int) -> Iterator[str]:
    """Yield what there is to say of a run: why it is where it is first, then its story, then its values."""
    yield f"{run.workflow}  {run.id}"
    yield from _why(run, values)
    yield ""
    for key, label in _FACTS:
        if described[key] not in (None, "", 0):
            yield f"  {label:<16} {_moment(described[key], key)}"
    if run.attributes:
        yield f"  {'attributes':<16} {_json(run.attributes)}"
    yield ""
    yield from draw(timeline(run), width)
    for name in ("input", "progress", "result", "error"):
        if values[name] is not None and (name != "input" or values[name] != []):
            yield ""
            yield from _value(name, values[name])


def event_lines(events: Iterable[dict[str, Any]], started: datetime) -> Iterator[str]:
    """Yield a line for each event, and its record below."""
    for event in events:
        when = datetime.fromisoformat(event["recorded_at"])
        what = " ".join(filter(None, (event["command_id"], event["type"].replace("_", " "), event["name"])))
        yield f"{event['seq']:>6}  {_offset(when - started):<13} {what}"
        if (data := _without_traceback(event["data"])) not in (None, {}):
            yield f"{'':22}{_json(data)}"


def _offset(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"+{seconds:.3f} s" if seconds < 100 else f"+{duration(span)}"


def _without_traceback(data: Any) -> Any:
    if not isinstance(data, dict) or not isinstance(error := data.get("error"), dict):
        return data
    return data | {"error": {key: value for key, value in error.items() if key != "traceback"}}


def _why(run: Run, values: dict[str, Any]) -> Iterator[str]:
    if run.is_terminal:
        yield f"{run.state}, {duration(aware(run.completed_at) - aware(run.started_at))} after its start"
    else:
        yield run.state
    error = values["error"]
    if isinstance(error, dict) and "type" in error:
        yield from f"{error['type']}: {error.get('message', '')}".splitlines()
    waits = values["waiting_on"]
    if not run.is_terminal and isinstance(waits, list):
        now = datetime.now(UTC)
        for wait in waits[:10]:
            yield f"waits for {_wait(wait, now)}"
        if len(waits) > 10:
            yield f"and for {len(waits) - 10} more"


def _wait(wait: Any, now: datetime) -> str:
    if not isinstance(wait, dict) or wait.get("kind") == "more":
        return f"{wait.get('count')} more" if isinstance(wait, dict) else str(wait)
    words = [" ".join(str(word) for word in (wait.get("kind"), wait.get("name") or wait.get("id") or "") if word)]
    if wait.get("attempt", 1) != 1:
        words.append(f"attempt {wait['attempt']}")
    for key, told in (("since", "for {}"), ("until", "until in {}"), ("next_try", "next try in {}")):
        if wait.get(key):
            words.append(told.format(duration(now - datetime.fromisoformat(wait[key]))))
    if wait.get("last_error"):
        words.append(f"last error {wait['last_error']}")
    return ", ".join(words)


def _value(name: str, value: Any) -> Iterator[str]:
    if name == "error" and isinstance(value, dict):
        value = dict(value)
        trace = value.pop("traceback", "")
        yield f"{name}: {value.pop('type', '')}: {value.pop('message', '')}"
        if details := value.get("details"):
            yield f"  details: {_json(details)}"
        if isinstance(trace, str):
            yield from (f"  {line}" for line in trace.splitlines())
        return
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) > _LONGEST_VALUE:
        text = f"{text[:_LONGEST_VALUE]}… ({len(text):,} characters; --format json shows all)"
    yield from f"{name}: {text}".splitlines()


def _moment(value: Any, key: str) -> str:
    return str(value) if not key.endswith(("_at", "_until")) else value.replace("T", " ")[:19]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
