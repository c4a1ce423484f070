"""An asyncio loop in virtual time, for activities that are ``async def``.

Nothing in it ever waits: when all of its tasks do, it hands control back and says when the first of them is due. What
asyncio would do in other threads is done at once, in this one, so that the ORM finds the test's own connection. Real
sockets are waited for as they are, and time passes meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from continuum.core.nesting import put_back, put_in_place

__all__ = ["VirtualLoop", "outside_any_loop"]

# The longest wait for a socket before time is looked at again, in seconds.
_LONGEST_WAIT = 0.05


class _QuietSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Waits for real sockets only; with nothing but timers left it says so and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.own = 0
        self.on_quiet: Callable[[], None] = lambda: None
        self.on_waited: Callable[[float], None] = lambda seconds: None

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if len(self.get_map()) <= self.own:
            self.on_quiet()
            return []
        began = time.monotonic()
        ready = super().select(_LONGEST_WAIT if timeout is None else min(timeout, _LONGEST_WAIT))
        self.on_waited(time.monotonic() - began)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is somebody else's.

    Args:
        now_us: returns the time, microseconds since the epoch.
        on_waited: told how many seconds were spent waiting for sockets.
    """

    def __init__(self, now_us: Callable[[], int], on_waited: Callable[[float], None]) -> None:
        selector = _QuietSelector()
        self._now_us = now_us
        self._origin_us = now_us()
        self._due: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = 0
        super().__init__(selector)
        selector.own = len(selector.get_map())
        selector.on_quiet, selector.on_waited = self.stop, on_waited

    def time(self) -> float:
        # In the middle of its microsecond, so that no rounding makes a timer late by one.
        return (self._now_us() - self._origin_us + 0.5) / 1e6

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, handle))
        return handle

    def next_due_us(self) -> int | None:
        """Return when the first timer is due, microseconds since the epoch, or None."""
        while self._due and (self._due[0][2].cancelled() or self._due[0][0] < self.time()):
            heapq.heappop(self._due)
        return self._origin_us + int(self._due[0][0] * 1e6) if self._due else None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call ``func`` at once, outside any loop: code that refuses to run inside one does not notice."""
        future = self.create_future()
        try:
            with outside_any_loop():
                result = func(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(result)
        return future

    def run_until_quiet(self) -> None:
        """Run what can run now, until everything waits for a later time."""
        self.run_forever()


@contextmanager
def outside_any_loop() -> Iterator[None]:
    """Have no loop count as running in this thread for the length of a block."""
    outer = put_in_place(None)
    try:
        yield
    finally:
        put_back(outer)
