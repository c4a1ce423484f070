"""Mail that came too late for a run which was continued: it is brought to the tip of the chain.

Whoever writes to a run looks for the tip of its chain, without a lock. A run that is continued between that look and
the writer's commit is left with a message which nobody would read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker.arrays import plain_array
from continuum.worker.sql import load

__all__ = ["find_strays", "forward"]

# Runs whose mail is forwarded in one round; what is left comes with the next.
MOST_RUNS = 500


async def find_strays(connection: psycopg.AsyncConnection[Any]) -> list[UUID]:
    """Return continued runs with unread messages."""
    cursor = await connection.execute(load("mail_strays"), {"limit": MOST_RUNS}, prepare=True)
    return [row[0] for row in await cursor.fetchall()]


async def forward(connection: psycopg.AsyncConnection[Any], run_ids: Iterable[UUID]) -> dict[UUID, int | None]:
    """Bring the unread messages of these runs to the tips of their chains.

    Args:
        connection: an autocommit connection.
        run_ids: continued runs; others are left alone.

    Returns:
        dict: runs with a new message, and the worker that owns each, or None.
    """
    return await _forward(connection, list(run_ids))


async def _forward(connection: psycopg.AsyncConnection[Any], run_ids: list[UUID]) -> dict[UUID, int | None]:
    if not run_ids:
        return {}
    parameters = {"run_ids": plain_array([run_id.hex for run_id in run_ids])}
    news: dict[UUID, int | None] = {}
    try:
        cursor = await connection.execute(load("mail_forward"), parameters, prepare=True)
    except psycopg.errors.LockNotAvailable:
        # Somebody's open transaction sends one of these deliveries as well. That one waits for it, the others do not.
        if len(run_ids) > 1:
            middle = len(run_ids) // 2
            return {
                **await _forward(connection, run_ids[:middle]),
                **await _forward(connection, run_ids[middle:]),
            }
    else:
        news.update(await cursor.fetchall())
    cursor = await connection.execute(load("mail_forward_children"), parameters, prepare=True)
    news.update(await cursor.fetchall())
    return news
