"""Durations as users give them: seconds as int or float, or a timedelta."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

__all__ = ["seconds"]


def seconds(value: Any, name: str) -> float:
    """Return a duration in seconds.

    Raises:
        TypeError: neither a number nor a timedelta; the message carries ``name``.
        ValueError: negative, infinite or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite duration of at least 0 seconds, not {value!r}")
    return float(value)
