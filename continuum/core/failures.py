"""Exceptions as data: what of a failure is kept in the journal, readable by a person."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

__all__ = ["describe_exception", "is_engine"]

_ENGINE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ENGINE_FOLDERS = tuple(os.path.join(_ENGINE, name) + os.sep for name in ("core", "determinism", "worker"))
_ASYNCIO = os.path.dirname(os.path.abspath(__import__("asyncio").__file__)) + os.sep
_MAX_TRACEBACK = 16 * 1024
_MAX_MESSAGE = 4 * 1024
_MAX_DETAILS = 256 * 1024


def describe_exception(exc: BaseException) -> dict[str, Any]:
    """Return ``{"type", "message", "traceback", "details"}`` of an exception, made of JSON values only.

    The traceback leaves out the engine's own frames and asyncio's, so that it starts in the user's code; it keeps
    causes and is cut in the middle beyond 16 KiB. Details of more than 256 KiB are left out.
    """
    try:
        details = getattr(exc, "details", None)
        details = details if _is_json(details) else repr(details)
        size = len(json.dumps(details))
        if size > _MAX_DETAILS:
            details = f"<details of {size:,} bytes are left out: the limit is {_MAX_DETAILS:,} bytes>"
    except Exception:  # an odd attribute must not hide the failure itself; a list may hold itself
        details = None
    return {
        "type": type(exc).__name__,
        "message": _clean(_message(exc), _MAX_MESSAGE),
        "traceback": _clean(_readable_traceback(exc), _MAX_TRACEBACK),
        "details": details,
    }


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # a broken __str__ must not hide the failure itself
        return f"<{type(exc).__name__} whose text cannot be made>"


def _readable_traceback(exc: BaseException) -> str:
    try:
        report = traceback.TracebackException.from_exception(exc, compact=True)
    except Exception:
        return f"{type(exc).__name__}\n"
    seen: set[int] = set()
    stack = [report]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if not is_engine(frame.filename)])
        stack += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(report.format())


def is_engine(filename: str) -> bool:
    """Tell code of the engine, and of asyncio, from the user's."""
    return filename.startswith(_ENGINE_FOLDERS) or filename.startswith(_ASYNCIO)


def _clean(text: str, limit: int) -> str:
    """Make text that PostgreSQL stores in any column: no NUL, no lone surrogates, bounded."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n  … {len(text) - limit} characters left out …\n{text[-half:]}"
    return text


def _is_json(value: Any) -> bool:
    if value is None or type(value) in (bool, int, str):
        return True
    if type(value) is float:
        return value == value and value not in (float("inf"), float("-inf"))
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is dict:
        return all(type(k) is str and _is_json(v) for k, v in value.items())
    return False
