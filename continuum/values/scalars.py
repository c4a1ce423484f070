"""Single values that JSON does not have: how each is written, and read back."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from continuum.values.refusals import Refusal, not_durable

__all__ = ["READERS", "UNSAFE", "WRITERS", "read_scalar"]

UNSAFE = re.compile("[\x00\ud800-\udfff]").search
"""Finds what a JSON string of PostgreSQL cannot hold: NUL, and surrogates that are no pair."""

_MAX_INT_BITS = 2048  # a decimal of up to 617 digits: below the smallest limit a process can set for int() of a string

_ESCAPED = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:\\|u([0-9a-f]{4}))|(\\)")
_HEX = re.compile(r"-?0x[0-9a-f]+").fullmatch
_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:E[+-][0-9]+)?").fullmatch
_SECONDS = re.compile(r"(-?)([0-9]{1,15})(?:\.([0-9]{6}))?").fullmatch
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


# Writing: each takes the value (of exactly the type it is listed under) and returns a JSON tree.


def _write_str(value: str) -> Any:
    if value.isascii():
        if "\x00" not in value:
            return value
    elif not UNSAFE(value):
        return value
    return {"~str": _ESCAPED.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", value)}


def _write_int(value: int) -> Any:
    return value if value.bit_length() <= _MAX_INT_BITS else {"~int": hex(value)}


def _write_float(value: float) -> float:
    if not isfinite(value):
        raise not_durable(repr(value))
    return value


def _write_decimal(value: Decimal) -> Any:
    if not value.is_finite():
        raise not_durable(f"Decimal('{value}')")
    return {"~decimal": str(value)}


def _write_timedelta(value: timedelta) -> Any:
    total = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    seconds, micros = divmod(abs(total), 1_000_000)
    fraction = f".{micros:06}" if micros else ""
    return {"~timedelta": f"{'-' if total < 0 else ''}{seconds}{fraction}"}


def _write_moment(tag: str) -> Callable[[Any], Any]:
    def write(value: datetime | time) -> Any:
        details: dict[str, Any] = {}
        zone = value.tzinfo
        if type(zone) is timezone:
            name = zone.tzname(None)
            if name != timezone(zone.utcoffset(None)).tzname(None):
                if UNSAFE(name):
                    raise not_durable(f"a time zone named {name!a}")
                details["name"] = name
        elif type(zone) is ZoneInfo and zone.key is not None and _ZONE(zone.key):
            value = value.replace(tzinfo=None)  # the zone decides the offset, also when its rules change later
            details["zone"] = zone.key
        elif zone is not None:
            value = value.replace(tzinfo=_fixed(value, zone))
        if value.fold:
            details["fold"] = 1
        text = value.isoformat()
        return {tag: {"at": text, **details} if details else text}

    return write


def _fixed(value: datetime | time, zone: tzinfo) -> timezone:
    """The plain time zone for a foreign one with a fixed offset, such as those of pydantic's datetimes."""
    try:
        offset = None if type(zone) is ZoneInfo else zone.utcoffset(None)
        if offset is not None and offset == value.utcoffset():
            return timezone(offset)
    except Exception:  # whatever a foreign class does when it is not asked about a certain moment
        pass
    raise not_durable(
        f"{type(value).__name__} with a time zone of type {type(zone).__module__}.{type(zone).__qualname__}",
        "use datetime.timezone or zoneinfo.ZoneInfo",
    )


WRITERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: _write_str,
    int: _write_int,
    float: _write_float,
    Decimal: _write_decimal,
    UUID: lambda value: {"~uuid": str(value)},
    bytes: lambda value: {"~bytes": base64.b64encode(value).decode("ascii")},
    datetime: _write_moment("~datetime"),
    time: _write_moment("~time"),
    date: lambda value: {"~date": value.isoformat()},
    timedelta: _write_timedelta,
}


# Reading: each takes what stands in the tag and returns the value, or raises any exception when it is malformed.


def _read_str(text: Any) -> str:
    def unescape(found: re.Match[str]) -> str:
        if found[2]:
            raise ValueError("a lone backslash")
        return chr(int(found[1], 16)) if found[1] else "\\"

    return _ESCAPE.sub(unescape, text)


def _read_int(text: Any) -> int:
    if not _HEX(text):
        raise ValueError("not a hexadecimal number")
    return int(text, 16)


def _read_decimal(text: Any) -> Decimal:
    if not _DECIMAL(text):
        raise ValueError("not a decimal number")
    return Decimal(text)


def _read_uuid(text: Any) -> UUID:
    if not _UUID(text):
        raise ValueError("not a UUID")
    return UUID(text)


def _read_timedelta(text: Any) -> timedelta:
    found = _SECONDS(text)
    if not found:
        raise ValueError("not a number of seconds")
    length = timedelta(seconds=int(found[2]), microseconds=int(found[3] or 0))
    return -length if found[1] else length


def _read_moment(kind: type) -> Callable[[Any], Any]:
    def read(payload: Any) -> Any:
        if type(payload) is str:
            return kind.fromisoformat(payload)
        if not payload.keys() <= {"at", "zone", "name", "fold"}:
            raise ValueError("unknown details")
        value = kind.fromisoformat(payload["at"])
        zone: tzinfo | None = value.tzinfo
        if "zone" in payload:
            if not _ZONE(payload["zone"]):
                raise ValueError("not a time zone")
            zone = ZoneInfo(payload["zone"])
        elif "name" in payload:
            zone = timezone(zone.utcoffset(None), payload["name"])
        return value.replace(tzinfo=zone, fold=payload.get("fold", 0))

    return read


READERS: dict[str, Callable[[Any], Any]] = {
    "~str": _read_str,
    "~int": _read_int,
    "~decimal": _read_decimal,
    "~uuid": _read_uuid,
    "~bytes": lambda text: base64.b64decode(text.encode("ascii"), validate=True),
    "~datetime": _read_moment(datetime),
    "~time": _read_moment(time),
    "~date": date.fromisoformat,
    "~timedelta": _read_timedelta,
}


def read_scalar(tag: str, payload: Any) -> Any:
    """Return the value of one of the tags in ``READERS``."""
    try:
        return READERS[tag](payload)
    except Exception as exc:
        shown = ascii(payload)
        shown = shown if len(shown) <= 80 else f"{shown[:70]}…"
        raise Refusal(f'the tag "{tag}" cannot hold {shown} ({type(exc).__name__}: {exc})') from exc
