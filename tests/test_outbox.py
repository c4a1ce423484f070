"""What a commit sends to a run's family: children, reports, requests to cancel, successors."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from unittest import mock

import psycopg
import pytest

from continuum.ids import uuid7
from continuum.worker import claims, journal, recording
from continuum.worker.exchange import Transaction
from continuum.worker.family import MOST_BYTES
from continuum.worker.forwarding import find_strays, forward
from continuum.worker.live import Entry
from continuum.worker.loaded import Loaded
from continuum.worker.outbox import Cancellation
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.sql import load
from tests.app import workflows as flows
from tests.desks import child, continued, desks, ended, quiet, rows, starting, told_to_stop
from tests.waiting_for import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)


def scenario(function):
    """Run a coroutine function that takes desks as an ordinary test."""
    count = function.__code__.co_argcount

    def test():
        async def play():
            async with desks(count) as opened:
                async with asyncio.timeout(60):
                    await function(*([opened] if count == 1 else opened))

        asyncio.run(play())

    test.__name__, test.__doc__ = function.__name__, function.__doc__
    return staticmethod(test)


def cancelling(live, run_id, reason="enough", delivery_id="stop"):
    entry = Entry(live)
    entry.send().cancels.append(Cancellation(run_id, reason, delivery_id))
    return entry


async def count(desk, table, **where):
    condition = " AND ".join(f"{name} = %s" for name in where) or "true"
    [(number,)] = await rows(desk.connection, f"SELECT count(*) FROM {table} WHERE {condition}", *where.values())
    return number


class Counting:
    """A connection that notes which statements it is given."""

    def __init__(self, real):
        self.real = real
        self.statements = []

    async def execute(self, statement, *args, **options):
        self.statements.append(statement)
        return await self.real.execute(statement, *args, **options)

    def __getattr__(self, name):
        return getattr(self.real, name)


class TestChildren:
    @scenario
    async def test_inherit_from_their_parent_what_is_not_said(desk):
        parent = await desk.own(
            namespace="shop",
            attributes='{"plan": "pro"}',
            priority=3,
            depth=2,
            correlation_id=uuid7(),
            deadline_at=datetime(2100, 1, 1, tzinfo=UTC),
        )
        one, other = child("0:1"), child("0:2", namespace="back", attributes='{"plan": "free"}')
        await desk.write(starting(parent, one, other))
        columns = (
            "namespace, attributes ->> 'plan', priority, depth, state, deadline_at, parent_run_id, parent_command_id,"
            " correlation_id = (SELECT correlation_id FROM continuum_runs WHERE id = %s), workflow, input::text"
        )
        found = await rows(
            desk.connection,
            f"SELECT {columns} FROM continuum_runs WHERE parent_run_id = %s ORDER BY parent_command_id",
            parent.id,
            parent.id,
        )
        same = (3, 3, "pending", None, parent.id)
        assert found == [
            ("shop", "pro", *same, "0:1", True, flows.echo.name, '["x"]'),
            ("back", "free", *same, "0:2", True, flows.echo.name, '["x"]'),
        ]

    @scenario
    async def test_are_claimed_like_any_run(desk):
        parent = await desk.own(depth=4)
        one = child()
        await desk.write(starting(parent, one))
        assert desk.sent[-1].ready
        [claimed] = await claims.claim_due(desk.connection, desk.worker_id, Loaded([flows.echo.name]), 10)
        identity = claimed.identity
        assert (identity.id, identity.parent_run_id, identity.depth, claimed.is_new) == (one.id, parent.id, 5, True)

    @scenario
    async def test_a_thousand_are_started_by_one_statement(desk):
        parent = await desk.own()
        entry = starting(parent, *(child(f"0:{n}") for n in range(1, 1001)))
        desk.journal._connection = counting = Counting(await desk.journal._connect())
        await desk.write(entry)
        assert counting.statements.count(load("outbox_children")) == 1
        assert await count(desk, "continuum_runs", parent_run_id=parent.id) == 1000

    @scenario
    async def test_with_large_arguments_are_started_in_portions(desk):
        parent = await desk.own()
        children = [child(f"0:{n}") for n in range(3)]
        for one in children:
            one.input = json.dumps(["x" * (MOST_BYTES // 2)])
        desk.journal._connection = counting = Counting(await desk.journal._connect())
        await desk.write(starting(parent, *children))
        assert counting.statements.count(load("outbox_children")) == 3
        assert await count(desk, "continuum_runs", parent_run_id=parent.id) == 3

    @scenario
    async def test_asked_for_again_are_started_once_and_stay_as_they_are(desk):
        parent = await desk.own()
        entry = starting(parent, one := child())
        await desk.write(entry)
        taken = await desk.take(one.id)
        await desk.write(ended(taken))
        assert await desk.write(entry) == set()
        assert await count(desk, "continuum_runs", parent_run_id=parent.id) == 1
        assert (await desk.runs(one.id))[0][0] == "completed"

    @scenario
    async def test_of_a_run_in_other_hands_are_not_started(desk, other):
        parent = await desk.own()
        await other.take(parent.id)
        assert await desk.write(starting(parent, child())) == {parent.id}
        assert await count(desk, "continuum_runs", parent_run_id=parent.id) == 0

    @scenario
    async def test_that_postgresql_refuses_leave_nothing_behind(desk):
        parent = await desk.own()
        entry = starting(parent, child("0:1"), child("0:2", attributes='{"a": "\\u0000"}'))
        await desk.journal._commit([entry])
        assert len(desk.refused) == 1
        assert await count(desk, "continuum_runs", parent_run_id=parent.id) == 0


class TestReports:
    @scenario
    async def test_tell_the_parent_how_its_child_has_ended(desk):
        parent = await desk.own()
        family = {"parent_run_id": parent.id}
        done = await desk.own(parent_command_id="0:1", **family)
        failed = await desk.own(parent_command_id="0:2#1", **family)
        await desk.write(ended(done, result='{"a":"\\u0000"}'), ended(failed, "failed", error='{"type":"ValueError"}'))
        assert await desk.inbox(parent.id) == [
            (
                "child",
                "0:1",
                {"child": str(done.id), "state": "completed", "result": {"a": "\0"}, "error": None},
            ),
            (
                "child",
                "0:2#1",
                {"child": str(failed.id), "state": "failed", "result": None, "error": {"type": "ValueError"}},
            ),
        ]
        assert desk.sent[-1].news == {parent.id: desk.worker_id}

    @scenario
    async def test_name_whoever_owns_the_parent(desk, other):
        owned, unowned = await other.own(), await other.own(owned=False)
        children = [await desk.own(parent_run_id=parent.id, parent_command_id="0:1") for parent in (owned, unowned)]
        await desk.write(*map(ended, children))
        assert desk.sent[-1].news == {owned.id: other.worker_id, unowned.id: None}

    @pytest.mark.parametrize(
        ("columns", "arrives"),
        [
            ({"state": "suspended"}, True),
            ({"state": "stuck_unknown_version"}, True),
            ({"state": "failed"}, True),  # it may be retried
            ({"state": "completed"}, False),
            ({"state": "cancelled"}, False),
            ({"state": "completed", "continued_to_run_id": uuid7()}, False),
        ],
    )
    def test_go_to_those_who_may_want_to_know(self, columns, arrives):
        async def play():
            async with desks() as desk:
                parent = await desk.own(owned=False, **columns)
                one = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
                await desk.write(ended(one))
                return len(await desk.inbox(parent.id)), parent.id in desk.sent[-1].news

        assert asyncio.run(play()) == (int(arrives), arrives)

    @scenario
    async def test_are_not_made_by_a_child_that_moved_along(desk):
        parent = await desk.own()
        one = await desk.own(parent_run_id=parent.id)
        await desk.write(ended(one))
        assert await desk.inbox(parent.id) == []

    @scenario
    async def test_are_made_once_however_often_the_commit_is_tried(desk):
        parent = await desk.own()
        one = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        entry = ended(one)
        assert await desk.write(entry) == set()
        assert await desk.write(entry) == {one.id}
        assert len(await desk.inbox(parent.id)) == 1

    @scenario
    async def test_of_a_fenced_commit_are_not_made(desk, other):
        parent = await desk.own()
        one = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        await other.take(one.id)
        assert await desk.write(ended(one)) == {one.id}
        assert await desk.inbox(parent.id) == []


class TestCancels:
    @scenario
    async def test_reach_the_tip_of_a_chain(desk, other):
        parent = await desk.own()
        first, second, tip = [uuid7() for _ in range(3)]
        await other.own(first, owned=False, state="completed", continued_to_run_id=second)
        await other.own(second, owned=False, state="completed", continued_to_run_id=tip)
        await other.own(tip)
        await desk.write(cancelling(parent, first))
        assert await desk.inbox(tip) == [("cancel", None, {"reason": "enough"})]
        assert desk.sent[-1].news == {tip: other.worker_id}

    @scenario
    async def test_do_not_reach_what_has_ended(desk):
        parent = await desk.own()
        for state in ("completed", "failed", "cancelled"):
            gone = await desk.own(owned=False, state=state)
            await desk.write(cancelling(parent, gone.id))
            assert (await desk.inbox(gone.id), desk.sent[-1].news) == ([], {})

    @scenario
    async def test_written_twice_are_one(desk):
        parent, one = await desk.own(), await desk.own()
        entry = cancelling(parent, one.id)
        await desk.write(entry)
        await desk.write(entry)
        assert len(await desk.inbox(one.id)) == 1

    @scenario
    async def test_that_a_chain_has_had_are_not_repeated_to_its_tip(desk):
        parent, one = await desk.own(), await desk.own()
        await desk.write(cancelling(parent, one.id))
        await rows(desk.connection, "UPDATE continuum_inbox SET consumed_at = now() RETURNING id")
        entry = continued(one)
        await desk.write(entry)
        await desk.write(cancelling(parent, one.id))
        assert await desk.inbox(entry.outbox.successor.id) == []
        await desk.write(cancelling(parent, one.id, delivery_id="another"))
        assert len(await desk.inbox(entry.outbox.successor.id)) == 1

    @scenario
    async def test_reach_a_thousand_children_at_once(desk):
        parent = await desk.own()
        children = [child(f"0:{n}") for n in range(1000)]
        await desk.write(starting(parent, *children))
        entry = Entry(parent)
        entry.send().cancels += [Cancellation(one.id, "enough", f"stop {n}") for n, one in enumerate(children)]
        await desk.write(entry)
        assert await count(desk, "continuum_inbox", kind="cancel") == 1000
        assert len(desk.sent[-1].news) == 1000


class TestCascades:
    @scenario
    async def test_reach_every_child_that_has_not_ended(desk, other):
        parent, stranger = await desk.own(), await desk.own()
        family = {"parent_run_id": parent.id}
        here, there = await desk.own(**family), await other.own(**family)
        pending = await desk.own(owned=False, state="pending", **family)
        await desk.own(owned=False, state="completed", **family)
        await desk.write(told_to_stop(parent, "no more"))
        assert desk.sent[-1].news == {here.id: desk.worker_id, there.id: other.worker_id, pending.id: None}
        for one in (here, there, pending):
            assert await desk.inbox(one.id) == [("cancel", None, {"reason": "no more"})]
        assert await desk.inbox(stranger.id) == []

    @scenario
    async def test_reach_children_started_or_continued_in_the_same_commit(desk):
        parent = await desk.own()
        old = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        stopping, going_on = told_to_stop(parent), continued(old)
        stopping.outbox.children.append(one := child("0:2"))
        await desk.write(stopping, going_on)
        assert set(desk.sent[-1].news) == {one.id, going_on.outbox.successor.id}

    @scenario
    async def test_do_not_ask_twice_who_does_not_know_yet(desk):
        parent = await desk.own()
        one = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        entry = told_to_stop(parent)
        entry.outbox.cancels.append(Cancellation(one.id, "enough", "stop"))
        await desk.write(entry)
        assert len(await desk.inbox(one.id)) == 1


class TestSuccessors:
    @scenario
    async def test_have_the_standing_of_the_run_they_continue(desk):
        parent = await desk.own()
        deadline = datetime(2100, 1, 1, tzinfo=UTC)
        old = await desk.own(
            namespace="shop",
            attributes='{"plan": "pro"}',
            priority=3,
            depth=1,
            correlation_id=parent.id,
            deadline_at=deadline,
            parent_run_id=parent.id,
            parent_command_id="0:1",
            progress='"half"',
            claimed_at=datetime.now(UTC),
            started_at=datetime(2020, 1, 1, tzinfo=UTC),
            idempotency_key="once",
        )
        entry = continued(old)
        await desk.write(entry)
        new = entry.outbox.successor.id
        assert desk.sent[-1].ready
        assert desk.sent[-1].continued == [old.id]
        [found] = await rows(
            desk.connection,
            "SELECT workflow, version_hash, namespace, attributes ->> 'plan', priority, depth, correlation_id,"
            " deadline_at, parent_run_id, parent_command_id, continued_from_run_id, continued_to_run_id,"
            " input::text, state, progress, claimed_at, owner_id, idempotency_key,"
            " started_at > now() - interval '1 minute', next_wakeup_at = started_at"
            " FROM continuum_runs WHERE id = %s",
            new,
        )
        same = (
            flows.echo.name,
            old.definition.version_hash,
            "shop",
            "pro",
            3,
            1,
            parent.id,
            deadline,
            parent.id,
            "0:1",
        )
        assert found == (*same, old.id, None, '["next"]', "pending", None, None, None, None, True, True)
        [(state, result, link)] = await rows(
            desk.connection, "SELECT state, result, continued_to_run_id FROM continuum_runs WHERE id = %s", old.id
        )
        assert (state, result, link) == ("completed", None, new)

    @scenario
    async def test_report_to_the_parent_in_place_of_the_run_they_continue(desk):
        parent = await desk.own()
        old = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        entry = continued(old)
        entry.outbox.report = True
        await desk.write(entry)
        assert await desk.inbox(parent.id) == []
        await desk.write(ended(await desk.take(entry.outbox.successor.id), result="7"))
        [(_, command, payload)] = await desk.inbox(parent.id)
        assert (command, payload["result"]) == ("0:1", 7)

    @scenario
    async def test_find_the_signals_in_order_however_often_they_were_carried_on(desk):
        old = await desk.own()
        for payload in ("3", "4"):
            await desk.send(old.id, "go", payload)
        first = continued(old, None, ("go", "1"), ("go", "2"))
        await desk.write(first)
        middle = await desk.take(first.outbox.successor.id)
        await desk.send(old.id, "go", "5")
        # It has taken in the first two once more, and reads none of the others.
        await rows(desk.connection, "DELETE FROM continuum_inbox WHERE run_id = %s AND id < 0 RETURNING id", middle.id)
        second = continued(middle, None, ("go", "1"), ("go", "2"))
        await desk.write(second)
        third = continued(await desk.take(second.outbox.successor.id), None, ("go", "0"))
        await desk.write(third)
        inbox = await desk.inbox(third.outbox.successor.id)
        assert [payload for _, _, payload in inbox] == [0, 1, 2, 3, 4, 5]
        assert await count(desk, "continuum_inbox") == 6

    @scenario
    async def test_keep_the_delivery_ids_of_what_is_carried_on(desk):
        old = await desk.own()
        await desk.send(old.id, "go", "1", delivery_id="read")
        await rows(desk.connection, "UPDATE continuum_inbox SET consumed_at = now() RETURNING id")
        await desk.send(old.id, "go", "2", delivery_id="unread")
        entry = continued(old)
        await desk.write(entry)
        assert not await desk.send(old.id, "go", "1", delivery_id="read")
        assert not await desk.send(old.id, "go", "2", delivery_id="unread")
        assert await desk.inbox(entry.outbox.successor.id) == [("signal", "go", 2)]

    @scenario
    async def test_are_asked_to_stop_in_place_of_the_run_they_continue(desk):
        old = await desk.own()
        await desk.send(old.id, None, '{"reason": "enough"}', kind="cancel")
        entry = continued(old)
        await desk.write(entry)
        assert await desk.inbox(entry.outbox.successor.id) == [("cancel", None, {"reason": "enough"})]

    @scenario
    async def test_hear_nothing_of_what_others_asked_for(desk):
        old = await desk.own()
        for kind in ("child", "activity"):
            await rows(
                desk.connection,
                "INSERT INTO continuum_inbox (run_id, kind, command_id, payload) VALUES (%s, %s, '0:1', '{}')"
                " RETURNING id",
                old.id,
                kind,
            )
        await desk.write(continued(old))
        assert await count(desk, "continuum_inbox") == 0

    @scenario
    async def test_have_the_children_that_have_not_ended(desk):
        old = await desk.own()
        family = {"parent_run_id": old.id, "parent_command_id": "0:1"}
        live, done = await desk.own(**family), await desk.own(owned=False, state="completed", **family)
        entry = continued(old)
        await desk.write(entry)
        new = entry.outbox.successor.id
        assert await desk.runs(live.id, done.id) == [("running", new, None), ("completed", old.id, "0:1")]
        assert await desk.inbox(old.id) == []

    @scenario
    async def test_have_the_children_that_were_started_or_continued_in_the_same_commit(desk):
        old = await desk.own()
        one = await desk.own(parent_run_id=old.id, parent_command_id="0:1")
        entry, of_child = continued(old), continued(one)
        entry.outbox.children.append(late := child("0:2"))
        await desk.write(entry, of_child)
        new = entry.outbox.successor.id
        after = ("pending", new, None)
        assert await desk.runs(of_child.outbox.successor.id, late.id) == [after, after]

    @scenario
    async def test_are_begun_once_however_often_the_commit_is_tried(desk):
        old = await desk.own()
        await desk.send(old.id, "go", "2")
        entry = continued(old, None, ("go", "1"))
        assert await desk.write(entry) == set()
        assert await desk.write(entry) == {old.id}
        # Nor if the fence were not there.
        async with desk.connection.transaction():
            await write_outbox(desk.connection, [entry])
        new = entry.outbox.successor.id
        assert await desk.inbox(new) == [("signal", "go", 1), ("signal", "go", 2)]
        assert await count(desk, "continuum_runs", continued_from_run_id=old.id) == 1


class Deaf(Transaction):
    """A transaction that is committed, and whose connection breaks before it can say so."""

    async def __aexit__(self, *error):
        await super().__aexit__(*error)
        self._pgconn.finish()
        raise psycopg.OperationalError("cut off")


class TestLostAcknowledgements:
    """A commit took place and its worker does not know: whatever it sent is there once."""

    @scenario
    async def test_of_children_messages_and_successors(desk, other):
        parent = await desk.own()
        reporting = await desk.own(parent_run_id=parent.id, parent_command_id="0:1")
        cancelled = await other.own()
        old = await desk.own()
        await desk.send(old.id, "go", "2")
        family = starting(parent, one := child("0:2"))
        family.outbox.cancels.append(Cancellation(cancelled.id, "enough", "stop"))
        going_on = continued(old, None, ("go", "1"))
        deaf = []

        def begun(connection):
            if deaf:
                return Transaction(connection)
            deaf.append(connection)
            return Deaf(connection)

        with mock.patch.object(recording, "Transaction", begun):
            assert await desk.write(family, ended(reporting), going_on) == set()
        assert desk.journal._connection is not deaf[0]
        assert await desk.runs(one.id) == [("pending", parent.id, "0:2")]
        assert await count(desk, "continuum_runs") == 6
        assert [kind for kind, _, _ in await desk.inbox(parent.id)] == ["child"]
        assert [kind for kind, _, _ in await desk.inbox(cancelled.id)] == ["cancel"]
        assert [payload for _, _, payload in await desk.inbox(going_on.outbox.successor.id)] == [1, 2]
        assert await count(desk, "continuum_inbox") == 4


class TestAtTheSameTime:
    """Two workers commit to one family at once. Whatever the order, nobody waits in a circle and nothing is lost."""

    @scenario
    async def test_a_child_that_ends_while_its_parent_is_being_continued(desk, other):
        old = await desk.own()
        one = await other.own(parent_run_id=old.id, parent_command_id="0:1")
        going_on = continued(old)
        async with desk.uncommitted(going_on):
            ending = asyncio.create_task(other.write(ended(one)))
            await eventually_async(lambda: waits(other))
        assert await ending == set()
        new = going_on.outbox.successor.id
        assert await desk.runs(one.id) == [("completed", new, None)]
        assert (await desk.inbox(old.id), await desk.inbox(new)) == ([], [])

    @scenario
    async def test_a_parent_that_is_continued_while_its_child_ends(desk, other):
        old = await desk.own()
        one = await other.own(parent_run_id=old.id, parent_command_id="0:1")
        going_on = continued(old)
        async with other.uncommitted(ended(one)):
            assert await desk.write(going_on) == set()  # without waiting
        assert await find_strays(desk.connection) == [old.id]
        assert await forward(desk.connection, [old.id]) == {}
        new = going_on.outbox.successor.id
        assert await desk.runs(one.id) == [("completed", old.id, "0:1")]
        assert (await desk.inbox(old.id), await desk.inbox(new)) == ([], [])

    @scenario
    async def test_a_parent_that_is_continued_while_its_childs_row_is_held(desk, other, third):
        old = await desk.own()
        one = await other.own(parent_run_id=old.id, parent_command_id="0:1")
        going_on = continued(old)
        async with other.uncommitted(quiet(one)):
            await desk.write(going_on)
            # Whoever forwards mail does not wait for it either.
            assert await forward(third.connection, await find_strays(third.connection)) == {}
        new = going_on.outbox.successor.id
        assert await desk.runs(one.id) == [("suspended", old.id, "0:1")]
        await forward(third.connection, await find_strays(third.connection))
        assert await desk.runs(one.id) == [("suspended", new, None)]
        assert await find_strays(third.connection) == []

    @scenario
    async def test_a_child_left_behind_is_asked_to_stop_if_the_successor_was_meanwhile(desk, other):
        old = await desk.own()
        one = await other.own(parent_run_id=old.id, parent_command_id="0:1")
        going_on = continued(old)
        async with other.uncommitted(quiet(one)):
            await desk.write(going_on)
        new = await desk.take(going_on.outbox.successor.id)
        await desk.write(told_to_stop(new, "no more"))
        assert await desk.inbox(one.id) == []
        assert await forward(desk.connection, await find_strays(desk.connection)) == {one.id: other.worker_id}
        assert await desk.inbox(one.id) == [("cancel", None, {"reason": "no more"})]

    @scenario
    async def test_a_parent_and_its_child_that_are_continued_at_once(desk, other):
        old = await desk.own()
        one = await other.own(parent_run_id=old.id, parent_command_id="0:1")
        of_parent, of_child = continued(old), continued(one)
        async with other.uncommitted(of_child):
            await desk.write(of_parent)
        await forward(desk.connection, await find_strays(desk.connection))
        assert await desk.runs(of_child.outbox.successor.id) == [("pending", of_parent.outbox.successor.id, None)]

    @scenario
    async def test_two_workers_that_have_children_of_each_others_parents_do_not_deadlock(desk, other):
        parents = [await desk.own(), await other.own()]
        children = [
            await desk.own(parent_run_id=parents[1].id, parent_command_id="0:1"),
            await other.own(parent_run_id=parents[0].id, parent_command_id="0:1"),
        ]
        batches = [(continued(parents[n]), ended(children[n], result="7")) for n in range(2)]
        # Each has written to its own rows before either touches those of the other.
        async with desk.connection.transaction(), other.connection.transaction():
            await desk.record(*batches[0])
            await other.record(*batches[1])
            await write_outbox(desk.connection, batches[0])
            await write_outbox(other.connection, batches[1])
        await forward(desk.connection, await find_strays(desk.connection))
        assert [state for state, *_ in await desk.runs(*(run.id for run in children))] == ["completed"] * 2
        assert await count(desk, "continuum_inbox") == 0

    @scenario
    async def test_a_child_that_ends_while_it_is_being_cancelled(desk, other):
        parent = await desk.own()
        one = await other.own(parent_run_id=parent.id, parent_command_id="0:1")
        async with desk.uncommitted(cancelling(parent, one.id)):
            assert await other.write(ended(one)) == set()
        assert [kind for kind, _, _ in await desk.inbox(parent.id)] == ["child"]
        assert await claims.claim_mail(other.connection, other.worker_id, Loaded([flows.echo.name]), 10) == []

    @scenario
    async def test_a_child_that_is_continued_while_it_is_being_cancelled(desk, other):
        parent = await desk.own()
        one = await other.own(parent_run_id=parent.id, parent_command_id="0:1")
        going_on = continued(one)
        async with other.uncommitted(going_on):
            await desk.write(cancelling(parent, one.id))
        new = going_on.outbox.successor.id
        assert await desk.inbox(new) == []
        assert await forward(desk.connection, await find_strays(desk.connection)) == {new: None}
        await desk.write(cancelling(parent, one.id))
        assert await desk.inbox(new) == [("cancel", None, {"reason": "enough"})]
        [claimed] = await claims.claim_mail(other.connection, other.worker_id, Loaded([flows.echo.name]), 10)
        assert claimed.identity.id == new

    @scenario
    async def test_workers_that_do_everything_to_each_others_families_never_wait_in_a_circle(desk, other, third):
        async def generation(mine, yours):
            """A parent here with children everywhere, all of which do something in the commits that follow."""
            parent = await mine.own()
            family = {"parent_run_id": parent.id, "parent_command_id": "0:1"}
            return parent, [await owner.own(**family) for owner in (mine, *yours) for _ in range(3)]

        team = (desk, other, third)
        families = {mine: await generation(mine, [d for d in team if d is not mine]) for mine in team}
        tips = {mine: parent for mine, (parent, _) in families.items()}
        everybody = {mine: [] for mine in team}
        for mine in team:
            for number, one in enumerate(families[mine][1]):
                everybody[team[(team.index(mine) + number // 3) % 3] if number >= 3 else mine].append(one)

        async def work(mine):
            for turn in range(12):
                going_on = continued(tips[mine])
                batch = [going_on]
                owned = [
                    (run_id, token)
                    for run_id, token in await rows(
                        mine.connection,
                        "SELECT id, lease_token FROM continuum_runs WHERE owner_id = %s AND id <> %s",
                        mine.worker_id,
                        tips[mine].id,
                    )
                ]
                for number, (run_id, token) in enumerate(owned):
                    live = mine.live(run_id, token, tips[mine].definition)
                    batch.append(ended(live) if (number + turn) % 9 == 8 else quiet(live))
                assert await mine.write(*batch) == set()
                tips[mine] = await mine.take(going_on.outbox.successor.id)
                await forward(mine.connection, await find_strays(mine.connection))

        # What the server counts, it counts late, and of everybody.
        with mock.patch.object(journal.logger, "info") as told:
            await asyncio.gather(*map(work, team))
        assert [call for call in told.call_args_list if "tried again" in call.args[0]] == []
        await forward(desk.connection, await find_strays(desk.connection))
        [(lost,)] = await rows(
            desk.connection,
            "SELECT count(*) FROM continuum_runs c JOIN continuum_runs p ON p.id = c.parent_run_id"
            " WHERE c.state NOT IN ('completed', 'failed', 'cancelled') AND p.continued_to_run_id IS NOT NULL",
        )
        assert lost == 0


class TestLateMail:
    @scenario
    async def test_a_signal_sent_while_its_run_is_continued_reaches_the_successor(desk, client):
        old = await desk.own()
        going_on = continued(old)
        async with client.connection.transaction():
            assert await client.send(old.id, "go", "1", delivery_id="a")
            await desk.write(going_on)
        new = going_on.outbox.successor.id
        await client.send(new, "go", "2")
        assert await find_strays(desk.connection) == [old.id]
        assert await forward(desk.connection, [old.id]) == {new: None}
        assert await desk.inbox(new) == [("signal", "go", 1), ("signal", "go", 2)]
        assert not await client.send(old.id, "go", "1", delivery_id="a")
        assert await find_strays(desk.connection) == []

    @scenario
    async def test_is_forwarded_along_the_whole_chain_to_whoever_owns_its_tip(desk, client):
        old = await desk.own()
        async with client.connection.transaction():
            await client.send(old.id, "go", "1")
            tip = old
            for _ in range(3):
                going_on = continued(tip)
                await desk.write(going_on)
                tip = await desk.take(going_on.outbox.successor.id)
        assert await forward(desk.connection, [old.id]) == {tip.id: desk.worker_id}
        assert await desk.inbox(tip.id) == [("signal", "go", 1)]

    @scenario
    async def test_of_runs_that_were_not_continued_stays(desk):
        failed = await desk.own(owned=False, state="failed")
        for run in (failed, await desk.own()):
            await rows(
                desk.connection, "INSERT INTO continuum_inbox (run_id, kind) VALUES (%s, 'signal') RETURNING id", run.id
            )
        assert await find_strays(desk.connection) == []
        assert await forward(desk.connection, [failed.id]) == {}
        assert await count(desk, "continuum_inbox") == 2

    @scenario
    async def test_whose_delivery_the_tip_has_had_meanwhile_is_dropped(desk, client):
        old = await desk.own()
        going_on = continued(old)
        async with client.connection.transaction():
            await client.send(old.id, "go", "1", delivery_id="a")
            await desk.write(going_on)
            assert await desk.send(old.id, "go", "1", delivery_id="a")
        assert await forward(desk.connection, [old.id]) == {}
        assert await desk.inbox(going_on.outbox.successor.id) == [("signal", "go", 1)]
        assert await find_strays(desk.connection) == []

    @scenario
    async def test_that_has_to_wait_for_somebodys_transaction_does_not_hold_up_the_rest(desk, client, blocker):
        runs = [await desk.own() for _ in range(3)]
        entries = [continued(run) for run in runs]
        async with client.connection.transaction():
            for run in runs:
                await client.send(run.id, "go", "1", delivery_id="a")
            await desk.write(*entries)
        tips = [entry.outbox.successor.id for entry in entries]
        ids = [run.id for run in runs]
        async with blocker.connection.transaction():
            await rows(
                blocker.connection,
                "INSERT INTO continuum_inbox (run_id, kind, delivery_id) VALUES (%s, 'signal', 'a') RETURNING id",
                tips[1],
            )
            assert await forward(desk.connection, ids) == {tips[0]: None, tips[2]: None}
            assert await find_strays(desk.connection) == [ids[1]]
        assert await forward(desk.connection, ids) == {}
        assert await find_strays(desk.connection) == []

    @scenario
    async def test_of_a_chain_whose_tip_is_gone_is_dropped(desk):
        old = await desk.own(owned=False, state="completed", continued_to_run_id=uuid7())
        await rows(
            desk.connection, "INSERT INTO continuum_inbox (run_id, kind) VALUES (%s, 'signal') RETURNING id", old.id
        )
        assert await forward(desk.connection, [old.id]) == {}
        assert await count(desk, "continuum_inbox") == 0


async def waits(desk):
    """Tell whether the desk's journal waits for a lock."""
    found = await rows(
        desk.connection,
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = %s",
        desk.journal._connection.info.backend_pid if desk.journal._connection else 0,
    )
    return bool(found)
