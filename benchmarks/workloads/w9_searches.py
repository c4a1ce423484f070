"""W9: how long it takes to find runs among a million that have ended."""

from __future__ import annotations

import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure, percentile

TITLE = "ended runs, of which the newest 50 of some kind are found, by one client"
SEARCHES = {
    "state": "of a workflow and a state",
    "rare_workflow": "of a rare workflow and a state (1 in 10,000)",
    "common": "with a common attribute (45 %)",
    "rare": "with a rare attribute (1 in 10,000)",
}
FIGURES = tuple(
    Figure(f"{key}_{name}", f"ms at {title}, {what}", "lower")
    for key, what in SEARCHES.items()
    for name, title in (("p50", "the median"), ("p99", "p99"))
)
SIZE, QUICK = 1_000_000, 50_000
TIMEOUT = 1800.0
TIMES, WARM = 300, 20
# A search that takes longer is not made as often, in seconds; but often enough for a median.
SLOW, SLOW_TIMES = 0.02, 30
FOUND = 50


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round. The searches take turns, so that each meets the same weather."""
    contender.fill(size)
    taken: dict[str, list[float]] = {key: [] for key in SEARCHES}
    for number in range(WARM + TIMES):
        for key, times in list(taken.items()):
            if number >= SLOW_TIMES and min(times) > SLOW:
                continue
            started = time.perf_counter()
            found = contender.search(key)
            times.append(time.perf_counter() - started)
            if found is None:
                del taken[key]
            elif found != FOUND and size >= SIZE:
                raise AssertionError(f"{found} runs were found {SEARCHES[key]}, not {FOUND}")
    return {
        f"{key}_{name}": percentile(times[WARM:], share) * 1000
        for key, times in taken.items()
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
