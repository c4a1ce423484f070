"""Moments as the project has them: aware datetimes, or Django's naive ones where ``USE_TZ`` is off.

With ``USE_TZ = False`` the fields of models are naive, in ``TIME_ZONE``, and callers hand over such. In the hour that
comes twice when clocks go back, ``fold`` says which of the two is meant, and what is read from the database has it; so
no moment is lost by being naive, only differences between two of them are wrong. Whatever compares, subtracts or tells
makes them aware first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload

from django.conf import settings as django_settings
from django.utils.timezone import get_default_timezone

__all__ = ["as_field", "aware", "instant"]


@overload
def aware(moment: datetime) -> datetime: ...
@overload
def aware(moment: None) -> None: ...
def aware(moment: datetime | None) -> datetime | None:
    """Return what a field or a cursor of Django's has given as an aware moment in UTC; None stays None."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=get_default_timezone())
    return moment.astimezone(UTC)


def as_field(moment: datetime) -> datetime:
    """Return an aware moment as a field would have it where ``USE_TZ`` is off: naive, in ``TIME_ZONE``."""
    return moment.astimezone(get_default_timezone()).replace(tzinfo=None)


def instant(moment: datetime) -> datetime:
    """Return a moment that a caller has given as an aware one in UTC.

    Raises:
        ValueError: it is naive, and the project does not say where it would be meant.
        OverflowError: it lies beyond what a datetime holds.
    """
    if moment.utcoffset() is None:
        if django_settings.USE_TZ:
            raise ValueError(f"{moment!r} has no time zone")
        moment = moment.replace(tzinfo=get_default_timezone())
    return moment.astimezone(UTC)
