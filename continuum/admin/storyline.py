"""A run's timeline as shapes that a template draws as inline SVG: a line a lane, no script and no styles inside.

Lines are drawn with strokes that do not scale, in a box that does: a bar is as wide as its lane on every screen, and a
moment stays a dot.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format

from continuum.admin import wording
from continuum.admin.details import waits_of
from continuum.models import Run
from continuum.timeline import Lane, Span, Timeline, timeline

__all__ = ["Row", "Shape", "Story", "story"]

WIDTH = 1000
_MOST_LANES = 200
_MOST_NAMED = 5
_OUTCOMES = {
    "completed": "completed",
    "failed": "failed",
    "retried": "failed, tried again",
    "open": "not done yet",
    "waiting": "waits for its next attempt",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A line from ``x1`` to ``x2`` of the ``WIDTH`` units.

    ``kind`` names its class, ``title`` says what it is, ``event`` is the number of the event to lead to.
    """

    x1: str
    x2: str
    kind: str
    title: str
    event: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One lane: what it is about, its shapes, and how it stands in words."""

    kind: str
    label: str
    full: str
    command_id: str
    address: str | None
    shapes: list[Shape]
    told: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Story:
    """What the page shows.

    Attributes:
        rows: the lanes.
        gaps: idle stretches that are drawn short.
        marks: moments of the run as a whole.
        began, length: the ends of the axis in words.
        shortened: the lengths of the idle stretches in words.
        left_out, lanes_left_out: how many older events and earlier lanes are not drawn.
    """

    rows: list[Row]
    gaps: list[Shape]
    marks: list[Shape]
    began: str
    length: str
    shortened: str
    left_out: int
    lanes_left_out: int


def story(run: Run, site: str) -> Story | None:
    """Return a run's timeline; None where there is nothing to draw."""
    now = datetime.now(UTC)
    waiting = waits_of(run)
    drawn = timeline(run, now=now, waits=(waiting.value if waiting else None) or [])
    if not drawn.lanes and not drawn.marks:
        return None
    lanes = drawn.lanes[-_MOST_LANES:]
    return Story(
        rows=[_row(drawn, lane, site) for lane in lanes],
        gaps=[
            Shape(
                _x(drawn, gap.start), _x(drawn, gap.end), "gap", f"{wording.duration(gap.length)} in which nothing ran"
            )
            for gap in drawn.scale.gaps
        ],
        marks=[
            Shape(x := _x(drawn, mark.at), x, mark.type, f"{mark.label}, {_clock(mark.at)}, {_offset(drawn, mark.at)}")
            for mark in drawn.marks
        ],
        began=_clock(drawn.start),
        length=wording.duration(drawn.end - drawn.start),
        shortened=_listed([wording.duration(gap.length) for gap in drawn.scale.gaps]),
        left_out=drawn.left_out,
        lanes_left_out=len(drawn.lanes) - len(lanes),
    )


def _row(drawn: Timeline, lane: Lane, site: str) -> Row:
    last = lane.spans[-1]
    return Row(
        kind=lane.kind,
        label=lane.name.rpartition(".")[2] or lane.kind,
        full=lane.name or lane.kind,
        command_id=lane.command_id or "",
        address=_address(lane.child, site),
        shapes=[_shape(drawn, span) for span in lane.spans],
        told=_told(drawn, last),
        failed=last.outcome == "failed",
    )


def _shape(drawn: Timeline, span: Span) -> Shape:
    words = [_OUTCOMES[span.outcome]]
    if span.attempt > 1 or span.outcome in ("retried", "waiting"):
        words.insert(0, f"attempt {span.attempt}")
    if span.error:
        words.append(span.error)
    words.append(_told(drawn, span))
    words.append(_clock(span.start))
    if span.seq is not None:
        words.append(f"event {span.seq}")
    return Shape(
        _x(drawn, span.start),
        _x(drawn, span.end or drawn.end),
        f"{span.outcome}{' continuum-point' if span.is_point else ''}",
        ", ".join(dict.fromkeys(words)),
        span.seq,
    )


def _told(drawn: Timeline, span: Span) -> str:
    if span.is_point:
        return _offset(drawn, span.start)
    words = [wording.duration((span.end or drawn.end) - span.start)]
    if span.attempt > 1:
        words.append(f"attempt {span.attempt}")
    if span.end is None and span.until is not None:
        words.append(("next try " if span.outcome == "waiting" else "until ") + wording.ago(span.until, drawn.end))
    return ", ".join(words)


def _listed(words: list[str]) -> str:
    more = len(words) - _MOST_NAMED
    return ", ".join(words[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _x(drawn: Timeline, moment: datetime) -> str:
    # Text, so that no locale puts a comma where SVG wants a point.
    return f"{drawn.scale.place(moment) * WIDTH:.2f}"


def _offset(drawn: Timeline, moment: datetime) -> str:
    return f"+{wording.duration(moment - drawn.start)}"


def _clock(moment: datetime) -> str:
    return date_format(timezone.localtime(moment), "Y-m-d H:i:s")


def _address(child: Any, site: str) -> str | None:
    return None if not child else reverse(f"{site}:continuum_run_change", args=[child])
