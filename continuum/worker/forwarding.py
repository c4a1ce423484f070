"""Mail that came too late for a run which was continued: it is brought to the tip of the chain.

Whoever writes to a run looks for the tip of its chain, without a lock. A run that is continued between that look and
the writer's commit is left with a message which nobody would read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker.arrays import plain_array
from continuum.worker.sql import load

__all__ = ["Chains", "find_strays", "forward"]

# Runs whose mail is forwarded in one round; what is left comes with the next.
MOST_RUNS = 500
# Seconds for which a successor's mail is read together with that of the runs before it, and how many of these.
YOUNG = 10.0
MOST_BEFORE = 5


class Chains:
    """What a worker remembers of runs that were continued just now.

    Somebody's first message may have landed in the inbox of a run that had just been continued, and the second, sent
    after the first was committed, in that of the successor. They are read in order if both inboxes are read at once.
    """

    def __init__(self) -> None:
        self._continued: dict[UUID, float] = {}
        self._before: dict[UUID, set[UUID]] = {}
        self._since: dict[UUID, float] = {}

    def continued(self, run_ids: Iterable[UUID]) -> None:
        """These runs have just been continued here."""
        self._continued.update(dict.fromkeys(run_ids, time.monotonic()))

    async def begun(self, connection: psycopg.AsyncConnection[Any], run_ids: list[UUID]) -> None:
        """These successors are this worker's from now on."""
        cursor = await connection.execute(
            load("runs_before"),
            {"run_ids": plain_array([run_id.hex for run_id in run_ids]), "steps": MOST_BEFORE},
            prepare=True,
        )
        self._since.update(dict.fromkeys(run_ids, time.monotonic()))
        for run_id, before in await cursor.fetchall():
            self._before.setdefault(run_id, set()).add(before)

    def known(self, run_ids: Iterable[UUID]) -> set[UUID]:
        """Return those of some runs that were continued here just now."""
        return self._continued.keys() & set(run_ids)

    def before(self, run_ids: Iterable[UUID] | None = None) -> set[UUID]:
        """Return the runs whose mail goes before that of these; of all, if none are given."""
        if not self._before:
            return set()
        young = self._before if run_ids is None else self._before.keys() & set(run_ids)
        return {before for run_id in young for before in self._before[run_id]}

    def after(self, run_ids: set[UUID]) -> set[UUID]:
        """Return the runs whose mail goes after that of these."""
        return {run_id for run_id, before in self._before.items() if not before.isdisjoint(run_ids)}

    def forget(self) -> None:
        """Forget what is too long ago to matter; to be called now and then."""
        until = time.monotonic() - YOUNG
        for remembered in (self._continued, self._since):
            for run_id in [run_id for run_id, since in remembered.items() if since < until]:
                del remembered[run_id]
                if remembered is self._since:
                    self._before.pop(run_id, None)


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
