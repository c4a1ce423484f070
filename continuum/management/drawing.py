"""A run's timeline as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from continuum.timeline import Lane, Span, Timeline
from continuum.wording import duration

__all__ = ["draw"]

_FILLS = {"completed": "━", "failed": "━", "retried": "╌", "open": "━", "waiting": "┄"}
_POINTS = {"completed": "●", "failed": "✗", "retried": "↻", "open": "▶", "waiting": "↻"}
_ENDS = {"failed": "✗", "retried": "↻", "open": "▶", "waiting": "↻"}
_LABEL = 34
_LEAST = 20
_MOST_LANES = 60
_GAP = "·"


def draw(timeline: Timeline, width: int) -> Iterator[str]:
    """Yield the lines of a drawing that is ``width`` characters wide: an axis, a line a lane, what each sign means."""
    label = min(_LABEL, max(12, width // 3))
    tail = 22
    room = max(_LEAST, width - label - tail - 2)
    if timeline.left_out:
        yield f"({timeline.left_out:,} older events are not drawn)"
    yield " " * (label + 1) + _axis(timeline, room)
    lanes = timeline.lanes[-_MOST_LANES:]
    if len(lanes) < len(timeline.lanes):
        yield f"({len(timeline.lanes) - len(lanes):,} earlier lanes are not drawn)"
    for lane in lanes:
        yield f"{_fit(_name(lane), label)} {_bar(timeline, lane, room)} {_told(timeline, lane)}".rstrip()
    for mark in timeline.marks:
        place = round(timeline.scale.place(mark.at) * (room - 1))
        line = f"{' ' * place}┃".ljust(room)
        yield f"{_fit(mark.label, label)} {line} +{_since(timeline, mark.at)}"
    for gap in timeline.scale.gaps:
        if gap.length >= timedelta(seconds=1):
            began = _since(timeline, gap.start)
            yield f"{_GAP * 3} {duration(gap.length)} of waiting is drawn short, from +{began}"


def _axis(timeline: Timeline, room: int) -> str:
    left, right = "0", f"+{duration(timeline.end - timeline.start)}"
    return left + "─" * (room - len(left) - len(right)) + right


def _bar(timeline: Timeline, lane: Lane, room: int) -> str:
    cells = [" "] * room
    for gap in timeline.scale.gaps:
        first, last = (round(timeline.scale.place(moment) * (room - 1)) for moment in gap[:2])
        cells[first + 1 : last] = _GAP * max(0, last - first - 1)
    for span in lane.spans:
        first = round(timeline.scale.place(span.start) * (room - 1))
        last = round(timeline.scale.place(span.end or timeline.end) * (room - 1))
        if last <= first:
            cells[first] = _POINTS[span.outcome]
            continue
        cells[first : last + 1] = _FILLS[span.outcome] * (last - first + 1)
        if span.outcome in _ENDS:
            cells[last] = _ENDS[span.outcome]
    return "".join(cells)


def _told(timeline: Timeline, lane: Lane) -> str:
    last = lane.spans[-1]
    words = [_length(timeline, last)]
    if last.attempt > 1:
        words.append(f"attempt {last.attempt}")
    if last.error:
        words.append(last.error)
    elif last.outcome == "waiting" and last.until is not None:
        words.append(f"next try +{_since(timeline, last.until)}")
    elif last.outcome == "open":
        words.append("still")
    return ", ".join(word for word in words if word)


def _length(timeline: Timeline, span: Span) -> str:
    if span.is_point:
        return f"+{_since(timeline, span.start)}"
    return duration((span.end or timeline.end) - span.start)


def _since(timeline: Timeline, moment: datetime) -> str:
    return duration(moment - timeline.start)


def _name(lane: Lane) -> str:
    name = lane.name.rpartition(".")[2] or lane.kind
    kind = "" if lane.kind in ("activity", name) else f"{lane.kind} "
    place = f"{lane.command_id} " if lane.command_id else ""
    return f"{place}{kind}{name}"


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"
