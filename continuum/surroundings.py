"""Does the project, and does its database, suit Continuum? What is asked for here fails quietly, or late, or at night.

``manage.py check``, ``continuum_health`` and the admin's dashboard tell the same findings, but for those that are named
in ``SILENCED_SYSTEM_CHECKS``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.db import DatabaseError, connections, router
from django.db.migrations.loader import MigrationLoader

from continuum.conf import settings as continuum_settings
from continuum.worker.sql import load

__all__ = ["Misfit", "complaint", "database_misfits", "differs", "project_misfits"]

# A process whose clock differs by more from the database's gets ids and ages wrong, in seconds.
CLOCK_TOLERANCE = 5.0
# Statements and transactions of a worker take less than this, on a busy day, in milliseconds.
SHORTEST_TIMEOUT = 5_000
# The LISTEN connection is idle for as long as nothing happens, the others for a third of a lease and more.
SHORTEST_IDLE = 3_600_000
# How many connections a pool holds if it is not told, says psycopg_pool.
_POOL_SIZE = 4
_NOT_MIGRATED = " Is it migrated? `manage.py migrate continuum --database {alias}` makes the tables."
_REMEDIES = {
    "42P01": _NOT_MIGRATED,
    "42703": _NOT_MIGRATED,
    "42501": " `manage.py check --database {alias}` says what the role lacks.",
}
_SEQUENCE = "continuum_lease_token_seq"
_TIMEOUTS = {
    "statement_timeout": SHORTEST_TIMEOUT,
    "transaction_timeout": SHORTEST_TIMEOUT,
    "idle_in_transaction_session_timeout": SHORTEST_TIMEOUT,
    "idle_session_timeout": SHORTEST_IDLE,
}
_DURABILITY = {
    "fsync": (
        "continuum.W020",
        "a crash of the server's machine can lose what was committed, or the whole database",
    ),
    "synchronous_commit": (
        "continuum.W021",
        "a crash of the server loses what was committed just before: steps are then made again, started runs are gone",
    ),
    "full_page_writes": (
        "continuum.W022",
        "a crash of the server's machine in the middle of a write can leave damaged tables",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Something that does not suit.

    Attributes:
        id: as Django's checks have it, such as ``continuum.W014``; those with an E keep Continuum from working.
        message: what does not suit, and what comes of it.
        hint: what to do.
    """

    id: str
    message: str
    hint: str

    @property
    def serious(self) -> bool:
        """Whether Continuum does not work that way."""
        return self.id.rpartition(".")[2].startswith("E")


def project_misfits() -> list[Misfit]:
    """Return what in the project's settings does not suit. Connects to nothing.

    Settings of ``CONTINUUM`` that are wrong by themselves are not looked at: there are other checks for those.
    """
    if continuum_settings.problems() or continuum_settings.DATABASE not in connections.settings:
        return []
    return _told((*_contradictions(), *_connection_settings(), *_routes(), *_migrations()))


def database_misfits(alias: str) -> list[Misfit]:
    """Return what in a database, its server, and our rights there does not suit.

    Raises:
        django.db.DatabaseError: the database cannot be asked.
    """
    models = apps.get_app_config("continuum").get_models()
    parameters = {
        "settings": [*_DURABILITY, *_TIMEOUTS, "default_transaction_isolation", "default_transaction_read_only"],
        "tables": [_SEQUENCE, *{model._meta.db_table for model in models}],
    }
    with connections[alias].cursor() as cursor:
        asked = time.time()
        cursor.execute(load("surroundings"), parameters)
        text, standby, now, user, forbidden = cursor.fetchone()
        answered = time.time()
    server = json.loads(text)
    if standby or server["default_transaction_read_only"] == "on":
        what = "is a standby" if standby else "allows no writing (default_transaction_read_only)"
        return _told([_read_only(alias, what)])
    return _told(
        (
            *_forbidden(alias, user, forbidden),
            *_durability(alias, server),
            *_isolation(alias, server["default_transaction_isolation"]),
            *_timeouts(alias, user, server),
            *_clock(alias, asked, now, answered),
        )
    )


def complaint(alias: str, error: DatabaseError) -> str:
    """Return what a database complains about as a sentence, with what to do where that is known."""
    said = " ".join(str(error).split())
    hint = _REMEDIES.get(getattr(error.__cause__, "sqlstate", None), "").format(alias=alias)
    return f"The database {alias!r} cannot be used: {said}.{hint}"


def differs(alias: str, other: str) -> bool:
    """Return whether two aliases lead to different databases.

    Raises:
        django.db.DatabaseError: one of them cannot be asked.
    """
    found = []
    for each in (alias, other):
        with connections[each].cursor() as cursor:
            cursor.execute(
                "SELECT oid, pg_postmaster_start_time() FROM pg_catalog.pg_database WHERE datname = current_database()"
            )
            found.append(cursor.fetchone())
    return found[0] != found[1]


def _told(misfits: Any) -> list[Misfit]:
    return [misfit for misfit in misfits if misfit.id not in django_settings.SILENCED_SYSTEM_CHECKS]


def _contradictions() -> Iterator[Misfit]:
    settings = continuum_settings
    if settings.DEADLOCK_TIMEOUT > settings.LEASE_TTL / 2:
        yield Misfit(
            id="continuum.W010",
            message=f'CONTINUUM["DEADLOCK_TIMEOUT"] ({settings.DEADLOCK_TIMEOUT:g} s) is more than half of '
            f'CONTINUUM["LEASE_TTL"] ({settings.LEASE_TTL:g} s): a workflow that does not let go costs its worker the '
            "lease, and all its runs, before it is interrupted.",
            hint="Make LEASE_TTL longer, or DEADLOCK_TIMEOUT shorter.",
        )
    if settings.CONCURRENCY > settings.LIVE_RUNS:
        yield Misfit(
            id="continuum.W011",
            message=f'CONTINUUM["CONCURRENCY"] ({settings.CONCURRENCY:,}) is more than CONTINUUM["LIVE_RUNS"] '
            f"({settings.LIVE_RUNS:,}): so many runs cannot make progress, as a worker does not hold them.",
            hint="Raise LIVE_RUNS, or lower CONCURRENCY.",
        )
    for name, limits in settings.QUEUES.items():
        here, everywhere = limits.get("concurrency"), limits.get("cluster_concurrency")
        if here is not None and everywhere is not None and here > everywhere:
            yield Misfit(
                id="continuum.W012",
                message=f'CONTINUUM["QUEUES"][{name!r}] lets a worker do {here:,} tasks at once, but all of them '
                f"together {everywhere:,}.",
                hint="Leave `concurrency` out, or lower it.",
            )


def _connection_settings() -> Iterator[Misfit]:
    alias, listen = continuum_settings.DATABASE, continuum_settings.LISTEN_DATABASE
    database = connections[alias].settings_dict
    if not database["AUTOCOMMIT"]:
        yield Misfit(
            id="continuum.W014",
            message=f"DATABASES[{alias!r}] has AUTOCOMMIT off: what start(), signal() and cancel() write stays unseen "
            "until somebody commits, and result() refuses to wait.",
            hint="Leave AUTOCOMMIT on, and use transaction.atomic() where things belong together.",
        )
    if database.get("DISABLE_SERVER_SIDE_CURSORS") and listen is None:
        yield Misfit(
            id="continuum.W016",
            message=f"DATABASES[{alias!r}] leads through a transaction pooler, and CONTINUUM has no LISTEN_DATABASE: "
            f"workers hear no notifications and look every {continuum_settings.POLL_INTERVAL:g} s; one that dies is "
            f"noticed after {continuum_settings.LEASE_TTL:g} s.",
            hint='Set CONTINUUM["LISTEN_DATABASE"] to an alias that leads to the same database without the pooler.',
        )
    if listen in connections.settings and connections[listen].settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield Misfit(
            id="continuum.W017",
            message=f'CONTINUUM["LISTEN_DATABASE"] names {listen!r}, which leads through a transaction pooler itself '
            "(DISABLE_SERVER_SIDE_CURSORS): no notification comes that way.",
            hint="Name an alias with a direct connection.",
        )
    if pool := database["OPTIONS"].get("pool"):
        sizes = pool if isinstance(pool, Mapping) else {}
        size = sizes.get("max_size") or sizes.get("min_size", _POOL_SIZE)
        if size < continuum_settings.ACTIVITY_THREADS:
            yield Misfit(
                id="continuum.W018",
                message=f"DATABASES[{alias!r}] has a pool of {size} connections, but a worker runs up to "
                f"{continuum_settings.ACTIVITY_THREADS} `def` activities at once: those that use the ORM wait for each "
                "other, and fail when it takes too long.",
                hint='Raise OPTIONS["pool"]["max_size"], or lower CONTINUUM["ACTIVITY_THREADS"].',
            )


def _routes() -> Iterator[Misfit]:
    alias = continuum_settings.DATABASE
    run = apps.get_model("continuum", "Run")
    if not router.allow_migrate_model(alias, run):
        yield Misfit(
            id="continuum.E009",
            message=f'CONTINUUM["DATABASE"] is {alias!r}, but DATABASE_ROUTERS keep Continuum\'s tables from being '
            "made there.",
            hint=f"Have allow_migrate() return True, or None, for {alias!r} and the app label 'continuum'.",
        )
    if others := sorted({router.db_for_read(run), router.db_for_write(run)} - {alias}):
        yield Misfit(
            id="continuum.W015",
            message=f'CONTINUUM["DATABASE"] is {alias!r}, but Run.objects goes to {" and ".join(map(repr, others))}: '
            "code of yours that asks the models looks where no runs are.",
            hint=f"Add a router to DATABASE_ROUTERS that sends the app label 'continuum' to {alias!r}.",
        )


def _migrations() -> Iterator[Misfit]:
    # No error: that would stop `manage.py test`, and tests that start runs need no more than the tables.
    if MigrationLoader.migrations_module("continuum")[0] is None:
        yield Misfit(
            id="continuum.W028",
            message="MIGRATION_MODULES turns Continuum's migrations off: tables that are made of the models alone lack "
            "the sequence of fencing tokens and the partitions of the history, and no worker can work with them.",
            hint="Leave 'continuum' out of MIGRATION_MODULES; run tests that use continuum_worker with migrations.",
        )


def _read_only(alias: str, what: str) -> Misfit:
    return Misfit(
        id="continuum.E011",
        message=f"The database {alias!r} {what}: nothing can be started there, and no worker can work.",
        hint="Let the alias lead to the primary.",
    )


def _forbidden(alias: str, user: str, names: list[str]) -> Iterator[Misfit]:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield Misfit(
            id="continuum.E010",
            message=f"The role {user} of database {alias!r} may not read and write {shown}.",
            hint=f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA … TO {user}; "
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA … TO {user};",
        )


def _durability(alias: str, server: Mapping[str, str]) -> Iterator[Misfit]:
    for name, (id_, consequence) in _DURABILITY.items():
        if server[name] == "off":
            yield Misfit(
                id=id_,
                message=f"{name} is off in database {alias!r}: {consequence}.",
                hint=f"Set {name} = on; Continuum commits in groups, so it costs little.",
            )


def _isolation(alias: str, default: str) -> Iterator[Misfit]:
    level = connections[alias].settings_dict["OPTIONS"].get("isolation_level")
    # psycopg's levels are numbers with names; None stands for the server's default.
    level = default if level is None else getattr(level, "name", str(level)).replace("_", " ").lower()
    if level not in ("read committed", "read uncommitted"):
        yield Misfit(
            id="continuum.W023",
            message=f"Transactions in database {alias!r} are {level}: start(), signal() and activities that write fail "
            "with serialization errors when others write at the same time.",
            hint="Use READ COMMITTED, PostgreSQL's default, for this alias; else every such call must be repeated.",
        )


def _timeouts(alias: str, user: str, server: Mapping[str, str]) -> Iterator[Misfit]:
    for name, shortest in _TIMEOUTS.items():
        milliseconds = int(server.get(name) or 0)  # transaction_timeout came with PostgreSQL 17
        if 0 < milliseconds < shortest:
            yield Misfit(
                id="continuum.W024",
                message=f"{name} is {milliseconds:,} ms for the role {user} in database {alias!r}: connections of "
                "workers are cut off, or their statements cancelled, in the middle of things.",
                hint=f"ALTER ROLE {user} SET {name} = 0; or give workers a role of their own.",
            )


def _clock(alias: str, asked: float, now: float, answered: float) -> Iterator[Misfit]:
    ahead = max(asked - now, now - answered, 0.0)
    if ahead > CLOCK_TOLERANCE:
        fast = asked > now
        yield Misfit(
            id="continuum.W026",
            message=f"The clock of this machine is {ahead:,.0f} s {'ahead of' if fast else 'behind'} that of "
            f"database {alias!r}. Timers follow the server's; ids, and ages on pages, follow this one.",
            hint="Have NTP or chrony set the clocks.",
        )
