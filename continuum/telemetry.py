"""Django signals for what happens to runs, activities, claims, leases and workers: for metrics, alerts, traces.

    from django.dispatch import receiver
    from continuum.telemetry import run_ended

    @receiver(run_ended)
    def count(sender, run_id, workflow, state, seconds, **more): ...

They are sent in worker processes, once what they tell of is committed, by a thread of their own: a receiver that is
slow or raises holds up nothing but the next receiver. What is under way when a process dies may not be told; what must
not be missed belongs in a workflow. Each is sent with the keyword arguments that stand beside it.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from typing import Any

from django.db import close_old_connections
from django.dispatch import Signal

__all__ = [
    "SIGNALS",
    "activity_ended",
    "emit",
    "flush",
    "lease_lost",
    "run_claimed",
    "run_ended",
    "run_parked",
    "worker_died",
    "worker_started",
    "worker_stopped",
]

logger = logging.getLogger("continuum.telemetry")

#: A worker has taken a run. ``run_id, workflow, namespace, worker_id, is_new``
run_claimed = Signal()
#: A run has ended. ``run_id, workflow, namespace, state, error, seconds``; ``error`` is the type of its error or
#: ``""``, ``seconds`` the time since it was first claimed.
run_ended = Signal()
#: A run is parked for want of matching code. ``run_id, workflow, namespace, error``
run_parked = Signal()
#: An attempt at an activity has ended and is recorded. ``run_id, workflow, namespace, activity, command_id, attempt,
#: outcome, error, seconds``; ``outcome`` is ``completed``, ``retried`` or ``failed``.
activity_ended = Signal()
#: A worker has lost its lease and drops its runs. ``worker_id, name, reason``
lease_lost = Signal()
#: A worker has begun. ``worker_id, name``
worker_started = Signal()
#: A worker has given everything back and ends. ``worker_id, name, runs_ended``
worker_stopped = Signal()
#: This worker has found another one dead. ``worker_id``
worker_died = Signal()

#: Every signal by name.
SIGNALS = {
    "run_claimed": run_claimed,
    "run_ended": run_ended,
    "run_parked": run_parked,
    "activity_ended": activity_ended,
    "lease_lost": lease_lost,
    "worker_started": worker_started,
    "worker_stopped": worker_stopped,
    "worker_died": worker_died,
}

# What waits for receivers, at most; beyond it the oldest is dropped, and that is said in the log.
MOST_WAITING = 10_000
EXIT_SECONDS = 2.0


class _Teller:
    """The thread that sends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Signal, Any, dict[str, Any]]] = deque()
        self._busy = False
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def add(self, signal: Signal, sender: Any, facts: dict[str, Any]) -> None:
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                if self._dropped == 0:
                    logger.warning("receivers cannot keep up: what is told of runs and workers is dropped in part")
                self._dropped += 1
            self._waiting.append((signal, sender, facts))
            if self._thread is None or not self._thread.is_alive():  # the first, or after a fork
                self._thread = threading.Thread(target=self._run, name="continuum telemetry", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._busy), seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                if not self._waiting:
                    if self._dropped:
                        logger.warning("%d signals were dropped, as receivers could not keep up", self._dropped)
                        self._dropped = 0
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._waiting)
                signal, sender, facts = self._waiting.popleft()
                self._busy = True
            try:
                for receiver, answer in signal.send_robust(sender, **facts):
                    if isinstance(answer, Exception):
                        logger.error("the receiver %r failed", receiver, exc_info=answer)
                close_old_connections()
            except Exception:
                logger.exception("a signal could not be sent")


_teller = _Teller()


def emit(signal: Signal, sender: Any = None, **facts: Any) -> None:
    """Have a signal sent soon; costs next to nothing while nobody listens."""
    if signal.receivers:
        _teller.add(signal, sender, facts)


def flush(seconds: float = EXIT_SECONDS) -> bool:
    """Wait until all that was emitted has been sent; returns whether it was, within so many seconds."""
    return _teller.flush(seconds)


atexit.register(flush)
