"""The short statements of application code, on Django's connections.

Django has parameters merged into the text, so that the server parses and plans each statement anew: a third to a half
of what these cost. They are prepared instead, from the third time on that a connection is asked, where nothing can come
of it: outside transactions, so that a statement the session does not know (any more) can be repeated as text; and in
sessions that belong to the connection, since behind a transaction pooler the next statement may meet another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from django.db import DatabaseError, connections
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from psycopg.pq import TransactionStatus

from continuum.worker.connections import is_pooled
from continuum.worker.sql import load

__all__ = ["first_row"]

# As for the worker's own connections: what comes once or twice is not worth the round trip that preparing takes.
PREPARE_THRESHOLD = 2

# Before the statement is carried out: the session does not know it; the tables have changed.
_REFUSALS = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.FeatureNotSupported)


def first_row(alias: str, name: str, parameters: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Carry out the statement ``name`` (see ``continuum.worker.sql``), in the caller's transaction if there is one.

    Args:
        alias: the database.
        name: the statement; what it does must be right to do again if it was refused.
        parameters: by name.

    Returns:
        The first row of its result, or None.

    Raises:
        django.db.Error: as Django's cursors.
    """
    connection = connections[alias]
    with connection.cursor() as cursor:
        # What others have put in Django's place, to watch or to count, is left alone.
        session = _session(connection) if type(cursor) in (CursorWrapper, CursorDebugWrapper) else None
        if session is not None:
            plain, cursor.cursor = cursor.cursor, _PreparingCursor(session)
            try:
                cursor.execute(load(name), parameters)
                return cursor.fetchone()
            except DatabaseError as error:
                if not isinstance(error.__cause__, _REFUSALS):
                    raise
                _willing[session] = False
                cursor.cursor = plain
        cursor.execute(load(name), parameters)
        return cursor.fetchone()


class _PreparingCursor(psycopg.Cursor[Any]):
    """Prepares statements that come again, whatever the connection does with those of others."""

    def execute(self, *args: Any, **options: Any) -> _PreparingCursor:
        threshold = self.connection.prepare_threshold
        if threshold is None:
            self.connection.prepare_threshold = PREPARE_THRESHOLD
        try:
            return super().execute(*args, **options)
        finally:
            self.connection.prepare_threshold = threshold


# Whether statements may be prepared in a session; None after it was asked for the first time.
_willing: WeakKeyDictionary[psycopg.Connection[Any], bool | None] = WeakKeyDictionary()


def _session(connection: Any) -> psycopg.Connection[Any] | None:
    """Return the psycopg connection behind one of Django's if statements may be prepared there now."""
    session = connection.connection
    if not isinstance(session, psycopg.Connection) or not session.autocommit:
        return None
    if session.pgconn.transaction_status != TransactionStatus.IDLE:  # begun by hand
        return None
    willing = _willing.get(session, _UNSEEN)
    if willing is _UNSEEN:
        _willing[session] = None
    elif willing is None:
        willing = _willing[session] = _may_prepare(connection, session)
    return session if willing is True else None


def _may_prepare(connection: Any, session: psycopg.Connection[Any]) -> bool:
    """Tell whether statements may be prepared: what the project says goes first."""
    options = connection.settings_dict["OPTIONS"]
    if "prepare_threshold" in options:
        return options["prepare_threshold"] is not None
    return not is_pooled(connection.alias) and _is_own(session)


_UNSEEN = object()


def _is_own(session: psycopg.Connection[Any]) -> bool:
    """Tell whether no pooler stands before the session: one that does makes up the process id it gives at the start."""
    with psycopg.Cursor(session) as cursor:
        row = cursor.execute("SELECT pg_backend_pid()").fetchone()
    return row == (session.info.backend_pid,)
