"""What must hold when things go wrong at the worst moment: each test forces one interleaving or one kind of error."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone

import continuum
from continuum import Retry, activity, wait_signal, workflow
from continuum.core.execution import Execution
from continuum.models import InboxMessage, Run, Worker
from continuum.worker import claims, recording
from continuum.worker.exchange import execute
from continuum.worker.journal import Journal
from continuum.worker.sql import load
from continuum.worker.suspects import chances
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.waiting_for import eventually, eventually_async
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def state_of(run):
    return continuum.get_run(run).state


def run_workflow(run):
    return continuum.get_run(run).workflow


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

        async def slow(*args):
            messages = await read(*args)
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


class TestPutOff:
    def test_mail_for_a_run_that_nobody_owns_need_not_wait_for_the_poll(self, settings, monkeypatch):
        run = continuum.start(flows.listens)
        run_until_idle()
        settings.CONTINUUM = {"POLL_INTERVAL": 3600, "LEASE_TTL": 7200}
        looked, real = threading.Event(), claims.claim_mail

        async def slow_claim(*args):
            # So dear that the next look has to wait a while.
            await asyncio.sleep(0.05)
            claimed = await real(*args)
            looked.set()
            return claimed

        monkeypatch.setattr(claims, "claim_mail", slow_claim)
        with worker():
            assert looked.wait(20)
            continuum.signal(run, "go", "heard")
            assert continuum.result(run, timeout=30) == "heard"


class TestCancel:
    def test_a_run_that_waits_without_history_still_cleans_up(self):
        run = continuum.start(flows.cleans_up, "c")
        run_until_idle()
        assert (state_of(run), types_of(run)) == ("suspended", [])
        continuum.cancel(run)
        run_until_idle()
        assert state_of(run) == "cancelled"
        assert marks("c") == ["c:cleaned"]


@contextmanager
def events_refused(condition, error_code):
    """Have PostgreSQL raise an error, the first three times that an event fulfils a condition."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE refusals")
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF nextval('refusals') <= 3 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '"
            f"{error_code}'; END IF; RETURN NEW; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON continuum_events FOR EACH ROW "
            f"WHEN ({condition}) EXECUTE FUNCTION refuse()"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuse ON continuum_events")
            cursor.execute("DROP FUNCTION refuse")
            cursor.execute("DROP SEQUENCE refusals")


class Cut:
    """A connection that breaks in the middle of its first commit of events, on which the server goes on working.

    The server ends it as soon as somebody else waits for it.
    """

    def __init__(self, real, watcher, cuts):
        self.real, self.watcher, self.cuts = real, watcher, cuts
        self.closed = False

    def __getattr__(self, name):
        return getattr(self.real, name)

    async def record(self, statement, parameters):
        """What the journal does with its statement."""
        # Statements are tried out on a connection before the journal is given it.
        if type(self) is not Cut or self.cuts or "event_runs" not in parameters:
            return await execute(self, statement, parameters)
        await self.real.set_autocommit(False)
        await self.real.execute(statement, parameters)
        self.cuts.append(asyncio.create_task(self._end_when_waited_for()))
        self.closed = True
        raise psycopg.OperationalError("cut off")

    async def _end_when_waited_for(self):
        await eventually_async(self._somebody_waits)
        await self.real.commit()
        await self.real.close()
        await self.watcher.close()

    async def _somebody_waits(self):
        cursor = await self.watcher.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return (await cursor.fetchone())[0]

    async def close(self):
        if not self.closed:  # the one that was cut closes when it has ended
            await self.real.close()
            await self.watcher.close()


class TestJournal:
    @pytest.mark.parametrize("error_code", ["57014", "55P03", "58030", "25006", "XX000"])
    def test_no_run_fails_for_an_error_that_is_not_its_own(self, error_code):
        run = continuum.start(flows.five_steps, 1)
        with events_refused("true", error_code):
            run_until_idle()
            assert continuum.result(run, timeout=10) == 6

    def test_an_internal_error_that_comes_again_and_again_is_the_runs_own(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.connections.MOST_INTERNAL", 2)
        run = continuum.start(flows.five_steps, 1)
        with events_refused("true", "XX000"):
            run_until_idle()
        with pytest.raises(continuum.RunFailedError, match="refused to record"):
            continuum.result(run, timeout=10)

    def test_a_commit_that_ends_after_its_connection_broke_is_recognised(self, monkeypatch):
        monkeypatch.setattr(recording, "execute", Cut.record)
        with worker() as running:
            journal, cuts = running.node.engine.journal, []
            connect = journal._connect

            async def connect_to_be_cut():
                return Cut(await connect(), await connect(), cuts)

            journal._connect = connect_to_be_cut
            run = continuum.start(flows.effects, "cut", 3)
            assert continuum.result(run, timeout=10) == ["cut:0", "cut:1", "cut:2"]
            assert cuts
        assert types_of(run) == ["activity_completed"] * 3 + ["run_completed"]
        assert marks("cut") == ["cut:0", "cut:1", "cut:2"]


@activity(retry=Retry(max_attempts=2, base=1e15, max_delay=1e15))
def fails_for_an_age():
    raise ConnectionError("not now")


@activity(retry=Retry(max_attempts=2, base=3600, max_delay=3600))
def fails_for_an_hour():
    raise ConnectionError("not now")


@workflow
async def waits_an_age() -> None:
    await fails_for_an_age()


@workflow
async def loses_patience() -> str:
    failing = asyncio.create_task(fails_for_an_hour())
    await wait_signal("enough")
    failing.cancel()
    return await wait_signal("never")


@workflow(retention=timedelta.max)
async def kept_for_ever() -> str:
    return "kept"


@workflow
async def ends_long_before_its_timeout() -> int:
    async with asyncio.timeout(86_400):
        return await flows.add(1, 1)


class TestTime:
    def test_a_retry_beyond_the_calendar_waits_and_harms_nobody(self):
        with worker() as running:
            first = running.node.engine
            run = continuum.start(waits_an_age)
            row = eventually(lambda: (row := continuum.get_run(run)).waiting_on and row)
            assert row.waiting_on[0]["next_try"].startswith("9999-")
            assert continuum.result(continuum.start(flows.echo, 1), timeout=10) == 1
            assert running.node.engine is first

    def test_a_retention_beyond_the_calendar_is_for_ever(self):
        run = continuum.start(kept_for_ever)
        run_until_idle()
        assert continuum.result(run, timeout=10) == "kept"
        assert continuum.get_run(run).retention_until.year == 9999

    def test_a_retry_that_is_abandoned_is_not_waited_for(self):
        with worker() as running:
            run = continuum.start(loses_patience)
            eventually(lambda: types_of(run) == ["activity_retried"])
            eventually(lambda: running.node.engine.attempts.waiting)
            continuum.signal(run, "enough")
            eventually(lambda: types_of(run) == ["activity_retried", "signal_received"])
            eventually(lambda: not running.node.engine.attempts.waiting)

    def test_runs_that_have_ended_leave_no_timers_behind(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.timers.FEWEST_SWEPT", 20)
        with worker() as running:
            runs = [continuum.start(ends_long_before_its_timeout) for _ in range(200)]
            assert [continuum.result(run, timeout=20) for run in runs] == [2] * 200
            timers = running.node.engine.attempts._timers
            eventually(lambda: not running.node.engine.live)
            assert len(timers) <= 100


class TestComingBack:
    def test_a_node_that_breaks_again_and_again_does_not_come_back_at_once_each_time(self, monkeypatch):
        async def breaks(self):
            raise RuntimeError("a defect")

        monkeypatch.setattr("continuum.worker.summaries.Summaries.run", breaks)
        with worker():
            eventually(lambda: Worker.objects.count() >= 3)
        first, _, third = Worker.objects.order_by("id").values_list("started_at", flat=True)[:3]
        assert third - first > timedelta(seconds=0.1)

    def test_a_run_that_is_given_back_during_the_look_for_unknown_runs_is_not_taken_up_again(self, monkeypatch):
        owned_by, seen = claims.owned_by, []

        async def slow(connection, worker_id, known):
            owned = await owned_by(connection, worker_id, known)
            engine = running.node.engine
            engine.release_all()
            await eventually_async(lambda: not engine.live)
            seen.append(len(owned))
            return owned

        admitted = []
        with worker() as running:
            run = continuum.start(flows.listens)
            eventually(lambda: state_of(run) == "suspended")
            admit = running.node.engine.admit
            monkeypatch.setattr(claims, "owned_by", slow)
            monkeypatch.setattr(running.node.engine, "admit", lambda *args: (admitted.append(args), admit(*args)))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'continuum claims%'"
                )
            eventually(lambda: seen)
            continuum.signal(run, "go", "on")
            assert continuum.result(run, timeout=10) == "on"
        assert (seen[0], len(admitted)) == (0, 1)

    def test_a_run_that_a_claim_took_after_its_connection_broke_goes_on(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.intake.STRANGERS_EVERY", 0.2)
        with worker() as running:
            owner = Worker.objects.get().id
            with transaction.atomic(), connection.cursor() as cursor:
                # What a statement does that the server ends long after the worker has connected again.
                run = continuum.start(flows.echo, "late")
                parameters = {"worker": owner, "workflows": [run_workflow(run)], "limit": 1, **chances()}
                parameters |= {"hashes": [], "pinned": False, "patience": 0, "grace": 0}
                cursor.execute(load("claim_due"), parameters)
                assert cursor.rowcount == 1
            assert continuum.result(run, timeout=10) == "late"
            assert Worker.objects.get().id == owner
            eventually(lambda: running.node.engine.live == {})


class TestLeftAlone:
    """A run that the engine itself fails on is left alone for a while, whatever comes for it meanwhile."""

    @pytest.fixture
    def broken(self, monkeypatch):
        """A run, suspended, that cannot be replayed; and how often that was tried."""
        run = continuum.start(flows.listens)
        run_until_idle()
        tries = []
        replay = Execution.replay

        def breaks(execution, limit=None):
            if execution.id != run.id:
                return replay(execution, limit)
            tries.append(limit)
            raise RuntimeError("the engine is broken")

        with monkeypatch.context() as patch:
            patch.setattr(Execution, "replay", breaks)
            with worker():
                continuum.signal(run, "go", "on")
                eventually(lambda: continuum.get_run(run).error)
                yield run, tries, patch

    def assert_left_alone(self, run, tries, times):
        """It stays as it is while its worker looks at all there is, and does other things."""
        for n in range(5):
            continuum.signal(run, "go", n)
            assert continuum.result(continuum.start(flows.echo, "other"), timeout=10) == "other"
        assert len(tries) == times
        row = continuum.get_run(run)
        assert (row.state, row.error["type"]) == ("suspended", "RuntimeError")
        assert row.next_wakeup_at > timezone.now()

    def test_mail_does_not_wake_it(self, broken):
        run, tries, patch = broken
        self.assert_left_alone(run, tries, 1)
        patch.undo()
        Run.objects.filter(id=run.id).update(next_wakeup_at=timezone.now())
        assert continuum.result(run, timeout=10) == "on"
        assert continuum.get_run(run).error is None

    def test_a_request_to_cancel_wakes_it_once(self, broken):
        run, tries, _ = broken
        continuum.cancel(run)
        eventually(lambda: len(tries) == 2)
        eventually(lambda: state_of(run) == "suspended")
        self.assert_left_alone(run, tries, 2)

    def test_a_request_to_cancel_wakes_it_and_ends_it_if_it_can(self, broken):
        run, _, patch = broken
        InboxMessage.objects.filter(run_id=run.id).delete()
        patch.undo()
        continuum.cancel(run)
        eventually(lambda: state_of(run) == "cancelled")
