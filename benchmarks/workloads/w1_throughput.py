"""W1: many short workflows, queued up front."""

from __future__ import annotations

import time

from benchmarks.contenders import Contender
from benchmarks.contenders.base import WARM_UP
from benchmarks.figures import Figure

TITLE = "workflows of 5 no-op steps, queued up front, the clock starts when the warm workers are let go"
FIGURES = (
    Figure("steps", "steps/s", "higher"),
    Figure("commits", "commits that wrote, a workflow"),
    Figure("transactions", "transactions, a workflow"),
    Figure("wal", "bytes of WAL, a workflow"),
    Figure("events", "journaled records, a workflow"),
)
SIZE, QUICK = 2000, 400
STEPS = 5


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    observer = contender.observer
    contender.start_workers()
    runs, release = contender.hold("five_steps", range(size))
    records = observer.value(contender.records_query)
    position = observer.lsn()
    started = time.perf_counter()
    release()
    ended = contender.wait_finished(runs)
    written = observer.written(position, observer.lsn())
    contender.check(runs, [number + STEPS for number in range(size)])
    records = observer.value(contender.records_query) - records
    contender.workers.stop()
    return {
        "steps": size * STEPS / (ended - started),
        "commits": written.commits / size,
        # Of the whole session: what starting, polling and stopping costs is in there.
        "transactions": observer.transactions() / (size + WARM_UP),
        "wal": written.wal_bytes / size,
        "events": records / size,
    }
