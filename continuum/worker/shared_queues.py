"""Queues with limits that all workers share: whoever claims from one holds its row meanwhile, and counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from continuum.worker.connections import transaction
from continuum.worker.queues import Queues, RateLog
from continuum.worker.sql import load

__all__ = ["Limits", "note_start", "take"]

# When a start has not been noted yet, it will be in a moment, in seconds.
_SOON = 0.05


@dataclass(slots=True)
class Limits:
    """What the limits of a queue allow at this moment.

    Attributes:
        now_us: the moment, by the server's clock.
        room: how many tasks may be claimed.
        log: the starts its rate limit counts, or None.
    """

    now_us: int
    room: int
    log: RateLog | None

    async def note_claim(self, connection: psycopg.AsyncConnection[Any], queue: str, number: int, mark: str) -> None:
        """Count tasks that have just been claimed, in the transaction that claimed them."""
        assert self.log is not None
        self.log.claimed(self.now_us, number, mark)
        await _keep(connection, queue, self.log)

    def again(self, claimed: int) -> float:
        """Return in how many seconds there may be more to claim, of which nobody will tell."""
        if self.log is None or self.log.allowed(self.now_us) > 0:
            # Full: an end makes room, and is told. Or there was nothing more, or no place for it in this worker.
            return float("inf") if claimed < self.room or claimed == 0 else 0.0
        free_us = self.log.free_us(self.now_us)
        return _SOON if free_us is None else max(0.001, (free_us - self.now_us) / 1e6)


async def take(connection: psycopg.AsyncConnection[Any], queue: str, queues: Queues) -> Limits | None:
    """Take a queue for the transaction that is open on ``connection``, and tell what its limits allow.

    Returns:
        None when another worker has it.
    """
    parameters = {"queue": queue}
    cursor = await connection.execute(load("queue_lock"), parameters, prepare=True)
    row = await cursor.fetchone()
    if row is None:
        await connection.execute(load("queue_known"), parameters, prepare=True)
        return None
    room = 1_000_000
    rate, most = queues.rate(queue), queues.cluster_concurrency(queue)
    log = None if rate is None else RateLog(row[0], rate)
    if log is not None:
        room = min(room, log.allowed(row[1]))
    if most is not None and room > 0:
        cursor = await connection.execute(load("queue_running"), parameters, prepare=True)
        running = await cursor.fetchone()
        room = min(room, max(0, most - (running[0] if running else 0)))
    return Limits(row[1], room, log)


async def note_start(
    connection: psycopg.AsyncConnection[Any], queue: str, queues: Queues, mark: str, started_us: int
) -> None:
    """Note when the tasks of a claim have started."""
    rate = queues.rate(queue)
    assert rate is not None
    async with transaction(connection):
        cursor = await connection.execute(load("queue_wait"), {"queue": queue}, prepare=True)
        row = await cursor.fetchone()
        if row is not None:
            log = RateLog(row[0], rate)
            log.noted(mark, started_us)
            await _keep(connection, queue, log)


async def _keep(connection: psycopg.AsyncConnection[Any], queue: str, log: RateLog) -> None:
    await connection.execute(load("queue_recent"), {"queue": queue, "recent": str(log)}, prepare=True)
