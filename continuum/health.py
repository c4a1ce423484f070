"""Is everything going on as it should? Checks that look at the tables and say what they found in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db import connections, transaction

from continuum.arguments import alias_for
from continuum.wording import counted, duration
from continuum.worker.partitions import existing_months
from continuum.worker.sql import load

__all__ = ["CHECKS", "Check", "Health", "Status", "examine"]

# Seconds that something may be late before it counts as late: several polls, a take-over, a busy moment.
GRACE = 30.0
# How long a queue may have made its tasks wait until it counts as a backlog, in seconds.
BACKLOG = 300.0
# Failed runs count for so long, in seconds.
FAILED_SINCE = 86_400.0
# How many of several groups a sentence names.
_MOST_NAMED = 3


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


_ORDER = [Status.OK, Status.WARNING, Status.CRITICAL]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: the check, such as ``overdue``.
        status: how it came out.
        message: what was found, in a sentence.
        count: how much of it.
        hint: what to do about it; empty if nothing.
        examples: ids of runs that show it.
    """

    name: str
    status: Status = Status.OK
    message: str
    count: int = 0
    hint: str = ""
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Health:
    """All that was found.

    Attributes:
        checked_at: the database's time.
        checks: what each check found, in a fixed order.
    """

    checked_at: datetime
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of them."""
        return max((check.status for check in self.checks), key=_ORDER.index, default=Status.OK)

    def as_dict(self) -> dict[str, Any]:
        """Return the whole as plain JSON data."""
        return {
            "status": self.status.value,
            "checked_at": self.checked_at.isoformat(),
            "checks": [asdict(check) | {"status": check.status.value} for check in self.checks],
        }


def examine(*, ignore: Sequence[str] = (), using: str | None = None) -> Health:
    """Look at how workers, runs, messages, queues and partitions stand. Writes nothing.

    Args:
        ignore: names of checks to leave out, see ``CHECKS``.
        using: database alias.

    Raises:
        ValueError: ``ignore`` names a check that there is not.
    """
    if unknown := [name for name in ignore if name not in CHECKS]:
        raise ValueError(f"ignore: there is no check {unknown[0]!r}, only {', '.join(CHECKS)}")
    alias = alias_for(using)
    # One transaction, so that all checks see the same moment.
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        look = _Look(cursor)
        checks = tuple(check(name, look) for name, check in CHECKS.items() if name not in ignore)
        return Health(checked_at=look.now, checks=checks)


class _Look:
    """Reads what the checks ask for."""

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor
        cursor.execute("SELECT extract(epoch FROM statement_timestamp())::float8")
        self.now = datetime.fromtimestamp(cursor.fetchone()[0], UTC)
        self.alive, self.draining, self.lapsed = self.rows("health_workers")[0]

    def rows(self, statement: str) -> list[Any]:
        self.cursor.execute(load(statement), {"grace": GRACE, "since": FAILED_SINCE})
        return self.cursor.fetchall()

    def ago(self, moment: datetime) -> str:
        if moment.tzinfo is None:
            moment = moment.astimezone()
        return _for((self.now - moment).total_seconds())


def _workers(name: str, look: _Look) -> Check:
    live = look.rows("health_live")[0][0]
    message = f"{counted(look.alive, 'worker')} at work"
    if look.draining:
        message += f", {look.draining} draining"
    if look.alive == 0 and live:
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=0,
            message=f"no worker is at work, and {counted(live, 'run')} would go on",
            hint="start one: manage.py continuum_worker",
        )
    return Check(name=name, count=look.alive, message=message)


def _leases(name: str, look: _Look) -> Check:
    owners = {owner for (owner,) in (*look.rows("runs_owners_gone"), *look.rows("tasks_owners_gone"))}
    if look.lapsed:
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=len(look.lapsed),
            message=f"the lease of {_some(look.lapsed)} has run out and nobody has taken over",
            hint="no worker does its rounds: is one alive, and does its clock run?",
        )
    if owners:
        return Check(
            name=name,
            status=Status.WARNING,
            count=len(owners),
            message=f"runs or activities are still with {counted(len(owners), 'dead worker')}",
            hint="a live worker frees them within seconds; if this stays, none is there",
        )
    return Check(name=name, message="no lease has run out")


def _overdue(name: str, look: _Look) -> Check:
    return _late(
        name,
        look,
        "health_overdue",
        fine="no run waits for a worker",
        told=lambda count, age, where: (
            f"{counted(count, 'run')} due for up to {age} and nobody has taken them: {where}"
        ),
        hint="the workers are full (see CONCURRENCY, start more), or none of them has these workflows",
    )


def _timers(name: str, look: _Look) -> Check:
    return _late(
        name,
        look,
        "health_timers",
        fine="no timer of a live run is late",
        told=lambda count, age, where: f"{counted(count, 'run')} asleep though due for up to {age}, by worker: {where}",
        hint="the worker is overloaded or hangs: see its log and its CPU",
    )


def _wakes(name: str, look: _Look) -> Check:
    return _late(
        name,
        look,
        "health_mail",
        fine="no message waits to be read",
        told=lambda count, age, where: f"{counted(count, 'message')} unread for up to {age}: {where}",
        hint="workers look at least every POLL_INTERVAL: are they full, or cut off?",
    )


def _late(
    name: str, look: _Look, statement: str, *, fine: str, told: Callable[[int, str, str], str], hint: str
) -> Check:
    """Judge rows of where, how many, since when, examples: of what should have happened by now."""
    rows = look.rows(statement)
    if not rows:
        return Check(name=name, message=fine)
    count = sum(row[1] for row in rows)
    where = _some([f"{row[0]} ({row[1]:,})" for row in rows])
    return Check(
        name=name,
        status=Status.WARNING if look.alive else Status.CRITICAL,
        count=count,
        message=told(count, look.ago(min(row[2] for row in rows)), where),
        hint=hint,
        examples=_examples(rows),
    )


def _backlog(name: str, look: _Look) -> Check:
    rows = look.rows("health_queues")
    waiting = sum(row[1] for row in rows)
    unserved = [row for row in rows if not row[4] and row[1] and row[2] > GRACE]
    slow = [row for row in rows if row[1] and row[2] > BACKLOG]
    if unserved:
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=sum(row[1] for row in unserved),
            message=f"no worker serves {_some([f'the queue {row[0]} ({row[1]:,} due)' for row in unserved])}",
            hint=f"start one: manage.py continuum_worker --queues {','.join(row[0] for row in unserved)}",
        )
    if slow:
        return Check(
            name=name,
            status=Status.WARNING,
            count=sum(row[1] for row in slow),
            message="; ".join(
                f"the queue {row[0]} has {row[1]:,} due, the first for {_for(row[2])}" for row in slow[:_MOST_NAMED]
            ),
            hint="more workers or threads for it, or its limits are low for what is asked of it",
        )
    running = sum(row[3] for row in rows)
    return Check(name=name, count=waiting, message=f"{counted(waiting, 'task')} due on queues, {running:,} at work")


def _stuck(name: str, look: _Look) -> Check:
    rows = look.rows("health_stuck")
    if not rows:
        return Check(name=name, message="no run is parked for want of matching code")
    count = sum(row[1] for row in rows)
    return Check(
        name=name,
        status=Status.WARNING,
        count=count,
        message=f"{counted(count, 'run')} parked for want of matching code: "
        f"{_some([f'{row[0]} ({row[1]:,})' for row in rows])}",
        hint="manage.py continuum_audit says why; they go on when a worker with that code comes",
        examples=_examples(rows),
    )


def _dead_letters(name: str, look: _Look) -> Check:
    rows = look.rows("health_failed")
    if not rows:
        return Check(name=name, message="no run has failed in the last 24 hours")
    count = sum(row[2] for row in rows)
    poison = sum(row[2] for row in rows if row[1] == "PoisonRunError")
    message = f"{counted(count, 'run')} failed in the last 24 hours: " + _some(
        [f"{row[0]} with {row[1] or 'no error'} ({row[2]:,})" for row in rows]
    )
    if poison:
        message += f"; {poison:,} of them killed their workers"
    return Check(
        name=name,
        status=Status.CRITICAL if poison else Status.WARNING,
        count=count,
        message=message,
        hint="once the cause is mended: manage.py continuum_runs retry ID",
        examples=[str(run_id) for row in rows for run_id in row[4]][:_MOST_NAMED],
    )


def _partitions(name: str, look: _Look) -> Check:
    months = {month.name for month in existing_months(look.cursor)}
    ahead, moment = -1, look.now.replace(day=1)
    while f"continuum_events_y{moment:%Y}m{moment:%m}" in months:
        ahead += 1
        moment = (moment + timedelta(days=32)).replace(day=1)
    if ahead < 1:
        return Check(
            name=name,
            status=Status.CRITICAL if ahead < 0 else Status.WARNING,
            count=max(ahead, 0),
            message="the history has no partition for "
            f"{'this month' if ahead < 0 else f'the next month ({moment:%Y-%m})'}",
            hint="a worker makes them: is one alive? Nothing is lost, events go to the default partition",
        )
    return Check(name=name, count=ahead, message=f"the history has partitions for {counted(ahead, 'month')} ahead")


def _default_partition(name: str, look: _Look) -> Check:
    count = look.rows("health_default_partition")[0][0]
    if not count:
        return Check(name=name, message="the default partition of the history is empty")
    many = f"{count:,} events or more" if count >= 1000 else counted(count, "event")
    return Check(
        name=name,
        status=Status.WARNING,
        count=count,
        message=f"the default partition of the history holds {many}",
        hint="nothing is lost; those of this month and of months to come move when a worker makes their partition",
    )


#: The checks by name, in the order in which they are made and shown.
CHECKS: dict[str, Callable[[str, _Look], Check]] = {
    "workers": _workers,
    "leases": _leases,
    "overdue": _overdue,
    "timers": _timers,
    "wakes": _wakes,
    "backlog": _backlog,
    "stuck": _stuck,
    "dead-letters": _dead_letters,
    "partitions": _partitions,
    "default-partition": _default_partition,
}


def _examples(rows: list[Any]) -> list[str]:
    return [str(run_id) for row in rows for run_id in row[3]][:_MOST_NAMED]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _for(seconds: float) -> str:
    return duration(timedelta(seconds=seconds), units=1)
