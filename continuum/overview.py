"""How things stand as a whole: live runs by workflow, what ended lately, workers, queues, the oldest waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import OperationalError, connections, transaction

from continuum.arguments import alias_for
from continuum.models import Run
from continuum.moments import aware
from continuum.worker.sql import load

__all__ = ["RANGES", "Ended", "Live", "QueueDepth", "Range", "ended", "live", "oldest_waits", "queues"]

# A question that takes longer is not answered: whoever looks at 3 a.m. has other work for the database.
_PATIENCE_MS = 5_000
_CANCELED = "57014"
# How many runs are looked at in the order of their start before all that wait are.
_FRONT = 500


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time up to now, divided into slices of equal length."""

    name: str
    length: timedelta
    slices: int

    @property
    def slice(self) -> timedelta:
        """The length of a slice."""
        return self.length / self.slices


#: What can be looked at, by name.
RANGES = {
    each.name: each
    for each in (
        Range("1h", timedelta(hours=1), 60),
        Range("24h", timedelta(days=1), 96),
        Range("7d", timedelta(days=7), 84),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The runs of a workflow that have not ended: how many in each state, and when the oldest was started (aware)."""

    workflow: str
    states: Counter[str]
    oldest: datetime

    @property
    def total(self) -> int:
        """How many there are."""
        return self.states.total()


@dataclass(kw_only=True)
class Ended:
    """Runs that ended in a range.

    Attributes:
        since, until: the range (aware).
        slices: for each slice of it, how many ended in each state.
        workflows: for each workflow, how many ended in each state.
        seconds: for each workflow, how long its runs took on average, in seconds.
    """

    since: datetime
    until: datetime
    slices: list[Counter[str]]
    workflows: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """How a queue stands.

    Attributes:
        name: the queue.
        due: tasks that are due and that no worker has taken.
        age: for how many seconds the first of them has been due.
        running: tasks that workers are at.
        served: whether a live worker serves the queue.
    """

    name: str
    due: int
    age: float
    running: int
    served: bool


def live(*, using: str | None = None) -> list[Live]:
    """Count the runs that have not ended, by workflow, those with most runs first.

    Raises:
        TimeoutError: it took the database longer than five seconds.
    """
    states: dict[str, Counter[str]] = defaultdict(Counter)
    oldest: dict[str, datetime] = {}
    with _cursor(using) as cursor:
        cursor.execute(load("overview_live"))
        for workflow, state, number, started in cursor.fetchall():
            states[workflow][state] += number
            started = aware(started)
            oldest[workflow] = min(started, oldest.get(workflow, started))
    found = [Live(workflow=name, states=counted, oldest=oldest[name]) for name, counted in states.items()]
    return sorted(found, key=lambda each: (-each.total, each.workflow))


def ended(range_: Range, *, now: datetime | None = None, using: str | None = None) -> Ended:
    """Count the runs that ended lately, by slice of time and by workflow.

    Args:
        range_: how far back to look.
        now: the end of the range (aware); the present unless given.
        using: database alias.

    Raises:
        TimeoutError: it took the database longer than five seconds.
    """
    until = now or datetime.now(UTC)
    since = until - range_.length
    found = Ended(since=since, until=until, slices=[Counter() for _ in range(range_.slices)])
    seconds: Counter[str] = Counter()
    with _cursor(using) as cursor:
        parameters = {"since": since, "until": until, "slice": range_.slice.total_seconds()}
        cursor.execute(load("overview_ended"), parameters)
        for workflow, state, place, number, took in cursor.fetchall():
            found.slices[min(max(place, 0), range_.slices - 1)][state] += number
            found.workflows[workflow][state] += number
            seconds[workflow] += took or 0.0
    found.seconds = {name: seconds[name] / counted.total() for name, counted in found.workflows.items()}
    return found


def oldest_waits(limit: int = 10, *, since: datetime | None = None, using: str | None = None) -> list[Run]:
    """Return the runs that were started longest ago and still wait, without their values but for ``waiting_on``.

    Args:
        limit: how many.
        since: when the first live run was started (aware), if that is known: it saves reading all of them.
        using: database alias.

    Raises:
        TimeoutError: it took the database longer than five seconds.
    """
    alias = alias_for(using)
    with _cursor(alias) as cursor:
        ids: list[UUID] = []
        if since is not None:
            cursor.execute(load("overview_front"), {"limit": limit, "since": since, "front": _FRONT})
            ids = [run_id for (run_id,) in cursor.fetchall()]
        if len(ids) < limit:
            cursor.execute(load("overview_waits"), {"limit": limit})
            ids = [run_id for (run_id,) in cursor.fetchall()]
    runs = Run.objects.using(alias).defer("input", "result", "progress").filter(id__in=ids)
    return sorted(runs, key=lambda run: (aware(run.started_at), run.id))


def queues(*, using: str | None = None) -> list[QueueDepth]:
    """Return how the queues stand that have tasks."""
    with _cursor(using) as cursor:
        cursor.execute(load("health_queues"))
        return [
            QueueDepth(name=name, due=due, age=max(0.0, age or 0.0) if due else 0.0, running=running, served=served)
            for name, due, age, running, served in cursor.fetchall()
        ]


@contextmanager
def _cursor(using: str | None) -> Iterator[Any]:
    """Give a cursor whose statements are stopped when they take too long."""
    alias = alias_for(using)
    try:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            set_timeout = "SELECT current_setting('statement_timeout'), set_config('statement_timeout', %s, true)"
            cursor.execute(set_timeout, [str(_PATIENCE_MS)])
            before = cursor.fetchone()[0]
            yield cursor
            # The caller may be in a transaction of its own, whose statements take as long as they take.
            cursor.execute(set_timeout, [before])
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != _CANCELED:
            raise
        raise TimeoutError("it took the database longer than five seconds") from error
