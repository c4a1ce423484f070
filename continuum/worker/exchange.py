"""A worker's frequent statements and the server's answers, straight over libpq.

psycopg's cursors and waits are made for whatever an application may ask; around a commit, which is a few short messages
of kinds known beforehand, they took half of what it cost this process. Here the callback of the loop that finds the
socket readable goes on with the exchange itself, and BEGIN and COMMIT travel with what they enclose.

An exchange ends with all its answers read, or with its connection closed: what is still on its way would be taken for
the answer to something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from continuum.worker import flights
from continuum.worker.sql import numbered
from continuum.worker.stalls import Connection

__all__ = ["Connection", "Rows", "Transaction", "execute", "execute_and_tell", "execute_in_parts"]

T = TypeVar("T")

Rows = list[tuple[Any, ...]]
Parameters = Mapping[str, str | int]
# As psycopg's own: yields what is to be waited for, is sent what is ready.
Steps = Generator[Wait, Ready, T]
Answers = list[PGresult]

# libpq keeps what the socket does not take: by this much at a time.
PIECE = 1024 * 1024

_NO_MEMORY = "libpq has no memory for what is to be copied"

# The names of the statements that are prepared in a session, by their text.
_prepared: WeakKeyDictionary[PGconn, dict[str, bytes]] = WeakKeyDictionary()


async def execute(
    connection: Connection, text: str, parameters: Parameters, make: Callable[[Any], Any] = tuple
) -> list[Any]:
    """Carry out one statement, in the transaction that is open or in one of its own.

    Args:
        connection: in autocommit mode.
        text: with named parameters.
        parameters: by name.
        make: makes what is returned for a row of its values.

    Raises:
        psycopg.Error: it failed.
        UnicodeEncodeError: a text has no encoding.
    """
    statement = await _ready(connection, text, parameters)
    results = await _exchange(connection, _executed(connection.pgconn, statement))
    return _rows(connection, _checked(results), make)


async def execute_in_parts(
    connection: Connection, text: str, parts: Sequence[Parameters], make: Callable[[Any], Any] = tuple
) -> list[Any]:
    """Carry out one statement that only reads with several sets of parameters, in one flight.

    The rows of a part are made while the server is at the next one, and other callbacks of the loop get a turn between
    parts that have not arrived yet.

    Args:
        connection: in autocommit mode, with no transaction open.
        text: with named parameters.
        parts: parameters by name, at least one set of them.
        make: makes what is returned for a row of its values.

    Returns:
        What is made of the rows of all parts, in order.

    Raises:
        psycopg.Error: it failed.
        UnicodeEncodeError: a text has no encoding.
    """
    pgconn = connection.pgconn
    sends = [partial((await _ready(connection, text, parameters)).send, pgconn) for parameters in parts]
    rows: list[Any] = []

    def take(results: Answers) -> None:
        rows.extend(_rows(connection, results[-1], make))

    _checked(await _exchange(connection, flights.in_turn(pgconn, sends, take)))
    return rows


async def execute_and_tell(
    connection: Connection, text: str, parameters: Parameters, hint: str, about: Parameters
) -> tuple[Rows, bool]:
    """Carry out one statement in a transaction of its own and, in the same flight, one that tells of it.

    Args:
        connection: in autocommit mode, with no transaction open; ``flights.possible()``.
        text: with named parameters.
        parameters: by name.
        hint: the statement that tells of it, which returns whom it has told of.
        about: its parameters.

    Returns:
        tuple: the rows of the statement; and whether it was told of, which does not raise.

    Raises:
        psycopg.Error: the statement failed.
        UnicodeEncodeError: a text has no encoding.
    """
    pgconn = connection.pgconn
    statement = await _ready(connection, text, parameters)
    telling = await _ready(connection, hint, about)
    steps = flights.followed(pgconn, partial(statement.send, pgconn), partial(telling.send, pgconn))
    results, told = await _exchange(connection, steps)
    rows = _rows(connection, _checked(results))
    return rows, bool(told) and told[-1].status == ExecStatus.TUPLES_OK and told[-1].ntuples > 0


class Transaction:
    """A transaction: committed at the end of its block, unless the block raises or has ended it.

    It begins with its first statement. If it cannot be rolled back, its connection is closed.

    Args:
        connection: in autocommit mode, with no transaction open.

    Raises:
        psycopg.OperationalError: the connection broke, so that it is not known to be committed.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._open = False

    async def __aenter__(self) -> Transaction:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if error is None:
            await self._end(b"COMMIT")
        elif isinstance(error, Exception) and not self._connection.closed:
            try:
                await self.rollback()
            except psycopg.Error:  # what it was rolled back for says more
                self._pgconn.finish()
        else:
            # Cancelled, most likely: no time to wait for answers.
            self._pgconn.finish()

    async def execute(self, text: str, parameters: Parameters) -> Rows:
        """Carry out a statement; see the function of this name."""
        if self._open:
            return await execute(self._connection, text, parameters)
        statement = await _ready(self._connection, text, parameters)
        self._open = True
        results = await _exchange(self._connection, _begun(self._pgconn, statement))
        return _rows(self._connection, _checked(results))

    async def copy(self, text: str, data: bytes, *, last: bool = False) -> None:
        """Carry out a ``COPY ... FROM STDIN`` with this data.

        Args:
            text: the statement.
            data: in the format it speaks of.
            last: commit as well.

        Raises:
            psycopg.Error: it failed.
        """
        assert self._open, "it begins with a statement"
        # A string of two statements: the server goes on to the second when it has all the rows of the first.
        query = f"{text};COMMIT" if last else text
        result = _checked(await _exchange(self._connection, _copied(self._pgconn, query.encode(), data)))
        if last:
            self._ended(b"COMMIT", result)

    async def rollback(self) -> None:
        """End it: nothing is written."""
        await self._end(b"ROLLBACK")

    async def _end(self, command: bytes) -> None:
        self._pgconn.send_query(command)
        self._ended(command, _checked(await _exchange(self._connection, generators.execute(self._pgconn))))

    def _ended(self, command: bytes, result: PGresult) -> None:
        self._open = False
        if result.command_status != command:  # what has failed is rolled back, without an error
            raise psycopg.InternalError(f"the server answered {command!r} with {result.command_status!r}")


class _Statement:
    """A statement with its parameters, as libpq sends it."""

    __slots__ = ("_name", "_text", "_values")

    def __init__(self, name: bytes | None, text: bytes, values: list[bytes]) -> None:
        self._name = name
        self._text = text
        self._values = values

    def send(self, pgconn: PGconn) -> None:
        if self._name is None:
            pgconn.send_query_params(self._text, self._values)
        else:
            pgconn.send_query_prepared(self._name, self._values)


async def _ready(connection: Connection, text: str, parameters: Parameters) -> _Statement:
    """Return a statement that is prepared, if statements may be prepared in this session."""
    query, names = numbered(text)
    values = [str(parameters[name]).encode() for name in names]
    if b"\0" in b"".join(values):  # libpq would take it for the end
        raise psycopg.DataError("PostgreSQL's texts cannot contain NUL")
    if connection.prepare_threshold is None:
        return _Statement(None, query, values)
    pgconn = connection.pgconn
    known = _prepared.setdefault(pgconn, {})
    name = known.get(text)
    if name is None:
        name = f"continuum_{len(known)}".encode()
        pgconn.send_prepare(name, query)
        _checked(await _exchange(connection, generators.execute(pgconn)))
        known[text] = name
    return _Statement(name, query, values)


def _executed(pgconn: PGconn, statement: _Statement) -> Steps[Answers]:
    statement.send(pgconn)
    return (yield from generators.execute(pgconn))


def _begun(pgconn: PGconn, statement: _Statement) -> Steps[Answers]:
    """Begin a transaction with a statement."""
    if not psycopg.Pipeline.is_supported():
        pgconn.send_query(b"BEGIN")
        _checked((yield from generators.execute(pgconn)))
        return (yield from _executed(pgconn, statement))
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(b"BEGIN", None)
    statement.send(pgconn)
    pgconn.pipeline_sync()
    results = yield from generators.execute(pgconn)
    results += yield from generators.fetch_many(pgconn)
    yield from generators.fetch_many(pgconn)  # of the end of the pipeline
    pgconn.exit_pipeline_mode()
    return results


def _copied(pgconn: PGconn, query: bytes, data: bytes) -> Steps[Answers]:
    pgconn.send_query(query)
    results = yield from generators.execute(pgconn)
    if results[-1].status != ExecStatus.COPY_IN:
        return results
    rest = memoryview(data)
    while rest:
        if not pgconn.put_copy_data(rest[:PIECE]):
            raise psycopg.OperationalError(_NO_MEMORY)
        rest = rest[PIECE:]
        if rest:
            yield from generators.send(pgconn)
    if not pgconn.put_copy_end():
        raise psycopg.OperationalError(_NO_MEMORY)
    return (yield from generators.execute(pgconn))


async def _exchange(connection: Connection, steps: Steps[T]) -> T:
    """Go through an exchange; returns what the server has answered, be it errors.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    try:
        return await _Course(connection, steps).end()
    except BaseException:
        connection.pgconn.finish()
        raise
    finally:
        connection.asked = None


class _Course(Generic[T]):
    """An exchange on its way.

    Args:
        connection: where; it is told when something has come or gone.
        steps: what sends and receives.
    """

    def __init__(self, connection: Connection, steps: Steps[T]) -> None:
        self._connection = connection
        self._socket = connection.pgconn.socket
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[T] = self._loop.create_future()
        self._awaited = 0

    async def end(self) -> T:
        """Return what the exchange comes to."""
        try:
            self._step(None)
            return await self._end
        finally:
            self._await(0)
            self._steps.close()

    def _step(self, ready: Ready | None) -> None:
        if self._end.done():  # cancelled
            return
        self._connection.asked = monotonic()
        try:
            self._await(self._steps.send(ready))
        except StopIteration as end:
            self._await(0)
            self._end.set_result(end.value)
        except Exception as error:
            # At once: libpq may have closed the socket, and the next one to be opened may get its number.
            self._await(0)
            self._end.set_exception(error)

    def _await(self, awaited: int) -> None:
        """Have the loop call back when the socket is ready for this, and for nothing else."""
        changed = awaited ^ self._awaited
        self._awaited = awaited
        if changed & Wait.R:
            if awaited & Wait.R:
                self._loop.add_reader(self._socket, self._step, Ready.R)
            else:
                self._loop.remove_reader(self._socket)
        if changed & Wait.W:
            if awaited & Wait.W:
                self._loop.add_writer(self._socket, self._step, Ready.W)
            else:
                self._loop.remove_writer(self._socket)


def _checked(results: list[PGresult]) -> PGresult:
    """Return the last of the server's answers.

    Raises:
        psycopg.Error: one of them is an error.
    """
    for result in results:
        if result.status not in flights.SUCCESSES:
            error = psycopg.errors.error_from_result(result)
            # Made by libpq, for a connection that broke.
            raise error if error.sqlstate else psycopg.OperationalError(str(error))
    return results[-1]


def _rows(connection: Connection, result: PGresult, make: Callable[[Any], Any] = tuple) -> list[Any]:
    if not result.ntuples:
        return []
    reader = Transformer(connection)
    reader.set_pgresult(result)
    return reader.load_rows(0, result.ntuples, make)
