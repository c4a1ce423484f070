"""Names as users give them: of namespaces, keys, signals."""

from __future__ import annotations

import re

from continuum.values.plain import UNSTORABLE

__all__ = ["namespace", "text"]

_LONGEST_NAMESPACE = 200
_LONGEST_KEY = 500
# Control characters, and half surrogate pairs, which no database stores.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def text(name: str, value: object, longest: int = _LONGEST_KEY) -> str:
    """Return ``value`` if it is a non-empty string that can be stored.

    Raises:
        TypeError: not a string.
        ValueError: empty, longer than ``longest`` characters, or with characters no database stores.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if not 0 < len(value) <= longest:
        raise ValueError(f"{name} must have 1 to {longest} characters, not {len(value)}")
    if UNSTORABLE.search(value):
        raise ValueError(f"{name} must not hold NUL or lone surrogates: {value!r}")
    return value


def namespace(value: object) -> str:
    """Return ``value`` if it can be the name of a namespace.

    Raises:
        TypeError, ValueError: as for :func:`text`, or it holds control characters.
    """
    name = text("namespace", value, _LONGEST_NAMESPACE)
    if _UNPRINTABLE.search(name):
        raise ValueError(f"namespace must not hold control characters: {name!r}")
    return name
