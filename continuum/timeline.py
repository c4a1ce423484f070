"""The story of one run as something that can be drawn: lanes with spans, and a scale that shortens idle stretches.

What is drawn comes from the history, without its payloads, and from what the run waits for now. The history holds what
came in, so the beginning of some spans follows: an activity's is recorded, a child's is in its id, a timer's is its end
less its length.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections
from django.utils.dateparse import parse_datetime

from continuum.ids import uuid7_time_us
from continuum.models import Run
from continuum.moments import aware
from continuum.worker.sql import load

__all__ = ["Gap", "Lane", "Mark", "Scale", "Span", "Timeline", "timeline"]

#: Events that are drawn at most; of a longer history the newest.
MOST_EVENTS = 500
# An idle stretch longer than this share of all that is busy is shortened to it.
_IDLE_SHARE = 0.12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_KINDS = {
    "activity_completed": ("activity", "completed"),
    "activity_failed": ("activity", "failed"),
    "activity_retried": ("activity", "retried"),
    "child_completed": ("child", "completed"),
    "child_failed": ("child", "failed"),
    "timer_fired": ("timer", "completed"),
    "signal_received": ("signal", "completed"),
    "side_effect": ("decision", "completed"),
    "patched": ("decision", "completed"),
}
_MARKS = {
    "cancel_requested": "cancel requested",
    "run_retried": "retry asked for",
    "run_resumed": "retried",
    "run_forked": "forked here",
    "version_adopted": "adopted by other code",
    "run_completed": "completed",
    "run_continued": "continued as a new run",
    "run_failed": "failed",
    "run_cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time in a lane.

    Attributes:
        start, end: when it began and ended (aware); ``end`` is None while it lasts.
        outcome: ``completed``, ``failed``, ``retried`` (failed, and tried again), ``open``, or ``waiting`` for the next
            attempt.
        attempt: which attempt of an activity this was; 0 for other things.
        error: the type of its error; empty if none.
        seq: the event that ended it; None while it lasts.
        until: when it will end at the latest, if that is known while it lasts.
    """

    start: datetime
    end: datetime | None
    outcome: str
    attempt: int = 0
    error: str = ""
    seq: int | None = None
    until: datetime | None = None

    @property
    def is_point(self) -> bool:
        """Whether it took no time."""
        return self.end is not None and self.end <= self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What became of one command, or of a signal that nobody had asked for.

    Attributes:
        kind: ``activity``, ``child``, ``timer``, ``signal`` or ``decision``.
        name: of the activity, workflow or signal; empty for timers.
        command_id: the command's path; None for a signal that was kept until somebody asked.
        spans: oldest first; those of an activity are its attempts.
        child: the run id of a child.
    """

    kind: str
    name: str
    command_id: str | None
    spans: tuple[Span, ...]
    child: str | None = None


class Mark(NamedTuple):
    """A moment of the run as a whole: ``type`` is the event's, ``label`` says it in words."""

    at: datetime
    type: str
    label: str
    seq: int


class Gap(NamedTuple):
    """An idle stretch that is drawn shorter than it was."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """How long it was."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Scale:
    """Places moments between 0 and 1: proportionally, but for idle stretches that are shortened."""

    moments: tuple[datetime, ...]
    places: tuple[float, ...]
    gaps: tuple[Gap, ...]

    def place(self, moment: datetime) -> float:
        """Return where a moment lies, from 0 (the run's start) to 1."""
        moments, places = self.moments, self.places
        found = bisect_right(moments, moment)
        if found == 0:
            return 0.0
        if found == len(moments):
            return places[-1]
        before, after = moments[found - 1], moments[found]
        share = (moment - before) / (after - before)
        return places[found - 1] + (places[found] - places[found - 1]) * share


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A run's story.

    Attributes:
        start: when the run was started (aware).
        end: when it ended; else the present.
        lanes: by the time of their first span.
        marks: cancellation, retries, the end.
        left_out: how many older events are not drawn.
    """

    start: datetime
    end: datetime
    lanes: tuple[Lane, ...]
    marks: tuple[Mark, ...]
    left_out: int
    scale: Scale


def timeline(run: Run, *, now: datetime | None = None, limit: int = MOST_EVENTS, waits: Any = None) -> Timeline:
    """Read and arrange what happened to a run: one query, no payloads.

    Args:
        run: the run; what it waits for is read from it.
        now: the present (aware); until then what lasts is drawn.
        limit: how many events to draw at most, the newest.
        waits: what it waits for, if that has been read already.
    """
    with connections[run._state.db].cursor() as cursor:
        cursor.execute(load("timeline"), {"run_id": run.id, "limit": limit})
        rows = [_Row(*row) for row in reversed(cursor.fetchall())]
    started, claimed, completed = map(aware, (run.started_at, run.claimed_at, run.completed_at))
    present = max(completed or now or datetime.now(UTC), started)
    lanes: dict[Any, _Lane] = {}
    marks: list[Mark] = []
    before = claimed or started
    for row in rows:
        if row.type in _MARKS:
            label = _MARKS[row.type] + (f": {row.error}" if row.error else "")
            marks.append(Mark(row.at, row.type, label, row.seq))
        elif row.type in _KINDS:
            _note(lanes, row, before)
        before = row.at
    if not run.is_terminal:
        _add_waits(lanes, run.waiting_on if waits is None else waits)
    first = rows[0].seq if rows else 1
    done = tuple(sorted((lane.done() for lane in lanes.values()), key=lambda lane: lane.spans[0].start))
    return Timeline(
        start=started,
        end=present,
        lanes=done,
        marks=tuple(marks),
        left_out=first - 1,
        scale=_scale(started, present, done, marks),
    )


class _Row(NamedTuple):
    seq: int
    type: str
    command_id: str | None
    name: str | None
    recorded_us: int
    took_us: int | None
    attempt: int | None
    error: str | None
    child: str | None
    args: str | None

    @property
    def at(self) -> datetime:
        return _moment(self.recorded_us)


@dataclass(slots=True)
class _Lane:
    kind: str
    name: str
    command_id: str | None
    child: str | None = None
    spans: list[Span] = field(default_factory=list)

    def done(self) -> Lane:
        return Lane(
            kind=self.kind, name=self.name, command_id=self.command_id, spans=tuple(self.spans), child=self.child
        )


def _note(lanes: dict[Any, _Lane], row: _Row, before: datetime) -> None:
    kind, outcome = _KINDS[row.type]
    start = row.at
    if kind == "activity":
        start = min(_moment(row.recorded_us - (row.took_us or 0)), row.at)
    elif kind == "child":
        start = min(_begun(row.child, before), row.at)
    elif kind == "timer":
        start = min(_set_at(row, before), row.at)
        if row.name:  # a wait for a signal that was in vain
            kind, outcome = "signal", "failed"
    key = row.command_id if row.command_id is not None else f"event {row.seq}"
    lane = lanes.setdefault(key, _Lane(kind, row.name or "", row.command_id, row.child))
    lane.spans.append(
        Span(
            start=start,
            end=row.at,
            outcome=outcome,
            attempt=row.attempt or 0,
            error=row.error or ("SignalTimeoutError" if (kind, outcome) == ("signal", "failed") else ""),
            seq=row.seq,
        )
    )


def _add_waits(lanes: dict[Any, _Lane], waiting_on: Any) -> None:
    """Draw what the run waits for; an activity that is to be tried again goes on in its lane."""
    if not isinstance(waiting_on, Sequence) or isinstance(waiting_on, str):
        return
    retried = [lane for lane in lanes.values() if lane.spans[-1].outcome == "retried"]
    for number, entry in enumerate(waiting_on):
        since = _time(entry.get("since")) if isinstance(entry, Mapping) else None
        if since is None or entry.get("kind") not in ("activity", "child", "timer", "signal"):
            continue
        kind, name, attempt = entry["kind"], str(entry.get("name") or ""), entry.get("attempt")
        lane = next((each for each in retried if kind == "activity" and each.name == name), None)
        if lane is None:
            lane = lanes[f"waiting {number}"] = _Lane(kind, name, None, entry.get("id"))
        else:
            retried.remove(lane)
            since = max(since, lane.spans[-1].end or since)
        next_try = _time(entry.get("next_try"))
        lane.spans.append(
            Span(
                start=since,
                end=None,
                outcome="waiting" if next_try is not None else "open",
                attempt=attempt if isinstance(attempt, int) and kind == "activity" else 0,
                until=next_try or _time(entry.get("until")),
            )
        )


def _scale(start: datetime, end: datetime, lanes: Iterable[Lane], marks: Iterable[Mark]) -> Scale:
    spans = [span for lane in lanes for span in lane.spans]
    busy = [
        (span.start, span.end or end)
        for lane in lanes
        if lane.kind in ("activity", "child")
        for span in lane.spans
        if span.outcome != "waiting"
    ]
    bounds = {start, end, *(span.start for span in spans), *(span.end for span in spans if span.end)}
    bounds.update(mark.at for mark in marks)
    moments = sorted(min(max(moment, start), end) for moment in bounds)
    moments = [moment for n, moment in enumerate(moments) if n == 0 or moment > moments[n - 1]]
    stretches = [(after - before).total_seconds() for before, after in pairwise(moments)]
    idle = [not _covered(moments[n], busy) for n in range(len(stretches))]
    at_work = sum(length for length, free in zip(stretches, idle, strict=True) if not free)
    # Where nothing was busy, the shortest stretch is what the others are compared with.
    most = at_work * _IDLE_SHARE or min(stretches, default=0.0) * 4
    places, gaps, place = [0.0], [], 0.0
    for n, (length, free) in enumerate(zip(stretches, idle, strict=True)):
        drawn = min(length, most) if free else length
        if drawn < length:
            gaps.append(Gap(moments[n], moments[n + 1]))
        place += drawn
        places.append(place)
    whole = places[-1] or 1.0
    return Scale(tuple(moments), tuple(place / whole for place in places), tuple(gaps))


def _covered(moment: datetime, busy: list[tuple[datetime, datetime]]) -> bool:
    return any(start <= moment < end for start, end in busy)


def _begun(child: str | None, before: datetime) -> datetime:
    try:
        return _moment(uuid7_time_us(UUID(child or "")) // 1000 * 1000)
    except ValueError:
        return before


def _set_at(row: _Row, before: datetime) -> datetime:
    try:
        (length,) = json.loads(row.args or "")
        return row.at - timedelta(seconds=length)
    except (TypeError, ValueError, OverflowError):
        return before  # until a moment, set when the code last went on


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


def _time(value: Any) -> datetime | None:
    try:
        when = parse_datetime(value)
    except (TypeError, ValueError):
        return None
    return when if when is not None and when.tzinfo is not None else None
