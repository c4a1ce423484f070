"""Times and waits in words."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.formats import date_format
from django.utils.html import format_html

from continuum.moments import aware
from continuum.wording import duration

__all__ = ["ago", "duration", "moment", "waits"]

_MOST_LINES = 3
_PLURALS = {"activity": "calls of the activity", "child": "children"}


def ago(when: datetime, now: datetime) -> str:
    """Return ``5 min ago``, ``in 5 min`` or ``now``."""
    span = now - when
    if abs(span) < timedelta(seconds=1):
        return "now"
    return f"{duration(span)} ago" if span > timedelta() else f"in {duration(span)}"


def moment(when: datetime | None, now: datetime) -> str:
    """Return a ``<time>`` element: relative to now (aware), the full time as its title; a dash for None."""
    if when is None:
        return "-"
    when = aware(when)
    local = timezone.localtime(when)
    return format_html(
        '<time datetime="{}" title="{} {}">{}</time>',
        when.isoformat(),
        date_format(local, "Y-m-d H:i:s.u")[:-3],
        local.tzname() or "",
        ago(when, now),
    )


def waits(waiting_on: Any, now: datetime, *, with_errors: bool = False) -> list[str]:
    """Return a line for each kind of thing that a run waits for, or for the first of them.

    Args:
        waiting_on: ``Run.waiting_on``.
        now: the current time (aware).
        with_errors: tell the error of the last attempt too.
    """
    if not isinstance(waiting_on, Sequence) or isinstance(waiting_on, str):
        return [str(waiting_on)]
    more = sum(entry["count"] for entry in waiting_on if _is_more(entry))
    groups = _alike([entry for entry in waiting_on if not _is_more(entry)])
    lines = [_wait(group[0], now, with_errors, len(group)) for group in groups[:_MOST_LINES]]
    more += sum(map(len, groups[_MOST_LINES:]))
    return [*lines, f"{more} more"] if more else lines


def _alike(entries: Sequence[Any]) -> list[list[Any]]:
    """Put together what would read the same but for the time: the children of one workflow, the calls of one activity.

    The one that has waited longest is the first of its group.
    """
    groups: dict[Any, list[Any]] = {}
    for number, entry in enumerate(entries):
        key: Any = number
        if isinstance(entry, Mapping) and entry.get("kind") in _PLURALS and _is_plain(entry):
            key = (entry["kind"], str(entry.get("name")), str(entry.get("queue")))
        groups.setdefault(key, []).append(entry)
    return [
        sorted(group, key=lambda entry: str(entry.get("since"))) if group[1:] else group for group in groups.values()
    ]


def _is_plain(entry: Mapping[str, Any]) -> bool:
    return entry.get("attempt") in (None, 1) and not entry.get("next_try") and not entry.get("last_error")


def _wait(entry: Any, now: datetime, with_error: bool, count: int = 1) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    kind, name = entry.get("kind"), entry.get("name")
    words = {
        "signal": f"the signal “{name}”",
        "timer": "a timer",
        "activity": f"the activity {name}",
        "child": f"the child {name or entry.get('id') or 'workflow'}",
    }.get(kind, f"{kind} {name or ''}".rstrip())
    if count > 1:
        words = f"{count} {_PLURALS[kind]} {name}"
    if entry.get("queue"):
        words += f" on the queue {entry['queue']}"
    parts = [words]
    attempt = entry.get("attempt")
    if isinstance(attempt, int) and attempt > 1:
        parts.append(f"attempt {attempt}")
    next_try, until, since = (_time(entry.get(key)) for key in ("next_try", "until", "since"))
    if next_try is not None:
        parts.append(f"next try {ago(next_try, now)}" if next_try > now else "next try due")
    if since is not None:
        parts.append(f"{'the first ' if count > 1 else ''}for {duration(now - since)}")
    if until is not None:
        parts.append(f"{'due' if kind == 'timer' or until < now else 'gives up'} {ago(until, now)}")
    if with_error and entry.get("last_error"):
        parts.append(f"last error: {entry['last_error']}")
    return ", ".join(parts)


def _is_more(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("kind") == "more" and isinstance(entry.get("count"), int)


def _time(value: Any) -> datetime | None:
    try:
        when = parse_datetime(value)
    except (TypeError, ValueError):
        return None
    return when if when is not None and when.tzinfo is not None else None
