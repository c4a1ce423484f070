"""One heap of what is due when, one timer on the loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

from continuum.worker.clock import Clock

__all__ = ["Timers"]

# The clock may be corrected meanwhile (a host was suspended, a server set its clock): look again, in seconds.
LONGEST_SLEEP = 5.0
# A heap smaller than this is not worth sweeping.
FEWEST_SWEPT = 1_000


class Timers:
    """Calls back when database time reaches an instant.

    Entries cannot be taken out: whoever is called checks whether the call still means something, which is cheaper
    than finding an entry in a heap. Those that mean nothing any more are swept out whenever the heap has doubled: a
    run that ends in a second may have set a timeout of a month.

    Args:
        loop: the worker's loop.
        clock: the worker's clock.

    Attributes:
        wanted: tells of a subject whether a call about it still means something.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.wanted: Callable[[Any], bool] = lambda subject: True
        self._sweep_at = FEWEST_SWEPT
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
        if len(self._heap) > self._sweep_at:
            self._sweep()
        if self._armed is None or due_us < self._armed_for:
            self._arm()

    def _sweep(self) -> None:
        # The same call about the same subject at the same instant is needed once.
        needed = {
            (due_us, callback, id(subject)): (due_us, count, callback, subject)
            for due_us, count, callback, subject in self._heap
            if self.wanted(subject)
        }
        self._heap[:] = sorted(needed.values(), key=lambda entry: entry[:2])
        self._sweep_at = max(FEWEST_SWEPT, 2 * len(self._heap))

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
            delay = min(max(0.0, (self._armed_for - self._clock.now_us()) / 1e6), LONGEST_SLEEP)
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
