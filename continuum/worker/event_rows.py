"""Rows of events in PostgreSQL's binary format for ``COPY``.

Rows that arrive by ``COPY`` are logged a page at a time rather than each by itself: 47 bytes less of write-ahead log
an event, of 318 with its index entry. They are neither quoted here nor parsed there. For a few rows the further round
trips cost more than that saves.

The format is documented with PostgreSQL's ``COPY`` command; timestamps are microseconds since 2000, in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from continuum.worker.live import Entry

__all__ = ["COPY_EVENTS", "event_rows"]

COPY_EVENTS = """
COPY continuum_events (run_id, seq, recorded_at, type, command_id, name, data) FROM STDIN (FORMAT binary)
"""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
# Number of columns; then length and value of the run's id, of the place in its history, of the time.
_FIXED = Struct(">hi16siiiq")
_LENGTH = Struct(">i")
_NULL = b"\xff\xff\xff\xff"
_EPOCH_US = 946_684_800_000_000


def event_rows(entries: Iterable[Entry]) -> bytes:
    """Return the events of these entries, in order, as what ``COPY_EVENTS`` reads.

    Raises:
        UnicodeEncodeError: a text has no encoding.
    """
    fixed, length = _FIXED.pack, _LENGTH.pack
    parts = [_HEADER]
    # Types, names and commands are the same few in all rows of a batch.
    known: dict[str | None, bytes] = {None: _NULL}
    for entry in entries:
        run_id = entry.live.id.bytes
        for seq, type_, command_id, name, data, time_us in entry.events:
            parts.append(fixed(7, 16, run_id, 4, seq, 8, time_us - _EPOCH_US))
            for text in (type_, command_id, name):
                field = known.get(text)
                if field is None:
                    value = text.encode()
                    field = known[text] = length(len(value)) + value
                parts.append(field)
            value = data.encode()
            parts += (length(len(value)), value)
    parts.append(_TRAILER)
    return b"".join(parts)
