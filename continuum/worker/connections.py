"""The worker's own connections: psycopg 3, built from Django's settings, outside Django's connection handling.

Django's connections belong to user code and come and go with its transactions. The worker's must outlive all that, be
asynchronous, prepare their statements, and notice a dead server soon.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from django.db import connections

from continuum.worker.stalls import Connection, ending_after, hang_up

__all__ = [
    "Backoff",
    "Troubles",
    "brief",
    "connect",
    "connect_sync",
    "connection_parameters",
    "is_pooled",
    "lends_sessions",
    "lends_sessions_sync",
    "session_name",
    "session_settings",
    "transaction",
]

logger = logging.getLogger("continuum.worker")

# What Django puts among the connection parameters and psycopg's default serves better: Django's cursors and adapters.
# The rest are options of Django's, not of libpq's; its own backend takes them out, a third-party one may not.
_NOT_LIBPQ = (
    "assume_role",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "row_factory",
    "server_side_binding",
)

# A peer that is gone without a word (a host that lost power, a firewall that forgot the connection) is noticed within
# half a minute. And a standby is none to ask: what it has applied so far may be less than what the workers know, and a
# history that lacks its end would be taken for all there is. What the project says in OPTIONS goes first.
_DEFAULTS = {
    "target_session_attrs": "read-write",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

_IDLE_IN_TRANSACTION_TIMEOUT = "60s"
# How long the first answer over a new connection may take, in seconds.
OPENING_TIMEOUT = 10.0

# How often two connections are compared: a busy pooler may give them different sessions, now and then the same ones.
_LOOKS = 10
_SESSION = "SELECT pg_backend_pid()"

# Aliases found to be behind a pooler: said once in each process.
_found_pooled: set[str] = set()


def connection_parameters(alias: str) -> dict[str, Any]:
    """Return what ``psycopg.connect`` needs to reach the database ``alias``, without Django-only options.

    It asks the alias's backend, so that one which makes its password on the spot (IAM tokens) works as well: that may
    take a while and must not happen on an event loop.

    Raises:
        django.utils.connection.ConnectionDoesNotExist: there is no such alias.
        django.core.exceptions.ImproperlyConfigured: the alias has no database name.
    """
    parameters = dict(connections[alias].get_connection_params())
    for name in _NOT_LIBPQ:
        parameters.pop(name, None)
    return {**_DEFAULTS, **parameters}


def is_pooled(alias: str) -> bool:
    """Return whether the project says that a transaction pooler stands before ``alias``.

    ``DISABLE_SERVER_SIDE_CURSORS`` is how Django's own documentation has projects say so.
    """
    return bool(connections[alias].settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"))


def session_settings(alias: str) -> dict[str, str]:
    """Return the server settings every session on ``alias`` begins with, those which Django sets as well.

    They are set by a statement, since poolers refuse settings in the startup packet.
    """
    settings = {"TimeZone": "UTC"}
    if role := connections[alias].settings_dict["OPTIONS"].get("assume_role"):
        settings["role"] = role
    return settings


# What is set as well where the session is our own: behind a transaction pooler it would stick to sessions of others.
_OWN_SETTINGS = {
    # A worker that dies in a transaction must not hold locks that the survivors need for ever.
    "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_TIMEOUT,
    # Each statement must see what was committed before it, whatever default the database has been given.
    "default_transaction_isolation": "read committed",
}


def session_name(purpose: str, worker_id: int | None) -> str:
    """Return what a worker calls a session of its own; others find it by that."""
    return f"continuum {purpose} {worker_id or ''}".strip()


async def connect(
    alias: str, *, application_name: str, prepare: bool = True, session: Mapping[str, str] | None = None
) -> Connection:
    """Open an autocommit connection to the database ``alias``.

    Args:
        alias: a key of ``DATABASES``.
        application_name: what ``pg_stat_activity`` shows.
        prepare: prepare statements that come again; has no effect behind a transaction pooler.
        session: server settings for this session, over those every worker connection has.

    Raises:
        psycopg.Error: the server cannot be reached, or refuses.
    """
    # Building the parameters may ask a token service; it is rare enough to be worth a thread.
    plan = await asyncio.to_thread(_Plan, alias, prepare, session)
    connection = await Connection.connect(
        **plan.parameters, application_name=application_name, autocommit=True, prepare_threshold=plan.threshold
    )
    try:
        connection.watch(application_name)
        with ending_after(OPENING_TIMEOUT, connection):
            cursor = await connection.execute(*plan.opening(connection), prepare=False)
            connection.is_own = plan.opened(connection, await cursor.fetchone())
    except BaseException:
        await connection.close()
        raise
    return connection


def connect_sync(
    alias: str, *, application_name: str, prepare: bool = False, session: Mapping[str, str] | None = None
) -> psycopg.Connection[Any]:
    """``connect`` for a thread."""
    plan = _Plan(alias, prepare, session)
    connection = psycopg.connect(
        **plan.parameters, application_name=application_name, autocommit=True, prepare_threshold=plan.threshold
    )
    # Whoever waits in a thread cannot be interrupted in another way.
    timer = threading.Timer(OPENING_TIMEOUT, hang_up, [connection])
    timer.daemon = True
    timer.start()
    try:
        plan.opened(connection, connection.execute(*plan.opening(connection), prepare=False).fetchone())
    except BaseException:
        connection.close()
        raise
    finally:
        timer.cancel()
    return connection


class _Plan:
    """How to open a connection.

    A project need not say that there is a pooler: the process id a server gives at the start is that of the session's
    process, and a pooler, whose client may get another session each time, makes one up.
    """

    def __init__(self, alias: str, prepare: bool, session: Mapping[str, str] | None) -> None:
        self.alias = alias
        self.parameters = connection_parameters(alias)
        self.parameters.pop("application_name", None)
        self._pooled = is_pooled(alias)
        options = connections[alias].settings_dict["OPTIONS"]
        # Older poolers lose prepared statements between transactions; a threshold in OPTIONS says that this one does
        # not.
        self._insists = "prepare_threshold" in options
        default = None if self._pooled else 2
        self.threshold: int | None = options.get("prepare_threshold", default) if prepare else None
        self._settings = session_settings(alias)
        self._own = {} if self._pooled else {**_OWN_SETTINGS, **(session or {})}

    def opening(self, connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> tuple[str, list[Any]]:
        """Return the first statement: it tells whether the session is our own, and sets what may be set."""
        pid = connection.info.backend_pid
        calls = ["pg_backend_pid() = %s", *["set_config(%s, %s, false)"] * len(self._settings)]
        # One statement, so that what it finds out still holds when it sets.
        calls += ["CASE WHEN pg_backend_pid() = %s THEN set_config(%s, %s, false) END"] * len(self._own)
        parameters = [pid, *(word for item in self._settings.items() for word in item)]
        parameters += [word for name, value in self._own.items() for word in (pid, name, value)]
        return f"SELECT {', '.join(calls)}", parameters

    def opened(
        self, connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], row: tuple[Any, ...] | None
    ) -> bool:
        """Take notice of the answer; returns whether the session is the connection's own."""
        if row is None or row[0] or self._pooled:
            return bool(row and row[0])
        if not self._insists:
            connection.prepare_threshold = None
        # Not said before there is a log to say it in.
        if self.alias not in _found_pooled and logger.isEnabledFor(logging.INFO):
            _found_pooled.add(self.alias)
            logger.info(
                "database %r is behind a connection pooler: statements are not prepared, sessions not configured; "
                "say so with DISABLE_SERVER_SIDE_CURSORS",
                self.alias,
            )
        return False


async def lends_sessions(connection: psycopg.AsyncConnection[Any], other: psycopg.AsyncConnection[Any]) -> bool:
    """Return whether these connections to one alias get a session of a pooler's for each transaction only.

    False where it does not show, as behind a pooler that gives each client a session for as long as it stays.
    """
    for _ in range(_LOOKS):
        pids = [await _session(each) for each in (connection, other, connection)]
        if pids[0] == connection.info.backend_pid:
            return False
        if pids[0] == pids[1] or pids[0] != pids[2]:
            return True
    return False


def lends_sessions_sync(connection: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool:
    """``lends_sessions`` for a thread."""
    for _ in range(_LOOKS):
        pids = [each.execute(_SESSION).fetchone() for each in (connection, other, connection)]
        if pids[0] == (connection.info.backend_pid,):
            return False
        if pids[0] == pids[1] or pids[0] != pids[2]:
            return True
    return False


async def _session(connection: psycopg.AsyncConnection[Any]) -> Any:
    row = await (await connection.execute(_SESSION)).fetchone()
    return row and row[0]


@asynccontextmanager
async def transaction(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """``connection.transaction()``, which must not end well without a commit.

    psycopg's own does, on a connection that is found broken at its end.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    async with connection.transaction():
        yield
    if connection.closed:
        raise psycopg.OperationalError("the connection broke before the transaction was committed")


# Errors that say nothing about what was asked: 08 connection exception, 53 insufficient resources, 57 a statement or
# session that somebody, or a time limit, has ended, 58 trouble with the disk, XX internal ones; a read-only standby,
# transactions that were open for too long, a prepared statement that is gone, there twice or out of date.
_PASSING_CLASSES = ("08", "53", "57", "58", "XX")
_PASSING = ("25006", "25P03", "25P04", "26000", "42P05", "0A000")

# An internal one ("tuple concurrently updated", "cache lookup failed") may be about what was asked after all: once it
# has come so often in a row it is taken for that.
MOST_INTERNAL = 5


class Troubles:
    """The errors that come of one thing that is tried again and again."""

    def __init__(self) -> None:
        self._internal = 0

    def will_pass(self, error: BaseException) -> bool:
        """Tell whether the next error of PostgreSQL comes from how the server, or the session, was at that moment."""
        sqlstate = getattr(error, "sqlstate", None) or ""
        self._internal = self._internal + 1 if sqlstate[:2] == "XX" else 0
        return self._internal < MOST_INTERNAL and (sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING)


def brief(error: BaseException) -> str:
    """Return the first line of an error: what libpq says beyond that explains what an operator knows."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


class Backoff:
    """Growing, jittered pauses between attempts at something that keeps failing.

    Args:
        base: the first pause, in seconds.
        cap: the longest, in seconds.
    """

    def __init__(self, base: float = 0.1, cap: float = 5.0) -> None:
        self.base = base
        self.cap = cap
        self._failures = 0

    def next(self) -> float:
        """Return how many seconds to wait before the next attempt: twice as long each time, less up to half of it."""
        pause = min(self.cap, self.base * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew: the last attempt succeeded."""
        self._failures = 0
