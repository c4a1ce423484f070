"""Make ``asyncio.wait_for`` of Python 3.11 behave, inside a run, as that of 3.12 and later.

Up to 3.11 ``wait_for`` wraps a coroutine in a task and waits for a future of its own; since 3.12 it awaits the
coroutine itself. The difference shows: the wrapped code starts, ends and is cancelled some turns of the loop later, so
that another task may get the item of a queue or the signal, and it sees a copy of the caller's context variables. A
history recorded on one version would then replay differently on another. So here the wrapper's turns are taken at once,
before anything else that is ready, it runs in its caller's context, and what would cancel the wait cancels what is
waited for.

To be deleted with support for Python 3.11.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

__all__ = ["at_once", "create_future"]

_WAIT_FOR = asyncio.wait_for.__code__
_CANCEL_AND_WAIT = asyncio.tasks._cancel_and_wait.__code__  # type: ignore[attr-defined]


class _Waiter(asyncio.Future):  # type: ignore[type-arg]
    """The future that ``wait_for`` waits for in place of ``inner``."""

    inner: Any = None
    asked: tuple[Any] | None = None

    def cancel(self, msg: Any = None) -> bool:
        inner = self.inner
        if inner is None or inner.done() or self.done():
            return super().cancel(msg)
        if not inner.cancel(msg):
            return False
        self.asked = (msg,)
        return True

    def set_result(self, result: Any) -> None:
        ready = self._loop._ready  # type: ignore[attr-defined]
        before = len(ready)
        inner = self.inner
        if self.asked is not None and (not inner.done() or inner.cancelled()):
            super().cancel(*self.asked)
        else:
            super().set_result(result)
        if len(ready) > before:
            ready.rotate(1)


def create_future(self: Any) -> asyncio.Future[Any]:
    """``create_future`` of the deterministic loop."""
    frame = sys._getframe(1)
    if frame.f_code is not _WAIT_FOR and not (frame.f_code is _CANCEL_AND_WAIT and _is_timed(frame.f_back)):
        return asyncio.Future(loop=self)
    waiter = _Waiter(loop=self)
    inner = frame.f_locals["fut"]
    if asyncio.isfuture(inner):  # otherwise wait_for is about to make a task of it
        waiter.inner = inner
    return waiter


def at_once(loop: Any, task: Any, frame: Any) -> None:
    """Let the task that ``wait_for`` has just made begin before anything else, and end so, too."""
    if _is_timed(frame):
        frame.f_locals["waiter"].inner = task
        task.at_once = True
        loop._ready.rotate(1)


def _is_timed(frame: Any) -> bool:
    # With a timeout of 0 or less, every version does the same: no waiter.
    return frame is not None and frame.f_code is _WAIT_FOR and "waiter" in frame.f_locals
