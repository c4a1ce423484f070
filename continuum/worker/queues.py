"""Which queues a worker serves, and how much of each may run: here, in the whole cluster, and in a stretch of time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["DEFAULT_QUEUE", "Queues", "RateLog"]

DEFAULT_QUEUE = "default"
"""The queue of activities that name none, and the one whose workers run workflows."""

# From the moment a start is noted to the first line of the activity's code time passes, and not always the same.
_MARGIN = 0.05
_LEAST_MARGIN_US, _MOST_MARGIN_US = 10_000, 100_000
# A start that is never noted, as its worker has died: it may have been so much later than the claim.
_UNNOTED_US = 5_000_000


class Queues:
    """The queues one worker serves, with their limits, and how much of each is under way in this worker.

    Args:
        served: their names; None for all there are.
        limits: ``CONTINUUM["QUEUES"]``.
    """

    def __init__(self, served: tuple[str, ...] | None, limits: Mapping[str, Mapping[str, Any]]) -> None:
        self.served = served
        self._limits = {queue: dict(found) for queue, found in limits.items() if found and self.serves(queue)}
        self._running: dict[str, int] = {}

    def serves(self, queue: str) -> bool:
        """Tell whether the worker serves a queue."""
        return self.served is None or queue in self.served

    def is_limited(self, queue: str) -> bool:
        """Tell whether a queue has a limit of any kind."""
        return queue in self._limits

    def is_shared(self, queue: str) -> bool:
        """Tell whether a queue has a limit that all workers share."""
        return self.cluster_concurrency(queue) is not None or self.rate(queue) is not None

    def cluster_concurrency(self, queue: str) -> int | None:
        """Return how many tasks of a queue may run at once in the whole cluster; None for any number."""
        return self._limits.get(queue, {}).get("cluster_concurrency")

    def rate(self, queue: str) -> tuple[int, float] | None:
        """Return how many tasks of a queue may start in how many seconds, or None."""
        return self._limits.get(queue, {}).get("rate")

    def room(self, queue: str, free: int) -> int:
        """Return how many more tasks of a queue this worker may run, of ``free`` that it could."""
        limit = self._limits.get(queue, {}).get("concurrency")
        return free if limit is None else max(0, min(free, limit - self._running.get(queue, 0)))

    def begun(self, queue: str) -> None:
        """Note that this worker has taken on a task."""
        if queue in self._limits:
            self._running[queue] = self._running.get(queue, 0) + 1

    def ended(self, queue: str) -> None:
        """Note that it is done with it."""
        if queue in self._limits:
            self._running[queue] -= 1


class RateLog:
    """The starts a rate limit counts: in no stretch of ``seconds`` there are more than ``count``.

    Tasks are counted from the moment they are claimed. When they have begun, which is a little later, that moment is
    noted instead, so that a slow start does not make two bursts into one. Kept as JSON in the queue's row.

    Args:
        text: JSON text: a list of ``[microseconds since the epoch, number]``, with a mark where no start is noted yet.
        rate: count and seconds.
    """

    def __init__(self, text: str, rate: tuple[int, float]) -> None:
        self._entries: list[list[Any]] = json.loads(text or "[]")
        self._count, seconds = rate
        window_us = round(seconds * 1e6)
        self._window_us = window_us + round(min(max(window_us * _MARGIN, _LEAST_MARGIN_US), _MOST_MARGIN_US))

    def allowed(self, now_us: int) -> int:
        """Return how many may start now, and forget what no window holds any more."""
        self._entries = [entry for entry in self._entries if self._ends_us(entry) > now_us]
        return max(0, self._count - sum(entry[1] for entry in self._entries))

    def free_us(self, now_us: int) -> int | None:
        """Return when the next may start, if it may not at once and that is known."""
        noted = [self._ends_us(entry) for entry in self._entries if len(entry) == 2]
        return min(noted, default=None) if self.allowed(now_us) == 0 else None

    def claimed(self, now_us: int, number: int, mark: str) -> None:
        """Count tasks that have just been claimed. ``mark`` tells them from others until their start is noted."""
        self._entries.append([now_us, number, mark])

    def noted(self, mark: str, started_us: int) -> None:
        """Note when the tasks of a claim have started, the last of them."""
        for entry in self._entries:
            if entry[2:] == [mark]:
                entry[:] = [max(entry[0], started_us), entry[1]]

    def _ends_us(self, entry: list[Any]) -> int:
        return entry[0] + self._window_us + (_UNNOTED_US if len(entry) == 3 else 0)

    def __str__(self) -> str:
        return json.dumps(self._entries, separators=(",", ":"))
