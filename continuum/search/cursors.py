"""Cursors: where a page ended, signed, so that nobody makes up one, and bound to the order it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core import signing

from continuum.exceptions import InvalidQueryError
from continuum.moments import aware

__all__ = ["Position", "read", "write"]

_SALT = "continuum.search"


@dataclass(frozen=True, slots=True)
class Position:
    """The last row of a page: its value in the column that was ordered by, and its id."""

    value: Any
    id: UUID


def write(direction: str, column: str, position: Position) -> str:
    """Return the cursor of a position."""
    value = position.value
    if isinstance(value, datetime):
        value = aware(value).isoformat()
    elif isinstance(value, UUID):
        value = None  # it is the id
    return signing.Signer(salt=_SALT).sign_object([direction, column, value, str(position.id)])


def read(direction: str, column: str, cursor: Any) -> Position:
    """Return the position of a cursor.

    Raises:
        InvalidQueryError: it is none, or one of another order.
    """
    if not isinstance(cursor, str):
        raise InvalidQueryError(f"cursor must be the next_cursor of a page, not {cursor!r}")
    try:
        made_for, value, id_ = _opened(cursor)
    except (signing.BadSignature, ValueError, TypeError):  # ValueError: signed by us, but nothing that we write
        raise InvalidQueryError("cursor is not one that a page has given out, or was changed since") from None
    if made_for != (direction, column):
        raise InvalidQueryError(
            f"cursor belongs to the order {made_for!r}, not to {(direction, column)!r}: begin again without one"
        )
    if column in ("started_at", "completed_at") and value is not None:
        value = datetime.fromisoformat(value)
    return Position(id_ if column == "id" else value, id_)


def _opened(cursor: str) -> tuple[tuple[str, str], Any, UUID]:
    direction, column, value, id_ = signing.Signer(salt=_SALT).unsign_object(cursor)
    return (direction, column), value, UUID(id_)
