"""What counts are grouped by: fields, and attributes, whose values become keys of a dict."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["expression", "key_of"]


def expression(group: str | tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the SQL of what is grouped by, with its parameters."""
    if isinstance(group, str):
        return group, ()
    return f"(attributes{' -> %s::text' * len(group)})", group


def key_of(group: str | tuple[str, ...], value: Any) -> Any:
    """Return the key that a value, as the database gives it, has in the dict."""
    if isinstance(group, str) or value is None:
        return value
    return _hashable(json.loads(value) if isinstance(value, str) else value)


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(each)) for key, each in value.items())
    return value
