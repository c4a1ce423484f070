"""What came of tasks, on its way to the runs that wait for it.

While one batch is being written the next fills up, as with the journal. An outcome is offered until the database has
answered; what has become of the task meanwhile is for the statement to see.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from continuum.core.failures import describe_exception
from continuum.worker.activities import AttemptResult
from continuum.worker.arrays import plain_array, text_array
from continuum.worker.links import Link
from continuum.worker.retries import next_due_us
from continuum.worker.sql import load
from continuum.worker.task_claims import Task

__all__ = ["Outcome", "Outcomes", "failed", "outcome_of"]

logger = logging.getLogger("continuum.worker")

MOST_OUTCOMES = 1_000
MOST_BYTES = 8 * 1024 * 1024


class Outcome(NamedTuple):
    """What came of an attempt: the message for the run (JSON text), and when the next attempt is due, or None."""

    task: Task
    payload: str
    next_us: int | None = None


def outcome_of(task: Task, result: AttemptResult) -> Outcome:
    """Return what the executor's report on an attempt means for its task."""
    started_us, ended_us = result.started_us, result.ended_us
    if result.ok:
        value = result.value_json or "null"
        payload = f'{{"attempt":{task.attempt},"started":{started_us},"ended":{ended_us},"result":{value}}}'
        return Outcome(task, payload)
    error = result.error or {}
    next_us = next_due_us(task.options.retry, task.attempt, task.options.issued_us, error, ended_us)
    return failed(task, error, started_us, ended_us, next_us)


def failed(task: Task, error: dict[str, Any], started_us: int, ended_us: int, next_us: int | None = None) -> Outcome:
    """Return the outcome of an attempt that failed."""
    payload = {
        "attempt": task.attempt,
        "started": started_us,
        "ended": ended_us,
        "error": {key: error.get(key) for key in ("type", "message", "traceback", "details")},
        "next": next_us,
    }
    return Outcome(task, json.dumps(payload), next_us)


class Outcomes:
    """Writes outcomes in batches.

    Args:
        connect: opens an autocommit connection.
        worker_id: whose tasks they are of.
        on_written: called with the outcomes of a batch once they are durable, and, for the tasks of those that
            counted, the worker that owns the run, or None.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        *,
        on_written: Callable[[list[Outcome], dict[tuple[UUID, str], int | None]], None],
    ) -> None:
        self._link = Link(connect, "outcomes of activities")
        self._worker_id = worker_id
        self._on_written = on_written
        self._waiting: deque[Outcome] = deque()
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.places: set[tuple[UUID, str]] = set()

    @property
    def busy(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self.places)

    def add(self, outcome: Outcome) -> None:
        """Have an outcome written soon."""
        self._waiting.append(outcome)
        self.places.add(outcome.task.place)
        self._idle.clear()
        self._news.set()

    async def flush(self) -> None:
        """Wait until everything handed over so far is written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._write(self._take())
                self._idle.set()
        finally:
            await self._link.close()

    def _take(self) -> list[Outcome]:
        batch: list[Outcome] = []
        size = 0
        while self._waiting and len(batch) < MOST_OUTCOMES and size < MOST_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].payload)
        # The order in which everybody locks the rows of tasks.
        batch.sort(key=lambda outcome: (outcome.task.run_id.hex, outcome.task.command_id))
        return batch

    async def _write(self, batch: list[Outcome]) -> None:
        try:
            rows = await self._link.use(lambda connection: self._execute(connection, batch))
        except (psycopg.Error, ValueError) as error:  # ValueError: text that has no encoding
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])
            else:
                await self._refused(batch[0], error)
            return
        self.places.difference_update([outcome.task.place for outcome in batch])
        self._on_written(batch, {(run_id, command_id): owner for run_id, command_id, owner in rows})

    async def _refused(self, outcome: Outcome, error: Exception) -> None:
        task = outcome.task
        logger.error("run %s: PostgreSQL refused what came of %s: %s", task.run_id, task.activity, error)
        described = describe_exception(error)
        described["message"] = f"PostgreSQL refused to record what came of this attempt: {described['message']}"
        started_us = 0 if task.made is None else task.made.started_us
        instead = failed(task, {**described, "type": "JournalError"}, started_us, started_us)
        if outcome.payload == instead.payload:
            self.places.discard(task.place)  # even that is refused: the end of the lease frees the task
            return
        await self._write([instead])

    async def _execute(
        self, connection: psycopg.AsyncConnection[Any], batch: list[Outcome]
    ) -> list[tuple[UUID, str, int | None]]:
        parameters = {
            "worker": self._worker_id,
            "run_ids": plain_array([outcome.task.run_id.hex for outcome in batch]),
            "commands": text_array([outcome.task.command_id for outcome in batch]),
            "tokens": plain_array([outcome.task.token for outcome in batch]),
            "payloads": text_array([outcome.payload for outcome in batch]),
            "next": plain_array([outcome.next_us for outcome in batch]),
            # Its last heartbeat may not have been recorded yet.
            "details": text_array([getattr(outcome.task.made, "details_json", None) for outcome in batch]),
        }
        cursor = await connection.execute(load("task_outcomes"), parameters, prepare=True)
        return await cursor.fetchall()
