"""Deleting runs whose time is over: which those are, and the deleting itself, in batches.

A workflow says with ``retention=`` how long its runs are kept once they have ended. A run goes with its history, its
messages and the records of its transactional activities. Nothing goes that somebody may come back to: see
``retention_stays.sql``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections, transaction

from continuum.arguments import alias_for
from continuum.worker.partitions import Month, drop_month, existing_months
from continuum.worker.sql import load

__all__ = ["Pruned", "Survey", "prune", "survey"]

# Ids fetched at once of what may go.
_CHUNK = 10_000
# A partition is left alone until its month has been over for so long: clocks differ, and ids are made before they are
# stored.
_SETTLED = timedelta(days=1)
_FIRST_KEY = UUID(int=0)
# What a run leaves in other tables. Keys are no run's own: they stay, see ``keys_before``.
_DELETES = {
    "events": "DELETE FROM continuum_events WHERE run_id = ANY(%(ids)s::uuid[])",
    "messages": "DELETE FROM continuum_inbox WHERE run_id = ANY(%(ids)s::uuid[])",
    "tasks": "DELETE FROM continuum_activity_tasks WHERE run_id = ANY(%(ids)s::uuid[])",
    "records": "DELETE FROM continuum_activity_results WHERE run_id = ANY(%(ids)s::uuid[]) AND kind = 'activity'",
    "runs": "DELETE FROM continuum_runs WHERE id = ANY(%(ids)s::uuid[])",
}


_OF_NO_RUN = "NOT EXISTS (SELECT FROM continuum_runs r WHERE r.id = run_id)"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What stands in the tables and what of it may go.

    Attributes:
        now: the database's time; what counts as over is over at this time.
        ended_before: set if every run may go that ended before, whatever its workflow's retention.
        runs: how many runs there are.
        ended: how many of them have ended.
        kept_for_ever: how many of these are of workflows with ``retention=None``.
        due: how many have ended and their time is over.
        may_go: those of them that nobody needs any more, by workflow.
        months: the partitions of the history that go whole, with their sizes in bytes.
        keys: idempotency keys that may go.
    """

    now: datetime
    ended_before: datetime | None
    runs: int
    ended: int
    kept_for_ever: int
    due: int
    may_go: Counter[str]
    months: dict[str, int]
    keys: int

    @property
    def needed(self) -> int:
        """How many runs are due and stay, as a run that is not may need them."""
        return max(0, self.due - self.may_go.total())


@dataclass(kw_only=True)
class Pruned:
    """What was deleted.

    Attributes:
        runs: deleted runs.
        events: events deleted one by one; those of a partition that went whole are not counted.
        messages, records: of these runs.
        keys: deleted idempotency keys.
        months: partitions that went whole.
        left: runs that stayed as somebody held or needed them at that moment.
        left_months: partitions that could not be locked; the next time they go.
    """

    runs: int = 0
    events: int = 0
    messages: int = 0
    tasks: int = 0
    records: int = 0
    keys: int = 0
    months: list[str] = field(default_factory=list)
    left: int = 0
    left_months: list[str] = field(default_factory=list)


def survey(
    *, older_than: timedelta | None = None, keys_older_than: timedelta | None = None, using: str | None = None
) -> Survey:
    """Find out what :func:`prune` would delete, and delete nothing.

    Args:
        older_than: let every run go that ended so long ago, whatever its workflow's retention, but for those kept for
            ever. If not given, those whose retention is over.
        keys_older_than: let idempotency keys go that are so old. If not given, keys stay.
        using: database alias.
    """
    job = _Job(alias_for(using), older_than, keys_older_than)
    return job.survey()


def prune(
    *,
    older_than: timedelta | None = None,
    keys_older_than: timedelta | None = None,
    batch_size: int = 1_000,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    using: str | None = None,
) -> Pruned:
    """Delete runs whose time is over, a batch a transaction; what was deleted before an interruption stays deleted.

    It may run while workers work, and beside itself. Partitions of the history of which no run is left are dropped.

    Args:
        older_than, keys_older_than, using: as for :func:`survey`.
        batch_size: how many runs are deleted in one transaction.
        on_progress: called after each batch with how many runs have been dealt with, of how many.
    """
    job = _Job(alias_for(using), older_than, keys_older_than)
    return job.prune(batch_size, on_progress)


class _Job:
    def __init__(self, alias: str, older_than: timedelta | None, keys_older_than: timedelta | None) -> None:
        self.connection = connections[alias]
        self.alias = alias
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM statement_timestamp())::float8")
            self.now = datetime.fromtimestamp(cursor.fetchone()[0], UTC)
        self.ended_before = None if older_than is None else self.now - older_than
        self.keys_before = None if keys_older_than is None else self.now - keys_older_than
        self.times = {"now": self.now, "ended_before": self.ended_before}

    def survey(self) -> Survey:
        may_go: Counter[str] = Counter()
        remain: Counter[UUID] = Counter()  # of each month, by its lower bound
        runs = ended = for_ever = due = 0
        sizes = {}
        with self.connection.cursor() as cursor:
            months = self._settled_months(cursor)
            bounds = sorted({bound for month in months for bound in (month.lower, month.upper)})
            cursor.execute(f"{load('retention_stays')} {load('retention_survey')}", {**self.times, "bounds": bounds})
            for workflow, place, *numbers, needed in cursor.fetchall():
                runs, ended, for_ever, due = map(sum, zip((runs, ended, for_ever, due), numbers, strict=True))
                may_go[workflow] += numbers[-1] - needed
                if place:
                    remain[bounds[place - 1]] += numbers[0] - numbers[-1] + needed
            for month in months:
                if not remain[month.lower]:
                    cursor.execute("SELECT pg_total_relation_size(%s::regclass)", [month.name])
                    sizes[month.name] = cursor.fetchone()[0]
        return Survey(
            now=self.now,
            ended_before=self.ended_before,
            runs=runs,
            ended=ended,
            kept_for_ever=for_ever,
            due=due,
            may_go=+may_go,
            months=sizes,
            keys=self._keys(execute=False),
        )

    def prune(self, batch_size: int, on_progress: Callable[[int, int], None]) -> Pruned:
        # 16 bytes a run: tens of millions find room.
        ids = bytearray().join(run_id.bytes for run_id, _ in self._due())
        months = self._whole_months(ids)
        total = len(ids) // 16
        done = Pruned()
        for first in range(0, total, batch_size):
            last = min(first + batch_size, total)
            self._prune_batch(list(_unpacked(ids[first * 16 : last * 16])), months, done)
            on_progress(last, total)
        for month in months:
            self._drop(month, ids, batch_size, done)
        done.keys = self._keys(execute=True)
        return done

    def _drop(self, month: Month, ids: bytearray, batch_size: int, done: Pruned) -> None:
        with self.connection.cursor() as cursor:
            if drop_month(cursor, month):
                done.months.append(month.name)
                return
            done.left_months.append(month.name)
            if not self._runs_of(cursor, month):
                return  # locked by somebody: the next time it goes
            # A run of it has stayed after all, and the month with it: the history of the others goes one by one.
            gone = [run_id for run_id in _unpacked(ids) if month.lower <= run_id < month.upper]
            for first in range(0, len(gone), batch_size):
                batch = gone[first : first + batch_size]
                cursor.execute(f"{_DELETES['events']} AND {_OF_NO_RUN}", {"ids": batch})
                done.events += cursor.rowcount

    def _due(self) -> Iterator[tuple[UUID, str]]:
        with transaction.atomic(using=self.alias), self.connection.chunked_cursor() as cursor:
            cursor.itersize = _CHUNK
            cursor.execute(f"{load('retention_stays')} {load('retention_due')}", self.times)
            while rows := cursor.fetchmany(_CHUNK):
                yield from rows

    def _whole_months(self, ids: bytearray) -> list[Month]:
        """Return the partitions whose every run may go; those without any run among them."""
        with self.connection.cursor() as cursor:
            months = self._settled_months(cursor)
            lowers = [month.lower for month in months]
            going: Counter[str] = Counter()
            for run_id in _unpacked(ids):
                found = bisect_right(lowers, run_id) - 1
                if found >= 0 and run_id < months[found].upper:
                    going[months[found].name] += 1
            return [month for month in months if self._runs_of(cursor, month) == going[month.name]]

    def _settled_months(self, cursor: Any) -> list[Month]:
        settled = self.now - _SETTLED
        return [month for month in existing_months(cursor) if month.until <= settled]

    @staticmethod
    def _runs_of(cursor: Any, month: Month) -> int:
        cursor.execute("SELECT count(*) FROM continuum_runs WHERE id >= %s AND id < %s", [month.lower, month.upper])
        return cursor.fetchone()[0]

    def _prune_batch(self, ids: list[UUID], months: list[Month], done: Pruned) -> None:
        with transaction.atomic(using=self.alias), self.connection.cursor() as cursor:
            cursor.execute(load("retention_lock"), {"ids": ids, **self.times})
            free = [run_id for (run_id,) in cursor.fetchall()]
            done.left += len(ids) - len(free)
            if not free:
                return
            for what, statement in _DELETES.items():
                these = free
                if what == "events":  # the partition goes with what is in it
                    these = [id for id in free if not any(m.lower <= id < m.upper for m in months)]
                cursor.execute(statement, {"ids": these})
                setattr(done, what, getattr(done, what) + cursor.rowcount)

    def _keys(self, *, execute: bool) -> int:
        """Delete, or only count, the keys that may go, a page after the other."""
        if self.keys_before is None:
            return 0
        found, place = 0, (_FIRST_KEY, "")
        while True:
            parameters: dict[str, Any] = {
                "after_id": place[0],
                "after_command": place[1],
                "before": self.keys_before,
                "batch": _CHUNK,
                "execute": execute,
            }
            with self.connection.cursor() as cursor:
                cursor.execute(load("retention_keys"), parameters)
                old, seen, *place = cursor.fetchone()
            found += old
            if seen < _CHUNK:
                return found


def _unpacked(ids: bytearray) -> Iterator[UUID]:
    return (UUID(bytes=bytes(ids[place : place + 16])) for place in range(0, len(ids), 16))
