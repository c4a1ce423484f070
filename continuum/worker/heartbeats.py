"""Makes heartbeats durable: the newest details of all attempts that have some, in one statement twice a second."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker.arrays import plain_array, text_array
from continuum.worker.attempt import Attempt
from continuum.worker.links import Link
from continuum.worker.live import LiveRun
from continuum.worker.sql import load

__all__ = ["Heartbeats"]

# Seconds between two writes. What is durable is never older than this and the time a write takes.
PAUSE = 0.5
# Attempts told of in one statement.
MOST_WRITTEN = 1_000


class Heartbeats:
    """Records heartbeats of the attempts of one worker.

    An attempt of the run's owner is known by its key, ``(live run, command)``; one from a queue by its ``task_token``.

    Args:
        loop: the worker's loop.
        link: the connection to write on.
        worker_id: whose lease guards the writes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link, worker_id: int) -> None:
        self._loop = loop
        self._link = link
        self._worker_id = worker_id
        self._noted: deque[Attempt] = deque()
        self._wake = asyncio.Event()
        self._waking = False

    def note(self, attempt: Attempt) -> None:
        """An attempt has a new heartbeat. Called from any thread, once until it is recorded."""
        self._noted.append(attempt)
        if not self._waking:
            self._waking = True
            # RuntimeError: the loop is closed, nobody records any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Record until cancelled."""
        while True:
            await self._wake.wait()
            await self.flush()
            await asyncio.sleep(PAUSE)

    async def flush(self) -> None:
        """Record what has been noted so far."""
        self._wake.clear()
        self._waking = False
        # No more than that: attempts that beat all the time are noted again meanwhile.
        left = len(self._noted)
        while left > 0:
            most = min(left, MOST_WRITTEN)
            left -= most
            if not (batch := self._take(most)):
                continue
            await self._link.use(lambda connection, b=batch: self._write(connection, b))

    def _take(self, most: int) -> list[tuple[Attempt, str]]:
        taken: dict[tuple[UUID, str], tuple[Attempt, str]] = {}
        for _ in range(min(most, len(self._noted))):
            attempt = self._noted.popleft()
            # Before its details are read: whoever beats from now on notes the attempt again.
            attempt.noted = False
            details = attempt.details_json
            known = taken.get((attempt.run_id, attempt.command_id))
            if details is None or (known is not None and known[0].attempt > attempt.attempt):
                continue
            if attempt.task_token is None:
                live, command = _subject(attempt)
                if live.gone or live.leaving or command.answered:
                    continue
                live.beats[command.id] = details
            taken[attempt.run_id, attempt.command_id] = attempt, details
        return list(taken.values())

    async def _write(self, connection: psycopg.AsyncConnection[Any], batch: list[tuple[Attempt, str]]) -> None:
        attempts = [attempt for attempt, _ in batch]
        parameters = {
            "worker": self._worker_id,
            "run_ids": plain_array([attempt.run_id.hex for attempt in attempts]),
            "command_ids": text_array([attempt.command_id for attempt in attempts]),
            "activities": text_array([attempt.definition.name for attempt in attempts]),
            "attempts": plain_array([min(attempt.attempt, 32767) for attempt in attempts]),
            "tokens": plain_array([_token(attempt) for attempt in attempts]),
            "is_task": plain_array([attempt.task_token is not None for attempt in attempts]),
            "details": text_array([details for _, details in batch]),
        }
        await connection.execute(load("heartbeats"), parameters, prepare=True)
        over = [attempt for attempt in attempts if attempt.task_token is None and _is_over(attempt)]
        if over:
            parameters = {
                "run_ids": plain_array([attempt.run_id.hex for attempt in over]),
                "command_ids": text_array([attempt.command_id for attempt in over]),
                "tokens": plain_array([_token(attempt) for attempt in over]),
            }
            await connection.execute(load("heartbeats_forget"), parameters)


def _subject(attempt: Attempt) -> tuple[LiveRun, Any]:
    return attempt.key  # type: ignore[return-value]


def _token(attempt: Attempt) -> int:
    return attempt.task_token if attempt.task_token is not None else _subject(attempt)[0].token


def _is_over(attempt: Attempt) -> bool:
    """Tell whether the row of this attempt's command has been sent for deletion since it was taken along here."""
    live, command = _subject(attempt)
    return command.id not in live.beats
