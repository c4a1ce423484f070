"""Runs that no live worker has the code for: parked, with the reason, until one comes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg

from continuum.worker.sql import load
from continuum.worker.suspects import chances

__all__ = ["park_unknown"]

BATCH = 1_000


async def park_unknown(connection: psycopg.AsyncConnection[Any], *, grace: float, pinned: bool) -> Counter[str]:
    """Park the runs that nobody could take for a while, as nobody has loaded their code.

    Args:
        connection: an autocommit connection.
        grace: how long a run has to have waited, and its code to have been away, in seconds.
        pinned: only the very code that a run was started with will do.

    Returns:
        Counter: how many of each workflow.
    """
    parked: Counter[str] = Counter()
    parameters = {"grace": grace, "pinned": pinned, "batch": BATCH, "suspected": chances()["suspected"]}
    while True:
        # Batches, each committed on its own: others may claim, and do the same, meanwhile.
        cursor = await connection.execute(load("runs_park_unknown"), parameters)
        found = [row[0] for row in await cursor.fetchall()]
        parked.update(found)
        if not found:
            return parked
