"""W2C: W2 while an activity of the same worker computes, and so wants the interpreter all the time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.workloads import w2_start_to_result as alone

__all__ = ["FIGURES", "ONLY", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "times from start to result of a workflow of one step, beside an activity that computes in the same process"
FIGURES = alone.FIGURES
SIZE, QUICK = 200, 50
ONLY = ("continuum",)


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    contender.processes = 1
    contender.start_workers()
    run = contender.start("computing", 0)
    computing = Path(f"{contender.gate}.computing")
    contender.observer.wait(computing.exists, "the activity computes")
    figures = alone.timed(contender, size)
    if contender.observer.value(contender.unfinished_query) != 1:
        raise AssertionError("the activity did not compute all the time")
    Path(contender.gate).touch()
    contender.wait_finished([run])
    return figures
