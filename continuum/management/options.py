"""What the management commands have in common: arguments, and refusals in a sentence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, connections

from continuum.conf import settings as continuum_settings
from continuum.surroundings import complaint

__all__ = ["add_database", "count", "database", "duration", "reachable"]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST = timedelta(days=365_000)


def add_database(parser: CommandParser) -> None:
    """Add ``--database``."""
    parser.add_argument(
        "--database", metavar="ALIAS", help='The database with the runs. Default: CONTINUUM["DATABASE"].'
    )


def database(alias: str | None) -> str:
    """Return the alias to work on.

    Raises:
        CommandError: there is no such database, or it is not PostgreSQL; the exit status is 2.
    """
    alias = alias or continuum_settings.DATABASE
    if alias not in connections:
        known = ", ".join(map(repr, connections))
        raise CommandError(f"There is no database {alias!r}: DATABASES has {known}.", returncode=2)
    if connections[alias].vendor != "postgresql":
        raise CommandError(f"The database {alias!r} is not PostgreSQL.", returncode=2)
    return alias


@contextmanager
def reachable(alias: str) -> Iterator[None]:
    """Turn what the database complains about into a sentence, with exit status 1."""
    try:
        yield
    except DatabaseError as error:
        raise CommandError(complaint(alias, error)) from error


def duration(text: str) -> timedelta:
    """Parse ``90s``, ``15m``, ``12h``, ``30d`` or ``4w``."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip())
    if found:
        seconds = float(found[1]) * _UNITS[found[2]]
        if seconds <= _LONGEST.total_seconds():
            return timedelta(seconds=seconds)
    raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 15m, 12h, 30d or 4w")


def count(text: str) -> int:
    """Parse a whole number, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return number
