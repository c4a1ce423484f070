"""Hints between nodes: heard in bursts, sent coalesced, and never needed for being right."""

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager

import psycopg
import pytest

from continuum.worker import wakes
from continuum.worker.connections import connect
from continuum.worker.leases import LOCK_CLASS, Lease
from continuum.worker.wakes import DONE_CHANNEL, READY_CHANNEL, Hints, Listener, worker_channel
from tests.waiting_for import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)


class Heard:
    """What a listener reported, call by call."""

    def __init__(self):
        self.ready = 0
        self.runs = []
        self.reconnects = 0

    def callbacks(self):
        return {"on_ready": self._ready, "on_runs": self.runs.append, "on_reconnect": self._reconnected}

    def _ready(self):
        self.ready += 1

    def _reconnected(self):
        self.reconnects += 1


@asynccontextmanager
async def running(service):
    task = asyncio.create_task(service.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def listening():
    """A registered node with its listener; yields a connection, the listener and what it hears."""
    async with await connect("default", application_name="test") as connection:
        worker = await Lease(30.0).register(connection, name="node")
        heard = Heard()
        listener = Listener("default", worker, **heard.callbacks())
        async with running(listener):
            assert await asyncio.wait_for(listener.settled(), 10)
            yield connection, listener, heard


async def notify(connection, channel, *payloads):
    await connection.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) AS p", [channel, list(payloads)])


async def rows(connection, statement, *parameters):
    return await (await connection.execute(statement, parameters)).fetchall()


async def locks(connection, worker):
    """The sessions that hold the node's advisory lock."""
    found = await rows(
        connection,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::bigint::oid "
        "AND objid = %s::bigint::oid AND granted",
        LOCK_CLASS,
        worker,
    )
    return [pid for (pid,) in found]


# Hearing


def test_the_first_connect_asks_the_node_to_look_at_everything_once():
    async def scenario():
        async with listening() as (_, listener, heard):
            return listener.listening, heard.reconnects, heard.runs, heard.ready

    assert asyncio.run(scenario()) == (True, 1, [], 0)


def test_news_of_runs_names_them():
    first, second = uuid.uuid4(), uuid.uuid4()

    async def scenario():
        async with listening() as (connection, listener, heard):
            await notify(connection, worker_channel(listener.worker_id), f"{first.hex},{second.hex}")
            await eventually_async(lambda: heard.runs)
            return heard.runs, heard.ready

    assert asyncio.run(scenario()) == ([[first, second]], 0)


def test_something_claimable_is_announced_to_all():
    async def scenario():
        async with listening() as (connection, _, heard):
            await notify(connection, READY_CHANNEL, "")
            await eventually_async(lambda: heard.ready)
            return heard.ready, heard.runs

    assert asyncio.run(scenario()) == (1, [])


@pytest.mark.parametrize("payload", ["", "nonsense", f"{uuid.UUID(int=7).hex},,", "x" * 7000])
def test_a_payload_that_says_nothing_readable_means_look_at_all(payload):
    async def scenario():
        async with listening() as (connection, listener, heard):
            await notify(connection, worker_channel(listener.worker_id), payload)
            await eventually_async(lambda: heard.runs)
            return heard.runs

    assert asyncio.run(scenario()) == [None]


def test_a_burst_is_reported_once():
    ids = [uuid.uuid4() for _ in range(50)]

    async def scenario():
        async with listening() as (connection, listener, heard):
            # One transaction: the server delivers its notifications together.
            async with connection.transaction():
                await notify(connection, worker_channel(listener.worker_id), *[run.hex for run in ids])
                await notify(connection, READY_CHANNEL, "", "again")
            await eventually_async(lambda: heard.ready)
            return heard.runs, heard.ready

    assert asyncio.run(scenario()) == ([ids], 1)


def test_news_for_other_nodes_is_not_heard():
    async def scenario():
        async with listening() as (connection, listener, heard):
            await notify(connection, worker_channel(listener.worker_id + 1), uuid.uuid4().hex)
            await notify(connection, worker_channel(listener.worker_id), "")
            await eventually_async(lambda: heard.runs)
            return heard.runs

    assert asyncio.run(scenario()) == [None]


# The lock


def test_the_listening_session_holds_the_nodes_lock_and_the_row_says_so():
    async def scenario():
        async with listening() as (connection, listener, _):
            await eventually_async(lambda: locks(connection, listener.worker_id))
            await eventually_async(lambda: rows(connection, "SELECT FROM continuum_workers WHERE session_lock"))
            during = len(await locks(connection, listener.worker_id))
            worker = listener.worker_id
        async with await connect("default", application_name="test") as connection:

            async def gone():
                return not await locks(connection, worker)

            return during, await eventually_async(gone)

    assert asyncio.run(scenario()) == (1, True)


def test_a_dropped_connection_is_replaced_with_the_lock_and_a_look_at_everything():
    async def scenario():
        async with listening() as (connection, listener, heard):
            [session] = await eventually_async(lambda: locks(connection, listener.worker_id))
            await rows(connection, "SELECT pg_terminate_backend(%s)", session)
            await eventually_async(lambda: heard.reconnects == 2)

            async def elsewhere():
                return [pid for pid in await locks(connection, listener.worker_id) if pid != session]

            await eventually_async(elsewhere)
            await notify(connection, READY_CHANNEL, "")
            await eventually_async(lambda: heard.ready)
            return listener.listening

    assert asyncio.run(scenario())


def test_a_session_of_the_nodes_own_that_the_server_has_not_buried_is_ended():
    """Its connection broke for the node alone: whenever the server noticed, the others would miss the lock."""

    async def scenario():
        async with await connect("default", application_name="test") as connection:
            worker = await Lease(30.0).register(connection, name="node")
            left = await connect("default", application_name=f"continuum listener {worker}")
            stranger = await connect("default", application_name=f"continuum listener {worker + 1}")
            for session, number in ((left, worker), (stranger, worker + 1)):
                await rows(session, "SELECT pg_advisory_lock(%s::int, %s::int)", LOCK_CLASS, number)
            async with running(Listener("default", worker, **Heard().callbacks())):

                async def holds_it():
                    return await locks(connection, worker) not in ([], [left.info.backend_pid])

                await eventually_async(holds_it)
                others = await locks(connection, worker + 1) == [stranger.info.backend_pid]
            await left.close()
            await stranger.close()
            return others

    assert asyncio.run(scenario())


def test_hints_are_heard_while_another_session_still_holds_the_lock(monkeypatch):
    monkeypatch.setattr(wakes, "RETRY_LOCK", 0.05)

    async def scenario():
        async with await connect("default", application_name="test") as connection:
            worker = await Lease(30.0).register(connection, name="node")
            await rows(connection, "SELECT pg_advisory_lock(%s::int, %s::int)", LOCK_CLASS, worker)
            heard = Heard()
            listener = Listener("default", worker, **heard.callbacks())
            async with running(listener):
                await listener.settled()
                await notify(connection, READY_CHANNEL, "")
                await eventually_async(lambda: heard.ready)
                marked = await rows(connection, "SELECT session_lock FROM continuum_workers")
                await rows(connection, "SELECT pg_advisory_unlock(%s::int, %s::int)", LOCK_CLASS, worker)
                await eventually_async(lambda: rows(connection, "SELECT FROM continuum_workers WHERE session_lock"))
                return marked

    assert asyncio.run(scenario()) == [(False,)]


# Where there is nothing to hear


class Pooled:
    """A session behind a transaction pooler: LISTEN succeeds, and nothing ever comes."""

    @staticmethod
    async def connect(alias, **arguments):
        connection = await connect(alias, **arguments)
        if "listener" in arguments["application_name"]:
            execute = connection.execute

            async def forgetful(statement, *rest, **options):
                if isinstance(statement, psycopg.sql.Composable):
                    return None
                return await execute(statement, *rest, **options)

            connection.execute = forgetful
        return connection


def test_behind_a_transaction_pooler_the_node_polls_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(wakes, "connect", Pooled.connect)
    monkeypatch.setattr(wakes, "PROBE_TIMEOUT", 0.05)
    monkeypatch.setattr(wakes, "RETRY_LISTENING", 0.01)
    caplog.set_level(logging.INFO, logger="continuum.worker")

    async def scenario():
        async with await connect("default", application_name="test") as connection:
            worker = await Lease(30.0).register(connection, name="node")
            heard = Heard()
            listener = Listener("default", worker, **heard.callbacks())
            tries = []
            probe = listener._probe

            async def counted(session):
                tries.append(await probe(session))
                return tries[-1]

            listener._probe = counted
            async with running(listener):
                listens = await listener.settled()
                await eventually_async(lambda: len(tries) > 2)
                held = await locks(connection, worker)
                monkeypatch.setattr(wakes, "PROBE_TIMEOUT", 2.0)  # as outside of tests: now there is an answer to come
                monkeypatch.setattr(wakes, "connect", connect)
                recovered = await eventually_async(lambda: listener.listening, 30)
            return listens, held, recovered, heard.reconnects

    # No lock either: it would belong to a session of the pooler's, and outlive the node.
    assert asyncio.run(scenario()) == (False, [], True, 1)
    said = [record for record in caplog.records if "LISTEN_DATABASE" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO"]


def test_a_server_that_is_away_is_tried_again_and_mentioned_once(monkeypatch, caplog):
    attempts = []

    async def unreachable(alias, **arguments):
        attempts.append(arguments)
        if len(attempts) < 4:
            raise psycopg.OperationalError("connection refused")
        return await connect(alias, **arguments)

    monkeypatch.setattr(wakes, "connect", unreachable)
    monkeypatch.setattr(wakes.Backoff, "next", lambda self: 0.001)

    async def scenario():
        async with await connect("default", application_name="test") as connection:
            worker = await Lease(30.0).register(connection, name="node")
            listener = Listener("default", worker, **Heard().callbacks())
            async with running(listener):
                first = await listener.settled()
                return first, await eventually_async(lambda: listener.listening)

    assert asyncio.run(scenario()) == (False, True)
    assert sum("connection refused" in record.getMessage() for record in caplog.records) == 1


# Sending


@asynccontextmanager
async def ear(*channels):
    """A plain listening session; yields a function that returns what arrived so far."""
    async with await connect("default", application_name="ear") as connection:
        for channel in channels:
            await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        heard = []

        async def listen():
            async for note in connection.notifies():
                heard.append((note.channel, note.payload))

        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_hint_reaches_the_channel_with_the_ids():
    run = uuid.uuid4()

    async def scenario():
        async with ear("continuum_worker_7") as heard:
            hints = Hints("default")
            async with running(hints):
                hints.notify("continuum_worker_7", [run])
                await eventually_async(lambda: heard)
                return heard

    assert asyncio.run(scenario()) == [("continuum_worker_7", run.hex)]


def counting(monkeypatch):
    """Count the rounds in which hints are sent; returns the list of what each sent."""
    sent = []
    payloads = wakes._payloads

    def counted(pending):
        sent.append(payloads(pending))
        return sent[-1]

    monkeypatch.setattr(wakes, "_payloads", counted)
    return sent


def test_hints_given_before_the_first_is_under_way_go_together_and_channels_share_a_statement(monkeypatch):
    rounds = counting(monkeypatch)
    ids = [uuid.uuid4() for _ in range(3)]

    async def scenario():
        async with ear(DONE_CHANNEL, READY_CHANNEL) as heard:
            hints = Hints("default")
            async with running(hints):
                for run in ids:
                    hints.notify(DONE_CHANNEL, [run, run])
                hints.notify(READY_CHANNEL)
                await eventually_async(lambda: len(heard) == 2)
                return sorted(heard)

    assert asyncio.run(scenario()) == [(DONE_CHANNEL, ",".join(run.hex for run in ids)), (READY_CHANNEL, "")]
    assert len(rounds) == 1


def test_hints_that_come_while_one_is_under_way_go_together_in_the_next(monkeypatch):
    rounds = counting(monkeypatch)

    async def scenario():
        hints = Hints("default")
        async with running(hints):
            hints.notify(READY_CHANNEL)
            await eventually_async(lambda: rounds)  # the first is under way
            for _ in range(100):
                hints.notify(DONE_CHANNEL, [uuid.uuid4()])
            assert await hints.flush(10)

    asyncio.run(scenario())
    assert [channels for channels, _ in rounds] == [[READY_CHANNEL], [DONE_CHANNEL]]


def test_many_ids_are_spread_over_payloads_the_server_accepts():
    ids = [uuid.uuid4() for _ in range(450)]

    async def scenario():
        async with ear(DONE_CHANNEL) as heard:
            hints = Hints("default")
            async with running(hints):
                hints.notify(DONE_CHANNEL, ids)
                await eventually_async(lambda: len(heard) == 3)
                return heard

    payloads = [payload.split(",") for _, payload in asyncio.run(scenario())]
    assert [len(payload) for payload in payloads] == [200, 200, 50]
    assert [uuid.UUID(digits) for payload in payloads for digits in payload] == ids


def test_look_at_all_stands_for_any_ids(monkeypatch):
    monkeypatch.setattr(wakes, "MOST_PENDING_IDS", 10)
    rounds = counting(monkeypatch)

    async def scenario():
        hints = Hints("default")
        hints.notify("one", [uuid.uuid4()])
        hints.notify("one")
        hints.notify("one", [uuid.uuid4()])
        hints.notify("too many", [uuid.uuid4() for _ in range(11)])
        async with running(hints):
            assert await hints.flush(10)

    asyncio.run(scenario())
    assert rounds == [(["one", "too many"], ["", ""])]


def test_hints_that_cannot_be_sent_are_dropped_and_later_ones_sent(monkeypatch, caplog):
    attempts = []

    async def flaky(alias, **arguments):
        attempts.append(alias)
        if len(attempts) < 3:
            raise psycopg.OperationalError("connection refused")
        return await connect(alias, **arguments)

    monkeypatch.setattr(wakes, "connect", flaky)
    monkeypatch.setattr(wakes.Backoff, "next", lambda self: 0.001)

    async def scenario():
        async with ear(READY_CHANNEL) as heard:
            hints = Hints("default")
            async with running(hints):
                for payload_round in range(2):
                    hints.notify(DONE_CHANNEL, [uuid.UUID(int=payload_round)])
                    await eventually_async(lambda seen=payload_round: len(attempts) > seen)
                    assert await hints.flush(10)
                hints.notify(READY_CHANNEL)
                await eventually_async(lambda: heard)
                return heard

    assert asyncio.run(scenario()) == [(READY_CHANNEL, "")]
    assert sum(record.levelname == "WARNING" for record in caplog.records if record.name == "continuum.worker") == 1


def test_a_flush_gives_up_in_time():
    async def scenario():
        hints = Hints("default")  # nobody runs it
        hints.notify(READY_CHANNEL)
        return await hints.flush(0.01)

    assert asyncio.run(scenario()) is False


def test_nothing_to_send_is_nothing_to_wait_for():
    async def scenario():
        return await Hints("default").flush(0.0)

    assert asyncio.run(scenario())
