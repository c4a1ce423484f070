"""Columns with defaults, said briefly."""

from django.db import models
from django.db.models.functions import Now

from continuum.fields import DurableJSONField

__all__ = ["json_column", "now_column", "small_column", "text_column"]


def text_column(default: str = "", **kwargs) -> models.TextField:
    """A text with a default, in Python and in the database."""
    return models.TextField(default=default, db_default=default, **kwargs)


def small_column(default: int) -> models.SmallIntegerField:
    """A small number with a default, in Python and in the database."""
    return models.SmallIntegerField(default=default, db_default=default)


def json_column(default: type | None = None) -> DurableJSONField:
    """A durable value: NULL by default, or an empty list or dict, in Python and in the database."""
    if default is None:
        return DurableJSONField(null=True)
    return DurableJSONField(default=default, db_default=models.Value("[]" if default is list else "{}"))


def now_column() -> models.DateTimeField:
    """A time, by default that of the statement."""
    return models.DateTimeField(db_default=Now())
