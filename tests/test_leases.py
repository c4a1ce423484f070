"""The lease of a node, and the take-over from nodes that are dead."""

import asyncio
import json
import time
import uuid
from functools import partial

import psycopg
import pytest
from django.db import connection as django_connection

from continuum.worker import leases, session
from continuum.worker.connections import connect, session_name
from continuum.worker.leases import LOCK_CLASS, RELEASE_BATCH, Lease, declare_dead, release_stranded
from continuum.worker.sql import load
from tests.desks import rows, sessions
from tests.waiting_for import blocked, eventually_async
from tests.workers import worker

pytestmark = pytest.mark.django_db(transaction=True)


async def node(connection, *, ttl=30.0, name="node"):
    lease = Lease(ttl)
    await lease.register(connection, name=name, queues=["default"], info={"threads": 4})
    return lease


async def expire(connection, worker):
    await connection.execute(
        "UPDATE continuum_workers SET expires_at = clock_timestamp() - interval '1 second' WHERE id = %s", [worker]
    )


async def give_runs(connection, worker, count=1, state="running"):
    """Insert runs that ``worker`` owns."""
    ids = [uuid.uuid4() for _ in range(count)]
    await connection.execute(
        "INSERT INTO continuum_runs (id, workflow, state, owner_id, lease_token, correlation_id) "
        "SELECT id, 'flow', %s, %s, nextval('continuum_lease_token_seq'), id FROM unnest(%s::uuid[]) AS given (id)",
        [state, worker, ids],
    )
    return ids


async def servers_time(connection):
    [(time_us,)] = await rows(connection, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    return time_us


async def state_of(connection, worker):
    return (await rows(connection, "SELECT state FROM continuum_workers WHERE id = %s", worker))[0][0]


async def take_lock(connection, worker):
    """Take the node's advisory lock in this session, as its listener does."""
    await connection.execute(load("worker_lock"), {"lock_class": LOCK_CLASS, "worker": worker})
    await connection.execute(load("worker_lock_held"), {"worker": worker})


async def claim_a_lock(connection, worker):
    """Have the row say that the node holds its lock, which it does not."""
    await connection.execute("UPDATE continuum_workers SET session_lock = true WHERE id = %s", [worker])


# The lease


def test_a_node_registers_with_what_people_want_to_know():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection, ttl=30.0, name="shop-1")
            return await rows(
                connection,
                "SELECT name, state, queues::text, info::text, pid > 0, host <> '', session_lock, "
                "extract(epoch FROM expires_at - heartbeat_at)::float FROM continuum_workers WHERE id = %s",
                lease.worker_id,
            )

    [(name, state, queues, info, pid, host, locked, ttl)] = asyncio.run(scenario())
    assert (name, state, pid, host, locked) == ("shop-1", "alive", True, True, False)
    assert (json.loads(queues), json.loads(info)) == (["default"], {"threads": 4})
    assert ttl == pytest.approx(30.0, abs=0.5)


def test_a_renewal_moves_the_end_and_tells_the_servers_time():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection, ttl=30.0)
            await expire(connection, lease.worker_id)
            before = await servers_time(connection)
            result = await lease.renew(connection)
            after = await servers_time(connection)
            [(expires_us,)] = await rows(
                connection, "SELECT (extract(epoch FROM expires_at) * 1000000)::bigint FROM continuum_workers"
            )
            return result, before, expires_us - 30_000_000, after

    result, before, renewed, after = asyncio.run(scenario())
    assert result.alive
    assert before <= renewed <= after
    assert before <= result.database_time_us <= after


def test_the_node_stops_before_the_server_gives_its_runs_away():
    async def scenario():
        async with sessions() as connection:
            before = time.monotonic()
            lease = await node(connection, ttl=10.0)
            return before, lease.valid_until_monotonic - 9.0, time.monotonic()

    before, sent, after = asyncio.run(scenario())
    assert before <= sent <= after


def test_validity_counts_from_when_the_renewal_was_sent():
    async def scenario():
        async with sessions(2) as (connection, other):
            lease = await node(connection, ttl=10.0)
            async with other.transaction():
                await other.execute("SELECT FROM continuum_workers WHERE id = %s FOR UPDATE", [lease.worker_id])
                sent = time.monotonic()
                renewal = asyncio.create_task(lease.renew(connection))
                await blocked(other, connection)
                unanswered = time.monotonic()
            await renewal
            return sent, lease.valid_until_monotonic - 9.0, unanswered

    before, sent, unanswered = asyncio.run(scenario())
    assert before <= sent <= unanswered


def test_a_node_that_was_declared_dead_is_not_renewed():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection)
            await connection.execute("UPDATE continuum_workers SET state = 'dead'")
            return await lease.renew(connection), lease.valid

    result, valid = asyncio.run(scenario())
    assert not result.alive
    assert not valid


def test_draining_and_leaving_show_in_the_row():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection)
            await lease.mark_draining(connection)
            draining = await state_of(connection, lease.worker_id)
            renewed = (await lease.renew(connection)).alive
            await lease.leave(connection)
            left = await rows(connection, "SELECT state, stopped_at IS NOT NULL FROM continuum_workers")
            return draining, renewed, left, lease.valid

    assert asyncio.run(scenario()) == ("draining", True, [("dead", True)], False)


def test_a_renewal_does_not_wait_for_a_journal_commit():
    async def scenario():
        async with sessions(2) as (connection, journal):
            lease = await node(connection)
            async with journal.transaction():
                await journal.execute("SELECT FROM continuum_workers WHERE id = %s FOR KEY SHARE", [lease.worker_id])
                return await asyncio.wait_for(lease.renew(connection), 5)

    assert asyncio.run(scenario()).alive


# Renewing for ever


def renewing(lease, connect=None):
    """Start renewing; returns the task and the list its losses are told to."""
    lost = []

    async def default():
        return await globals()["connect"]("default", application_name="lease")

    return asyncio.create_task(lease.renew_forever(connect or default, lost.append)), lost


async def end(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_lease_is_renewed_well_before_it_ends():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection, ttl=3.0)
            began = time.monotonic()
            task, lost = renewing(lease)
            # Twice as long as the lease would last by itself.
            await eventually_async(lambda: lease.valid_until_monotonic - began > 6.0, 30)
            await end(task)
            return lost, await state_of(connection, lease.worker_id)

    assert asyncio.run(scenario()) == ([], "alive")


def test_a_node_declared_dead_is_told_once_and_renewing_ends():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection)
            await connection.execute("UPDATE continuum_workers SET state = 'dead'")
            task, lost = renewing(lease)
            await asyncio.wait_for(task, 30)
            return lost

    [reason] = asyncio.run(scenario())
    assert "declared this one dead" in reason


async def node_with_a_lease_that_soon_ends(connection):
    """Return a lease that was renewed a while ago, and when others may take the node's runs."""
    lease = await node(connection, ttl=60.0)
    lease.valid_until_monotonic = time.monotonic() + 0.5
    return lease, lease.valid_until_monotonic + 6.0


def test_a_node_cut_off_from_the_server_stops_before_its_lease_ends():
    async def scenario():
        async with sessions() as connection:
            lease, expiry = await node_with_a_lease_that_soon_ends(connection)

            async def unreachable():
                raise psycopg.OperationalError("no route to host")

            task, lost = renewing(lease, unreachable)
            await asyncio.wait_for(task, 30)
            return lost, expiry - time.monotonic()

    [reason], spare = asyncio.run(scenario())
    assert "could not be renewed" in reason
    assert spare > 0


def test_a_server_that_does_not_answer_cannot_hold_the_node_beyond_its_lease():
    async def scenario():
        async with sessions(2) as (connection, other):
            lease, expiry = await node_with_a_lease_that_soon_ends(connection)
            async with other.transaction():
                await other.execute("SELECT FROM continuum_workers FOR UPDATE")
                task, lost = renewing(lease)
                await asyncio.wait_for(task, 30)
                return lost, expiry - time.monotonic()

    [reason], spare = asyncio.run(scenario())
    assert "could not be renewed" in reason
    assert spare > 0


def test_a_dropped_connection_is_replaced_and_the_lease_kept():
    async def scenario():
        async with sessions() as connection:
            lease = await node(connection, ttl=3.0)
            opened = []

            async def open_one():
                opened.append(await connect("default", application_name="lease"))
                return opened[-1]

            task, lost = renewing(lease, open_one)
            await eventually_async(lambda: opened)
            await rows(connection, "SELECT pg_terminate_backend(%s)", opened[0].info.backend_pid)
            await eventually_async(lambda: len(opened) == 2)
            before = lease.valid_until_monotonic
            await eventually_async(lambda: lease.valid_until_monotonic > before)
            await end(task)
            return lost

    assert asyncio.run(scenario()) == []


def test_a_connection_that_is_dead_without_a_word_does_not_cost_the_lease():
    class Silent:
        closed = False

        async def execute(self, *arguments):
            await asyncio.Event().wait()

        async def close(self):
            self.closed = True

    async def scenario():
        async with sessions() as connection:
            lease = await node(connection, ttl=6.0)
            silent, began = Silent(), time.monotonic()

            async def open_one(left=[silent]):  # noqa: B006  (each connection is given out once)
                return left.pop() if left else await connect("default", application_name="lease")

            task, lost = renewing(lease, open_one)
            # Longer than the lease would last by itself.
            await eventually_async(lambda: lost or lease.valid_until_monotonic - began > 7.0, 30)
            await eventually_async(lambda: silent.closed)
            await end(task)
            return lost, await state_of(connection, lease.worker_id)

    assert asyncio.run(scenario()) == ([], "alive")


def test_a_slow_answer_counts_although_another_connection_was_tried():
    async def scenario():
        async with sessions(2) as (connection, other):
            lease = await node(connection, ttl=6.0)
            opened, refused = [], []

            async def open_one():
                if opened:
                    refused.append(1)
                    raise psycopg.OperationalError("too many clients already")
                opened.append(await connect("default", application_name="lease"))
                return opened[-1]

            async with other.transaction():
                await other.execute("SELECT FROM continuum_workers FOR UPDATE")
                before = lease.valid_until_monotonic
                task, lost = renewing(lease, open_one)
                await eventually_async(lambda: opened)
                await blocked(connection, opened[0])
                await eventually_async(lambda: refused)
            await eventually_async(lambda: lost or lease.valid_until_monotonic > before)
            await end(task)
            return lost

    assert asyncio.run(scenario()) == []


def test_a_node_that_was_stopped_for_a_while_asks_before_it_gives_up():
    async def scenario():
        async with sessions(2) as (connection, own):
            lease = await node(connection)
            # As after SIGSTOP, or a laptop's sleep: time is up, but nobody was there to declare anything.
            lease.valid_until_monotonic = time.monotonic() - 1

            async def opened():
                return own

            task, lost = renewing(lease, opened)
            await eventually_async(lambda: lease.valid)
            await end(task)
            return lost

    assert asyncio.run(scenario()) == []


# Take-over


def test_runs_of_an_expired_node_become_claimable_with_a_new_token():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            [run] = await give_runs(connection, other.worker_id)
            [(token,)] = await rows(connection, "SELECT lease_token FROM continuum_runs")
            await expire(connection, other.worker_id)
            dead = await declare_dead(connection, me.worker_id)
            found = await rows(
                connection,
                "SELECT state, owner_id, lease_token > %s, recoveries, next_wakeup_at <= clock_timestamp() "
                "FROM continuum_runs WHERE id = %s",
                token,
                run,
            )
            return dead == [other.worker_id], await state_of(connection, other.worker_id), found

    assert asyncio.run(scenario()) == (True, "dead", [("suspended", None, True, 1, True)])


def test_every_released_run_gets_a_token_of_its_own_and_tokens_only_grow():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await give_runs(connection, other.worker_id, 5)
            [(before,)] = await rows(connection, "SELECT nextval('continuum_lease_token_seq')")
            await expire(connection, other.worker_id)
            await declare_dead(connection, me.worker_id)
            return before, [token for (token,) in await rows(connection, "SELECT lease_token FROM continuum_runs")]

    before, tokens = asyncio.run(scenario())
    assert len(set(tokens)) == 5
    assert min(tokens) > before


def test_a_run_that_had_ended_is_only_detached():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await give_runs(connection, other.worker_id, state="completed")
            await expire(connection, other.worker_id)
            await declare_dead(connection, me.worker_id)
            return await rows(connection, "SELECT state, owner_id, recoveries, next_wakeup_at FROM continuum_runs")

    assert asyncio.run(scenario()) == [("completed", None, 0, None)]


def test_live_nodes_and_the_node_itself_are_left_alone():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await give_runs(connection, other.worker_id)
            await expire(connection, me.worker_id)
            dead = await declare_dead(connection, me.worker_id)
            return dead, await rows(connection, "SELECT count(*) FROM continuum_runs WHERE owner_id IS NOT NULL")

    assert asyncio.run(scenario()) == ([], [(1,)])


def test_a_process_that_is_gone_is_noticed_by_its_lock_long_before_its_lease_ends():
    async def scenario():
        async with sessions(2) as (connection, listener):
            me, other = await node(connection), await node(connection, ttl=3600)
            await take_lock(listener, other.worker_id)
            await give_runs(connection, other.worker_id)
            held = await declare_dead(connection, me.worker_id, confirmation=0)
            await listener.close()  # as the kernel does for a killed process

            async def taken():
                return await declare_dead(connection, me.worker_id, confirmation=0)

            return held, await eventually_async(taken) == [other.worker_id]

    assert asyncio.run(scenario()) == ([], True)


def test_a_node_without_a_lock_is_judged_by_its_lease_alone():
    async def scenario():
        async with sessions() as connection:
            me = await node(connection)
            await node(connection)  # registered, its lock not yet taken, or behind a pooler
            return await declare_dead(connection, me.worker_id, confirmation=0)

    assert asyncio.run(scenario()) == []


def test_a_lock_that_is_back_at_the_second_look_was_only_a_reconnect(monkeypatch):
    look, seen = leases._suspects, []

    async def scenario():
        back = asyncio.Event()

        async def looking(*args):
            if seen:
                await back.wait()
            seen.append(await look(*args))
            return seen[-1]

        monkeypatch.setattr(leases, "_suspects", looking)
        async with sessions(3) as (connection, listener, again):
            me, other = await node(connection), await node(connection)
            await take_lock(listener, other.worker_id)
            await listener.close()
            await eventually_async(lambda: lock_is_free(again, other.worker_id))
            dead = asyncio.create_task(declare_dead(connection, me.worker_id, confirmation=0))
            await eventually_async(lambda: seen)
            await take_lock(again, other.worker_id)
            back.set()
            assert await dead == []
            assert await state_of(connection, other.worker_id) == "alive"
            return other.worker_id

    assert asyncio.run(scenario()) in seen[0]
    assert seen[1] == {}


async def lock_is_free(connection, worker):
    return (
        await rows(
            connection,
            "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::bigint::oid "
            "AND objid = %s::bigint::oid)",
            LOCK_CLASS,
            worker,
        )
    )[0][0]


def test_missing_locks_count_for_nothing_where_they_are_not_trusted():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await claim_a_lock(connection, other.worker_id)
            distrusted = await declare_dead(connection, me.worker_id, trust_locks=False, confirmation=0)
            trusted = await declare_dead(connection, me.worker_id, confirmation=0)
            return distrusted, trusted == [other.worker_id]

    assert asyncio.run(scenario()) == ([], True)


@pytest.mark.parametrize(("registered", "dead"), [("before", False), ("after", True)])
def test_after_a_restart_of_the_server_nodes_get_time_to_take_their_locks_again(registered, dead, monkeypatch):
    # The server of the tests may have been up for longer than the grace period, or for less: make it "less".
    monkeypatch.setattr("continuum.worker.leases.RESTART_GRACE", 10_000_000)

    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await claim_a_lock(connection, other.worker_id)
            if registered == "before":
                await connection.execute(
                    "UPDATE continuum_workers SET started_at = pg_postmaster_start_time() - interval '1 hour'"
                )
            return bool(await declare_dead(connection, me.worker_id, confirmation=0))

    assert asyncio.run(scenario()) is dead


def test_declaring_a_node_dead_yields_to_its_journal_commit():
    async def scenario():
        async with sessions(2) as (connection, journal):
            me, other = await node(connection), await node(connection)
            await expire(connection, other.worker_id)
            async with journal.transaction():
                await journal.execute("SELECT FROM continuum_workers WHERE id = %s FOR KEY SHARE", [other.worker_id])
                during = await asyncio.wait_for(declare_dead(connection, me.worker_id), 5)
            return during, await declare_dead(connection, me.worker_id) == [other.worker_id]

    assert asyncio.run(scenario()) == ([], True)


COPY = "COPY continuum_events (data) FROM STDIN"


@pytest.mark.parametrize("asks", [COPY, "SELECT pg_sleep(600)"])
def test_a_node_that_vanished_in_the_middle_of_a_commit_is_declared_dead_all_the_same(asks):
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            journal = await connect("default", application_name=session_name("journal", other.worker_id))
            idle = await connect("default", application_name=session_name("journal", other.worker_id))
            mine = await connect("default", application_name=session_name("journal", me.worker_id))
            for one, held, ask in (journal, other, asks), (mine, me, COPY):
                await one.execute("BEGIN")
                await one.execute("SELECT FROM continuum_workers WHERE id = %s FOR KEY SHARE", [held.worker_id])
                one.pgconn.send_query(ask.encode())  # and never anything more
            alive = await declare_dead(connection, me.worker_id)
            await expire(connection, other.worker_id)
            dead = await eventually_async(partial(declare_dead, connection, me.worker_id))
            assert (alive, dead) == ([], [other.worker_id])

            async def left():
                found = await rows(
                    connection, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'continuum journal %%'"
                )
                return {pid for (pid,) in found} == {one.info.backend_pid for one in (idle, mine)}

            # The session at work is ended, the idle one and that of the node which looks are not. It has let go of its
            # locks before it is gone.
            await eventually_async(left)
            for one in (journal, idle, mine):
                one.pgconn.finish()

    asyncio.run(scenario())


def test_two_survivors_do_not_wait_for_each_other_and_each_death_is_declared_once():
    async def scenario():
        async with sessions(2) as (first, second):
            me, you, other = await node(first), await node(second), await node(first)
            await give_runs(first, other.worker_id, 20)
            await expire(first, other.worker_id)
            both = await asyncio.gather(declare_dead(first, me.worker_id), declare_dead(second, you.worker_id))
            return sorted(map(len, both)), await rows(first, "SELECT DISTINCT recoveries FROM continuum_runs")

    assert asyncio.run(scenario()) == ([0, 1], [(1,)])


def test_a_death_is_followed_by_all_batches():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await give_runs(connection, other.worker_id, RELEASE_BATCH + 7)
            await expire(connection, other.worker_id)
            await declare_dead(connection, me.worker_id)
            return await rows(connection, "SELECT count(*) FROM continuum_runs WHERE owner_id IS NOT NULL")

    assert asyncio.run(scenario()) == [(0,)]


def test_a_takeover_that_was_killed_half_way_is_finished_by_a_later_sweep(monkeypatch):
    class Killed(BaseException):
        pass

    class Dying:
        """A connection whose process is killed after the first batch."""

        def __init__(self, connection):
            self.connection = connection
            self.batches = 0

        async def execute(self, statement, parameters=None):
            if statement == load("runs_release_dead"):
                self.batches += 1
                if self.batches > 1:
                    raise Killed
                parameters = {**parameters, "batch": 10}
            return await self.connection.execute(statement, parameters)

    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await give_runs(connection, other.worker_id, 25)
            await expire(connection, other.worker_id)
            with pytest.raises(Killed):
                await declare_dead(Dying(connection), me.worker_id)
            [(left,)] = await rows(connection, "SELECT count(*) FROM continuum_runs WHERE owner_id IS NOT NULL")
            released = await release_stranded(connection)
            return left, released, await rows(connection, "SELECT DISTINCT owner_id, recoveries FROM continuum_runs")

    assert asyncio.run(scenario()) == (15, 15, [(None, 1)])


def test_runs_of_an_owner_nobody_knows_are_freed_and_those_of_live_owners_kept():
    async def scenario():
        async with sessions() as connection:
            alive = await node(connection)
            await give_runs(connection, alive.worker_id, 3)
            await give_runs(connection, alive.worker_id + 1_000_000, 2)
            return await release_stranded(connection), await rows(
                connection, "SELECT owner_id IS NULL, count(*) FROM continuum_runs GROUP BY 1 ORDER BY 1"
            )

    assert asyncio.run(scenario()) == (2, [(False, 3), (True, 2)])


def test_runs_that_were_at_work_go_on_before_those_that_have_waited_for_their_turn():
    async def scenario():
        async with sessions() as connection:
            me, other = await node(connection), await node(connection)
            await connection.execute(
                "INSERT INTO continuum_runs (id, workflow, correlation_id, state, priority, next_wakeup_at) "
                "SELECT gen_random_uuid(), 'flow', gen_random_uuid(), 'pending', n % 2, now() - n * interval '1 min' "
                "FROM generate_series(1, 100) AS n"
            )
            at_work = await give_runs(connection, other.worker_id, 2)
            [quiet] = await give_runs(connection, other.worker_id, 1, "suspended")
            await expire(connection, other.worker_id)
            await declare_dead(connection, me.worker_id)
            line = await rows(
                connection,
                "SELECT id FROM continuum_runs WHERE priority = 0 ORDER BY next_wakeup_at, started_at DESC, id",
            )
            overtaken = await rows(
                connection,
                "SELECT count(*) FROM continuum_runs WHERE priority = 0 AND state = 'pending' AND next_wakeup_at <"
                " (SELECT min(next_wakeup_at) FROM continuum_runs WHERE id = ANY(%s))",
                [at_work],
            )
            return [run for (run,) in line], at_work, quiet, overtaken

    line, at_work, quiet, overtaken = asyncio.run(scenario())
    # As early as whoever is the first of their priority, which is a matter of chance then; no other comes before them.
    assert set(at_work) <= set(line[:3])
    assert overtaken == [(0,)]
    assert line[-1] == quiet


def test_a_run_locked_by_somebody_is_left_for_the_next_sweep():
    async def scenario():
        async with sessions(2) as (connection, other):
            [run, _] = await give_runs(connection, 1_000_000, 2)
            async with other.transaction():
                await other.execute("SELECT FROM continuum_runs WHERE id = %s FOR UPDATE", [run])
                first = await asyncio.wait_for(release_stranded(connection), 5)
            return first, await release_stranded(connection)

    assert asyncio.run(scenario()) == (1, 1)


def test_finding_abandoned_owners_walks_the_index_of_owners():
    with django_connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_runs (id, workflow, owner_id, correlation_id) "
            "SELECT gen_random_uuid(), 'flow', n %% 4, gen_random_uuid() FROM generate_series(1, 5000) AS n",
            [],
        )
        cursor.execute("ANALYZE continuum_runs")
        # Executed, since the part that walks on is only set up then.
        cursor.execute("EXPLAIN (ANALYZE) " + load("runs_owners_gone"))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert plan.count("continuum_runs_owner_idx") == 2, plan
    assert "Seq Scan on continuum_runs" not in plan


def test_what_a_worker_has_to_tell_of_its_code_is_told_before_its_lease_runs(monkeypatch):
    """However long that takes on a busy machine, the worker does not lose its lease before it has begun."""
    told = session.register_versions

    async def slow(connection, workflows):
        known = await rows(connection, "SELECT id FROM continuum_workers")
        seen.append(known)
        await told(connection, workflows)

    seen = []
    monkeypatch.setattr(session, "register_versions", slow)
    with worker():
        assert seen == [[]]
