"""Rows of runs, read by SQL of our own, as instances of the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from django.db.models.base import ModelState

from continuum.fields import DurableJSONField
from continuum.models import Run

__all__ = ["columns", "run_of"]


@cache
def columns(table: str) -> str:
    """Return the columns of runs as :func:`run_of` wants them selected."""
    fields = Run._meta.concrete_fields
    return ", ".join(f"{table}.{field.column}{'::text' if _is_json(field) else ''}" for field in fields)


def run_of(row: Sequence[Any], alias: str) -> Run:
    """Return the run of a row; filled in directly, as the model's constructor takes longer than the search does."""
    names, decoders = _layout()
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
    return run


def _is_json(field: Any) -> bool:
    return isinstance(field, DurableJSONField) or field.attname == "attributes"


@cache
def _layout() -> tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]:
    fields = Run._meta.concrete_fields
    return tuple(field.attname for field in fields), tuple((f.attname, _decoder(f)) for f in fields if _is_json(f))


def _decoder(field: Any) -> Any:
    if not isinstance(field, DurableJSONField):
        return json.loads

    def decode(text: str) -> Any:
        return [] if text == "[]" else field.from_db_value(text, None, None)

    return decode
