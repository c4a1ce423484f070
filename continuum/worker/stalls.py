"""Connections over which nothing comes any more.

A host that is gone is noticed by the network within half a minute (see ``continuum.worker.connections``). But what is
in between, a proxy or a tunnel, may still be there, acknowledge what it is sent, and have lost the way to the server:
libpq would wait for ever, and with it all runs of a worker whose lease is renewed over another connection. So who has
waited for long asks over a new connection whether the server is still at it.

A connection is ended by shutting its socket down: whoever waits finds it broken, as if the server had ended it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import psycopg

from continuum.worker.arrays import plain_array
from continuum.worker.sql import load

__all__ = ["Connection", "Stalls", "end", "ending_after", "hang_up"]

logger = logging.getLogger("continuum.worker")

# Seconds without an answer after which it is asked what became of it, and between two such looks.
PATIENCE = 10.0
LOOK_EVERY = 3.0
# For how long tasks that were cancelled may wait for the server, in seconds.
LAST_WORDS = 1.0

_connections: WeakSet[Connection] = WeakSet()


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that knows since when it waits for the server.

    Attributes:
        asked: when something was sent, or has come, last; by the monotonic clock, and None if nothing is awaited.
        is_own: whether its session on the server is its own.
        purpose: its name on the server.
    """

    asked: float | None = None
    is_own = False
    purpose = ""
    _runs_on: asyncio.AbstractEventLoop | None = None

    def watch(self, purpose: str) -> None:
        """To be called on its loop once it is there."""
        self.purpose = purpose
        self._runs_on = asyncio.get_running_loop()
        _connections.add(self)

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """psycopg's own, for what goes over cursors."""
        self.asked = time.monotonic()
        try:
            return await super().wait(*arguments, **options)
        except psycopg.Error as error:
            # psycopg asks the server to let go of what was cancelled. Up to 3.2 a connection that breaks then makes
            # whoever was cancelled go on with the error.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError from error
            raise
        finally:
            self.asked = None


def hang_up(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Have whoever waits find a connection broken. From any thread, if nobody closes it meanwhile."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
        own.shutdown(socket.SHUT_RDWR)


def _waiting() -> list[Connection]:
    """Return the connections of this loop that wait for the server."""
    loop = asyncio.get_running_loop()
    return [each for each in list(_connections) if each.asked is not None and each._runs_on is loop and not each.closed]


def _hang_up_all() -> None:
    for connection in _waiting():
        hang_up(connection)


@contextmanager
def ending_after(seconds: float, connection: psycopg.AsyncConnection[Any] | None = None) -> Iterator[None]:
    """In this block nobody waits for the server for longer than that; if a connection is given, nobody who uses it."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, *((_hang_up_all,) if connection is None else (hang_up, connection)))
    try:
        yield
    finally:
        timer.cancel()


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, though not for a server that does not answer."""
    pending = set(tasks)
    for task in pending:
        task.cancel()
    while pending:
        _, pending = await asyncio.wait(pending, timeout=LAST_WORDS)
        if pending:
            _hang_up_all()


class Stalls:
    """Looks for connections of this loop that wait for what the server is not, or no more, at.

    Args:
        connect: opens an autocommit connection.
    """

    def __init__(self, connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]) -> None:
        self._connect = connect
        self._suspects: dict[Connection, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except (psycopg.Error, OSError) as error:
                logger.debug("nobody says what keeps the server: %s", error)

    async def look(self) -> None:
        """End the connections that have stalled."""
        late = {
            each: each.asked
            for each in _waiting()
            if each.is_own and each.asked is not None and time.monotonic() - each.asked > PATIENCE
        }
        suspects, self._suspects = self._suspects, {}
        if not late:
            return
        at_work = await self._at_work([each.info.backend_pid for each in late])
        for each, asked in late.items():
            if each.asked != asked or each.info.backend_pid in at_work:
                continue
            # The answer may have been on its way when the server was asked: it has to be missing twice.
            if suspects.get(each) == asked:
                logger.warning("%s: no answer arrives, though the server is not at it; trying again", each.purpose)
                hang_up(each)
            else:
                self._suspects[each] = asked

    async def _at_work(self, pids: list[int]) -> set[int]:
        connection = await self._connect()
        try:
            with ending_after(PATIENCE, connection):
                cursor = await connection.execute(load("sessions_at_work"), {"pids": plain_array(pids)})
                return {pid for (pid,) in await cursor.fetchall()}
        finally:
            await connection.close()
