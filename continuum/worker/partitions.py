"""Month partitions of the history table.

``continuum_events`` is partitioned by range on ``run_id``, with the smallest version 7 ids of each month (UTC) as
bounds: a run's history sits in the partition of the month in which its id was made, however long it goes on. What has
no partition yet goes to the default one and loses nothing by it.

Functions here take a DB-API cursor. Each partition is made by one statement, so on a connection in autocommit each is a
short transaction of its own.
"""

import re
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from continuum.ids import smallest_uuid7
from continuum.worker.sql import load

__all__ = [
    "DEFAULT_PARTITION",
    "PARENT",
    "Month",
    "drop_month",
    "ensure_partitions",
    "existing_months",
    "existing_partitions",
    "partition_name",
]

PARENT = "continuum_events"
DEFAULT_PARTITION = f"{PARENT}_default"


_NAME = re.compile(rf"{PARENT}_y(\d{{4}})m(\d{{2}})")


class Month(NamedTuple):
    """A month's partition: its name, the smallest run id of that month, and that of the next."""

    name: str
    lower: UUID
    upper: UUID


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


def ensure_partitions(cursor, now: datetime, months_ahead: int = 3) -> list[str]:
    """Make the partitions of the current month and of those that follow, where they are missing.

    Rows of these months that went to the default partition meanwhile move to their place. Usually there is nothing to
    do, which takes one query and no lock. Otherwise the default partition is locked for a moment; when that lock, or
    another process at the same task, keeps the statement waiting for half a second, the month is left for the next
    call, since others would queue up behind it. Called from within a transaction, its locks last until that ends.

    Args:
        cursor: a DB-API cursor on PostgreSQL.
        now: the current time (aware).
        months_ahead: how many months after the current one.

    Returns:
        The names of the partitions that were made.
    """
    wanted = _months(now, months_ahead + 1)
    existing = existing_partitions(cursor)
    missing = [month for month in wanted if partition_name(*month) not in existing]
    for year, month in missing:
        # A DO block takes no parameters: these are a name and two ids of our own making.
        cursor.execute(load("create_partition").format(**_month(year, month)._asdict()))
    if not missing:
        return []
    existing = existing_partitions(cursor)
    return [name for month in missing if (name := partition_name(*month)) in existing]


def _months(now: datetime, count: int) -> list[tuple[int, int]]:
    if now.tzinfo is None:
        raise ValueError(f"ensure_partitions() needs an aware datetime, not {now!r}")
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
