"""Plain JSON: what others than a run's own code read and search, such as attributes, which bear no tags."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

__all__ = ["UNSTORABLE", "plain_json", "plain_value"]

#: Characters that no text column of PostgreSQL stores: NUL and half surrogate pairs.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_DEEPEST = 100


def plain_json(path: str, value: Any) -> str:
    """Return a dict of plain JSON values as JSON text.

    Args:
        path: how messages name the value, such as ``attributes``.
        value: the dict.

    Raises:
        TypeError: not a dict, or something in it is no plain JSON value.
        ValueError: something in it cannot be stored, or is nested too deep.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{path} must be a dict of plain JSON values, not {value!r}")
    return plain_value(path, value)


def plain_value(path: str, value: Any) -> str:
    """Return a plain JSON value as JSON text. Arguments and errors as for :func:`plain_json`."""
    _check(path, path, value, 0)
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError as error:  # an integer of more digits than Python writes
        raise ValueError(f"{path}: {error}") from None


def _check(what: str, path: str, value: object, depth: int) -> None:
    if value is None or isinstance(value, bool | int):
        return
    if isinstance(value, str):
        if UNSTORABLE.search(value):
            raise ValueError(f"{path}: {what} must not hold NUL or lone surrogates: {value!r}")
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{path}: {what} cannot hold {value!r}")
    elif depth > _DEEPEST:
        raise ValueError(f"{what} must not be nested deeper than {_DEEPEST} levels")
    elif isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path}: {what} have strings as keys, not {key!r}")
            _check(what, path, key, depth)
            _check(what, f"{path}.{key}", each, depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check(what, f"{path}[{index}]", each, depth + 1)
    else:
        raise TypeError(f"{path}: {what} hold plain JSON values only, not {value!r}")
