"""W1d: the same as W1 on a server that gathers commits."""

from benchmarks.workloads.w1_throughput import FIGURES, QUICK, SIZE, measure

__all__ = ["COMMIT_DELAY", "FIGURES", "QUICK", "SIZE", "TITLE", "measure"]

TITLE = "workflows as in W1, with commit_delay=1000 and commit_siblings=0"
COMMIT_DELAY = 1000
