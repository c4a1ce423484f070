"""One heap of what is due when, one timer on the loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

from continuum.worker.clock import Clock

__all__ = ["Timers"]


class Timers:
    """Calls back when database time reaches an instant.

    Entries cannot be taken out: whoever is called checks whether the call still means something, which is cheaper
    than finding an entry in a heap.

    Args:
        loop: the worker's loop.
        clock: the worker's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[int, int, Callable[..., None], Any]] = []
        self._count = 0
        self._armed: asyncio.TimerHandle | None = None
        self._armed_for = 0

    def __len__(self) -> int:
        return len(self._heap)

    def schedule(self, due_us: int, callback: Callable[[Any, int], None], subject: Any) -> None:
        """Have ``callback(subject, due_us)`` called as a plain callback of the loop once ``due_us`` is reached."""
        self._count += 1
        heapq.heappush(self._heap, (due_us, self._count, callback, subject))
        if self._armed is None or due_us < self._armed_for:
            self._arm()

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None

    def _arm(self) -> None:
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        if self._heap:
            self._armed_for = self._heap[0][0]
            # At most an hour ahead: the clock's offset may be corrected meanwhile.
            delay = min(max(0.0, (self._armed_for - self._clock.now_us()) / 1e6), 3600.0)
            self._armed = self._loop.call_later(delay, self._fire)

    def _fire(self) -> None:
        self._armed = None
        # The loop's timer may run a hair early; what is due within it is due.
        now = self._clock.now_us() + 500
        heap = self._heap
        while heap and heap[0][0] <= now:
            due_us, _, callback, subject = heapq.heappop(heap)
            callback(subject, due_us)
        self._arm()
