"""Checks of what everything stands on: settings, database, tables, partitions."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pkgutil import iter_modules

from django.db import DatabaseError, transaction
from django.db.migrations.recorder import MigrationRecorder

from continuum import migrations as own_migrations
from continuum.health.findings import Check, Look, Status, some
from continuum.surroundings import database_misfits, project_misfits
from continuum.upkeep import rights
from continuum.wording import counted
from continuum.worker.partitions import existing_months

__all__ = ["configuration", "connection_limits", "default_partition", "migrations", "partitions"]

# From so large a part of the connections on that there may be, one more node or a busy hour is too much.
NEARLY_ALL = 0.9


def configuration(name: str, look: Look) -> list[Check] | Check:
    """Whether the project's settings, and the database's, suit; a finding for each that does not."""
    misfits = [*project_misfits(), *database_misfits(look.alias)]
    if not misfits:
        return Check(name=name, message="settings and database suit")
    return [
        Check(
            name=name,
            status=Status.CRITICAL if each.serious else Status.WARNING,
            count=1,
            message=f"{each.message.removesuffix('.')} ({each.id})",
            hint=each.hint,
        )
        for each in misfits
    ]


def connection_limits(name: str, look: Look) -> Check:
    """Whether the server, the database and the role can do with some connections more."""
    what, used, most = look.rows("health_connections")[0]
    if used < NEARLY_ALL * most:
        return Check(name=name, count=used, message=f"{used:,} of {most:,} connections of {what} are in use")
    return Check(
        name=name,
        status=Status.WARNING,
        count=used,
        message=f"{used:,} of {most:,} connections of {what} are in use: workers and web processes that need one more "
        "will not get it",
        hint="a worker process takes up to ten, and one for each thread that uses the ORM: lower ACTIVITY_THREADS, "
        "start fewer, raise the limit, or use a pooler",
    )


def migrations(name: str, look: Look) -> Check:
    """Whether the tables are those that this code knows."""
    applied = MigrationRecorder.Migration.objects.using(look.alias).filter(app="continuum")
    try:
        with transaction.atomic(using=look.alias):
            names = set(applied.values_list("name", flat=True))
    except DatabaseError:
        return Check(name=name, message="this role cannot read which migrations have been applied")
    missing = [each for each in _migrations_here() if each not in names]
    if not missing:
        return Check(name=name, message="the tables are those of this code")
    where = "" if look.alias == "default" else f" --database {look.alias}"
    return Check(
        name=name,
        status=Status.CRITICAL,
        count=len(missing),
        message=f"{counted(len(missing), 'migration')} not applied: {some(missing)}",
        hint=f"manage.py migrate continuum{where}; no worker of this code starts before",
    )


def partitions(name: str, look: Look) -> Check:
    """Whether the history has partitions for this month and the next."""
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
            hint=f"{_who_makes_partitions(look)}; nothing is lost, events go to the default partition",
        )
    return Check(name=name, count=ahead, message=f"the history has partitions for {counted(ahead, 'month')} ahead")


def default_partition(name: str, look: Look) -> Check:
    """Whether the default partition, which is for nobody, is empty."""
    count = look.rows("health_default_partition")[0][0]
    if not count:
        return Check(name=name, message="the default partition of the history is empty")
    many = f"{count:,} events or more" if count >= 1000 else counted(count, "event")
    return Check(
        name=name,
        status=Status.WARNING,
        count=count,
        message=f"the default partition of the history holds {many}",
        hint="nothing is lost, but they slow others down; manage.py continuum_partitions --move puts them right",
    )


@cache
def _migrations_here() -> list[str]:
    return sorted(name for _, name, is_package in iter_modules(own_migrations.__path__) if not is_package)


def _who_makes_partitions(look: Look) -> str:
    asking = rights(using=look.alias)
    if asking.may_create:
        return "a worker makes them: is one alive? So does manage.py continuum_partitions --create"
    return f"{asking.user} may not make them: as {asking.owner}, manage.py continuum_partitions --create"
