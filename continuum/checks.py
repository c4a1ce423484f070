"""System checks: settings, databases, what surrounds us, workflow modules, transactional activities, determinism."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import DatabaseError, NotSupportedError, OperationalError

from continuum import conf
from continuum.core.registry import registry
from continuum.discovery import import_listed_modules
from continuum.surroundings import Misfit, database_misfits, differs, project_misfits
from continuum.upkeep import rights
from continuum.worker.connections import connect_sync, is_pooled, lends_sessions_sync
from continuum.worker.partitions import missing_months

__all__ = [
    "TAG",
    "check_aliases",
    "check_determinism",
    "check_project",
    "check_servers",
    "check_settings",
    "check_transactional",
    "check_workflow_modules",
]

TAG = "continuum"
MINIMUM_SERVER_VERSION = 14
ALIAS_KEYS = ("DATABASE", "LISTEN_DATABASE")


@register(TAG)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Every key of ``CONTINUUM`` is known and has a usable value."""
    return [
        Error(
            problem.message,
            hint=problem.hint or None,
            id="continuum.E001" if problem.unknown else "continuum.E002",
        )
        for problem in conf.settings.problems()
    ]


@register(TAG, Tags.compatibility)
def check_aliases(**kwargs: Any) -> list[CheckMessage]:
    """The database aliases exist and are PostgreSQL. Connects to nothing."""
    found: list[CheckMessage] = []
    for key, alias in _aliases():
        if alias not in connections.settings:
            found.append(
                Error(
                    f'CONTINUUM["{key}"] names the database {alias!r}, which is not in DATABASES.',
                    hint=f"DATABASES has {', '.join(map(repr, connections.settings))}.",
                    id="continuum.E003",
                )
            )
        elif not _is_postgresql(alias):
            found.append(
                Error(
                    f'CONTINUUM["{key}"] names the database {alias!r}, whose engine is '
                    f"{connections.settings[alias]['ENGINE']}. Continuum needs PostgreSQL "
                    f"{MINIMUM_SERVER_VERSION} or newer.",
                    hint="Name a PostgreSQL alias there; the rest of the project may stay where it is.",
                    id="continuum.E004",
                )
            )
    return found


@register(TAG)
def check_project(**kwargs: Any) -> list[CheckMessage]:
    """The settings of ``CONTINUUM`` agree with each other, and the project's other settings with them."""
    return _messages(project_misfits())


@register(TAG, Tags.database)
def check_servers(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The servers behind the aliases can be reached, are new enough, and suit us: ``check --database``, ``migrate``."""
    found: list[CheckMessage] = []
    for alias in dict.fromkeys(alias for _, alias in _aliases()):
        if alias not in (databases or ()) or alias not in connections.settings or not _is_postgresql(alias):
            continue
        try:
            version = connections[alias].pg_version // 10_000
        except NotSupportedError as error:
            # Django's own minimum may be above ours; what it says names both versions.
            found.append(Error(f"The server of database {alias!r} is too old: {error}", id="continuum.E005"))
        except DatabaseError as error:
            found.append(Error(f"Cannot connect to database {alias!r}: {str(error).strip()}", id="continuum.E006"))
        else:
            if version < MINIMUM_SERVER_VERSION:
                found.append(
                    Error(
                        f"The server of database {alias!r} is PostgreSQL {version}. Continuum needs "
                        f"{MINIMUM_SERVER_VERSION} or newer.",
                        id="continuum.E005",
                    )
                )
                continue
            found += _database(alias)
    return found


def _database(alias: str) -> list[CheckMessage]:
    try:
        return _messages(_misfits(alias))
    except OperationalError:
        # A connection that broke on the way is no reason to refuse a start.
        connections[alias].close()
    try:
        return _messages(_misfits(alias))
    except DatabaseError as error:
        return [Error(f"Cannot ask database {alias!r}: {str(error).strip()}", id="continuum.E006")]


def _misfits(alias: str) -> list[Misfit]:
    with connections[alias].wrap_database_errors:
        found = database_misfits(alias)
        listen = conf.settings.LISTEN_DATABASE
        if alias == conf.settings.DATABASE:
            found += _partitions(alias)
            # Workers do not even connect to what is read-only.
            is_read_only = any(each.id == "continuum.E011" for each in found)
            if listen is None and not is_pooled(alias) and not is_read_only:
                found += _pooler(alias)
        elif alias == listen and differs(conf.settings.DATABASE, alias):
            found.append(
                Misfit(
                    id="continuum.E012",
                    message=f'CONTINUUM["LISTEN_DATABASE"] names {alias!r}, which leads to another database than '
                    f"{conf.settings.DATABASE!r}: no notification is ever sent there.",
                    hint="Name an alias of the same database on the same server.",
                )
            )
    return found


def _partitions(alias: str) -> list[Misfit]:
    """Whether the history has a partition for the next month, if it is there at all and nobody else will make one."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT to_regclass('continuum_events') IS NOT NULL")
        if not cursor.fetchone()[0] or not (missing := missing_months(cursor, datetime.now(UTC), 1)):
            return []
    asking = rights(using=alias)
    if asking.may_create:
        return []  # a worker makes them
    return [
        Misfit(
            id="continuum.W027",
            message=f"The history in database {alias!r} lacks {missing[0].name}, and the role {asking.user} may not "
            "make it: events go to the default partition.",
            hint=f"As {asking.owner}: manage.py continuum_partitions --create; see --sql as well.",
        )
    ]


def _pooler(alias: str) -> list[Misfit]:
    with (
        closing(connect_sync(alias, application_name="continuum check")) as one,
        closing(connect_sync(alias, application_name="continuum check")) as other,
    ):
        if not lends_sessions_sync(one, other):
            return []
    return [
        Misfit(
            id="continuum.W025",
            message=f"A transaction pooler stands before database {alias!r}, and CONTINUUM has no LISTEN_DATABASE: "
            f"workers hear no notifications and look every {conf.settings.POLL_INTERVAL:g} s; one that dies is noticed "
            f"after {conf.settings.LEASE_TTL:g} s.",
            hint='Set CONTINUUM["LISTEN_DATABASE"] to an alias that leads there without the pooler, and '
            "DISABLE_SERVER_SIDE_CURSORS for this one.",
        )
    ]


def _messages(misfits: Iterable[Misfit]) -> list[CheckMessage]:
    return [(Error if each.serious else Warning)(each.message, hint=each.hint, id=each.id) for each in misfits]


@register(TAG)
def check_workflow_modules(**kwargs: Any) -> list[CheckMessage]:
    """Every entry of ``CONTINUUM["WORKFLOW_MODULES"]`` can be imported."""
    try:
        broken = import_listed_modules()
    except ImproperlyConfigured:
        return []  # not a list of names: check_settings says so
    return [Error(sentence, id="continuum.E007") for sentence in broken.values()]


@register(TAG)
def check_transactional(**kwargs: Any) -> list[CheckMessage]:
    """Transactional activities are so in Continuum's own database: nowhere else can both commit together."""
    try:
        own = conf.settings.DATABASE
    except ImproperlyConfigured:
        return []  # check_settings says so
    found: list[CheckMessage] = []
    for definition in registry.activities():
        alias = definition.default_options.transactional
        if isinstance(alias, str) and alias != own:
            code = inspect.unwrap(definition.fn).__code__
            found.append(
                Error(
                    f"The activity {definition.name} ({code.co_filename}:{code.co_firstlineno}) is transactional "
                    f"in the database {alias!r}, but runs are recorded in {own!r}. What it writes and the record of "
                    "its result could not commit together.",
                    hint=f"Declare it with transactional=True and have it write to {own!r}, or leave transactional out "
                    "and make what it does idempotent.",
                    id="continuum.E008",
                )
            )
    return found


@register(TAG)
def check_determinism(**kwargs: Any) -> list[CheckMessage]:
    """Workflows, and the helpers they call, do nothing that a replay would do otherwise.

    What is certainly not deterministic is an error, what cannot be judged a warning.
    """
    from continuum.determinism.scanner import scan  # who runs no checks needs no scanner

    try:
        trusted = conf.settings.TRUSTED_MODULES
    except ImproperlyConfigured:
        return []  # check_settings says so
    return [
        (Error if finding.certain else Warning)(
            str(finding), hint=finding.rule.advice, obj=finding.place, id=finding.id
        )
        for finding in scan(registry.workflows(), trusted=trusted)
    ]


def _aliases() -> Iterable[tuple[str, str]]:
    """Yield the setting's key and the alias it names, for each one that is set and readable."""
    for key in ALIAS_KEYS:
        try:
            alias = getattr(conf.settings, key)
        except ImproperlyConfigured:
            continue  # check_settings says so
        if alias is not None:
            yield key, alias


def _is_postgresql(alias: str) -> bool:
    # Not a look at ENGINE: PostGIS and wrapping backends are PostgreSQL under other names.
    return connections[alias].vendor == "postgresql"
