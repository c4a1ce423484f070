"""W4: one run that does a thousand things at once: starts children and joins them, or runs activities side by side."""

from __future__ import annotations

import statistics
import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure

__all__ = ["FIGURES", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "children of one run, started and joined; and as many activities of one run, side by side"
FIGURES = (
    Figure("children", "children/s", "higher"),
    Figure("activities", "activities/s", "higher"),
    Figure("child_wal", "bytes of WAL, a child"),
    Figure("activity_wal", "bytes of WAL, an activity"),
)
SIZE, QUICK = 1000, 200
# A fan-out takes a fifth of a second here and several seconds there: the median of up to so many, in about so long.
TIMES, SECONDS = 9, 6.0
FINE = 0.005


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    contender.start_workers()
    figures = {}
    for name, flow, wal in (("children", "fan_children", "child_wal"), ("activities", "fan_steps", "activity_wal")):
        _joined(contender, flow, size // 5)
        before = contender.observer.lsn()
        began = time.perf_counter()
        taken = [_joined(contender, flow, size)]
        while len(taken) < TIMES and time.perf_counter() - began < SECONDS:
            taken.append(_joined(contender, flow, size))
        figures[name] = size / statistics.median(taken)
        figures[wal] = contender.observer.written(before, contender.observer.lsn()).wal_bytes / size / len(taken)
    return figures


def _joined(contender: Contender, flow: str, size: int) -> float:
    """Return how long a fan-out took, from the request to its result in the database."""
    expected = [size * (size + 1) // 2]
    started = time.perf_counter()
    run = contender.start(flow, size)

    def joined() -> bool:
        # Only this run is looked at, so that the look does not grow with the number of children.
        contender.workers.check()
        return contender.results([run]) == expected

    return contender.observer.wait(joined, "the fan-out is joined", pause=FINE) - started
