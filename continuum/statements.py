"""The short statements of application code, on Django's connections.

Django has parameters merged into the text, so that the server parses and plans each statement anew: a third to a half
of what these cost. They are prepared instead, from the third time on that a connection is asked, where nothing can come
of it: outside transactions, so that a statement the session does not know (any more) can be repeated as text; and in
sessions that belong to the connection, since behind a transaction pooler the next statement may meet another one.

The values of a prepared statement go to libpq as they are: psycopg's cursor, which is made for statements of all kinds,
takes a quarter of what a start costs the client (benchmarks/README.md).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, tzinfo
from functools import partial
from itertools import count
from operator import methodcaller
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from django.db import DatabaseError, connections
from django.db.backends.utils import CursorWrapper
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.postgres import types
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from continuum.along import Along
from continuum.worker import flights
from continuum.worker.connections import is_pooled
from continuum.worker.sql import load, numbered

__all__ = ["all_rows", "first_row"]

T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Any]

# As for the worker's own connections: what comes once or twice is not worth the round trip that preparing takes.
PREPARE_THRESHOLD = 2
# How many statements are kept prepared in a session, and of how many others it is known how often they have come.
_MOST = 100

# Before it is carried out: the session does not know the statement, or another by its name; the tables have changed.
_REFUSALS = (
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.DuplicatePreparedStatement,
    psycopg.errors.FeatureNotSupported,
)


def first_row(
    alias: str, name: str, parameters: Mapping[str, Any], hint: Along | None = None
) -> tuple[Any, ...] | None:
    """Carry out the statement ``name`` (see ``continuum.worker.sql``), in the caller's transaction if there is one.

    Args:
        alias: the database.
        name: the statement; what it does must be right to do again if it was refused.
        parameters: by name.
        hint: what is to be told of once that is committed; it says afterwards whether it was.

    Returns:
        The first row of its result, or None.

    Raises:
        django.db.Error: as Django's cursors.
    """
    return _carried_out(alias, load(name), parameters, methodcaller("fetchone"), hint)


def all_rows(alias: str, text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Carry out a statement that is put together anew each time, though mostly as it was before, and fetch its rows.

    After some times in a session PostgreSQL may settle on a plan that is the same for all values (its documentation of
    PREPARE): the statement must be one whose plan does not depend on them. Moments come in the session's time zone: it
    has to ask for them as text.

    Args:
        alias: the database.
        text: the statement, with ``%s`` for each parameter; it must be right to do again if it was refused.
        parameters: in order.

    Raises:
        django.db.Error: as Django's cursors.
    """
    return _carried_out(alias, text, parameters, methodcaller("fetchall"))


def _carried_out(
    alias: str, text: str, parameters: Parameters, fetch: Callable[[Any], T], hint: Along | None = None
) -> T:
    """Carry out a statement, prepared if that may be, and call ``fetch`` with the cursor."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        # What others have put in Django's place, to watch or to count, is left alone; and so is Django's own for
        # debugging, which asks psycopg's cursor what it has sent.
        with connection.wrap_database_errors:
            session = _session(connection) if type(cursor) is CursorWrapper else None
        if session is not None:
            plain, cursor.cursor = cursor.cursor, _PreparedCursor(cursor.cursor, connection.timezone, hint)
            try:
                cursor.execute(text, parameters)
                return fetch(cursor)
            except DatabaseError as error:
                if not isinstance(error.__cause__, _REFUSALS):
                    raise
                _willing[session] = False
                cursor.cursor = plain
        cursor.execute(text, parameters)
        return fetch(cursor)


class _PreparedCursor:
    """Stands in for psycopg's cursor inside Django's: carries out a statement that is prepared when it comes again.

    Args:
        plain: the cursor it stands in for.
        zone: the time zone that moments are given in, or None for Django's naive ones.
        hint: what may go along.
    """

    def __init__(self, plain: psycopg.Cursor[Any], zone: tzinfo | None, hint: Along | None = None) -> None:
        self._plain = plain
        self._zone = zone
        self._hint = hint
        self._session = plain.connection
        self._result: PGresult | None = None

    def execute(self, text: str, parameters: Parameters) -> None:
        session = self._session
        known = _known.get(session)
        if known is None:
            known = _known[session] = _Known()
        name = known.names.get(text)
        is_new = name is None and known.uses.get(text, 0) < PREPARE_THRESHOLD
        values = None if is_new else _as_text(text, parameters)
        if values is None:
            known.note(text)
            self._plain.execute(text, parameters)
            return
        with session.lock:
            send = self._sending(known, text, parameters, values)
            hint = self._hint
            if hint is None or not hint.goes() or (about := _as_text(hint.text, hint.parameters)) is None:
                send()
                self._result = self._done()
                return
            send_hint = self._sending(known, hint.text, hint.parameters, about)
            results, told = session.wait(flights.followed(session.pgconn, send, send_hint))
            self._result = _checked(results)
            # A hint is not worth an error, nor is one that did not arrive: it goes the other way then.
            with suppress(psycopg.Error):
                if told and (answer := _checked(told)).ntuples:
                    hint.told = UUID(answer.get_value(0, 0).decode())

    def _sending(
        self, known: _Known, text: str, parameters: Parameters, values: Sequence[bytes | None]
    ) -> Callable[[], None]:
        """Return what sends a statement; it is prepared if it is not yet."""
        name = known.names.get(text) or self._prepare(known, text, parameters)
        known.names.move_to_end(text)
        return partial(self._session.pgconn.send_query_prepared, name, values)

    def _prepare(self, known: _Known, text: str, parameters: Parameters) -> bytes:
        pgconn = self._session.pgconn
        if len(known.names) >= _MOST:
            pgconn.send_query(b"DEALLOCATE " + known.names.popitem(last=False)[1])
            self._done()
        name = known.new_name()
        pgconn.send_prepare(name, numbered(text)[0] if isinstance(parameters, Mapping) else _counted_through(text))
        self._done()
        known.names[text] = name
        known.uses.pop(text, None)
        return name

    def _done(self) -> PGresult:
        """Return the result of what was sent last.

        Raises:
            psycopg.Error: it failed.
        """
        return _checked(self._session.wait(generators.execute(self._session.pgconn)))

    def fetchone(self) -> tuple[Any, ...] | None:
        if self._result is None:
            return self._plain.fetchone()
        result = self._result
        if not result.ntuples:
            return None
        try:
            return tuple([self._value(result, place) for place in range(result.nfields)])
        except (LookupError, ValueError):  # of another type, or in another style: psycopg knows them all
            return self._read(result)[0]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._plain.fetchall() if self._result is None else self._read(self._result)

    def _read(self, result: PGresult) -> list[tuple[Any, ...]]:
        rows = Transformer(self._plain)
        rows.set_pgresult(result)
        return rows.load_rows(0, result.ntuples, tuple)

    def _value(self, result: PGresult, place: int) -> Any:
        value = result.get_value(0, place)
        if value is None:
            return None
        type_, text = result.ftype(place), value.decode()
        if type_ != _TIMESTAMPTZ:
            return _READERS[type_](text)
        if self._zone is None:
            raise ValueError("naive moments are psycopg's and Django's affair")
        return datetime.fromisoformat(text).astimezone(self._zone)

    def close(self) -> None:
        self._plain.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


class _Known:
    """What is known of the statements of a session, by their texts, those that came last at the end.

    Attributes:
        names: of what is prepared.
        uses: how often others have come.
    """

    def __init__(self) -> None:
        self.names: OrderedDict[str, bytes] = OrderedDict()
        self.uses: OrderedDict[str, int] = OrderedDict()
        self._numbers = count()

    def note(self, text: str) -> None:
        """Note that a statement has come that is not prepared."""
        self.uses[text] = self.uses.pop(text, 0) + 1
        if len(self.uses) > _MOST:
            self.uses.popitem(last=False)

    def new_name(self) -> bytes:
        """Return a name that no statement of the session has had."""
        return b"continuum_%d" % next(self._numbers)


def _counted_through(text: str) -> bytes:
    """Return a statement whose parameters are marked by ``%s`` as PostgreSQL itself has them."""
    numbers = count(1)
    return re.sub("%[s%]", lambda found: "%" if found[0] == "%%" else f"${next(numbers)}", text).encode()


def _as_text(text: str, parameters: Parameters) -> list[bytes | None] | None:
    """Return the values of a statement's parameters as PostgreSQL reads them; None if psycopg is to see to them."""
    if isinstance(parameters, Mapping):
        parameters = [parameters[name] for name in numbered(text)[1]]
    values: list[bytes | None] = []
    for value in parameters:
        if value is None:
            values.append(None)
            continue
        if type(value) is not str:
            if type(value) not in _WRITTEN:
                return None
            value = str(value)
        if "\0" in value:
            return None
        values.append(value.encode())
    return values


def _checked(results: list[PGresult]) -> PGresult:
    """Return the result of a statement.

    Raises:
        psycopg.Error: it failed, or its commit did.
    """
    for result in results:
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
    return results[-1]


def _read_boolean(text: str) -> bool:
    return text == "t"


# Types that Python writes as PostgreSQL reads them.
_WRITTEN = frozenset({int, datetime, UUID})
_TIMESTAMPTZ = types["timestamptz"].oid
_READERS: dict[int, Callable[[str], Any]] = {
    types["text"].oid: str,
    types["uuid"].oid: UUID,
    types["bool"].oid: _read_boolean,
    types["int4"].oid: int,
    types["int8"].oid: int,
}

_known: WeakKeyDictionary[psycopg.Connection[Any], _Known] = WeakKeyDictionary()
# Whether statements may be prepared in a session; None after it was asked for the first time.
_willing: WeakKeyDictionary[psycopg.Connection[Any], bool | None] = WeakKeyDictionary()


def _session(connection: Any) -> psycopg.Connection[Any] | None:
    """Return the psycopg connection behind one of Django's if statements may be prepared there now."""
    session = connection.connection
    if not isinstance(session, psycopg.Connection) or not session.autocommit:
        return None
    pgconn = session.pgconn
    if pgconn.transaction_status != TransactionStatus.IDLE or pgconn.pipeline_status:  # begun by hand
        return None
    willing = _willing.get(session, _UNSEEN)
    if willing is _UNSEEN:
        _willing[session] = None
    elif willing is None:
        willing = _willing[session] = _may_prepare(connection, session)
    return session if willing is True else None


def _may_prepare(connection: Any, session: psycopg.Connection[Any]) -> bool:
    """Tell whether statements may be prepared: what the project says goes first, where it can be done."""
    if session.info.encoding != "utf-8":
        return False
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
