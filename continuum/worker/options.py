"""What the command line says about a worker."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NodeOptions"]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How one worker process is to work.

    Attributes:
        database: alias of the database that holds the runs.
        queues: the queues it serves; None means all.
        concurrency: how many runs may make progress at once.
        threads: how many ``def`` activities may run at once.
        burst: stop when nothing is left to do.
        drain_timeout: seconds current activities get to end once the worker is told to stop.
        name: what people call it; made of host and process id when empty.
        probe: host (None for all) and port where it answers an orchestrator's probes, or None.
        asked_by: descriptor of a socket on which its parent asks how it is, or None.
        stays_for: descriptor that can be read at an end once all others of a burst have ended, which this worker waits
            for before it may end itself; or None.
    """

    database: str = "default"
    queues: tuple[str, ...] | None = None
    concurrency: int = 200
    threads: int = 16
    burst: bool = False
    drain_timeout: float = 10.0
    name: str = ""
    probe: tuple[str | None, int] | None = None
    asked_by: int | None = None
    stays_for: int | None = None
