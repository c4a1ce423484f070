"""Checks of what is under way: workers, runs, messages, queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from continuum.conf import settings as continuum_settings
from continuum.health.findings import GRACE, MOST_NAMED, Check, Look, Status, lasting, some
from continuum.wording import counted

__all__ = ["backlog", "dead_letters", "leases", "overdue", "stuck", "timers", "wakes", "workers"]

# How long a queue may have made its tasks wait until it counts as a backlog, in seconds.
BACKLOG = 300.0


def workers(name: str, look: Look) -> Check:
    """Whether somebody is at work, and hears of news."""
    message = f"{counted(look.alive, 'worker')} at work"
    if look.draining:
        message += f", {look.draining} draining"
    if look.alive == 0 and (live := look.rows("health_live")[0][0]):
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=0,
            message=f"no worker is at work, and {counted(live, 'run')} would go on",
            hint="start one: manage.py continuum_worker",
        )
    if look.deaf and continuum_settings.LISTEN_DATABASE is not None:
        return Check(
            name=name,
            status=Status.WARNING,
            count=look.deaf,
            message=f"{message}, of which {look.deaf:,} {'hears' if look.deaf == 1 else 'hear'} no notifications",
            hint="does LISTEN_DATABASE lead to the database without a pooler? Their logs say more",
        )
    return Check(name=name, count=look.alive, message=message)


def leases(name: str, look: Look) -> Check:
    """Whether leases of workers that are gone have been taken back."""
    owners = {owner for (owner,) in (*look.rows("runs_owners_gone"), *look.rows("tasks_owners_gone"))}
    if look.lapsed:
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=len(look.lapsed),
            message=f"the lease of {some(look.lapsed)} has run out and nobody has taken over",
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


def overdue(name: str, look: Look) -> Check:
    """Runs that are due and that no worker has taken."""
    rows = look.rows("health_overdue")
    found = _late(
        name,
        look,
        rows,
        fine="no run waits for a worker",
        told=lambda count, age, where: (
            f"{counted(count, 'run')} due for up to {age} and nobody has taken them: {where}"
        ),
        hint="the workers are full: see CONCURRENCY, and start more",
    )
    return _without_code(found, look, rows)


def timers(name: str, look: Look) -> Check:
    """Timers that passed while their worker slept on."""
    return _late(
        name,
        look,
        look.rows("health_timers"),
        fine="no timer of a live run is late",
        told=lambda count, age, where: f"{counted(count, 'run')} asleep though due for up to {age}, by worker: {where}",
        hint="the worker is overloaded or hangs: see its log and its CPU",
    )


def wakes(name: str, look: Look) -> Check:
    """Messages that a run could take and has not."""
    return _late(
        name,
        look,
        look.rows("health_mail"),
        fine="no message waits to be read",
        told=lambda count, age, where: f"{counted(count, 'message')} unread for up to {age}: {where}",
        hint="workers look at least every POLL_INTERVAL: are they full, or cut off?",
    )


def _late(
    name: str, look: Look, rows: list[Any], *, fine: str, told: Callable[[int, str, str], str], hint: str
) -> Check:
    """Judge rows of where, how many, since when, examples: of what should have happened by now."""
    if not rows:
        return Check(name=name, message=fine)
    count = sum(row[1] for row in rows)
    where = some([f"{row[0]} ({row[1]:,})" for row in rows])
    return Check(
        name=name,
        status=Status.WARNING if look.alive else Status.CRITICAL,
        count=count,
        message=told(count, look.ago(min(row[2] for row in rows)), where),
        hint=hint,
        examples=_examples(rows),
    )


def backlog(name: str, look: Look) -> Check:
    """Queues that nobody serves, or that lag behind."""
    rows = look.rows("health_queues")
    waiting = sum(row[1] for row in rows)
    unserved = [row for row in rows if not row[4] and row[1] and row[2] > GRACE]
    slow = [row for row in rows if row[1] and row[2] > BACKLOG]
    if unserved:
        return Check(
            name=name,
            status=Status.CRITICAL,
            count=sum(row[1] for row in unserved),
            message=f"no worker serves {some([f'the queue {row[0]} ({row[1]:,} due)' for row in unserved])}",
            hint=f"start one: manage.py continuum_worker --queues {','.join(row[0] for row in unserved)}",
        )
    if slow:
        return Check(
            name=name,
            status=Status.WARNING,
            count=sum(row[1] for row in slow),
            message="; ".join(
                f"the queue {row[0]} has {row[1]:,} due, the first for {lasting(row[2])}" for row in slow[:MOST_NAMED]
            ),
            hint="more workers or threads for it, or its limits are low for what is asked of it",
        )
    running = sum(row[3] for row in rows)
    return Check(name=name, count=waiting, message=f"{counted(waiting, 'task')} due on queues, {running:,} at work")


def stuck(name: str, look: Look) -> Check:
    """Parked runs."""
    rows = look.rows("health_stuck")
    if not rows:
        return Check(name=name, message="no run is parked for want of matching code")
    count = sum(row[1] for row in rows)
    found = Check(
        name=name,
        status=Status.WARNING,
        count=count,
        message=f"{counted(count, 'run')} parked for want of matching code: "
        f"{some([f'{row[0]} ({row[1]:,})' for row in rows])}",
        hint="manage.py continuum_audit says why; they go on when a worker with that code comes",
        examples=_examples(rows),
    )
    return _without_code(found, look, rows)


def dead_letters(name: str, look: Look) -> Check:
    """Runs that failed lately."""
    rows = look.rows("health_failed")
    if not rows:
        return Check(name=name, message="no run has failed in the last 24 hours")
    count = sum(row[2] for row in rows)
    poison = sum(row[2] for row in rows if row[1] == "PoisonRunError")
    message = f"{counted(count, 'run')} failed in the last 24 hours: " + some(
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
        examples=[str(run_id) for row in rows for run_id in row[4]][:MOST_NAMED],
    )


def _without_code(found: Check, look: Look, rows: list[Any]) -> Check:
    """Say which workflows, of rows that begin with one and end with whether a live worker has it, nobody can run."""
    missing = [row[0] for row in rows if not row[-1]]
    if not missing or not look.alive:
        return found
    return replace(
        found,
        status=Status.CRITICAL,
        message=f"{found.message}; no worker at work has {some(missing)}",
        hint="start one whose code has it: its app in INSTALLED_APPS with a workflows.py, or its module in "
        'CONTINUUM["WORKFLOW_MODULES"]',
    )


def _examples(rows: list[Any]) -> list[str]:
    return [str(run_id) for row in rows for run_id in row[3]][:MOST_NAMED]
