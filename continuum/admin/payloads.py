"""Durable values on a page: as text, cut where they are long, shown without the classes they were made of."""

import json
from dataclasses import dataclass
from typing import Any

from django.db.models import F, IntegerField, QuerySet, TextField
from django.db.models.functions import Cast, Left, Length

from continuum import values
from continuum.conf import settings as continuum_settings
from continuum.redaction import Shown, redacted

__all__ = ["Payload", "payload_of", "with_payloads"]

_TOO_LONG = "(hidden: it is too long to be redacted here)"


@dataclass(frozen=True, slots=True)
class Payload:
    """A value as it is shown.

    Attributes:
        text: pretty JSON, or the beginning of the stored text when it is too long to be shown as a whole.
        value: the value made readable; None when only the beginning was read.
        cut: the length in characters of a text that is not shown as a whole, else None.
    """

    text: str
    value: Any
    cut: int | None


def with_payloads(queryset: QuerySet, *names: str, limit: int) -> QuerySet:
    """Leave these columns out, but for the first ``limit`` characters of their text, and their lengths."""
    for name in names:
        text = Cast(F(name), TextField())
        queryset = queryset.annotate(
            **{f"{name}_text": Left(text, limit), f"{name}_length": Length(text, output_field=IntegerField())}
        )
    return queryset.defer(*names)


def payload_of(row: Any, name: str, shown: Shown) -> Payload | None:
    """Return what ``with_payloads`` read of a column of this row, redacted; None for NULL."""
    text, length = getattr(row, f"{name}_text"), getattr(row, f"{name}_length")
    if text is None:
        return None
    if length > len(text):
        # Half a value is no value that a hook could look into.
        return Payload(f"{text}…" if continuum_settings.REDACT is None else _TOO_LONG, None, length)
    value = redacted(values.display(text), shown)
    return Payload(json.dumps(value, indent=2, ensure_ascii=False), value, None)
