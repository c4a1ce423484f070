"""W10: what it costs to have ten thousand runs waiting."""

from __future__ import annotations

import random
import time

from benchmarks.contenders import Contender
from benchmarks.figures import Figure
from benchmarks.usage import cpu_seconds, memory

__all__ = ["FIGURES", "ONLY", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "runs that wait for a signal, live in one worker"
FIGURES = (
    Figure("rss", "MB that the worker has in memory", "lower"),
    Figure("pss", "MB of it that it shares with nobody, and its part of the rest", "lower"),
    Figure("empty", "MB that it had without them"),
    Figure("cpu", "% of a core that the worker uses while they wait", "lower"),
    Figure("server_cpu", "% of a core that PostgreSQL uses meanwhile", "lower"),
    Figure("statements", "statements a second meanwhile", "lower"),
    Figure("transactions", "transactions a second meanwhile", "lower"),
)
SIZE, QUICK = 10_000, 2_000
ONLY = ("continuum",)
SETTLE, SECONDS = 15.0, 20.0
SIGNALLED = 100
_SEEN = """
    SELECT s.calls, d.xact_commit
    FROM (
        SELECT coalesce(sum(calls), 0)::int AS calls FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS s, pg_stat_database AS d
    WHERE d.datname = current_database()
"""


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    observer = contender.observer
    observer.count_statements()
    contender.processes = 1  # what one has in memory is asked
    contender.start_workers()
    worker, server = [contender.workers.first], [observer.server_pid()]
    empty = memory(worker)
    runs = contender.start_many("wait_one", range(size))
    contender.wait_waiting(size)
    time.sleep(SETTLE)  # what their rows say of them is written in no hurry
    before, at = observer.rows(_SEEN)[0], time.perf_counter()
    used = cpu_seconds(worker), cpu_seconds(server)
    time.sleep(SECONDS)
    seconds = time.perf_counter() - at
    used_after, after = (cpu_seconds(worker), cpu_seconds(server)), observer.rows(_SEEN)[0]
    found = memory(worker)
    # They are all there, and awake at once.
    owned = observer.value("SELECT count(*) FROM continuum_runs WHERE owner_id IS NOT NULL")
    if owned != size:
        raise AssertionError(f"{owned} runs are live, not {size}")
    for number in random.sample(range(size), SIGNALLED):
        contender.signal(runs[number], number)
        if (value := contender.result(runs[number])) != number:
            raise AssertionError(f"the result of {number} is {value!r}")
    return {
        "rss": found.rss,
        "pss": found.pss,
        "empty": empty.rss,
        "cpu": 100 * (used_after[0] - used[0]) / seconds,
        "server_cpu": 100 * (used_after[1] - used[1]) / seconds,
        "statements": (after[0] - before[0]) / seconds,
        "transactions": (after[1] - before[1]) / seconds,
    }
