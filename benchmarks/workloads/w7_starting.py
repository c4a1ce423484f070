"""W7: how fast application code starts runs."""

from __future__ import annotations

import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure

TITLE = "runs started in bulk, and a fifth of that one by one; no worker is up"
FIGURES = (Figure("single", "starts/s, one by one", "higher"), Figure("bulk", "starts/s, in bulk", "higher"))
SIZE, QUICK = 10_000, 2_000
WARM = 20


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    singles = size // 5
    for number in range(WARM):
        contender.start("one_step", number)
    started = time.perf_counter()
    for number in range(singles):
        contender.start("one_step", number)
    single = time.perf_counter() - started
    started = time.perf_counter()
    runs = contender.start_many("one_step", range(size))
    bulk = time.perf_counter() - started
    queued = contender.observer.value(contender.unfinished_query)
    if len(set(runs)) != size or queued != WARM + singles + size:
        raise AssertionError(f"{queued} runs are queued, not {WARM + singles + size}")
    return {"single": singles / single, "bulk": size / bulk}
