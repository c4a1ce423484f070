"""W6: how late runs go on that have slept."""

from __future__ import annotations

from benchmarks.contenders import Contender
from benchmarks.figures import Figure, percentile

TITLE = "runs that sleep one second: how late the step after it runs"
FIGURES = (Figure("p50", "ms late at the median", "lower"), Figure("p99", "ms late at p99", "lower"))
SIZE, QUICK = 2000, 300
MOST_EARLY = 0.002


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    contender.start_workers()
    runs = contender.start_many("nap", range(size))
    contender.wait_finished(runs, pause=0.05)
    late = contender.results(runs)
    wrong = [value for value in late if not isinstance(value, float) or value < -MOST_EARLY]
    if wrong:
        raise AssertionError(f"{len(wrong)} of {size} runs did not sleep as they should: {wrong[0]!r}")
    return {"p50": percentile(late, 0.5) * 1000, "p99": percentile(late, 0.99) * 1000}
