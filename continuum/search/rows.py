"""Rows of runs, read by SQL of our own, as instances of the model.

A page of runs is to take less time to read than to find: JSON and moments come as text, and are made into what the
model would hold without its detours, which cost as much as the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from functools import cache, partial
from typing import Any

from django.db import connections, models
from django.db.models.base import ModelState

from continuum import values
from continuum.exceptions import DurableValueError
from continuum.fields import DurableJSONField
from continuum.models import Run
from continuum.moments import as_field

__all__ = ["columns", "runs_of"]

Texts = Sequence[str | None]
Reader = Callable[[Texts], list[Any]]

# How many characters of JSON are put together for reading.
_MOST_AT_ONCE = 1_000_000


@cache
def columns(table: str) -> str:
    """Return the columns of runs as :func:`runs_of` wants them selected."""
    read_as_text = models.JSONField | DurableJSONField | models.DateTimeField
    # Under names of their own, as ORDER BY would take the text for the column.
    return ", ".join(
        f"{table}.{name}::text AS text_of_{name}" if isinstance(field, read_as_text) else f"{table}.{name}"
        for field in Run._meta.concrete_fields
        if (name := field.column)
    )


def runs_of(rows: Sequence[Sequence[Any]], alias: str) -> list[Run]:
    """Return the runs of rows, as the model would read them from the database ``alias``."""
    if not rows:
        return []
    names, readers = _layout(connections[alias].timezone)
    by_column = list(zip(*rows, strict=True))
    for place, read in readers:
        # Most runs have no error, no parent and nothing that they wait for.
        if by_column[place].count(None) < len(rows):
            by_column[place] = read(by_column[place])
    runs = []
    for row in zip(*by_column, strict=True):
        run = Run.__new__(Run)
        state = ModelState()
        state.adding, state.db = False, alias
        fields = run.__dict__
        fields["_state"] = state
        fields.update(zip(names, row, strict=True))
        runs.append(run)
    return runs


@cache
def _layout(zone: tzinfo | None) -> tuple[tuple[str, ...], tuple[tuple[int, Reader], ...]]:
    """Return the names of the columns, and how to read those that came as text: where they stand, and by what."""
    readers: list[tuple[int, Reader]] = []
    for place, field in enumerate(Run._meta.concrete_fields):
        if isinstance(field, DurableJSONField):
            readers.append((place, partial(_together, partial(_durable, field))))
        elif isinstance(field, models.JSONField):
            readers.append((place, partial(_together, values.parse)))
        elif isinstance(field, models.DateTimeField):
            readers.append((place, partial(_each, _moment(zone))))
    return tuple(field.attname for field in Run._meta.concrete_fields), tuple(readers)


def _each(read: Callable[[str], Any], texts: Texts) -> list[Any]:
    return [None if text is None else read(text) for text in texts]


def _together(read: Callable[[str], Any], texts: Texts) -> list[Any]:
    """Return the values of JSON texts. Those that are plain are read as one list, which takes half the time."""
    given = [text for text in texts if text is not None]
    if sum(map(len, given)) <= _MOST_AT_ONCE:
        text = f"[{','.join(given)}]"
        if values.TAG_MARK not in text:
            with suppress(DurableValueError):  # one of them alone may do, or says better what is wrong with it
                trees = iter(values.parse(text))
                return [None if each is None else next(trees) for each in texts]
    return _each(read, texts)


def _durable(field: DurableJSONField, text: str) -> Any:
    return field.from_db_value(text, None, None)


def _moment(zone: tzinfo | None) -> Callable[[str], Any]:
    """Return what reads a moment in the time zone of the connection, None for naive moments (``USE_TZ = False``)."""
    if zone is UTC:
        return datetime.fromisoformat
    if zone is None:
        return lambda text: as_field(datetime.fromisoformat(text))
    return lambda text: datetime.fromisoformat(text).astimezone(zone)
