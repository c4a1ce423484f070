"""Where in a workflow's source its code stands: found from the coroutines of its tasks, which are suspended there."""

from __future__ import annotations

import contextlib
import sys
from types import FrameType
from typing import Any

from continuum.core.failures import is_engine

__all__ = ["asker", "caller"]

_CONTEXTLIB = contextlib.__file__


def asker(loop: Any, command_id: str | None) -> str | None:
    """Say where the code stands that asked for a command, or would have: ``"file:line in function"``.

    A task that stands in no code of the workflow's, as it is nothing but an activity, was made by the task above it in
    the command's path.

    Args:
        loop: the run's loop, which is not running.
        command_id: the command; None for the workflow function itself.
    """
    path = (command_id or "0").rpartition(":")[0] or "0"
    while path:
        for task in reversed(loop.tasks):
            if task.scope.path == path and not task.done():
                frame = _innermost(task.get_coro())
                if frame is not None:
                    return _place(frame)
        path = path.rpartition(".")[0] if path.startswith("0") else ("0" if path != "0" else "")
    return None


def caller() -> str | None:
    """Say where the workflow's code stands that is running right now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame):
        frame = frame.f_back
    return None if frame is None else _place(frame)


def _innermost(awaited: Any) -> FrameType | None:
    """Follow what a coroutine awaits; return the last frame that is the user's."""
    found = None
    while awaited is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if hasattr(awaited, inner):
                frame = getattr(awaited, f"{prefix}_frame")
                if frame is not None and _is_users(frame):
                    found = frame
                awaited = getattr(awaited, inner)
                break
        else:
            return found
    return found


def _is_users(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    return not is_engine(filename) and filename != _CONTEXTLIB


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
