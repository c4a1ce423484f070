"""W5: one long run, killed in its last step and resumed by another worker."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.figures import Figure

TITLE = "sequential steps in one run; kill -9 in the last; resumed by another worker"
FIGURES = (
    Figure("steps", "steps/s", "higher"),
    Figure("first", "steps/s, the first fifth"),
    Figure("last", "steps/s, the last fifth"),
    Figure("replay", "s from being taken over to completion", "lower"),
    Figure("replayed", "replayed events/s", "higher"),
    Figure("resume", "s from the kill to completion", "lower"),
)
SIZE, QUICK = 5000, 1000
FINE = 0.001


def measure(contender: Contender, size: int) -> dict[str, float]:
    """Return the figures of one round."""
    observer = contender.observer
    contender.processes = 1
    contender.start_workers()
    run = contender.start("many_steps", size)

    # Counted by the server: bringing them all over each time would cost the later steps more than the first ones.
    recorded = f"SELECT count(*) FROM ({contender.step_times_query}) AS step"

    def at_the_gate() -> bool:
        return observer.value(recorded, (run,)) >= size

    observer.wait(at_the_gate, f"{size} steps are recorded", pause=0.1)
    times = [row[0] for row in observer.rows(contender.step_times_query, (run,))]
    part = size // 5
    figures = {
        "steps": _rate(times),
        "first": _rate(times[:part]),
        "last": _rate(times[-part:]),
    }
    if contender.resumes_within is not None:
        figures |= _resumed(contender, run, size)
    else:
        Path(contender.gate).touch()
    contender.wait_finished([run])
    contender.check([run], [size])
    return figures


def _resumed(contender: Contender, run: str, size: int) -> dict[str, float]:
    observer = contender.observer
    claim = observer.value(contender.claim_query, (run,))
    contender.workers.kill()
    killed = time.perf_counter()
    Path(contender.gate).touch()
    contender.spawn()

    def taken_over() -> bool:
        return observer.value(contender.claim_query, (run,)) not in (None, claim)

    timeout = contender.resumes_within or 0.0
    taken = observer.wait(taken_over, "another worker has taken the run", timeout=timeout, pause=FINE)
    ended = contender.wait_finished([run], pause=FINE)
    return {"replay": ended - taken, "replayed": size / (ended - taken), "resume": ended - killed}


def _rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])
