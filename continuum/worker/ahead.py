"""Connections that are opened, and know their statements, before anybody waits for them.

A worker that takes over what another has left behind goes on when it has read the histories, and has recorded the first
step of its own. What a new session does at its first statements (it reads the catalogue, and plans) takes as long as
replaying a thousand steps; it can be done while there is nothing to do yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from continuum.core.history import Event, EventType
from continuum.ids import uuid7
from continuum.worker.claims import claimed_again, heartbeats_of_runs, load_histories, unread_of_runs
from continuum.worker.connections import brief
from continuum.worker.live import Entry, LiveRun, RowUpdate
from continuum.worker.recording import record

__all__ = ["Ahead", "try_claims", "try_journal"]

logger = logging.getLogger("continuum.worker")

Connection = psycopg.AsyncConnection[Any]


class Ahead:
    """Opens connections: the first before it is asked for, if :meth:`open` is called.

    Args:
        connect: opens a connection.
        try_out: executes what will be executed on it, in a way that has no effect.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], try_out: Callable[[Connection], Awaitable[None]]
    ) -> None:
        self._connect = connect
        self._try_out = try_out
        self._opening: asyncio.Task[Connection | None] | None = None

    def open(self) -> None:
        """Begin to open the first connection."""
        self._opening = asyncio.create_task(self._open(), name="continuum connection ahead")

    async def __call__(self) -> Connection:
        """Return the connection that was opened ahead, or if that is taken or broken a new one.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses.
        """
        opening, self._opening = self._opening, None
        if opening is not None:
            try:
                connection = await opening
            except asyncio.CancelledError:
                # It may have been there by then.
                if opening.done() and not opening.cancelled() and (left := opening.result()) is not None:
                    await left.close()
                raise
            if connection is not None and not connection.closed:
                return connection
        return await self._connect()

    async def close(self) -> None:
        """Close the connection that was opened ahead, if nobody has asked for it."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            [found] = await asyncio.gather(opening, return_exceptions=True)
            if found is not None and not isinstance(found, BaseException):
                await found.close()

    async def _open(self) -> Connection | None:
        connection = None
        try:
            connection = await self._connect()
            # Behind a pooler the statements would be tried out in a session that the next one does not get.
            if connection.prepare_threshold is not None:
                await self._try_out(connection)
        except Exception as error:
            # Whatever it is: whoever needs a connection finds out for himself, and says so.
            logger.debug("no connection could be opened ahead: %s", brief(error))
            if connection is not None:
                await connection.close()
            return None
        except BaseException:
            if connection is not None:
                await connection.close()
            raise
        return connection


async def try_claims(connection: Connection) -> None:
    """Ask for the history of a run that there is not, and for all else that is asked of runs just claimed."""
    nobody, no_other = uuid7(), uuid7()
    await claimed_again(connection, [nobody])
    await heartbeats_of_runs(connection, [nobody])
    await load_histories(connection, {nobody: 0})
    await load_histories(connection, {nobody: 0, no_other: 0})
    await unread_of_runs(connection, [nobody])


async def try_journal(connection: Connection, worker_id: int) -> None:
    """Try to record a step, and an end, of a run that there is not, for a worker that there is not.

    Nothing is written or locked then.
    """
    nothing: Any = None
    entry = Entry(LiveRun(uuid7(), 0, nothing, nothing, 0))
    entry.events.append(Event(1, EventType.ACTIVITY_COMPLETED, "0:1", "", "{}", 0))
    await record(connection, -worker_id, [entry])
    entry.update = RowUpdate("completed", False)
    await record(connection, -worker_id, [entry])
