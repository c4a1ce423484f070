"""Connections of a worker that break at a chosen statement: it costs that statement, and nothing is forgotten."""

from __future__ import annotations

import asyncio
import itertools

import psycopg
import pytest
from django.utils import timezone

import continuum
from continuum.models import Run
from continuum.worker import connections, recording
from continuum.worker.exchange import execute
from continuum.worker.links import Link
from continuum.worker.sql import load
from tests.app import family_workflows as families, workflows as flows
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)

HARDLY_EVER = 300.0


@pytest.fixture
def breaks(monkeypatch):
    """Have connections of a purpose break: ``breaks(purpose, when)``.

    ``when(number, statement)`` says of the statement with this number on its connection whether the connection breaks
    "before" or "after" it, or None. Returns what has broken.
    """
    rules, broken, asked = [], [], {}

    async def met(connection, statement, carry_out):
        purpose, numbers = asked.get(connection, ("", itertools.count(1)))
        number = next(numbers)
        when = next((rule(number, statement) for concerned, rule in rules if concerned == purpose), None)
        if when == "after":
            await carry_out()
        if when is not None:
            broken.append(statement)
            await connection.close()
            raise psycopg.OperationalError("the connection was ended")
        return await carry_out()

    async def connect(alias, *, application_name, **arguments):
        connection = await connections.connect(alias, application_name=application_name, **arguments)
        asked[connection] = application_name.split()[1], itertools.count(1)
        execute = connection.execute
        connection.execute = lambda statement, *arguments, **options: met(
            connection, str(statement), lambda: execute(statement, *arguments, **options)
        )
        return connection

    async def exchange(connection, text, *arguments):
        return await met(connection, text, lambda: execute(connection, text, *arguments))

    monkeypatch.setattr("continuum.worker.session.connect", connect)
    monkeypatch.setattr("continuum.worker.claims.execute", exchange)

    def add(purpose, when):
        rules.append((purpose, when))
        return broken

    return add


def suspended_with_mail():
    run = continuum.start(flows.listens)
    run_until_idle()
    continuum.signal(run, "go", "on")
    return run


def test_a_run_is_taken_up_although_every_third_answer_is_lost(breaks):
    run = suspended_with_mail()
    broken = breaks("claims", lambda number, _: "after" if number == 3 else None)
    with worker():
        assert continuum.result(run, timeout=10) == "on"
    # There are five questions about each run.
    assert len(broken) >= 2


def test_mail_for_which_the_connection_broke_is_claimed_over_the_next_one(breaks, settings):
    settings.CONTINUUM = {"POLL_INTERVAL": HARDLY_EVER, "LEASE_TTL": 10 * HARDLY_EVER}
    run = suspended_with_mail()
    broken = breaks("claims", lambda _, statement: "before" if statement == load("claim_mail") and not broken else None)
    with worker():
        assert continuum.result(run, timeout=10) == "on"
    assert broken == [load("claim_mail")]


def test_suspects_for_which_the_connection_broke_are_claimed_over_the_next_one(breaks, settings):
    settings.CONTINUUM = {"POLL_INTERVAL": HARDLY_EVER, "LEASE_TTL": 10 * HARDLY_EVER}
    run = suspended_with_mail()
    Run.objects.filter(id=run.id).update(recoveries=2, next_wakeup_at=timezone.now())
    broken = breaks(
        "claims", lambda _, statement: "before" if statement == load("claim_suspects") and not broken else None
    )
    with worker():
        assert continuum.result(run, timeout=10) == "on"
    assert broken == [load("claim_suspects")]


def test_what_was_not_committed_when_a_connection_broke_without_a_word_is_written_again(monkeypatch):
    """psycopg ends a transaction well when it finds its connection broken by then."""
    write, broken = recording.write_outbox, []

    async def breaks(connection, entries):
        sent = await write(connection, entries)
        if not broken:
            broken.append(True)
            connection.pgconn.finish()
        return sent

    monkeypatch.setattr(recording, "write_outbox", breaks)
    with worker():
        assert continuum.result(continuum.start(families.fans_out, 3), timeout=10) == 6
    assert broken


def tried_over(asks):
    """Return over which connections ``asks`` was tried by a link, the last of them with success."""
    opened = []

    async def connect():
        opened.append(await connections.connect("default", application_name="test"))
        return opened[-1]

    async def tried(connection):
        await asks(connection, len(opened))
        return connection

    async def scenario():
        link = Link(connect, "a test")
        try:
            assert await link.use(tried) is opened[-1]
        finally:
            await link.close()

    asyncio.run(scenario())
    assert all(each.closed for each in opened)
    return opened


async def fail(connection, error_code):
    await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{error_code}'; END $$")


@pytest.mark.parametrize("error_code", ["25P04", "26000", "42P05", "0A000", "57014", "53100", "XX000"])
def test_what_says_nothing_about_a_statement_is_no_reason_to_give_it_up(error_code):
    """A session that was open for too long, or lost its prepared statements; a full disk: no loop of a worker ends."""

    async def asks(connection, time):
        if time == 1:
            await fail(connection, error_code)

    assert len(tried_over(asks)) == 2


def test_an_internal_error_is_counted_with_none_but_its_like(monkeypatch):
    """After an outage of any length the first one is no more than the first one."""
    monkeypatch.setattr(connections, "MOST_INTERNAL", 2)
    codes = ["57014", "53100", "XX000", "57014", "XX000"]

    async def asks(connection, time):
        if time <= len(codes):
            await fail(connection, codes[time - 1])

    assert len(tried_over(asks)) == len(codes) + 1
    codes.append("XX001")
    with pytest.raises(psycopg.errors.DataCorrupted):
        tried_over(asks)


def test_a_connection_that_leads_to_a_standby_is_given_up_for_another():
    """So it is for a moment while a primary is replaced."""

    async def asks(connection, time):
        if time == 1:
            await connection.execute("SET default_transaction_read_only = on")
        await connection.execute("UPDATE continuum_workers SET name = name")

    assert len(tried_over(asks)) == 2
