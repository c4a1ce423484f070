"""The worker's clock: the database's time, read without asking the database.

Nodes whose own clocks disagree must still agree on when a timer is due, so each follows the database's clock: it learns
the difference at every renewal of its lease and counts on monotonically in between.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]

# Differences below this are the round trip's noise; following them would only make time wobble.
_NOISE_US = 2_000


class Clock:
    """Database time in integer microseconds since the epoch. Never goes back."""

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self._synchronised = False
        self._last_us = 0

    def now_us(self) -> int:
        """Return the time now."""
        now = time.monotonic_ns() // 1000 + self._offset_us
        if now > self._last_us:
            self._last_us = now
        return self._last_us

    def synchronise(self, database_time_us: int) -> None:
        """Follow the database, which has just said this is the time."""
        offset = database_time_us - time.monotonic_ns() // 1000
        if not self._synchronised or abs(offset - self._offset_us) > _NOISE_US:
            self._offset_us = offset
            self._synchronised = True

    def monotonic(self, time_us: int) -> float:
        """Return the instant ``time_us`` in terms of ``time.monotonic()``."""
        return (time_us - self._offset_us) / 1e6
