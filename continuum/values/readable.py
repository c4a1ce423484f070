"""Durable values for people: what the admin and the command line show."""

from __future__ import annotations

import base64
import json
from math import isfinite
from typing import Any

__all__ = ["display"]


def display(text: str) -> Any:
    """Return the value of a JSON text as people want to see it: made of JSON values only, tags shown readably.

    It needs none of the classes involved and never fails: what it does not understand it shows as it is.
    """
    try:
        return _shown(json.loads(text, parse_float=_number))
    except (ValueError, TypeError, RecursionError):
        return text


def _number(text: str) -> Any:
    value = float(text)
    return value if isfinite(value) else text  # 1e999 is JSON, and no float


def _shown(tree: Any) -> Any:
    if type(tree) is list:
        return [_shown(item) for item in tree]
    if type(tree) is not dict:
        return tree
    if len(tree) == 1:
        ((tag, payload),) = tree.items()
        show = _SHOWN.get(tag)
        if show is not None:
            try:
                return show(payload)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                pass
    return {key: _shown(item) for key, item in tree.items()}


def _show_text(payload: Any) -> str:
    return _expect(str, payload)


def _expect(kind: type, payload: Any) -> Any:
    if type(payload) is not kind:
        raise TypeError
    return payload


def _show_list(payload: Any) -> list[Any]:
    return [_shown(item) for item in _expect(list, payload)]


def _show_pairs(payload: Any) -> Any:
    pairs = [(_shown(key), _shown(item)) for key, item in _expect(list, payload)]
    names = [key if type(key) is str else json.dumps(key, ensure_ascii=False) for key, _ in pairs]
    if len(set(names)) < len(names):
        return [list(pair) for pair in pairs]
    return {name: item for name, (_, item) in zip(names, pairs, strict=True)}


def _show_moment(payload: Any) -> str:
    if type(payload) is str:
        return payload
    zone = payload.get("zone") or payload.get("name")
    return f"{_expect(str, payload['at'])} {zone}" if zone else _expect(str, payload["at"])


def _show_bytes(payload: Any) -> str:
    content = base64.b64decode(_expect(str, payload), validate=True)
    return repr(content) if len(content) <= 64 else f"{content[:48]!r}… ({len(content):,} bytes)"


def _show_enum(payload: Any) -> str:
    kind, member = _expect(list, payload)
    return f"{_expect(str, kind).rpartition(':')[2]}.{member}" if type(member) is str else f"{kind}({member})"


def _show_seconds(payload: Any) -> str:
    return f"{_expect(str, payload)} s"


def _show_model(payload: Any) -> str:
    label, pk, using = _expect(list, payload)
    return f"{_expect(str, label)} {_shown(pk)}" + (f" in {_expect(str, using)!r}" if using != "default" else "")


_SHOWN = {
    "~any": lambda payload: _shown(payload),
    "~bytes": _show_bytes,
    "~date": _show_text,
    "~datetime": _show_moment,
    "~decimal": _show_text,
    "~dict": _show_pairs,
    "~enum": _show_enum,
    "~frozenset": _show_list,
    "~int": _show_text,
    "~model": _show_model,
    "~set": _show_list,
    "~str": _show_text,
    "~time": _show_moment,
    "~timedelta": _show_seconds,
    "~tuple": _show_list,
    "~uuid": _show_text,
}
