"""What some node does now and then for all of them."""

import asyncio
import logging
import threading
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial

import psycopg
import pytest

from continuum.worker import maintenance as module
from continuum.worker.connections import connect
from continuum.worker.leases import Lease
from continuum.worker.maintenance import Maintenance
from continuum.worker.wakes import READY_CHANNEL
from tests.waiting_for import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

ME = 10_000_000  # a node id no row has


@asynccontextmanager
async def session():
    async with await connect("default", application_name="test") as connection:
        yield connection


async def rows(connection, statement, *parameters):
    return await (await connection.execute(statement, parameters)).fetchall()


async def dead_node(connection, *, since="2 days"):
    """A node whose lease ran out that long ago."""
    worker = await Lease(30.0).register(connection, name="node")
    await connection.execute(
        "UPDATE continuum_workers SET expires_at = clock_timestamp() - %s::interval WHERE id = %s", [since, worker]
    )
    return worker


async def add_run(connection, *, state="running", owner=None, continued=None):
    run = uuid.uuid4()
    await connection.execute(
        "INSERT INTO continuum_runs (id, workflow, state, owner_id, continued_to_run_id, correlation_id) "
        "VALUES (%s, 'flow', %s, %s, %s, %s)",
        [run, state, owner, continued, run],
    )
    return run


async def add_message(connection, run, *, age="2 hours", name="news", consumed=False):
    await connection.execute(
        "INSERT INTO continuum_inbox (run_id, kind, name, created_at, consumed_at) "
        "VALUES (%s, 'signal', %s, clock_timestamp() - %s::interval, CASE WHEN %s THEN clock_timestamp() END)",
        [run, name, age, consumed],
    )


def quiet(**arguments):
    """A node's rounds, not running."""
    return Maintenance(partial(connect, "default", application_name="maintenance"), ME, **arguments)


@asynccontextmanager
async def running(maintenance):
    task = asyncio.create_task(maintenance.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# The duties


def test_a_sweep_frees_the_runs_of_dead_nodes_and_tells_all_nodes():
    async def scenario():
        freed = []
        async with session() as connection, session() as ear:
            await ear.execute(f"LISTEN {READY_CHANNEL}")
            worker = await dead_node(connection)
            await add_run(connection, owner=worker)
            dead = await quiet(on_runs_freed=lambda: freed.append(True)).sweep(connection)
            note = await anext(ear.notifies(timeout=10))
            left = await rows(connection, "SELECT count(*) FROM continuum_runs WHERE owner_id IS NOT NULL")
            return dead == [worker], freed, note.channel, left

    assert asyncio.run(scenario()) == (True, [True], READY_CHANNEL, [(0,)])


def test_a_sweep_without_deaths_disturbs_nobody():
    async def scenario():
        freed = []
        async with session() as connection:
            await Lease(30.0).register(connection, name="node")
            return await quiet(on_runs_freed=lambda: freed.append(True)).sweep(connection), freed

    assert asyncio.run(scenario()) == ([], [])


def test_runs_left_over_from_a_killed_sweep_are_freed():
    async def scenario():
        freed = []
        async with session() as connection:
            await add_run(connection, owner=99)
            return await quiet(on_runs_freed=lambda: freed.append(True)).free_stranded(connection), freed

    assert asyncio.run(scenario()) == (1, [True])


def test_partitions_of_the_months_to_come_are_made():
    async def scenario():
        async with session() as connection:
            [(last,)] = await rows(
                connection,
                "SELECT max(relname::text) FROM pg_class WHERE relname ~ '^continuum_events_y[0-9]+m[0-9]+$' "
                "AND relkind = 'r'",
            )
            await connection.execute(f"DROP TABLE {last}")
            made = await quiet().make_partitions(connection)
            return made == [last], await quiet().make_partitions(connection)

    assert asyncio.run(scenario()) == (True, [])


@pytest.mark.parametrize("when", ["during a statement", "between two", "before the first"])
def test_whoever_stops_while_partitions_are_made_has_the_connection_to_himself(when, monkeypatch):
    """A worker closes its connections then. The thread that makes partitions must not be using one."""
    gate, entered, executed, left = threading.Event(), threading.Event(), [], threading.Event()

    def in_a_thread(cursor, now):
        def execute(statement):
            cursor.execute(statement)
            executed.append(statement)

        try:
            if when != "before the first":
                execute("SELECT 1")
            entered.set()
            if when != "during a statement":
                assert gate.wait(60)
            execute("SELECT pg_sleep(120)")
        finally:
            left.set()

    monkeypatch.setattr(module, "ensure_partitions", in_a_thread)

    async def scenario():
        async with session() as connection, session() as other:
            making = asyncio.create_task(quiet().make_partitions(connection))
            await eventually_async(entered.is_set)
            if when == "during a statement":
                asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"

                async def sleeping():
                    return await rows(other, asleep, connection.info.backend_pid)

                await eventually_async(sleeping)
            making.cancel()
            await asyncio.sleep(0)
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert left.is_set()
            assert len(executed) == (when != "before the first")
            assert await rows(connection, "SELECT 2") == [(2,)]

    asyncio.run(scenario())


def test_nodes_that_died_long_ago_are_deleted():
    async def scenario():
        async with session() as connection:
            alive = await Lease(30.0).register(connection, name="alive")
            recent, old = await dead_node(connection), await dead_node(connection)
            await connection.execute(
                "UPDATE continuum_workers SET state = 'dead', stopped_at = clock_timestamp() - CASE WHEN id = %s "
                "THEN interval '23 hours' ELSE interval '25 hours' END WHERE id IN (%s, %s)",
                [recent, recent, old],
            )
            deleted = await quiet().prune(connection)
            left = await rows(connection, "SELECT id FROM continuum_workers ORDER BY id")
            return deleted, left == [(alive,), (recent,)]

    assert asyncio.run(scenario()) == (1, True)


def test_a_node_that_is_merely_late_is_not_deleted():
    async def scenario():
        async with session() as connection:
            await dead_node(connection, since="30 days")  # expired, but nobody has declared it dead yet
            return await quiet().prune(connection)

    assert asyncio.run(scenario()) == 0


def test_messages_nobody_will_read_are_deleted(monkeypatch):
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)  # several batches

    async def scenario():
        async with session() as connection:
            for state in ("completed", "cancelled"):
                await add_message(connection, await add_run(connection, state=state))
            for _ in range(3):
                await add_message(connection, uuid.uuid4())
            return await quiet().prune(connection), await rows(connection, "SELECT count(*) FROM continuum_inbox")

    assert asyncio.run(scenario()) == (5, [(0,)])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"state": "suspended"}, {}),
        ({"state": "pending"}, {}),
        ({"state": "failed"}, {}),  # retry() goes on with them
        ({"state": "completed", "continued": uuid.UUID(int=1)}, {}),  # its successor's
        ({"state": "completed"}, {"age": "59 minutes"}),
        ({"state": "completed"}, {"consumed": True}),  # remembers a delivery id
    ],
)
def test_messages_that_may_still_matter_are_kept(run, message):
    async def scenario():
        async with session() as connection:
            await add_message(connection, await add_run(connection, **run), **message)
            return await quiet().prune(connection)

    assert asyncio.run(scenario()) == 0


# The rounds


@pytest.fixture
def hasty(monkeypatch):
    """Every duty all the time."""
    for name in ("SWEEP_EVERY", "STRANDED_EVERY", "PRUNE_EVERY", "PARTITIONS_EVERY"):
        monkeypatch.setattr(module, name, 0.01)


def test_the_rounds_do_every_duty(hasty):
    done = set()

    async def scenario():
        maintenance = quiet()
        for duty in maintenance._duties:

            async def note(connection, name=duty.name, do=duty.do):
                await do(connection)
                done.add(name)

            duty.do = note
        async with running(maintenance):
            await eventually_async(lambda: len(done) == len(maintenance._duties))

    asyncio.run(scenario())


def test_a_failing_duty_is_reported_once_and_does_not_stop_the_others(hasty, caplog):
    caplog.set_level(logging.INFO, logger="continuum.worker")

    async def scenario():
        maintenance = quiet()
        failing, other = maintenance._duties[:2]
        counts = {"failing": 0, "other": 0}
        broken = True

        async def fail(connection):
            counts["failing"] += 1
            if broken:
                raise ValueError("no")

        async def work(connection):
            counts["other"] += 1

        failing.do, other.do = fail, work
        async with running(maintenance):
            await eventually_async(lambda: min(counts.values()) >= 3)
            broken = False
            await eventually_async(lambda: not failing.failing)

    asyncio.run(scenario())
    said = [record.getMessage() for record in caplog.records if "looking for dead workers" in record.getMessage()]
    assert said == ["looking for dead workers failed: no", "looking for dead workers works again"]


def test_a_dropped_connection_is_replaced_and_locks_are_not_trusted_for_a_while(hasty):
    async def scenario():
        opened = []

        async def open_one():
            opened.append(await connect("default", application_name="maintenance"))
            return opened[-1]

        maintenance = Maintenance(open_one, ME)
        async with session() as connection, running(maintenance):
            await eventually_async(lambda: opened)
            trusted = maintenance._trust_locks_from <= time.monotonic()
            await rows(connection, "SELECT pg_terminate_backend(%s)", opened[0].info.backend_pid)
            await eventually_async(lambda: len(opened) == 2)
            # Whose connection is gone as well and not back yet: its lock is missing, but it is not dead.
            other = await Lease(30.0).register(connection, name="other")
            await connection.execute("UPDATE continuum_workers SET session_lock = true WHERE id = %s", [other])
            dead = await maintenance.sweep(connection)
            return trusted, maintenance._trust_locks_from > time.monotonic() + 5, dead

    assert asyncio.run(scenario()) == (True, True, [])


def test_a_database_that_is_away_is_mentioned_once(hasty, caplog, monkeypatch):
    monkeypatch.setattr(module.Backoff, "next", lambda self: 0.001)
    attempts = []

    async def unreachable():
        attempts.append(True)
        raise psycopg.OperationalError("connection refused")

    async def scenario():
        async with running(Maintenance(unreachable, ME)):
            await eventually_async(lambda: len(attempts) > 3)

    asyncio.run(scenario())
    assert sum("connection refused" in record.getMessage() for record in caplog.records) == 1
