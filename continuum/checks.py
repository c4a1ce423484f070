"""System checks: settings, databases, workflow modules, transactional activities, determinism."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import DatabaseError, NotSupportedError

from continuum import conf
from continuum.core.registry import registry
from continuum.discovery import import_listed_modules

__all__ = [
    "TAG",
    "check_aliases",
    "check_determinism",
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


@register(TAG, Tags.database)
def check_servers(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The servers behind the aliases can be reached and are new enough. For ``check --database`` and ``migrate``."""
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
    return found


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
