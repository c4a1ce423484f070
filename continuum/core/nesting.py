"""Running one event loop inside another: what a thread takes for its running loop and its current task."""

from __future__ import annotations

import asyncio
import sys
from asyncio import AbstractEventLoop, _get_running_loop, _set_running_loop
from typing import Any

__all__ = ["Outer", "put_back", "put_in_place"]

#: The loop that was running before, and its current task.
Outer = tuple[AbstractEventLoop | None, Any]

# Up to Python 3.13 each loop has a current task. Since 3.14 a thread has, and would not have another one enter while
# that of the outer loop is under way.
_ONE_TASK_A_THREAD = sys.version_info >= (3, 14)
_swap_current_task: Any = getattr(asyncio.tasks, "_swap_current_task", None)


def put_in_place(loop: AbstractEventLoop | None) -> Outer:
    """Make a loop the running one of this thread, without a current task; None for no loop at all.

    Returns:
        What :func:`put_back` is to be called with.
    """
    outer = _get_running_loop()
    task = _swap_current_task(outer, None) if _ONE_TASK_A_THREAD and outer is not None else None
    _set_running_loop(loop)
    return outer, task


def put_back(outer: Outer) -> None:
    """Make the loop that was running before the running one again, and its current task the current one."""
    loop, task = outer
    _set_running_loop(loop)
    if task is not None:
        _swap_current_task(loop, task)
