"""W2: how long somebody waits who starts a workflow of one step and wants its result."""

from __future__ import annotations

import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure, percentile

TITLE = "times from start to result of a workflow of one step, by an idle worker in another process"
FIGURES = (Figure("p50", "ms at the median", "lower"), Figure("p99", "ms at p99", "lower"))
SIZE, QUICK = 200, 50
# Contenders that answer at their next poll need not be asked as often to be known.
SLOW, SLOW_SIZE = 0.1, 20
PAUSE = 0.01


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    contender.start_workers()
    return timed(contender, size)


def timed(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of so many workflows, one after the other, with the workers that are there."""
    taken: list[float] = []
    while len(taken) < size and not (len(taken) >= SLOW_SIZE and min(taken) > SLOW):
        time.sleep(PAUSE)  # the worker becomes idle
        number = len(taken)
        started = time.perf_counter()
        value = contender.result(contender.start("one_step", number))
        taken.append(time.perf_counter() - started)
        if value != number + 1:
            raise AssertionError(f"the result of {number} is {value!r}")
    return {"p50": percentile(taken, 0.5) * 1000, "p99": percentile(taken, 0.99) * 1000}
