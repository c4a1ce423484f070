"""Looking after the month partitions of the history by hand. Workers do the same by themselves where they may.

Some may not: a role that owns no tables makes none. And what the default partition has gathered meanwhile moves only
where that does not keep others waiting for long, unless somebody says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from django.db import connections

from continuum.arguments import alias_for
from continuum.worker.partitions import (
    DEFAULT_PARTITION,
    MONTHS_AHEAD,
    MOST_MOVED,
    Month,
    default_months,
    existing_months,
    make_month,
    missing_months,
    statement,
)
from continuum.worker.sql import load

__all__ = ["Outcome", "Partition", "Rights", "Step", "carry_out", "partitions", "plan", "rights", "script"]

# So many rows are counted where PostgreSQL has no estimate yet.
_SOON_TOLD = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition of the history.

    Attributes:
        name: its table.
        since, until: the runs whose histories are here were started from then on, and before (aware); None for the
            default partition, which has those that belong nowhere else.
        rows: how many events it has, as PostgreSQL estimates; None if it has not counted yet.
        size: bytes on disk, indexes included.
        oldest_live: the oldest of its runs that has not ended; None if all have, and for the default partition.
    """

    name: str
    since: datetime | None
    until: datetime | None
    rows: int | None
    size: int
    oldest_live: UUID | None


class Outcome(StrEnum):
    """What came of a step."""

    PLANNED = "planned"
    MADE = "made"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A partition to make.

    Attributes:
        name: its table.
        rows: how many events move there from the default partition.
        outcome: what came of it.
        reason: why it was left.
    """

    name: str
    rows: int
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Who asks, who owns the history, and whether the former may make partitions of it."""

    user: str
    owner: str
    may_create: bool


def partitions(*, using: str | None = None) -> list[Partition]:
    """Return the partitions that there are, oldest first, the default one last. Writes nothing."""
    with connections[alias_for(using)].cursor() as cursor:
        cursor.execute(load("partition_sizes"))
        sizes = {name: (rows, size) for name, rows, size in cursor.fetchall()}
        found = [
            Partition(
                name=month.name,
                since=month.since,
                until=month.until,
                rows=_rows(cursor, month.name, sizes[month.name][0]),
                size=sizes[month.name][1],
                oldest_live=_oldest_live(cursor, month),
            )
            for month in existing_months(cursor)
        ]
        if DEFAULT_PARTITION in sizes:
            estimate, size = sizes[DEFAULT_PARTITION]
            rows = _rows(cursor, DEFAULT_PARTITION, estimate, doubtful=True)
            found.append(
                Partition(name=DEFAULT_PARTITION, since=None, until=None, rows=rows, size=size, oldest_live=None)
            )
        return found


def plan(*, ahead: int = MONTHS_AHEAD, moving: bool = False, using: str | None = None) -> list[tuple[Month, int]]:
    """Return the months that want a partition, oldest first, each with how many events would move there.

    Args:
        ahead: how many months after the current one.
        moving: the other months of which the default partition holds events as well.
        using: database alias.
    """
    now = datetime.now(UTC)
    with connections[alias_for(using)].cursor() as cursor:
        months = set(missing_months(cursor, now, ahead))
        if moving:
            months.update(default_months(cursor, now, ahead))
        return [(month, _waiting(cursor, month)) for month in sorted(months)]


def carry_out(
    planned: list[tuple[Month, int]], *, most_moved: int = MOST_MOVED, using: str | None = None
) -> Iterator[Step]:
    """Make partitions, each in a transaction of its own, and yield what came of it.

    While events move, nobody reads or writes histories.

    Args:
        planned: what ``plan`` says.
        most_moved: months of which more events would have to move are left.
        using: database alias, in autocommit.
    """
    with connections[alias_for(using)].cursor() as cursor:
        for month, rows in planned:
            if rows > most_moved:
                yield Step(name=month.name, rows=rows, outcome=Outcome.LEFT, reason=f"more than {most_moved:,} events")
            elif make_month(cursor, month, most_moved=most_moved):
                yield Step(name=month.name, rows=rows, outcome=Outcome.MADE)
            else:
                yield Step(name=month.name, rows=rows, outcome=Outcome.LEFT, reason="the history was in use just then")


def script(planned: list[tuple[Month, int]], *, most_moved: int = MOST_MOVED) -> str:
    """Return SQL that makes the partitions, for somebody who may."""
    return "\n".join(f"{statement(month, most_moved=most_moved).rstrip()};\n" for month, _ in planned)


def rights(*, using: str | None = None) -> Rights:
    """Return who the database takes us for, and whether that role may make partitions."""
    with connections[alias_for(using)].cursor() as cursor:
        cursor.execute(load("partition_rights"))
        user, owner, may_create = cursor.fetchone()
        return Rights(user=user, owner=owner, may_create=may_create)


def _rows(cursor: Any, name: str, estimate: int, *, doubtful: bool = False) -> int | None:
    """Return the estimate, or the number where there is none, or no good one, and it is soon told."""
    if estimate >= 0 and not doubtful:
        return estimate
    cursor.execute(f"SELECT count(*) FROM (SELECT FROM {name} LIMIT %s) AS found", [_SOON_TOLD])
    number = cursor.fetchone()[0]
    if number < _SOON_TOLD:
        return number
    return estimate if estimate >= 0 else None


def _oldest_live(cursor: Any, month: Month) -> UUID | None:
    cursor.execute(load("partition_oldest_live"), {"lower": month.lower, "upper": month.upper})
    row = cursor.fetchone()
    return row and row[0]


def _waiting(cursor: Any, month: Month) -> int:
    cursor.execute(
        f"SELECT count(*) FROM {DEFAULT_PARTITION} WHERE run_id >= %s AND run_id < %s", [month.lower, month.upper]
    )
    return cursor.fetchone()[0]
