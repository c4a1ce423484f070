"""What the workloads ask of a contender.

Every contender has the same workflows, each taking one number:

============  ========================================================  ======================
five_steps    five no-op steps, one after the other                     the number plus 5
one_step      one no-op step                                            the number plus 1
no_step       nothing                                                   the number plus 1
fan_children  starts as many ``no_step`` and joins them                 the sum of 1 to number
fan_steps     as many no-op steps, side by side if the engine can       the sum of 1 to number
many_steps    as many steps as the number says, then one at the gate    the number
wait_one      waits for a signal                                        the signal's value
nap           sleeps a second, then one step that looks at the clock    seconds it was late
moments       as many steps of 5 ms, one after the other                the number
============  ========================================================  ======================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from benchmarks.processes import Workers
from benchmarks.server import Address, Observer

__all__ = ["MOMENT", "WARM_UP", "Contender"]

WARM_UP = 50
# Seconds that a step of ``moments`` takes.
MOMENT = 0.005


class Contender(ABC):
    """An engine in one configuration, on one database.

    Args:
        address: the database, a copy of the contender's template.
        configuration: one of ``configurations``.
        workload: which workload it is for; a peer is tuned for each.
        processes: how many worker processes the engine measured here is given; a peer has its own best number.
        gate: path of a file; the last step of ``many_steps`` waits until it is there.
    """

    name: ClassVar[str]
    configurations: ClassVar[dict[str, str]]
    """What each configuration is, for the report."""

    # Queries that tell, cheaply, how far things are. %s stands for a run where there is one.
    unfinished_query: ClassVar[str]
    waiting_query: ClassVar[str]
    records_query: ClassVar[str]
    step_times_query: ClassVar[str]
    claim_query: ClassVar[str]
    moments_query: ClassVar[str]
    """Returns the run, as text, and the time, in seconds, of each step of some runs of ``moments``."""

    resumes_within: float | None = 60.0
    """Seconds after which a killed worker's run has surely been taken up by the next; None if that takes too long."""
    has_bulk_start = True

    def __init__(self, address: Address, configuration: str, workload: str, processes: int | None, gate: str) -> None:
        self.address = address
        self.configuration = configuration
        self.tuned = configuration == "tuned"
        self.workload = workload
        self.processes = processes
        self.gate = gate
        self.observer = Observer(address)
        self.workers = Workers(self.environment())
        self.connect()

    @classmethod
    @abstractmethod
    def install(cls, address: Address) -> None:
        """Bring the engine's schema into an empty database."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return what the workers need in their environment."""

    @abstractmethod
    def connect(self) -> None:
        """Set up the client side."""

    @abstractmethod
    def spawn(self) -> None:
        """Start the worker processes of one more node."""

    def bring_back(self) -> None:  # noqa: B027  (most have nothing to do here)
        """A worker was killed: start it again if this is how the engine has its runs go on, and nothing else does."""

    @abstractmethod
    def start(self, flow: str, number: int) -> str:
        """Start one run; return its id."""

    @abstractmethod
    def start_many(self, flow: str, numbers: Sequence[int]) -> list[str]:
        """Start many runs as fast as the engine can; return their ids."""

    @abstractmethod
    def hold(self, flow: str, numbers: Sequence[int]) -> tuple[list[str], Callable[[], None]]:
        """Start many runs in a transaction; return their ids, and what commits it and so lets the workers go."""

    @abstractmethod
    def result(self, run: str, timeout: float = 60.0) -> Any:
        """Wait for a run's result."""

    @abstractmethod
    def results(self, runs: Sequence[str]) -> list[Any]:
        """Return the results of completed runs, in order; what did not complete gives its state's name."""

    @abstractmethod
    def signal(self, run: str, number: int) -> None:
        """Send a run the signal it waits for."""

    @abstractmethod
    def fill(self, size: int) -> None:
        """Fill the tables with runs that have ended, as after months of work."""

    @abstractmethod
    def search(self, kind: str) -> int | None:
        """Look for the newest 50 runs of some kind (see W9) among those; return how many were found.

        None: the engine cannot look for these.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Close what ``connect`` has opened."""

    # What follows is the same for all.

    def wait_up(self, nodes: int) -> None:
        """Wait until all workers are up, where the engine can tell; ``start_workers`` has them work in any case."""
        self.workers.check()

    def start_workers(self, nodes: int = 1) -> None:
        """Start the workers and have them do some work of each kind that is measured, so that nothing is cold."""
        for _ in range(nodes):
            self.spawn()
        self.wait_up(nodes)
        self.wait_finished(self.start_many("five_steps", range(WARM_UP)), timeout=60)
        self.result(self.start("one_step", 0))

    def finished(self) -> bool:
        """Tell whether no run is left to be done."""
        self.workers.check()
        return self.observer.value(self.unfinished_query) == 0

    def wait_finished(self, runs: Iterable[str], *, timeout: float = 120.0, pause: float = 0.01) -> float:
        """Wait until all runs have ended; return when that was seen, by ``time.perf_counter()``."""
        return self.observer.wait(self.finished, "every run has ended", timeout=timeout, pause=pause)

    def wait_waiting(self, count: int) -> None:
        """Wait until ``count`` runs wait for their signal."""
        self.observer.wait(lambda: self.observer.value(self.waiting_query) >= count, f"{count} runs wait", timeout=60)

    def check(self, runs: Sequence[str], expected: Sequence[Any]) -> None:
        """Raise AssertionError unless every run completed with the result expected."""
        wrong = [(run, got) for run, got, want in zip(runs, self.results(runs), expected, strict=True) if got != want]
        if wrong:
            raise AssertionError(f"{len(wrong)} of {len(runs)} runs have not the right result, e.g. {wrong[0]}")

    def close(self) -> None:
        """Stop everything; nobody is interested in how the workers end."""
        self.workers.kill()
        self.disconnect()
        self.observer.close()
