"""Whoever waits for the end of a run is told of it in the flight of its record: behind the commit, and only then."""

import asyncio

import psycopg
import pytest

import continuum
from continuum.worker import exchange, flights, recording
from continuum.worker.exchange import Connection
from continuum.worker.live import Entry, RowUpdate
from continuum.worker.sql import load
from continuum.worker.wakes import DONE_CHANNEL, Hints
from tests.app import workflows as flows
from tests.desks import TIME_US, desks, rows
from tests.fails_at_commit import DROP, ENDINGS, arrangement
from tests.hearing import listening_on
from tests.workers import worker

pytestmark = pytest.mark.django_db(transaction=True)

MARK = "continuum_mark"


@pytest.fixture
def ears(database_url):
    with listening_on(database_url, DONE_CHANNEL, MARK) as ears:
        yield ears


def end_of(live):
    entry = Entry(live)
    entry.update = RowUpdate("completed", False, result="1", completed_us=TIME_US)
    return entry


def heard_after(ears, scenario):
    """Return what was heard of what ``scenario`` does, which is given a desk."""

    async def told():
        async with desks() as desk:
            await scenario(desk)
            await desk.connection.execute(f"NOTIFY {MARK}")

    asyncio.run(told())
    return ears.until(MARK)


def test_a_run_that_ends_alone_is_told_of_with_its_record(ears):
    entries = []

    async def scenario(desk):
        entries.append(end_of(await desk.own()))
        await desk.journal._commit(entries)
        [(state,)] = await rows(desk.connection, "SELECT state FROM continuum_runs")
        assert state == "completed"

    assert heard_after(ears, scenario) == [(DONE_CHANNEL, entries[0].live.hex)]
    assert entries[0].told


def test_it_is_told_by_the_journals_own_session_in_another_transaction(ears, monkeypatch):
    monkeypatch.setattr(
        recording,
        "load",
        lambda name, *rest: "SELECT pg_current_xact_id()::text" if name == "hint_of_end" else load(name, *rest),
    )
    answers = []
    real = exchange._exchange

    async def noting(connection, steps):
        answer = await real(connection, steps)
        answers.append((connection.info.backend_pid, answer))
        return answer

    monkeypatch.setattr(exchange, "_exchange", noting)

    async def scenario(desk):
        live = await desk.own()
        await desk.journal._commit([end_of(live)])
        pid, (_, told) = answers[-1]
        [(written,)] = await rows(desk.connection, "SELECT xmin::text FROM continuum_runs")
        assert pid == desk.journal._connection.pgconn.backend_pid
        assert told[-1].get_value(0, 0).decode() != written

    heard_after(ears, scenario)


def test_a_run_that_is_in_other_hands_is_not_told_of(ears):
    entries = []

    async def scenario(desk):
        live = await desk.own()
        await rows(desk.connection, "UPDATE continuum_runs SET lease_token = lease_token + 1 RETURNING 1")
        entries.append(end_of(live))
        await desk.journal._commit(entries)

    assert heard_after(ears, scenario) == []
    assert not entries[0].told


def test_a_record_that_is_refused_is_not_told_of(ears):
    entries = []

    async def scenario(desk):
        entry = end_of(await desk.own())
        entry.update = entry.update._replace(result='"\\u0000"', progress="no JSON")
        entries.append(entry)
        await desk.journal._commit(entries)
        assert len(desk.refused) == 1
        assert await rows(desk.connection, "SELECT state FROM continuum_runs") == [("running",)]

    assert heard_after(ears, scenario) == []
    assert not entries[0].told


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_record_that_fails_in_its_commit_is_neither_done_nor_told_of(ears, ending):
    entries = []

    async def scenario(desk):
        entries.append(end_of(await desk.own()))
        await desk.connection.execute(arrangement("continuum_runs", ending))
        try:
            if ending == "it fails":
                await desk.journal._commit(entries)
                assert len(desk.refused) == 1
            else:
                connection = await desk.journal._connect()
                with pytest.raises(psycopg.OperationalError):
                    await recording.record_end(connection, desk.journal.worker_id, entries[0])
                assert connection.closed
        finally:
            await desk.connection.execute(DROP)
        assert await rows(desk.connection, "SELECT state FROM continuum_runs") == [("running",)]

    assert heard_after(ears, scenario) == []
    assert not entries[0].told


@pytest.mark.parametrize("because", ["others end too", "it goes on", "others wait", "there are no pipelines", "pooled"])
def test_others_are_not_kept_waiting_for_a_hint_and_poolers_not_surprised(ears, monkeypatch, because):
    entries = []

    async def scenario(desk):
        entries.append(end_of(await desk.own()))
        if because == "others end too":
            entries.append(end_of(await desk.own()))
        elif because == "it goes on":
            entries[0].update = RowUpdate("suspended", True)
        elif because == "others wait":
            desk.journal.entry(await desk.own())
        elif because == "there are no pipelines":
            monkeypatch.setattr(flights, "possible", lambda: False)
        else:
            connect = desk.journal._connect

            async def pooled() -> Connection:
                connection = await connect()
                connection.prepare_threshold = None
                return connection

            desk.journal._connect = pooled
        await desk.journal._commit(entries)

    assert heard_after(ears, scenario) == []
    assert not any(entry.told for entry in entries)


def test_a_hint_that_fails_is_not_the_records_trouble(ears, monkeypatch):
    monkeypatch.setattr(
        recording, "load", lambda name, *rest: "SELECT 1/0" if name == "hint_of_end" else load(name, *rest)
    )
    entries = []

    async def scenario(desk):
        entries.append(end_of(await desk.own()))
        await desk.journal._commit(entries)
        assert await rows(desk.connection, "SELECT state FROM continuum_runs") == [("completed",)]
        await desk.journal._commit([end_of(await desk.own())])

    assert heard_after(ears, scenario) == []
    assert not entries[0].told


def test_a_worker_tells_once(ears, monkeypatch):
    noted = []
    real = Hints.notify
    monkeypatch.setattr(Hints, "notify", lambda self, *args: (noted.append(args), real(self, *args))[1])
    with worker():
        run = continuum.start(flows.echo, "x")
        assert ears.until(DONE_CHANNEL) == []
    assert not [args for args in noted if args[0] == DONE_CHANNEL and run.id in args[1]]
    assert ears.heard == []
