"""What a worker cannot begin soon it lets others do.

Once a second, one look at the two lines of waiting attempts; nothing is counted or timed when an attempt joins one.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from continuum.worker.activities import ActivityExecutor, Attempt
from continuum.worker.links import Link
from continuum.worker.sql import load

if TYPE_CHECKING:
    from continuum.worker.engine import Engine

__all__ = ["Saturation"]

# Attempts that have waited for longer than this may go to other workers, in seconds.
PATIENCE = 1.0
# Handed over at once, for each thread, and altogether: what nobody takes is as well off in this worker's own line.
MOST_PER_THREAD = 4
MOST_OUT = 1_000


class Saturation:
    """Hands over attempts that wait, while there are other workers to take them.

    Args:
        engine: whose runs ask for them.
        executor: where they wait.
        link: a connection.
        worker_id: the worker.
    """

    def __init__(self, engine: Engine, executor: ActivityExecutor, link: Link, worker_id: int) -> None:
        self._engine = engine
        self._executor = executor
        self._link = link
        self._worker_id = worker_id
        self._marks: list[Attempt] = []
        self._out: list[tuple[UUID, str]] = []

    async def run(self) -> None:
        """Keep at it until cancelled."""
        while True:
            await asyncio.sleep(PATIENCE * random.uniform(1.0, 1.2))
            # Who was last in line at the last look and still waits has seen everybody before it wait as long.
            late = [attempt for attempt in self._marks if not (attempt.running or attempt.settled)]
            self._marks = self._executor.newest()
            if late and not self._engine.draining and await self._link.use(self._others):
                for attempt in late:
                    self._hand_over(attempt)

    def _hand_over(self, until: Attempt) -> None:
        live_runs = self._engine.live
        self._out = [
            (run_id, command_id)
            for run_id, command_id in self._out
            if run_id in live_runs and command_id in live_runs[run_id].queued
        ]
        most = min(MOST_PER_THREAD * self._executor.threads, MOST_OUT - len(self._out))
        if most <= 0:
            return
        for attempt in self._executor.withdraw(until, most, _is_local):
            live, command = attempt.key  # type: ignore[misc]
            live.attempts.pop(command.id, None)
            if not live.gone and not live.leaving:
                self._out.append((live.id, command.id))
                self._engine.queued.hand_over(live, command)

    async def _others(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        cursor = await connection.execute(load("workers_serving_default"), {"worker": self._worker_id}, prepare=True)
        row = await cursor.fetchone()
        return bool(row and row[0])


def _is_local(attempt: Attempt) -> bool:
    """Tell whether it is this worker's own run that asks for it. Called with the line locked."""
    return type(attempt.key) is tuple
