"""What an exchange with the server comes to, whatever happens on the way: all of it or nothing, and no doubt which."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import asynccontextmanager, suppress
from operator import itemgetter
from pathlib import Path

import psycopg
import pytest
from django.db import connections as django_connections
from psycopg.pq import TransactionStatus

from continuum.worker import connections, recording
from continuum.worker.exchange import Transaction, execute, execute_and_tell, execute_in_parts
from continuum.worker.live import Entry, RowUpdate
from tests.desks import desks, event, rows
from tests.fails_at_commit import DROP, ENDINGS, arrangement
from tests.poolers import PORT, PgBouncer, address_of, pgbouncer_binary
from tests.waiting_for import blocked, eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = "INSERT INTO exchanged (id) SELECT unnest(%(ids)s::integer[]) RETURNING id"
COPY = "COPY exchanged FROM STDIN"
WAYS = ["prepared", "not prepared", "without pipelines"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "without pipelines":
        monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    return request.param


@asynccontextmanager
async def opened(way="prepared"):
    """A connection for exchanges, and one to look on; there is a table to write to."""
    connection = await connections.connect("default", application_name="exchange", prepare=way != "not prepared")
    other = await connections.connect("default", application_name="onlooker")
    try:
        await other.execute("CREATE TABLE exchanged (id integer PRIMARY KEY, word text)")
        async with asyncio.timeout(120):
            yield connection, other
    finally:
        await connection.close()
        await other.execute("DROP TABLE exchanged")
        await other.close()


async def transact(connection, block):
    """Call ``block`` with a transaction of its own."""
    async with Transaction(connection) as transaction:
        await block(transaction)


async def written(other):
    return [id_ for (id_,) in await rows(other, "SELECT id FROM exchanged ORDER BY id")]


async def usable(connection):
    assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    assert not connection.pgconn.pipeline_status
    assert await execute(connection, "SELECT %(a)s::integer + 1", {"a": 1}) == [(2,)]
    assert await rows(connection, "SELECT 3") == [(3,)]
    return True


async def ended(other, pid):
    async def gone():
        return not await rows(other, "SELECT FROM pg_stat_activity WHERE pid = %s", pid)

    await eventually_async(gone)


class TestTransactions:
    def test_are_committed_at_the_end_of_their_block(self, way):
        async def scenario():
            async with opened(way) as (connection, other):
                async with Transaction(connection) as transaction:
                    assert await transaction.execute(INSERT, {"ids": "{1,2}"}) == [(1,), (2,)]
                    await transaction.copy(COPY, b"3\tx\n")
                    assert await transaction.execute(INSERT, {"ids": "{4}"}) == [(4,)]
                    assert await written(other) == []
                assert await written(other) == [1, 2, 3, 4]
                assert await usable(connection)

        asyncio.run(scenario())

    def test_may_be_committed_with_what_is_copied_last(self, way):
        async def scenario():
            async with opened(way) as (connection, other):
                async with Transaction(connection) as transaction:
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.copy(COPY, b"2\tx\n", last=True)
                    assert await written(other) == [1, 2]
                assert await usable(connection)

        asyncio.run(scenario())

    def test_enclose_what_goes_over_cursors(self):
        async def scenario():
            async with opened() as (connection, other):
                async with Transaction(connection) as transaction:
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await connection.execute("INSERT INTO exchanged (id) VALUES (%s)", [2], prepare=True)
                    with pytest.raises(psycopg.errors.UniqueViolation):
                        async with connection.transaction():
                            await connection.execute("INSERT INTO exchanged (id) VALUES (%s)", [2], prepare=True)
                    assert await written(other) == []
                assert await written(other) == [1, 2]
                assert await usable(connection)

        asyncio.run(scenario())

    def test_can_be_rolled_back(self, way):
        async def scenario():
            async with opened(way) as (connection, other):
                async with Transaction(connection) as transaction:
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.rollback()
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    def test_do_not_begin_for_nothing(self):
        async def scenario():
            async with opened() as (connection, _):
                async with Transaction(connection):
                    assert connection.pgconn.transaction_status == TransactionStatus.IDLE
                assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize("number", [1, 2])
    def test_are_rolled_back_when_a_statement_fails(self, way, number):
        async def scenario():
            async with opened(way) as (connection, other):

                async def block(transaction):
                    if number == 2:
                        await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.execute(INSERT, {"ids": "{5,5}"})

                with pytest.raises(psycopg.errors.UniqueViolation) as raised:
                    await transact(connection, block)
                assert (raised.value.sqlstate, raised.value.diag.constraint_name) == ("23505", "exchanged_pkey")
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(
        ("query", "data", "error"),
        [
            (COPY, b"1\tx\n", psycopg.errors.UniqueViolation),
            (COPY, b"2\t\xff\xfe\n", psycopg.errors.CharacterNotInRepertoire),
            (COPY, b"2\ta\0b\n", psycopg.errors.CharacterNotInRepertoire),
            (COPY, b"two\tx\n", psycopg.errors.InvalidTextRepresentation),
            (COPY, b"1\tx\n" + b"2\tx\n" * 1_000_000, psycopg.errors.UniqueViolation),
            ("COPY nothing FROM STDIN", b"", psycopg.errors.UndefinedTable),
            ("COPY FROM", b"", psycopg.errors.SyntaxError),
        ],
    )
    def test_are_rolled_back_when_what_is_copied_is_refused(self, query, data, error, last):
        async def scenario():
            async with opened() as (connection, other):

                async def block(transaction):
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.copy(query, data, last=last)

                with pytest.raises(error):
                    await transact(connection, block)
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize("last", [False, True])
    def test_are_rolled_back_when_the_commit_fails(self, way, last):
        async def scenario():
            async with opened(way) as (connection, other):
                await other.execute("ALTER TABLE exchanged ADD UNIQUE (word) DEFERRABLE INITIALLY DEFERRED")

                async def block(transaction):
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.copy(COPY, b"2\tx\n3\tx\n", last=last)

                with pytest.raises(psycopg.errors.UniqueViolation):
                    await transact(connection, block)
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    def test_do_not_end_well_if_the_server_has_rolled_them_back(self):
        async def scenario():
            async with opened() as (connection, other):

                async def block(transaction):
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    with suppress(psycopg.errors.UniqueViolation):
                        await transaction.execute(INSERT, {"ids": "{1}"})

                with pytest.raises(psycopg.Error, match="ROLLBACK"):
                    await transact(connection, block)
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize("copied", [False, True])
    def test_wait_for_locks_as_long_as_they_have_said(self, way, copied):
        async def scenario():
            async with opened(way) as (connection, other):

                async def block(transaction):
                    await transaction.execute("SELECT set_config('lock_timeout', %(time)s, true)", {"time": "50ms"})
                    if copied:
                        await transaction.copy(COPY, b"1\tx\n", last=True)
                    else:
                        await transaction.execute(INSERT, {"ids": "{1}"})

                async with other.transaction():
                    await other.execute("INSERT INTO exchanged (id) VALUES (1)")
                    with pytest.raises(psycopg.errors.LockNotAvailable):
                        await transact(connection, block)
                    assert await rows(connection, "SHOW lock_timeout") == [("0",)]
                assert await written(other) == [1]
                assert await usable(connection)

        asyncio.run(scenario())


class TestStatements:
    def test_commit_by_themselves(self, way):
        async def scenario():
            async with opened(way) as (connection, other):
                assert await execute(connection, INSERT, {"ids": "{1}"}) == [(1,)]
                assert await written(other) == [1]
                with pytest.raises(psycopg.errors.UniqueViolation):
                    await execute(connection, INSERT, {"ids": "{1}"})
                assert await usable(connection)

        asyncio.run(scenario())

    def test_are_prepared_once_in_a_session_that_is_our_own(self, way):
        async def scenario():
            async with opened(way) as (connection, _):
                for number in range(5):
                    await execute(connection, INSERT, {"ids": f"{{{number}}}"})
                    async with Transaction(connection) as transaction:
                        await transaction.execute(INSERT, {"ids": f"{{{10 + number}}}"})
                prepared = await rows(
                    connection, "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'INSERT'"
                )
                assert prepared == [(0 if way == "not prepared" else 1,)]

        asyncio.run(scenario())

    def test_are_prepared_anew_in_the_next_session(self):
        async def scenario():
            for number in (1, 2):
                async with opened() as (connection, _):
                    await execute(connection, INSERT, {"ids": f"{{{number}}}"})
                    assert len(await rows(connection, "SELECT FROM pg_prepared_statements")) == 1

        asyncio.run(scenario())

    def test_that_cannot_be_prepared_fail_alone(self):
        async def scenario():
            async with opened() as (connection, _):
                for _ in range(2):
                    with pytest.raises(psycopg.errors.UndefinedTable):
                        await execute(connection, "SELECT FROM nothing", {})

                    async def block(transaction):
                        await transaction.execute("SELECT FROM nothing", {})

                    with pytest.raises(psycopg.errors.UndefinedTable):
                        await transact(connection, block)
                    assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize(("text", "error"), [("a\0b", psycopg.DataError), ("a\ud800", UnicodeEncodeError)])
    def test_are_not_sent_with_texts_that_no_server_takes(self, way, text, error):
        async def scenario():
            async with opened(way) as (connection, other):

                async def block(transaction):
                    await transaction.execute(INSERT, {"ids": "{1}"})
                    await transaction.execute("SELECT %(text)s::text", {"text": text})

                with pytest.raises(error):
                    await execute(connection, "SELECT %(text)s::text", {"text": text})
                with pytest.raises(error):
                    await transact(connection, block)
                assert await written(other) == []
                assert await usable(connection)

        asyncio.run(scenario())

    def test_may_be_larger_than_what_sockets_hold(self, way):
        async def scenario():
            async with opened(way) as (connection, _):
                text = "äx\\'\"" * 1_000_000
                assert await execute(connection, "SELECT %(a)s || %(a)s", {"a": text}) == [(text + text,)]

        asyncio.run(scenario())


class TestParts:
    """One statement with several sets of parameters, in one flight."""

    NUMBERS = (
        "SELECT n, repeat('x', %(length)s::integer)"
        " FROM generate_series(%(first)s::integer, %(last)s::integer) AS n ORDER BY n"
    )

    @pytest.mark.parametrize("length", [1, 4000])
    def test_come_in_order(self, way, length):
        async def scenario():
            async with opened(way) as (connection, _):
                parts = [{"first": first, "last": first + 999, "length": length} for first in range(0, 5000, 1000)]
                found = await execute_in_parts(connection, self.NUMBERS, parts, itemgetter(0))
                assert found == [*range(5000)]
                assert await execute_in_parts(connection, self.NUMBERS, parts[1:2], len) == [2] * 1000
                assert await usable(connection)

        asyncio.run(scenario())

    def test_that_are_empty_have_no_rows(self, way):
        async def scenario():
            async with opened(way) as (connection, _):
                parts = [{"first": 1, "last": last, "length": 0} for last in (0, 1, 0)]
                assert await execute_in_parts(connection, self.NUMBERS, parts) == [(1, "")]
                assert await usable(connection)

        asyncio.run(scenario())

    @pytest.mark.parametrize("failing", [0, 1, 2])
    def test_that_fail_fail_together_and_do_no_harm(self, way, failing):
        async def scenario():
            async with opened(way) as (connection, _):
                parts = [{"by": int(number != failing)} for number in range(3)]
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await execute_in_parts(connection, "SELECT 1 / %(by)s", parts)
                assert await usable(connection)

        asyncio.run(scenario())

    def test_are_made_while_the_server_is_at_the_next(self):
        async def scenario():
            async with opened() as (connection, other):
                made = []
                text = "SELECT repeat('x', 100000) FROM pg_advisory_xact_lock(%(part)s)"
                await other.execute("SELECT pg_advisory_lock(3)")
                asking = asyncio.create_task(
                    execute_in_parts(connection, text, [{"part": part} for part in (1, 2, 3)], made.append)
                )
                await blocked(other, connection)

                async def has_the_first():
                    return made

                # Of the second, the server keeps the end until there is more to send.
                await eventually_async(has_the_first)
                assert len(made) < 3
                await other.execute("SELECT pg_advisory_unlock(3)")
                await asking
                assert len(made) == 3

        asyncio.run(scenario())

    @pytest.mark.parametrize("end", ["cancelled", "terminated", "not made"])
    def test_that_are_given_up_leave_nothing_on_its_way(self, way, end):
        def refuse(row):
            raise ValueError("no such row")

        async def scenario():
            async with opened(way) as (connection, other):
                if end == "not made":
                    parts = [{"first": 1, "last": 2, "length": 1}] * 2
                    with pytest.raises(ValueError, match="no such row"):
                        await execute_in_parts(connection, self.NUMBERS, parts, refuse)
                else:
                    await other.execute("SELECT pg_advisory_lock(2)")
                    text = "SELECT FROM pg_advisory_xact_lock(%(part)s)"
                    asking = asyncio.create_task(
                        execute_in_parts(connection, text, [{"part": part} for part in (1, 2, 3)])
                    )
                    await blocked(other, connection)
                    if end == "cancelled":
                        asking.cancel()
                    else:
                        await rows(other, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
                    with pytest.raises(asyncio.CancelledError if end == "cancelled" else psycopg.OperationalError):
                        await asking
                    await rows(other, "SELECT pg_advisory_unlock(2)")
                with pytest.raises(psycopg.OperationalError):
                    await execute(connection, "SELECT 1", {})
                assert connection.closed

        asyncio.run(scenario())


def test_what_is_copied_may_be_larger_than_what_sockets_hold():
    async def scenario():
        async with opened() as (connection, other):
            async with Transaction(connection) as transaction:
                await transaction.execute("SELECT 1", {})
                await transaction.copy(COPY, b"".join(b"%d\t%s\n" % (n, b"x" * 1000) for n in range(9000)), last=True)
            assert await written(other) == [*range(9000)]

    asyncio.run(scenario())


def test_what_the_server_says_meanwhile_is_heard_and_holds_up_nobody():
    """It says more than the sockets hold, while we have more to say than they hold."""

    async def scenario():
        async with opened() as (connection, other):
            notices, notifies = Counter(), []
            connection.add_notice_handler(lambda notice: notices.update([notice.message_primary[:4]]))
            connection.add_notify_handler(lambda notify: notifies.append(notify.payload))
            await other.execute(
                "CREATE FUNCTION says() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE NOTICE 'row %: %', NEW.id, repeat('x', 2000); NOTIFY said, 'it'; RETURN NEW; END $$"
            )
            await other.execute("CREATE TRIGGER says BEFORE INSERT ON exchanged FOR EACH ROW EXECUTE FUNCTION says()")
            try:
                await connection.execute("LISTEN said")
                async with Transaction(connection) as transaction:
                    await transaction.execute(INSERT, {"ids": "{0}"})
                    await transaction.copy(COPY, b"".join(b"%d\t%s\n" % (n, b"x" * 1000) for n in range(1, 4000)))
                assert notices == {"row ": 4000}
                assert await usable(connection)
                assert notifies == ["it"]
                assert await written(other) == [*range(4000)]
            finally:
                await other.execute("DROP FUNCTION says CASCADE")

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["statement", "first", "copy", "last", "commit", "cursor"])
def test_who_is_cancelled_in_the_middle_leaves_nothing_half_done(moment):
    async def scenario():
        async with opened() as (connection, other):
            if moment == "commit":
                await other.execute("CREATE TABLE referred (id integer PRIMARY KEY)")
                await other.execute("INSERT INTO referred VALUES (1)")
                await other.execute(
                    "ALTER TABLE exchanged ADD FOREIGN KEY (id) REFERENCES referred (id) DEFERRABLE INITIALLY DEFERRED"
                )
            await other.execute("BEGIN")
            await other.execute("DELETE FROM referred" if moment == "commit" else "LOCK TABLE exchanged IN SHARE MODE")

            async def commit():
                if moment == "statement":
                    await execute(connection, INSERT, {"ids": "{1}"})
                    return
                async with Transaction(connection) as transaction:
                    await transaction.execute(
                        *((INSERT, {"ids": "{1}"}) if moment in ("first", "commit") else ("SELECT 1", {}))
                    )
                    if moment == "cursor":
                        await connection.execute("INSERT INTO exchanged VALUES (1)")
                    if moment != "commit":
                        await transaction.copy(COPY, b"1\tx\n", last=moment == "last")

            socket, pid = connection.pgconn.socket, connection.info.backend_pid
            task = asyncio.create_task(commit())
            await blocked(other, connection)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert connection.closed
            assert not asyncio.get_running_loop().remove_reader(socket)
            assert not asyncio.get_running_loop().remove_writer(socket)
            with pytest.raises(psycopg.OperationalError):
                await execute(connection, "SELECT 1", {})
            await rows(other, "SELECT pg_terminate_backend(%s)", pid)
            await other.execute("ROLLBACK")
            await ended(other, pid)
            assert await written(other) == []
            if moment == "commit":
                await other.execute("DROP TABLE referred CASCADE")

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["before", "in", "between", "in copy", "before the end"])
def test_a_session_that_is_ended_is_trouble_with_the_connection(way, moment):
    async def scenario():
        async with opened(way) as (connection, other):
            pid = connection.info.backend_pid

            async def end():
                await rows(other, "SELECT pg_terminate_backend(%s)", pid)

            async def end_while_it_waits():
                await blocked(other, connection)
                await end()

            if moment == "before":
                await execute(connection, INSERT.replace("%(ids)s", "'{}'"), {})
                await end()
                await ended(other, pid)
            if moment.startswith("in"):
                await other.execute("BEGIN")
                await other.execute("LOCK TABLE exchanged IN SHARE MODE")
                ending = asyncio.create_task(end_while_it_waits())

            async def block(transaction):
                await transaction.execute(*(("SELECT 1", {}) if moment == "in copy" else (INSERT, {"ids": "{1}"})))
                if moment == "between":
                    await end()
                    await ended(other, pid)
                await transaction.copy(COPY, b"2\tx\n", last=moment != "before the end")
                if moment == "before the end":
                    await end()
                    await ended(other, pid)

            with pytest.raises(psycopg.OperationalError):
                await transact(connection, block)
            assert connection.closed
            if moment.startswith("in"):
                await ending
                await other.execute("ROLLBACK")
            await ended(other, pid)
            assert await written(other) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("runs", [3, recording.COPY_FROM])
def test_no_record_is_refused_for_a_session_that_has_forgotten_what_was_prepared(runs):
    async def scenario():
        async with desks() as desk:
            lives = [await desk.own() for _ in range(runs)]
            for seq in (1, 2):
                entries = [Entry(live) for live in lives]
                for entry in entries:
                    entry.events = [event(seq)]
                await desk.journal._commit(entries)
                await desk.journal._connection.execute("DEALLOCATE ALL")
            assert desk.refused == []
            assert await rows(desk.connection, "SELECT count(*) FROM continuum_events") == [(2 * runs,)]

    asyncio.run(scenario())


@pytest.mark.skipif(pgbouncer_binary() is None, reason="there is no pgbouncer to stand behind")
def test_connections_that_share_a_session_of_a_poolers_do_not_meet():
    async def scenario(directory):
        async with opened() as (_, other):
            parameters = connections.connection_parameters("default") | {"host": str(directory), "port": PORT}
            sharing = [
                await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=None)
                for _ in range(2)
            ]

            async def commit(connection, first):
                for id_ in range(first, first + 30, 3):
                    await execute(connection, INSERT, {"ids": f"{{{id_}}}"})

                    async def block(transaction, id_=id_):
                        assert await transaction.execute(INSERT, {"ids": f"{{{id_ + 1}}}"}) == [(id_ + 1,)]
                        await transaction.copy(COPY, b"%d\tx\n" % (id_ + 2), last=id_ % 2 > 0)

                    await transact(connection, block)
                    with pytest.raises(psycopg.errors.UniqueViolation):
                        await transact(connection, block)

            try:
                await asyncio.gather(*[commit(each, 100 * number) for number, each in enumerate(sharing)])
                assert await written(other) == [*range(30), *range(100, 130)]
                for each in sharing:
                    assert await usable(each)
            finally:
                for each in sharing:
                    await each.close()

    pooler = PgBouncer(django_connections["default"].settings_dict, pool_size=1)
    try:
        asyncio.run(scenario(pooler.directory))
    finally:
        pooler.close()


class Wire:
    """A proxy that breaks its connections when so many bytes more have passed one way.

    Attributes:
        passed: how many have, by the way they went: "up" to the server, "down" from it.
        left: how many may.
    """

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="continuum-wire-"))
        self.passed, self.left = Counter(), {}

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_unix_server(self._accept, self.directory / f".s.PGSQL.{PORT}")
        try:
            yield self
        finally:
            server.close()
            shutil.rmtree(self.directory)

    async def connect(self):
        parameters = connections.connection_parameters("default")
        parameters |= {"host": str(self.directory), "port": PORT}
        return await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=2)

    async def _accept(self, reader, writer):
        host, port = address_of(django_connections["default"].settings_dict)
        if host.startswith("/"):
            from_server, to_server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            from_server, to_server = await asyncio.open_connection(host, int(port))
        directions = [self._pass("up", reader, to_server), self._pass("down", from_server, writer)]
        for first in asyncio.as_completed(directions):
            await first
            writer.close()
            to_server.close()

    async def _pass(self, way, reader, writer):
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.passed[way] += len(data)
                if way in self.left:
                    data = data[: self.left[way]]
                    self.left[way] -= len(data)
                writer.write(data)
                await writer.drain()
                if not self.left.get(way, True):
                    return


@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("runs", [2, recording.COPY_FROM])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_commit_whose_connection_breaks_anywhere_is_done_or_raises(way, runs, sends):
    async def scenario():
        async with desks() as desk, Wire().listening() as wire:
            lives = [await desk.own() for _ in range(runs)]

            async def commit(seq, left=None):
                """Return whether a commit is confirmed, whether it takes place, and how many bytes pass."""
                entries = [Entry(live) for live in lives]
                for entry in entries:
                    entry.events = [event(seq)]
                entries[0].update = RowUpdate("suspended", True)
                if sends:
                    entries[0].send().tried = "other"
                connection = await wire.connect()
                pid = connection.info.backend_pid
                wire.passed.clear()
                if left is not None:
                    wire.left[way] = left
                try:
                    rows_, _ = await recording.record(connection, desk.worker_id, entries)
                    assert rows_ == []
                    confirmed = True
                except psycopg.OperationalError:
                    assert connection.closed
                    confirmed = False
                passed = wire.passed[way]
                await connection.close()
                await ended(desk.connection, pid)
                wire.left.clear()
                [(there,)] = await rows(desk.connection, "SELECT count(*) FROM continuum_events WHERE seq = %s", seq)
                assert there in (0, runs)
                return confirmed, there > 0, passed

            confirmed, there, total = await commit(1)
            assert (confirmed, there) == (True, True)
            seen = Counter()
            places = sorted({*range(0, total, total // 50), *range(total - 10, total)})
            for seq, left in enumerate(places, 2):
                confirmed, there, _ = await commit(seq, left)
                assert there or not confirmed
                seen[there] += 1
            assert not confirmed
            assert seen[way == "down"]
            assert way == "down" or not seen[True]

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_statement_that_is_told_of_over_a_connection_that_breaks_anywhere_is_done_or_raises(way):
    async def scenario():
        async with opened() as (_, other), Wire().listening() as wire:

            async def commit(number, left=None):
                """Return whether a statement is confirmed, and told of, and how many bytes pass."""
                connection = await wire.connect()
                pid = connection.info.backend_pid
                wire.passed.clear()
                if left is not None:
                    wire.left[way] = left
                confirmed = told = False
                try:
                    rows_, told = await execute_and_tell(
                        connection,
                        INSERT,
                        {"ids": f"{{{number}}}"},
                        "SELECT FROM exchanged WHERE id = %(id)s",
                        {"id": number},
                    )
                    confirmed = True
                    assert rows_ == [(number,)]
                except psycopg.OperationalError:
                    assert connection.closed
                assert told or not confirmed or connection.closed
                passed = wire.passed[way]
                await connection.close()
                await ended(other, pid)
                wire.left.clear()
                assert number in await written(other) or not confirmed
                return confirmed, told, passed

            confirmed, told, total = await commit(1)
            assert (confirmed, told) == (True, True)
            seen = Counter()
            for number, left in enumerate(sorted({*range(0, total, total // 50), *range(total - 10, total)}), 2):
                confirmed, told, _ = await commit(number, left)
                seen[confirmed, told] += 1
            assert seen[False, False]
            assert not seen[False, True]
            # Broken between the two answers: what is known is not forgotten.
            assert seen[True, False] or way == "up"

    asyncio.run(scenario())


def test_what_tells_of_a_statement_sees_it_and_cannot_undo_it():
    async def scenario():
        async with opened() as (connection, other):
            for number, hint in enumerate(["SELECT FROM exchanged WHERE id = %(id)s", "SELECT 1 / (%(id)s::int * 0)"]):
                told = await execute_and_tell(connection, INSERT, {"ids": f"{{{number}}}"}, hint, {"id": number})
                assert told == ([(number,)], number == 0)
            with pytest.raises(psycopg.errors.UniqueViolation):
                await execute_and_tell(connection, INSERT, {"ids": "{0}"}, "SELECT 1", {})
            assert await written(other) == [0, 1]
            assert await usable(connection)

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("hint", ["with a hint", "without"])
def test_what_fails_in_its_commit_is_not_confirmed(hint, ending):
    """The server answers a statement before it commits it."""

    async def scenario():
        async with opened() as (connection, other):
            await other.execute(arrangement("exchanged", ending))
            try:
                given = (connection, INSERT, {"ids": "{1}"})
                with pytest.raises(psycopg.Error) as failed:
                    await (execute(*given) if hint == "without" else execute_and_tell(*given, "SELECT 1", {}))
                assert isinstance(failed.value, psycopg.OperationalError) is (ending == "its session is ended")
                assert await written(other) == []
                assert connection.closed or await usable(connection)
            finally:
                await other.execute(DROP)

    asyncio.run(scenario())
