"""Django's connections in a process without requests.

Django opens a connection for each thread that uses the ORM, and checks and closes it between requests. Here an attempt
of an activity is what a request is there. Attempts that leave the database alone must not pay for it, so a thread is
looked after once a connection was opened in it, or may be why an attempt has failed. The latter, since a connection
that breaks while Django sets it up stays with the thread without a word that there is one: it has been opened only
once it is set up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error, close_old_connections, connections, reset_queries
from django.db.backends.signals import connection_created

__all__ = ["SharedConnections", "ThreadConnections"]

logger = logging.getLogger("continuum.worker")


class _Marks(threading.local):
    own = False  # a thread of the pool
    used = False  # a connection was opened in it, and may still be there
    next = 0.0  # monotonic; when it is looked whether there is one after all


_marks = _Marks()
_elsewhere = threading.Event()  # a connection was opened in a thread that is not the pool's


def _opened(**kwargs: Any) -> None:
    if _marks.own:
        _marks.used = True
    else:
        _elsewhere.set()


def _watch() -> None:
    connection_created.connect(_opened, dispatch_uid="continuum.worker.hygiene")


def _tidy() -> bool:
    """Close what is broken or too old, in this thread; returns whether a connection is still open."""
    reset_queries()  # which Django notes down with DEBUG, thousands a connection, with all that was written
    try:
        close_old_connections()
    except Exception:
        # A connection that cannot even be closed: forget it, the next use opens another.
        logger.debug("a broken connection could not be closed", exc_info=True)
        for connection in connections.all(initialized_only=True):
            del connections[connection.alias]
    return any(connection.connection is not None for connection in connections.all(initialized_only=True))


class ThreadConnections:
    """Looks after the connections of the threads of a pool, each from within."""

    # An activity may keep the error of a broken connection to itself: threads are looked after now and then anyway.
    EVERY = 1.0

    def __init__(self) -> None:
        _watch()

    def before(self) -> None:
        """Call before an attempt."""
        _marks.own = True
        if _marks.used:
            _marks.used = _tidy()

    def after(self, *, failed: bool) -> None:
        """Call after it."""
        if not (_marks.used or failed):
            now = time.monotonic()
            if now < _marks.next:
                return
            _marks.next = now + self.EVERY
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                # A transaction left open, say by a generator that was not exhausted. Django would never close it.
                logger.warning("an activity left a transaction open on %r; it is rolled back", connection.alias)
                del connections[connection.alias]
                raw, connection.connection = connection.connection, None
                if raw is not None:
                    raw.close()
        _marks.used = _tidy()

    def close(self) -> None:
        """Call before the thread ends."""
        if _marks.used:
            connections.close_all()


class SharedConnections:
    """Looks after the connections of asgiref's shared thread, where the ORM's async methods run."""

    EVERY = 1.0
    PATIENCE = 2.0

    def __init__(self) -> None:
        _watch()
        self._next = 0.0

    @property
    def used(self) -> bool:
        """Whether a connection was opened there and may still be."""
        return _elsewhere.is_set()

    def failed(self, error: BaseException) -> None:
        """Take notice of what an async attempt failed with: a connection may be there although none was opened."""
        seen: BaseException | None = error
        for _ in range(10):
            if isinstance(seen, Error):
                _elsewhere.set()
            seen = seen and (seen.__cause__ or seen.__context__)

    async def after(self, *, failed: bool) -> None:
        """Call after an async attempt: looks after the connections at once if it failed, else once in a while.

        After a failure the connection may be why: the next attempt must find another.
        """
        now = time.monotonic()
        if failed or now >= self._next:
            self._next = now + self.EVERY
            await self.tidy(timeout=self.PATIENCE)

    async def tidy(self, timeout: float) -> None:
        """Look after the connections now, but wait for the shared thread no longer than ``timeout`` seconds."""
        if not _elsewhere.is_set():
            return
        _elsewhere.clear()
        tidied = asyncio.ensure_future(sync_to_async(_tidy)())
        tidied.add_done_callback(_mark)
        await asyncio.wait({tidied}, timeout=timeout)


def _mark(tidied: asyncio.Future[bool]) -> None:
    if tidied.cancelled() or tidied.exception() is not None or tidied.result():
        _elsewhere.set()
