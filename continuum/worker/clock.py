"""The worker's clock: the database's time, read without asking the database.

Nodes whose own clocks disagree must still agree on when a timer is due, so each follows the database's clock: it learns
the difference at every renewal of its lease and counts on monotonically in between.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]

# How fast two clocks may drift apart: 50 microseconds a second is what cheap quartz is good for.
_DRIFT = 50e-6


class Clock:
    """Database time in integer microseconds since the epoch. Never goes back.

    An answer that took ``r`` to arrive tells the difference to within ``r / 2`` (F. Cristian, "Probabilistic clock
    synchronization", 1989). An estimate is replaced only by one that is at least as good by then, so that a slow answer
    on a busy machine does not spoil a good one.
    """

    def __init__(self) -> None:
        self._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self._error_us = float("inf")
        self._estimated_us = 0
        self._last_us = 0

    def now_us(self) -> int:
        """Return the time now."""
        now = time.monotonic_ns() // 1000 + self._offset_us
        if now > self._last_us:
            self._last_us = now
        return self._last_us

    def synchronise(self, database_time_us: int, round_trip_us: int) -> None:
        """Follow the database, whose answer has just arrived, ``round_trip_us`` after it was asked for."""
        received_us = time.monotonic_ns() // 1000
        error_us = round_trip_us / 2
        if error_us <= self._error_us + (received_us - self._estimated_us) * _DRIFT:
            self._offset_us = database_time_us - (received_us - round_trip_us // 2)
            self._error_us = error_us
            self._estimated_us = received_us
