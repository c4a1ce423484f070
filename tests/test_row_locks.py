"""Application code holds the rows of runs for as long as its transactions are open: no other run waits for that."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from django.db import connections, transaction

import continuum
from continuum.core.history import Event, EventType
from continuum.models import Run, Worker
from continuum.worker.connections import connect
from continuum.worker.exchange import Transaction
from continuum.worker.journal import Journal
from continuum.worker.leases import declare_dead
from continuum.worker.live import RowUpdate
from continuum.worker.recording import _held_rows, statement
from tests.app import workflows as flows
from tests.desks import TIME_US, desks, quiet
from tests.test_cluster import assert_sound, start_worker  # noqa: F401
from tests.waiting_for import eventually, eventually_async
from tests.workers import ThreadWorker, worker

pytestmark = pytest.mark.django_db(transaction=True)

SHARES = ("FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE")


@contextmanager
def locking(database_url, *runs, how="FOR UPDATE"):
    """Somebody else's transaction that holds the rows of these runs; yields what ends it."""
    with psycopg.connect(database_url) as stranger:
        ids = [run.id for run in runs]
        cursor = stranger.execute(f"SELECT id FROM continuum_runs WHERE id = ANY(%s) {how}", [ids])
        assert len(cursor.fetchall()) == len(ids)
        yield stranger.rollback


def state_of(run):
    return Run.objects.get(id=run.id).state


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def waiting(runs):
    """Whether all these runs wait for a signal, and their rows say so."""
    rows = Run.objects.filter(id__in=[run.id for run in runs], state="suspended", owner_id__isnull=False)
    return rows.count() == len(runs)


@pytest.fixture
def met(monkeypatch):
    """Count how often a commit has waited for a lock in vain."""
    met = []
    execute = Journal._execute

    async def counting(self, connection, batch):
        try:
            return await execute(self, connection, batch)
        except psycopg.errors.LockNotAvailable:
            met.append(batch)
            raise

    monkeypatch.setattr(Journal, "_execute", counting)
    return met


class TestARowThatIsHeld:
    @pytest.mark.parametrize("how", SHARES)
    def test_keeps_no_other_run_from_its_end(self, database_url, met, caplog, how):
        caplog.set_level(logging.WARNING, "continuum.worker")
        stuck = continuum.start(flows.listens)
        with worker() as running:
            eventually(lambda: waiting([stuck]))
            with locking(database_url, stuck, how=how) as let_go:
                continuum.signal(stuck, "go", "on")
                eventually(lambda: running.node.engine.journal.held_back == 1)
                others = continuum.start_many(flows.five_steps, range(200))
                for n, other in enumerate(others):
                    assert continuum.result(other, timeout=60) == n + 5
                assert state_of(stuck) != "completed"
                let_go()
            assert continuum.result(stuck, timeout=10) == "on"
        assert types_of(stuck) == ["signal_received", "run_completed"]
        assert len(met) == 1, "each run that ended meanwhile paid for the lock"
        said = [record.getMessage() for record in caplog.records if "locked" in record.getMessage()]
        assert len(said) == 1
        assert str(stuck.id) in said[0]

    def test_does_not_keep_its_own_run_from_going_on(self, database_url):
        run = continuum.start(flows.collects, 5)
        with worker():
            eventually(lambda: waiting([run]))
            with locking(database_url, run) as let_go:
                for n in range(4):
                    continuum.signal(run, "item", n)
                    eventually(lambda n=n: types_of(run) == ["signal_received"] * (n + 1))
                let_go()
            continuum.signal(run, "item", 4)
            assert continuum.result(run, timeout=10) == [0, 1, 2, 3, 4]

    def test_says_what_it_has_to_say_as_soon_as_it_is_free(self, database_url):
        run = continuum.start(flows.listens_for_two)
        with worker() as running:
            eventually(lambda: waiting([run]))
            with locking(database_url, run) as let_go:
                continuum.signal(run, "first", 1)
                eventually(lambda: types_of(run) == ["signal_received"])
                live = running.node.engine.live[run.id]
                eventually(lambda: live in running.node.engine.summaries._left_out)
                assert Run.objects.get(id=run.id).waiting_on[0]["name"] == "first"
                let_go()
            eventually(lambda: Run.objects.get(id=run.id).waiting_on[0]["name"] == "second")

    def test_may_be_held_by_attributes_that_are_set_in_a_long_transaction(self):
        run = continuum.start(flows.listens)
        other = continuum.start(flows.listens)
        with worker() as running:
            eventually(lambda: waiting([run, other]))
            set_, may_commit = threading.Event(), threading.Event()

            def application():
                with transaction.atomic():
                    continuum.set_attributes(run, {"by": "application"})
                    set_.set()
                    assert may_commit.wait(30)
                connections.close_all()

            thread = threading.Thread(target=application)
            thread.start()
            assert set_.wait(10)
            continuum.signal(run, "go", 1)
            eventually(lambda: running.node.engine.journal.held_back == 1)
            continuum.signal(other, "go", 2)
            assert continuum.result(other, timeout=10) == 2
            may_commit.set()
            thread.join()
            assert continuum.result(run, timeout=10) == 1
        assert Run.objects.get(id=run.id).attributes == {"by": "application"}

    def test_is_one_of_many(self, database_url):
        runs = continuum.start_many(flows.listens, [None] * 40)
        stuck, others = runs[::2], runs[1::2]
        with worker() as running:
            journal = running.node.engine.journal
            eventually(lambda: waiting(runs))
            with locking(database_url, *stuck[:10]) as first, locking(database_url, *stuck[10:]) as second:
                for run in runs:
                    continuum.signal(run, "go", str(run.id))
                for run in others:
                    assert continuum.result(run, timeout=10) == str(run.id)
                eventually(lambda: journal.held_back == 20)
                first()
                for run in stuck[:10]:
                    assert continuum.result(run, timeout=10) == str(run.id)
                eventually(lambda: journal.held_back == 10)  # its worker may hear later than we of what it has written
                second()
                for run in stuck[10:]:
                    assert continuum.result(run, timeout=10) == str(run.id)
        assert {tuple(types_of(run)) for run in runs} == {("signal_received", "run_completed")}

    def test_takes_no_place_from_runs_that_may_begin(self, database_url):
        stuck = continuum.start_many(flows.listens, [None] * 5)
        with worker(concurrency=5) as running:
            eventually(lambda: waiting(stuck))
            with locking(database_url, *stuck) as let_go:
                for run in stuck:
                    continuum.signal(run, "go", 1)
                eventually(lambda: running.node.engine.journal.held_back == 5)
                assert continuum.result(continuum.start(flows.five_steps, 1), timeout=10) == 6
                let_go()
            for run in stuck:
                assert continuum.result(run, timeout=10) == 1

    def test_is_waited_for_by_a_worker_that_stops_when_nothing_is_left(self, database_url):
        run = continuum.start(flows.listens)
        with worker() as running:
            eventually(lambda: waiting([run]))
            with locking(database_url, run) as let_go:
                continuum.signal(run, "go", 1)
                eventually(lambda: running.node.engine.journal.held_back == 1)
                idle = asyncio.run_coroutine_threadsafe(running.node.engine.idle(), running.node.engine._pump._loop)
                assert not idle.done()
                assert running.node.engine.busy
                let_go()
            idle.result(10)


class TestMeanwhile:
    def test_a_drain_gives_all_other_runs_back(self, database_url, caplog):
        runs = continuum.start_many(flows.listens, [None] * 10)
        first = ThreadWorker().start()
        eventually(lambda: waiting(runs))
        with locking(database_url, runs[0], runs[1]) as let_go:
            continuum.signal(runs[0], "go", 0)
            eventually(lambda: first.node.engine.journal.held_back == 1)
            # The other merely waits: what is held back of it is that it is given back.
            assert first.stop() == 1
            owned = Run.objects.filter(owner_id__isnull=False)
            assert {run.id for run in owned} == {runs[0].id, runs[1].id}
            assert Worker.objects.get().state == "dead"
            assert "2 runs could not be given back" in caplog.text
            let_go()
        with worker():
            for n, run in enumerate(runs):
                if n:
                    continuum.signal(run, "go", n)
            for n, run in enumerate(runs):
                assert continuum.result(run, timeout=60) == n
        assert {tuple(types_of(run)) for run in runs} == {("signal_received", "run_completed")}

    def test_a_drain_waits_a_moment_for_locks_that_go(self, database_url, monkeypatch):
        monkeypatch.setattr("continuum.worker.session.HELD_BACK_TIMEOUT", 30.0)
        monkeypatch.setattr("continuum.worker.session.LEAVE_TIMEOUT", 60.0)
        run = continuum.start(flows.listens)
        running = ThreadWorker().start()
        eventually(lambda: waiting([run]))
        with locking(database_url, run) as let_go:
            running.node.stop()
            eventually(lambda: running.node.engine.journal.held_back == 1)
            let_go()
        assert running.join() == 0
        row = Run.objects.get(id=run.id)
        assert (row.state, row.owner_id) == ("suspended", None)

    @pytest.mark.cluster
    def test_a_worker_that_is_killed_leaves_nothing_behind(self, database_url, start_worker):  # noqa: F811
        runs = continuum.start_many(flows.listens, [None] * 10)
        first = start_worker()
        eventually(lambda: waiting(runs), 60)
        with locking(database_url, runs[0]) as let_go:
            for n, run in enumerate(runs[:5]):
                continuum.signal(run, "go", n)
            eventually(lambda: "has locked what is to be written" in first.output, 60)
            first.kill()
            start_worker()
            for n, run in enumerate(runs[1:5], 1):
                assert continuum.result(run, timeout=60) == n
            for n, run in enumerate(runs[5:], 5):
                continuum.signal(run, "go", n)
                assert continuum.result(run, timeout=60) == n
            assert state_of(runs[0]) != "completed"
            let_go()
        assert continuum.result(runs[0], timeout=60) == 0
        assert {tuple(types_of(run)) for run in runs} == {("signal_received", "run_completed")}
        assert_sound()

    def test_a_lease_that_is_lost_takes_what_is_held_back_with_it(self, database_url):
        run = continuum.start(flows.listens)
        with worker() as running:
            eventually(lambda: waiting([run]))
            first = running.node.worker_id
            with locking(database_url, run) as let_go:
                continuum.signal(run, "go", 1)
                eventually(lambda: running.node.engine.journal.held_back == 1)
                running.node.session._on_lost("for a test")
                eventually(lambda: running.node.worker_id not in (None, first))
                assert running.node.engine.journal.held_back == 0
                Worker.objects.filter(id=first).update(state="dead")
                let_go()
            assert continuum.result(run, timeout=20) == 1
        assert types_of(run) == ["signal_received", "run_completed"]


@asynccontextmanager
async def a_stranger(*lives, table="continuum_runs", key="id"):
    """A transaction that holds rows, until its block ends or its connection is told to roll back."""
    connection = await connect("default", application_name="stranger")
    try:
        async with connection.transaction():
            ids = [live.id for live in lives]
            await connection.execute(f"SELECT 1 FROM {table} WHERE {key} = ANY(%s) FOR UPDATE", [ids])
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def writing(count=1):
    """Desks whose journals write by themselves; each notes what becomes of entries."""
    async with desks(count) as desk:
        for each in [desk] if count == 1 else desk:
            each.durable, each.fenced, each.left_out = [], [], []
            each.journal._on_durable = each.durable.extend
            each.journal._on_fenced = each.fenced.append
            each.journal._on_left_out = each.left_out.append
        tasks = [asyncio.create_task(each.journal.run()) for each in ([desk] if count == 1 else desk)]
        try:
            yield desk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def note(desk, live, seq, type_=EventType.SIGNAL_RECEIVED):
    """Have something recorded; returns the entry that takes it along."""
    entry = desk.journal.entry(live)
    entry.events.append(Event(seq, type_, None, "x", "1", TIME_US))
    return entry


def finish(desk, live, seq):
    entry = note(desk, live, seq, EventType.RUN_COMPLETED)
    entry.update = RowUpdate("completed", False, result="1", completed_us=TIME_US)
    return entry


async def history(desk, live):
    cursor = await desk.connection.execute(
        "SELECT seq, type FROM continuum_events WHERE run_id = %s ORDER BY seq", [live.id]
    )
    return await cursor.fetchall()


class TestTheJournal:
    def test_writes_what_needs_no_row_although_somebody_holds_it(self):
        async def scenario():
            async with writing() as desk:
                live = await desk.own()
                async with a_stranger(live):
                    note(desk, live, 1)
                    async with asyncio.timeout(30):
                        await desk.journal.flush()
                    assert [seq for seq, _ in await history(desk, live)] == [1]
                    assert desk.journal._careful_until == 0

        asyncio.run(scenario())

    def test_leaves_a_summary_out_and_says_so(self):
        async def scenario():
            async with writing() as desk:
                live = await desk.own()
                async with a_stranger(live):
                    entry = note(desk, live, 1)
                    entry.update = quiet(live).update
                    async with asyncio.timeout(30):
                        await desk.journal.flush()
                    assert [seq for seq, _ in await history(desk, live)] == [1]
                    assert (desk.left_out, desk.durable, entry.update) == ([live], [entry], None)
                    assert desk.journal.held_back == 0

        asyncio.run(scenario())

    def test_keeps_the_order_of_what_a_run_adds_while_it_is_held_back(self):
        async def scenario():
            async with writing() as desk:
                live, other = await desk.own(), await desk.own()
                async with a_stranger(live):
                    first = note(desk, live, 1)
                    first.update = RowUpdate("running", True)
                    first.send().adopted = (2, "newer")
                    await eventually_async(lambda: live.held_back)
                    second = note(desk, live, 2)
                    assert note(desk, live, 3) is second
                    note(desk, other, 1)
                    async with asyncio.timeout(30):
                        await desk.journal.flush()
                    assert await history(desk, live) == []
                    assert len(await history(desk, other)) == 1
                await eventually_async(lambda: second in desk.durable)
                assert [entry for entry in desk.durable if entry.live is live] == [first, second]
                assert [seq for seq, _ in await history(desk, live)] == [1, 2, 3]
                assert desk.journal.held_back == 0

        asyncio.run(scenario())

    def test_does_not_write_what_is_held_back_once_the_run_is_in_other_hands(self):
        async def scenario():
            async with writing(2) as (first, second):
                live = await first.own()
                async with a_stranger(live) as stranger:
                    finish(first, live, 1)
                    await eventually_async(lambda: live.held_back)
                    # A survivor frees the runs of the dead: here in the very transaction that holds the row.
                    await stranger.execute(
                        "UPDATE continuum_runs SET owner_id = %s, lease_token = nextval('continuum_lease_token_seq')"
                        " WHERE id = %s",
                        [second.worker_id, live.id],
                    )
                await eventually_async(lambda: first.fenced == [live])
                assert await history(first, live) == []
                assert (first.durable, first.journal.held_back, live.held_back) == ([], 0, False)

        asyncio.run(scenario())

    def test_drops_what_is_held_back_of_a_worker_that_was_declared_dead(self):
        async def scenario():
            async with writing() as desk:
                live = await desk.own()
                async with a_stranger(live):
                    finish(desk, live, 1)
                    await eventually_async(lambda: live.held_back)
                    await desk.connection.execute("UPDATE continuum_workers SET state = 'dead'")
                await eventually_async(lambda: desk.fenced == [live])
                assert await history(desk, live) == []

        asyncio.run(scenario())

    def test_does_not_take_a_lock_of_its_own_worker_for_one_of_a_run(self):
        async def scenario():
            async with writing() as desk:
                lives = [await desk.own() for _ in range(5)]
                async with a_stranger(_Id(desk.worker_id), table="continuum_workers"):
                    for live in lives:
                        finish(desk, live, 1)
                    await eventually_async(lambda: desk.journal._careful_until > 0)
                    await asyncio.sleep(0)
                    assert (desk.durable, desk.journal.held_back) == ([], 0)
                await eventually_async(lambda: len(desk.durable) == 5)
                assert desk.fenced == []

        asyncio.run(scenario())

    def test_holds_back_only_the_run_whose_message_somebody_holds(self):
        async def scenario():
            async with writing() as desk:
                lives = [await desk.own() for _ in range(20)]
                await desk.send(lives[7].id, "x", "1")
                [(message,)] = await (await desk.connection.execute("SELECT id FROM continuum_inbox")).fetchall()
                async with a_stranger(lives[7], table="continuum_inbox", key="run_id"):
                    for live in lives:
                        note(desk, live, 1)
                    lives[7].open_entry.consumed.append(message)
                    async with asyncio.timeout(20):
                        await desk.journal.flush()
                    assert desk.journal.held_back == 1
                    assert {entry.live for entry in desk.durable} == {*lives} - {lives[7]}
                await eventually_async(lambda: desk.journal.held_back == 0)
                assert [seq for seq, _ in await history(desk, lives[7])] == [1]
                assert await desk.inbox(lives[7].id) == []

        asyncio.run(scenario())

    def test_finds_out_what_became_of_a_commit_that_had_broken_off_before_a_run_was_held_back(self):
        async def scenario():
            async with writing() as desk:
                live = await desk.own()
                async with a_stranger(live):
                    entry = finish(desk, live, 1)
                    entry.doubtful = True
                    await eventually_async(lambda: live.held_back)
                    # The server ends only now what it was at when the connection broke.
                    await desk.connection.execute(
                        "INSERT INTO continuum_events (run_id, seq, type, name, data, recorded_at)"
                        " VALUES (%s, 1, 'run_completed', 'x', '1', now())",
                        [live.id],
                    )
                await eventually_async(lambda: desk.journal.held_back == 0)
                assert (desk.refused, desk.durable) == ([], [entry])

        asyncio.run(scenario())

    def test_gives_up_what_is_held_back_when_asked_to(self):
        async def scenario():
            async with writing() as desk:
                live, other = await desk.own(), await desk.own()
                async with a_stranger(live):
                    finish(desk, live, 1)
                    finish(desk, other, 1)
                    await eventually_async(lambda: live.held_back and len(desk.durable) == 1)
                    assert await desk.journal.give_up_held_back(0.05) == [live]
                assert (desk.journal.held_back, live.held_back) == (0, False)
                finish(desk, await desk.own(), 1)
                await desk.journal.flush()
                assert await history(desk, live) == []

        asyncio.run(scenario())


class _Id:
    def __init__(self, id_):
        self.id = id_


IDLE = "idle_in_transaction_session_timeout"


@pytest.mark.parametrize("careful", [False, True])
def test_a_worker_that_is_stopped_in_the_middle_of_a_commit_is_found_dead(settings, careful):
    """Its transaction holds its own row, and it says nothing more."""
    settings.CONTINUUM = {"LEASE_TTL": 300}

    async def scenario():
        async with desks(2) as (stopped, survivor):
            live = await stopped.own()
            connection = await connect("default", application_name="stopped")

            async def commit():
                async with Transaction(connection) as transaction:
                    if careful:
                        assert await _held_rows(transaction, stopped.worker_id, [quiet(live)]) == set()
                    else:
                        assert await transaction.execute(*statement(stopped.worker_id, [quiet(live)])) == []
                    await survivor.connection.execute(
                        "UPDATE continuum_workers SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s",
                        [stopped.worker_id],
                    )
                    assert await declare_dead(survivor.connection, survivor.worker_id) == []
                    # It may say nothing for a third of its lease. That is over soon, but not before we have the answer.
                    [(patience,)] = await transaction.execute(f"SELECT current_setting('{IDLE}')", {})
                    assert patience == "100s"
                    await transaction.execute(f"SELECT set_config('{IDLE}', '2s', true)", {})

                    async def found():
                        return await declare_dead(survivor.connection, survivor.worker_id) == [stopped.worker_id]

                    await eventually_async(found, 30)

            try:
                with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                    await commit()
            finally:
                await connection.close()

    asyncio.run(scenario())
