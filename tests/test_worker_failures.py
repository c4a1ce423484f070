"""What must hold when things go wrong at the worst moment: each test forces one bad interleaving or one kind of error."""

from __future__ import annotations

import asyncio

import pytest

import continuum
from continuum.worker import claims
from continuum.worker.journal import Journal
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.waiting_for import eventually, eventually_async
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def state_of(run):
    return continuum.get_run(run).state


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


class TestMessages:
    def test_a_message_that_a_slow_read_shows_once_more_is_delivered_once(self, settings, monkeypatch):
        settings.CONTINUUM = {"POLL_INTERVAL": 0.05}
        journal_may_go_on = asyncio.Event()
        write, read = Journal._write, claims.unread_of_worker
        stale = []

        async def held_back(self, batch):
            if any(entry.consumed for entry in batch) and not stale:
                await journal_may_go_on.wait()
            return await write(self, batch)

        async def slow(connection, worker_id, limit):
            messages = await read(connection, worker_id, limit)
            if messages and not stale and engine().live[run.id].unacknowledged:
                # Taken up already, but the commit that removes it comes only between this read and its answer.
                stale.extend(messages)
                journal_may_go_on.set()
                await eventually_async(lambda: not engine().live[run.id].unacknowledged)
            return messages

        def engine():
            return running.node.engine

        monkeypatch.setattr(Journal, "_write", held_back)
        monkeypatch.setattr(claims, "unread_of_worker", slow)
        with worker() as running:
            run = continuum.start(flows.collects, 2)
            eventually(lambda: state_of(run) == "suspended")
            continuum.signal(run, "item", "once")
            eventually(lambda: stale)
            eventually(lambda: types_of(run))
            continuum.signal(run, "item", "twice")
            assert continuum.result(run, timeout=10) == ["once", "twice"]


class TestCancel:
    def test_a_run_that_waits_without_history_still_cleans_up(self):
        run = continuum.start(flows.cleans_up, "c")
        run_until_idle()
        assert (state_of(run), types_of(run)) == ("suspended", [])
        continuum.cancel(run)
        run_until_idle()
        assert state_of(run) == "cancelled"
        assert marks("c") == ["c:cleaned"]

