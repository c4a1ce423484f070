"""W3: how long a signal takes to complete a run that waits for it."""

from __future__ import annotations

import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure, percentile

TITLE = "times from signal to completion of a waiting workflow, across processes"
FIGURES = (Figure("p50", "ms at the median", "lower"), Figure("p99", "ms at p99", "lower"))
SIZE, QUICK = 200, 50
SLOW, SLOW_SIZE = 0.1, 20
PAUSE = 0.01
SETTLE = 0.5


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    contender.start_workers()
    runs = contender.start_many("wait_one", range(size))
    contender.wait_waiting(size)
    time.sleep(SETTLE)  # what a contender says is waiting may have a few lines of code to go
    taken: list[float] = []
    for number, run in enumerate(runs):
        time.sleep(PAUSE)
        started = time.perf_counter()
        contender.signal(run, number)
        value = contender.result(run)
        taken.append(time.perf_counter() - started)
        if value != number:
            raise AssertionError(f"the result of {number} is {value!r}")
        if len(taken) >= SLOW_SIZE and min(taken) > SLOW:
            break
    return {"p50": percentile(taken, 0.5) * 1000, "p99": percentile(taken, 0.99) * 1000}
