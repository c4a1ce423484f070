"""ROLL: what a rolling restart does to runs that are under way.

Four workers and runs that take steps all the time: once left alone, then with each worker told to stop and replaced,
one after the other. How much longer a run took than one that was left alone is its stretch.
"""

from __future__ import annotations

import statistics
import subprocess
import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure, percentile

__all__ = ["FIGURES", "ONLY", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "runs of 100 steps of 20 ms, and 80 ms between two, on 4 workers that are replaced in turn"
FIGURES = (
    Figure("stretch_p50", "s that a run took longer, at the median", "lower"),
    Figure("stretch_p99", "s that a run took longer, at p99", "lower"),
    Figure("stretch_max", "s that a run took longer, at most", "lower"),
    Figure("gap_p50", "s between two events of a run, the longest, at the median of runs", "lower"),
    Figure("gap_max", "s between two events of a run, the longest of all", "lower"),
    Figure("alone_spread", "s between the fastest and the slowest run, left alone"),
    Figure("alone_gap_max", "s between two events of a run, the longest of all, left alone"),
    Figure("handed", "runs handed over by the four"),
    Figure("doubled", "steps made twice", "lower"),
    Figure("drain_max", "s from SIGTERM to the end of the worker, at most", "lower"),
)
SIZE, QUICK = 40, 10
ONLY = ("continuum",)
WORKERS = 4
STEPS = 100
PAUSE = 0.01
TIMEOUT = 120.0

_UP = "SELECT count(*) FROM continuum_workers WHERE state = 'alive' AND session_lock"
_OWNED = (
    "SELECT count(*) FROM continuum_runs r JOIN continuum_workers w ON w.id = r.owner_id "
    "WHERE w.pid = %s AND r.completed_at IS NULL"
)
_COMPLETED = "SELECT count(*) FROM continuum_events WHERE type = 'activity_completed'"
_RUNS = """
    SELECT extract(epoch FROM r.completed_at - r.claimed_at)::float8, (
        SELECT max(extract(epoch FROM gap))::float8
        FROM (
            SELECT e.recorded_at - lag(e.recorded_at, 1, r.claimed_at) OVER (ORDER BY e.seq) AS gap
            FROM continuum_events e WHERE e.run_id = r.id
        ) AS gaps
    )
    FROM continuum_runs r WHERE r.id = ANY(%s::uuid[])
"""


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    observer = contender.observer
    contender.processes = 1  # a worker is known by its process id
    for _ in range(WORKERS):
        contender.spawn()
    observer.wait(lambda: observer.value(_UP) == WORKERS, "the workers are up", timeout=TIMEOUT)
    contender.wait_finished(contender.start_many("paced", [3] * size), timeout=TIMEOUT)
    runs = _start(contender, size)
    contender.wait_finished(runs, timeout=TIMEOUT)
    alone = observer.rows(_RUNS, (runs,))
    before, made = observer.value(_COMPLETED), contender.made()
    runs = _start(contender, size)
    drains = [_replace_one(contender) for _ in range(WORKERS)]
    contender.wait_finished(runs, timeout=TIMEOUT)
    contender.check(runs, [STEPS] * size)
    restarted = observer.rows(_RUNS, (runs,))
    recorded = observer.value(_COMPLETED) - before
    if recorded != STEPS * size:
        raise AssertionError(f"{recorded} steps are recorded, not {STEPS * size}")
    usual = statistics.median(taken for taken, _ in alone)
    stretches = [taken - usual for taken, _ in restarted]
    return {
        "stretch_p50": statistics.median(stretches),
        "stretch_p99": percentile(stretches, 0.99),
        "stretch_max": max(stretches),
        "gap_p50": statistics.median(gap for _, gap in restarted),
        "gap_max": max(gap for _, gap in restarted),
        "alone_spread": max(taken for taken, _ in alone) - min(taken for taken, _ in alone),
        "alone_gap_max": max(gap for _, gap in alone),
        "handed": sum(handed for handed, _ in drains),
        "doubled": contender.made() - made - recorded,
        "drain_max": max(took for _, took in drains),
    }


def _start(contender: Contender, size: int) -> list[str]:
    """Start runs one by one, so that every worker gets some."""
    runs = []
    for _ in range(size):
        runs.append(contender.start("paced", STEPS))
        time.sleep(PAUSE)
    return runs


def _replace_one(contender: Contender) -> tuple[int, float]:
    """Stop the worker that was there first and start another; return how many runs it had, and how long it took."""
    observer = contender.observer
    handed = observer.value(_OWNED, (contender.workers.first,))
    first = contender.workers.retire()
    contender.spawn()
    ended = observer.wait(lambda: first.process.poll() is not None, "a worker has drained", timeout=TIMEOUT)
    if first.process.returncode:
        raise subprocess.CalledProcessError(first.process.returncode, "continuum_worker")
    observer.wait(lambda: observer.value(_UP) == WORKERS, "the next worker is up", timeout=TIMEOUT)
    return handed, ended - first.since
