"""Month partitions of the history table.

``continuum_events`` is partitioned by range on ``run_id``, with the smallest version 7 ids of each month (UTC) as
bounds: a run's history sits in the partition of the month in which its id was made, however long it goes on. What has
no partition yet goes to the default one and loses nothing by it.

Functions here take a DB-API cursor. Each partition is made by one statement, so on a connection in autocommit each is a
short transaction of its own.
"""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from continuum.ids import smallest_uuid7
from continuum.worker.sql import load

__all__ = [
    "DEFAULT_PARTITION",
    "MONTHS_AHEAD",
    "MOST_MOVED",
    "PARENT",
    "Month",
    "default_months",
    "drop_month",
    "ensure_partitions",
    "existing_months",
    "existing_partitions",
    "make_month",
    "missing_months",
    "partition_name",
    "statement",
]

PARENT = "continuum_events"
DEFAULT_PARTITION = f"{PARENT}_default"
MONTHS_AHEAD = 3
MOST_MOVED = 100_000
"""How many events move to a new partition at most: nobody reads or writes histories meanwhile."""

_NAME = re.compile(rf"{PARENT}_y(\d{{4}})m(\d{{2}})")


class Month(NamedTuple):
    """A month's partition: its name, the smallest run id of that month, and that of the next."""

    name: str
    lower: UUID
    upper: UUID

    @property
    def since(self) -> datetime:
        """When the month begins."""
        return _time_of(self.lower)

    @property
    def until(self) -> datetime:
        """When the next one begins."""
        return _time_of(self.upper)


def partition_name(year: int, month: int) -> str:
    """Return the name of a month's partition, such as ``continuum_events_y2026m03``."""
    return f"{PARENT}_y{year:04}m{month:02}"


def existing_partitions(cursor) -> set[str]:
    """Return the names of the partitions that there are, the default one among them."""
    cursor.execute(load("partitions"))
    return {name for (name,) in cursor.fetchall()}


def existing_months(cursor) -> list[Month]:
    """Return the partitions that hold one month each, oldest first."""
    months = (_NAME.fullmatch(name) for name in sorted(existing_partitions(cursor)))
    return [_month(int(found[1]), int(found[2])) for found in months if found]


def drop_month(cursor, month: Month) -> bool:
    """Drop a month's partition, with all the history in it, unless a run of that month is there.

    The history table is locked for a moment. When others keep it from being locked for half a second, nothing happens.

    Args:
        cursor: a DB-API cursor on a PostgreSQL connection in autocommit.

    Returns:
        Whether the partition is gone.
    """
    # As below: a DO block takes no parameters.
    cursor.execute(load("retention_drop").format(name=month.name, lower=month.lower, upper=month.upper))
    return month.name not in existing_partitions(cursor)


def ensure_partitions(
    cursor, now: datetime, months_ahead: int = MONTHS_AHEAD, *, most_moved: int = MOST_MOVED
) -> list[str]:
    """Make the partitions of the current month and of those that follow, where they are missing.

    Usually there is nothing to do, which takes one query and no lock. Called from within a transaction, the locks of
    ``make_month`` last until that ends.

    Args:
        cursor: a DB-API cursor on PostgreSQL.
        now: the current time (aware).
        months_ahead: how many months after the current one.
        most_moved: see ``make_month``.

    Returns:
        The names of the partitions that were made.
    """
    return [
        month.name
        for month in missing_months(cursor, now, months_ahead)
        if make_month(cursor, month, most_moved=most_moved)
    ]


def missing_months(cursor, now: datetime, months_ahead: int = MONTHS_AHEAD) -> list[Month]:
    """Return the current month and those that follow, as far as they have no partition."""
    wanted = _months(now, months_ahead + 1)
    existing = existing_partitions(cursor)
    return [_month(*month) for month in wanted if partition_name(*month) not in existing]


def make_month(cursor, month: Month, *, most_moved: int = MOST_MOVED) -> bool:
    """Make a month's partition, and move there what the default partition holds of that month.

    Nobody reads or writes histories for that long, unless the month lies ahead and has none. When somebody who does, or
    another process at the same task, keeps the statement waiting for half a second, nothing happens, since others would
    queue up behind it.

    Args:
        cursor: a DB-API cursor on PostgreSQL; in autocommit, so that this is a transaction of its own.
        month: the month.
        most_moved: leave the month alone if more events than this would have to move.

    Returns:
        Whether the partition is there.
    """
    cursor.execute(statement(month, most_moved=most_moved))
    return month.name in existing_partitions(cursor)


def statement(month: Month, *, most_moved: int = MOST_MOVED) -> str:
    """Return the SQL that makes a month's partition."""
    # A DO block takes no parameters: these are a name, ids, a time and a number of our own making.
    return load("create_partition").format(**month._asdict(), since=month.since.isoformat(), most=int(most_moved))


def default_months(cursor, now: datetime, months_ahead: int = MONTHS_AHEAD) -> list[Month]:
    """Return the months of which the default partition holds events, oldest first.

    None that lie further ahead than partitions are made: such ids come from clocks that were wrong.
    """
    last = _month(*_months(now, months_ahead + 1)[-1])
    found: list[Month] = []
    after: Any = UUID(int=0)
    while True:
        # A step for each month, by the primary key, however many events there are.
        cursor.execute(
            f"SELECT run_id FROM {DEFAULT_PARTITION} WHERE run_id >= %s AND run_id < %s ORDER BY run_id LIMIT 1",
            [after, last.upper],
        )
        if not (rows := cursor.fetchall()):
            return found
        moment = _time_of(rows[0][0])
        found.append(_month(moment.year, moment.month))
        after = found[-1].upper


def _months(now: datetime, count: int) -> list[tuple[int, int]]:
    if now.tzinfo is None:
        raise ValueError(f"months need an aware datetime, not {now!r}")
    utc = now.astimezone(UTC)
    months = [(utc.year, utc.month)]
    while len(months) < count:
        months.append(_next(*months[-1]))
    return months


def _next(year: int, month: int) -> tuple[int, int]:
    return (year, month + 1) if month < 12 else (year + 1, 1)


def _month(year: int, month: int) -> Month:
    return Month(partition_name(year, month), _bound(year, month), _bound(*_next(year, month)))


def _bound(year: int, month: int):
    return smallest_uuid7(datetime(year, month, 1, tzinfo=UTC))


def _time_of(run_id: UUID) -> datetime:
    return datetime.fromtimestamp((run_id.int >> 80) / 1000, UTC)
