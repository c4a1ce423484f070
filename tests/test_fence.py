"""Statements that end late: what the server was still at when their connection broke."""

import asyncio
from types import SimpleNamespace

import pytest

from continuum.core.history import Event, EventType
from continuum.worker.claims import claim_mail
from continuum.worker.live import Entry, RowUpdate
from continuum.worker.loaded import Loaded
from continuum.worker.recording import statement
from tests.test_leases import give_runs, node, rows, sessions
from tests.waiting_for import blocked

pytestmark = pytest.mark.django_db(transaction=True)

HELD_UP = 4711


def commit_of(worker, run, token, *, update=None, events=(), consumed=()):
    """Return the statement of a commit for one run, and its parameters."""
    entry = Entry(SimpleNamespace(id=run, hex=run.hex, token=token))
    entry.update = update
    entry.events += events
    entry.consumed += consumed
    return statement(worker, [entry], patience="0")


def held_up(text):
    """Return the journal's statement, with a wait between its look at what is lost and what it writes."""
    assert text.endswith("SELECT run_id FROM lost")
    return f"{text} UNION ALL SELECT NULL FROM pg_advisory_xact_lock({HELD_UP})"


def test_a_release_that_ends_late_takes_nothing_from_a_later_claim_of_the_same_worker():
    async def scenario():
        async with sessions(3) as (connection, cut_off, holding):
            worker = (await node(connection)).worker_id
            [run] = await give_runs(connection, worker)
            [(token,)] = await rows(connection, "SELECT lease_token FROM continuum_runs")
            release = commit_of(worker, run, token, update=RowUpdate("suspended", False))
            await holding.execute("SELECT pg_advisory_lock(%s)", [HELD_UP])
            late = asyncio.create_task(cut_off.execute(held_up(release[0]), release[1]))
            await blocked(connection, cut_off)

            # The worker has lost that connection, finds nothing recorded and sends the release again, over another.
            assert await rows_of(connection, *release) == []
            [(message,)] = await rows(
                connection,
                "INSERT INTO continuum_inbox (run_id, kind, name, payload) "
                "VALUES (%s, 'signal', 'go', '1') RETURNING id",
                run,
            )
            [claimed] = await claim_mail(connection, worker, Loaded(["flow"]), 10)
            received = Event(1, EventType.SIGNAL_RECEIVED, None, "go", "1", 0)
            step = commit_of(worker, run, claimed.token, events=[received], consumed=[message])
            assert await rows_of(connection, *step) == []

            await holding.execute("SELECT pg_advisory_unlock(%s)", [HELD_UP])
            await late
            # Without an owner, a time to wake up and mail, nobody would ever take it up again.
            [row] = await rows(connection, "SELECT owner_id, lease_token, state FROM continuum_runs")
            assert row == (worker, claimed.token, "running")

    asyncio.run(scenario())


async def rows_of(connection, text, parameters):
    return await (await connection.execute(text, parameters)).fetchall()
