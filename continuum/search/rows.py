"""Rows of runs, read by SQL of our own, as instances of the model.

A page of runs is to take less time to read than to find: JSON and moments come as text, and are made into what the
model would hold without its detours, which cost as much as the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any

from django.db import connections, models
from django.db.models.base import ModelState

from continuum import values
from continuum.fields import DurableJSONField
from continuum.models import Run

__all__ = ["columns", "runs_of"]

Decoder = Callable[[str], Any]


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


def runs_of(rows: Iterable[Sequence[Any]], alias: str) -> list[Run]:
    """Return the runs of rows, as the model would read them from the database ``alias``."""
    names, decoders = _layout(connections[alias].timezone)
    runs = []
    for row in rows:
        run = Run.__new__(Run)
        state = ModelState()
        state.adding, state.db = False, alias
        fields = run.__dict__
        fields["_state"] = state
        fields.update(zip(names, row, strict=True))
        for name, decode in decoders:
            text = fields[name]
            if text is not None:
                fields[name] = decode(text)
        runs.append(run)
    return runs


@cache
def _layout(zone: tzinfo | None) -> tuple[tuple[str, ...], tuple[tuple[str, Decoder], ...]]:
    decoders = []
    for field in Run._meta.concrete_fields:
        if isinstance(field, DurableJSONField):
            decoders.append((field.attname, _durable(field)))
        elif isinstance(field, models.JSONField):
            decoders.append((field.attname, values.parse))
        elif isinstance(field, models.DateTimeField):
            decoders.append((field.attname, _moment(zone)))
    return tuple(field.attname for field in Run._meta.concrete_fields), tuple(decoders)


def _durable(field: DurableJSONField) -> Decoder:
    def decode(text: str) -> Any:
        return [] if text == "[]" else field.from_db_value(text, None, None)

    return decode


def _moment(zone: tzinfo | None) -> Decoder:
    """Return what reads a moment in the time zone of the connection, None for naive moments (``USE_TZ = False``)."""
    if zone is UTC:
        return datetime.fromisoformat
    if zone is None:
        return lambda text: datetime.fromisoformat(text).replace(tzinfo=None)
    return lambda text: datetime.fromisoformat(text).astimezone(zone)
