"""Durable values on a page: as text, cut where they are long, shown without the classes they were made of."""

import json
from dataclasses import dataclass
from typing import Any

from django.db.models import F, IntegerField, QuerySet, TextField
from django.db.models.functions import Cast, Left, Length

from continuum import values

__all__ = ["Payload", "payload_of", "with_payloads"]


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


def payload_of(row: Any, name: str) -> Payload | None:
    """Return what ``with_payloads`` read of a column of this row; None for NULL."""
    text, length = getattr(row, f"{name}_text"), getattr(row, f"{name}_length")
    if text is None:
        return None
    if length > len(text):
        return Payload(f"{text}…", None, length)
    value = values.display(text)
    return Payload(json.dumps(value, indent=2, ensure_ascii=False), value, None)
