"""W11: what more worker processes bring, and who is busy: the workers or PostgreSQL."""

from __future__ import annotations

import time
from typing import NamedTuple

from benchmarks.contenders import Contender
from benchmarks.figures import Figure
from benchmarks.usage import cpu_seconds

__all__ = ["FIGURES", "ONLY", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "workflows of 5 no-op steps as in W1, by one to four worker processes and by two nodes"
SIZE, QUICK = 4000, 800
ONLY = ("continuum",)
STEPS = 5


class Layout(NamedTuple):
    """How many nodes, each with how many processes."""

    key: str
    title: str
    nodes: int
    processes: int


LAYOUTS = (
    Layout("one", "--processes 1", 1, 1),
    Layout("two", "--processes 2", 1, 2),
    Layout("four", "--processes 4", 1, 4),
    Layout("nodes", "two nodes", 2, 1),
)
FIGURES = tuple(
    figure
    for layout in LAYOUTS
    for figure in (
        Figure(f"{layout.key}_steps", f"steps/s, {layout.title}", "higher"),
        Figure(f"{layout.key}_worker", f"ms of the workers' CPU for 1,000 steps, {layout.title}", "lower"),
        Figure(f"{layout.key}_server", f"ms of PostgreSQL's CPU for 1,000 steps, {layout.title}", "lower"),
        Figure(f"{layout.key}_busy", f"processors in use, by workers and PostgreSQL, {layout.title}"),
    )
)


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    figures: dict[str, float] = {}
    for layout in LAYOUTS:
        contender.processes = layout.processes
        contender.start_workers(layout.nodes)
        figures |= {f"{layout.key}_{name}": value for name, value in _measured(contender, size).items()}
        contender.workers.stop()
    return figures


def _measured(contender: Contender, size: int) -> dict[str, float]:
    workers, server = contender.workers.pids, [contender.observer.server_pid()]
    runs, release = contender.hold("five_steps", range(size))
    used = cpu_seconds(workers), cpu_seconds(server)
    started = time.perf_counter()
    release()
    ended = contender.wait_finished(runs)
    by_workers, by_server = cpu_seconds(workers) - used[0], cpu_seconds(server) - used[1]
    contender.check(runs, [number + STEPS for number in range(size)])
    thousands = size * STEPS / 1000
    return {
        "steps": size * STEPS / (ended - started),
        "worker": 1000 * by_workers / thousands,
        "server": 1000 * by_server / thousands,
        "busy": (by_workers + by_server) / (ended - started),
    }
