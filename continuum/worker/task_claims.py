"""Claiming tasks: taking activities that runs have handed over, and giving back what cannot be carried out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from continuum.worker.arrays import plain_array, text_array
from continuum.worker.sql import load

__all__ = ["Head", "Task", "claim", "due", "give_back", "owned_by", "release_of_dead", "release_stranded"]

RELEASE_BATCH = 500


@dataclass(slots=True, eq=False)
class Task:
    """An activity this worker has claimed. ``args`` and ``details``, of the last heartbeat, are JSON text.

    Attributes:
        options: the options of the call; decoded when it is carried out.
        attempt: number of the attempt to make, from 1.
        recoveries: how many workers have died while they were at this attempt.
        token: the fencing token of the claim.
        made: the attempt, as the executor has it.
    """

    run_id: UUID
    command_id: str
    activity: str
    queue: str
    args: str
    options_json: str
    attempt: int
    recoveries: int
    token: int
    details: str | None
    options: Any = None
    made: Any = None

    @property
    def place(self) -> tuple[UUID, str]:
        """Its key in the table."""
        return self.run_id, self.command_id


class Head(NamedTuple):
    """What is ready of one priority in one queue: something now, and the next in so many microseconds, or never."""

    queue: str
    priority: int
    is_due: bool
    next_us: int | None


async def due(connection: psycopg.AsyncConnection[Any], queues: Sequence[str] | None) -> list[Head]:
    """Return what is ready in these queues, or in all there are."""
    parameters = {"queues": None if queues is None else text_array(queues)}
    cursor = await connection.execute(load("tasks_due"), parameters, prepare=True)
    return [Head(*row) for row in await cursor.fetchall()]


async def claim(
    connection: psycopg.AsyncConnection[Any], worker_id: int, heads: Sequence[Head], activities: str, limit: int
) -> list[Task]:
    """Claim up to ``limit`` tasks that are due, in the order of ``heads``. ``activities`` is an array's literal."""
    parameters = {
        "worker": worker_id,
        "queues": text_array([head.queue for head in heads]),
        "priorities": plain_array([head.priority for head in heads]),
        "activities": activities,
        "limit": limit,
    }
    cursor = await connection.execute(load("tasks_claim"), parameters, prepare=True)
    return [Task(*row) for row in await cursor.fetchall()]


async def owned_by(connection: psycopg.AsyncConnection[Any], worker_id: int) -> dict[tuple[UUID, str], int]:
    """Return the tasks a worker is at, by key, with their tokens."""
    cursor = await connection.execute(load("tasks_of_worker"), {"worker": worker_id}, prepare=True)
    return {(run_id, command_id): token for run_id, command_id, token in await cursor.fetchall()}


async def give_back(
    connection: psycopg.AsyncConnection[Any], worker_id: int, tokens: Iterable[int] | None = None
) -> int:
    """Give back every task of a worker, or those with these tokens; returns how many there were."""
    parameters = {"worker": worker_id, "tokens": None if tokens is None else plain_array(tokens)}
    cursor = await connection.execute(load("tasks_give_back"), parameters)
    return cursor.rowcount


async def release_stranded(connection: psycopg.AsyncConnection[Any]) -> int:
    """Free the tasks whose worker is dead or unknown, and return how many there were."""
    cursor = await connection.execute(load("tasks_owners_gone"))
    owners = [row[0] for row in await cursor.fetchall()]
    return await release_of_dead(connection, owners) if owners else 0


async def release_of_dead(connection: psycopg.AsyncConnection[Any], owners: list[int]) -> int:
    """Free the tasks these workers, which are dead, were at, and return how many there were."""
    released = 0
    while True:
        cursor = await connection.execute(load("tasks_release_dead"), {"owners": owners, "batch": RELEASE_BATCH})
        released += cursor.rowcount
        if cursor.rowcount == 0:
            return released
