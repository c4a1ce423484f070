"""W8: how long runs stand still whose worker is killed, while another one is up."""

from __future__ import annotations

import itertools
import statistics
import time

from benchmarks.contenders import Contender
from benchmarks.contenders.base import MOMENT
from benchmarks.figures import Figure

__all__ = ["FIGURES", "QUICK", "SIZE", "TITLE", "measure"]

STEPS = 10
TITLE = f"runs of {STEPS} steps of {MOMENT * 1000:.0f} ms on two workers, one of which is killed (-9) in the middle"
FIGURES = (
    Figure("stall_max", "s between two steps of a run, the longest after the kill", "lower"),
    Figure("stall_p50", "s between two steps of a run, the longest after the kill, at the median of runs"),
    Figure("usual_max", "s between two steps of a run, the longest before the kill"),
    Figure("silence", "s between two steps of whichever runs, the longest after the kill", "lower"),
    Figure("done", "s from the kill until all runs are done", "lower"),
    Figure("begun", "runs that were under way"),
)
SIZE, QUICK = 500, 100
TIMEOUT = 600.0
SHARE = 0.3
FINE = 0.01


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    observer = contender.observer
    contender.processes = 1  # with each of the two, so that half of all is killed
    contender.start_workers(2)
    before = observer.value(contender.records_query)
    runs = contender.start_many("moments", [STEPS] * size)

    def in_the_middle() -> bool:
        return observer.value(contender.records_query) - before >= SHARE * size * STEPS

    observer.wait(in_the_middle, "a part of the steps is recorded", timeout=TIMEOUT, pause=FINE)
    contender.workers.kill_first()
    killed, since = time.time(), time.perf_counter()
    contender.bring_back()
    ended = contender.wait_finished(runs, timeout=TIMEOUT)
    contender.check(runs, [STEPS] * size)
    times: dict[str, list[float]] = {run: [] for run in runs}
    for run, at in observer.rows(contender.moments_query, (runs,)):
        times[run].append(at)
    if wrong := [run for run, found in times.items() if len(found) != STEPS]:
        raise AssertionError(f"{len(wrong)} of {size} runs have not {STEPS} steps on record, e.g. {wrong[0]}")
    usual, stalls = [], []
    for found in times.values():
        gaps = list(itertools.pairwise(sorted(found)))
        usual += [later - earlier for earlier, later in gaps if later <= killed]
        # Those that had not begun waited for their turn, those that were done for nothing.
        if min(found) <= killed < max(found):
            stalls.append(max(later - earlier for earlier, later in gaps if later > killed))
    after = [killed, *sorted(at for found in times.values() for at in found if at > killed)]
    return {
        "stall_max": max(stalls),
        "stall_p50": statistics.median(stalls),
        "usual_max": max(usual),
        "silence": max(later - earlier for earlier, later in itertools.pairwise(after)),
        "done": ended - since,
        "begun": len(stalls),
    }
