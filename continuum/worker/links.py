"""A connection that is opened again whenever it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg

from continuum.worker.connections import Backoff, Troubles, brief

__all__ = ["Link"]

logger = logging.getLogger("continuum.worker")

T = TypeVar("T")

_TROUBLE = (psycopg.OperationalError, psycopg.InterfaceError, OSError)


class Link:
    """One connection, opened when it is first needed, for one user at a time.

    Args:
        connect: opens an autocommit connection.
        purpose: what it is for, in a few words.
        on_broken: called when it has broken: what was under way may have been done, or not.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        purpose: str,
        *,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._purpose = purpose
        self._on_broken = on_broken
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()

    async def use(self, fn: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Return what ``fn(connection)`` returns, called again after each trouble that will pass."""
        backoff = Backoff()
        troubles = Troubles()
        async with self._turn:
            while True:
                try:
                    if self._connection is None:
                        self._connection = await self._connect()
                    return await fn(self._connection)
                except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
                    logger.info("%s: tried again: %s", self._purpose, brief(error))
                except (psycopg.Error, OSError) as error:
                    if not (troubles.will_pass(error) or isinstance(error, _TROUBLE)):
                        raise
                    logger.warning("the connection for %s failed, trying again: %s", self._purpose, brief(error))
                    await self.close()
                    self._on_broken()
                await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()
