"""Chains of continued runs, and cancelling runs in every state, with real workers."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from itertools import pairwise

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone

import continuum
from continuum.exceptions import RunCancelledError, RunNotActiveError
from continuum.models import ActivityTask, InboxMessage, Run
from continuum.worker import claims, forwarding
from tests.app import family_workflows as family, workflows as flows
from tests.app.models import Effect
from tests.concurrency import Background
from tests.ending import finish
from tests.test_worker_failures import events_refused
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def state_of(run):
    return continuum.get_run(run).state


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def seqs_of(run):
    return [event.seq for event in continuum.get_run(run).history()]


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


def unread():
    return InboxMessage.objects.filter(consumed_at=None).count()


@pytest.fixture
def quick_poll(settings):
    settings.CONTINUUM = {"POLL_INTERVAL": 0.05}


@pytest.fixture
def chain():
    """A run that was continued twice, and the tip, which waits and is nobody's."""
    runs = [continuum.start(flows.listens) for _ in range(3)]
    for run, successor in pairwise(runs):
        finish(run, successor=successor)
        Run.objects.filter(pk=successor.pk).update(continued_from_run_id=run.pk)
    run_until_idle()
    assert [state_of(run) for run in runs] == ["completed", "completed", "suspended"]
    return runs


class TestLateMail:
    """What a sender puts into the inbox of a run that was continued meanwhile."""

    def put(self, run, kind="signal", name="go", payload="7"):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO continuum_inbox (run_id, kind, name, payload) VALUES (%s, %s, %s, %s)",
                [run.pk, kind, name, payload],
            )

    def test_reaches_a_tip_that_nobody_owns(self, chain):
        self.put(chain[0])
        run_until_idle()
        assert continuum.result(chain[0], timeout=0) == 7

    def test_reaches_a_tip_that_is_live_elsewhere_within_the_poll_interval(self, chain, quick_poll):
        continuum.signal(chain[2], "something")  # has the tip claimed
        with worker():
            eventually(lambda: Run.objects.filter(owner_id__isnull=False).count() == 1)
            self.put(chain[0])
            assert continuum.result(chain[0], timeout=10) == 7

    def test_may_be_a_request_to_cancel(self, chain):
        self.put(chain[0], "cancel", None, '{"reason": "enough"}')
        run_until_idle()
        with pytest.raises(RunCancelledError, match="enough"):
            continuum.result(chain[0], timeout=0)

    def test_about_children_of_the_old_run_is_nobodys(self, chain):
        self.put(chain[0], "child", None, json.dumps({"child": str(chain[1].pk), "state": "completed"}))
        run_until_idle()
        assert (unread(), state_of(chain[2])) == (0, "suspended")

    @pytest.mark.usefixtures("quick_poll")
    def test_of_a_caller_whose_transaction_spans_the_change(self):
        run = continuum.start(family.hands_over)
        with worker(name="one"), worker(name="other"):
            with transaction.atomic():
                continuum.signal(run, "item", "early", delivery_id="a")
                Background(continuum.signal, run, "on").result()
                eventually(lambda: Run.objects.count() == 2)
            assert not continuum.signal(run, "item", "early", delivery_id="a")
            continuum.signal(run, "item", "late")
            assert continuum.result(run, timeout=10) == ["early", "late"]
        assert unread() == 0

    @pytest.mark.usefixtures("quick_poll")
    def test_that_another_worker_forwards_during_a_read_is_not_overtaken(self, database_url, monkeypatch):
        real, first = claims.unread_of_worker, []

        async def crossed(*args):
            """Two messages arrive before the read, and the first one reaches the tip as soon as that is over."""
            if tip is None or tip.pk not in running.node.engine.live or first:
                return await real(*args)
            first.append(run.pk)
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
                put = "INSERT INTO continuum_inbox (run_id, kind, name, payload) VALUES (%s, 'signal', 'item', %s)"
                await other.execute(put, [run.pk, '"early"'])
                await other.execute(put, [tip.pk, '"late"'])
                messages = await real(*args)
                await forwarding.forward(other, [run.pk])
            return messages

        tip = None
        run = continuum.start(family.hands_over)
        monkeypatch.setattr(claims, "unread_of_worker", crossed)
        with worker() as running:
            continuum.signal(run, "on")
            # Live by then: a claim would take up what is to have the poll read.
            tip = eventually(lambda: Run.objects.filter(continued_from_run_id=run.pk, state="suspended").first())
            self.put(tip, name="something")
            assert continuum.result(run, timeout=10) == ["early", "late"]
        assert unread() == 0

    @pytest.mark.usefixtures("quick_poll")
    def test_that_cannot_be_forwarded_yet_is_not_overtaken(self, monkeypatch):
        read, forward, reads, forwarding_now = claims.unread_of_worker, forwarding.forward, [], threading.Lock()

        async def watched(*args):
            messages = await read(*args)
            reads.append([json.loads(message.payload) for message in messages])
            return messages

        async def held_back(*args):
            if not forwarding_now.acquire(blocking=False):
                return {}
            try:
                return await forward(*args)
            finally:
                forwarding_now.release()

        monkeypatch.setattr(claims, "unread_of_worker", watched)
        monkeypatch.setattr(forwarding, "forward", held_back)
        run = continuum.start(family.hands_over)
        with worker():
            continuum.signal(run, "on")
            tip = eventually(lambda: Run.objects.filter(continued_from_run_id=run.pk, state="suspended").first())
            forwarding_now.acquire()  # or the message could be on its way before it is locked
            self.put(run, name="item", payload='"early"')
            with transaction.atomic():
                # As another worker that is forwarding it, and whose commit is long in coming.
                InboxMessage.objects.select_for_update().get(run_id=run.pk)
                forwarding_now.release()
                for word in ("late", "later"):
                    Background(continuum.signal, tip, "item", word).result()
                eventually(lambda: reads.count(["early", "late", "later"]) > 2)
                assert state_of(tip) == "suspended"
            assert continuum.result(run, timeout=10) == ["early", "late"]

    def test_of_a_caller_who_cancels_while_the_run_goes_on_as_another(self):
        run = continuum.start(family.hands_over)
        with worker():
            with transaction.atomic():
                continuum.cancel(run, reason="enough")
                Background(continuum.signal, run, "on").result()
                eventually(lambda: Run.objects.count() == 2)
            with pytest.raises(RunCancelledError, match="enough"):
                continuum.result(run, timeout=10)
        assert [one.state for one in Run.objects.order_by("started_at")] == ["completed", "cancelled"]


class TestFollowing:
    def test_what_is_sent_to_the_first_run_reaches_the_last(self, chain):
        assert continuum.signal(chain[0], "go", 7, delivery_id="a")
        assert not continuum.signal(chain[1], "go", 7, delivery_id="a")
        run_until_idle()
        assert continuum.wait_run(chain[0], timeout=0).pk == chain[2].pk
        assert continuum.result(chain[1], timeout=0) == 7

    def test_get_run_returns_the_very_run(self, chain):
        assert continuum.get_run(chain[0]).pk == chain[0].pk
        assert continuum.get_run(chain[0]).continued_to_run_id == chain[1].pk

    def test_a_chain_that_has_ended_cannot_be_cancelled(self, chain):
        continuum.signal(chain[0], "go", 7)
        run_until_idle()
        for run in chain:
            with pytest.raises(RunNotActiveError, match=str(chain[2].pk)):
                continuum.cancel(run)


class TestCancelBeforeTheStart:
    def test_runs_nothing_and_is_recorded(self):
        run = continuum.start(flows.cleans_up, "c", start_at=timezone.now() + timedelta(hours=1))
        continuum.cancel(run, reason="not wanted")
        run_until_idle()
        with pytest.raises(RunCancelledError, match="not wanted"):
            continuum.result(run, timeout=0)
        assert types_of(run) == ["cancel_requested", "run_cancelled"]
        assert (marks("c"), unread()) == ([], 0)

    def test_of_a_child_is_told_to_its_parent_and_the_request_is_remembered(self):
        run = continuum.start(family.begets, "wait")
        run_until_idle()
        [child] = Run.objects.filter(parent_run_id=run.pk)
        Run.objects.filter(pk=child.pk).update(
            state="pending", claimed_at=None, next_wakeup_at=timezone.now() + timedelta(hours=1)
        )
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO continuum_inbox (run_id, kind, payload, delivery_id) VALUES (%s, 'cancel', %s, 'stop')",
                [child.pk, '{"reason": "not wanted"}'],
            )
        run_until_idle()
        assert continuum.result(run, timeout=0)["state"] == "cancelled"
        assert InboxMessage.objects.get(delivery_id="stop").consumed_at is not None

    def test_by_a_timeout_that_was_over_before_anybody_came(self):
        run = continuum.start(flows.cleans_up, "c", timeout=0.01)
        eventually(lambda: continuum.get_run(run).deadline_at < timezone.now())
        run_until_idle()
        assert types_of(run) == ["cancel_requested", "run_cancelled"]
        assert marks("c") == []


class TestTimeout:
    def test_of_a_run_that_waits_in_memory(self):
        with worker():
            # It has to begin before it is over, on a busy machine too: what has not begun has nothing to clean up.
            run = continuum.start(flows.cleans_up, "t", timeout=5)
            with pytest.raises(RunCancelledError, match="timeout"):
                continuum.result(run, timeout=30)
        assert types_of(run) == ["cancel_requested", "activity_completed", "run_cancelled"]
        assert marks("t") == ["t:cleaned"]

    def test_of_a_run_that_nobody_owns(self):
        run = continuum.start(flows.cleans_up, "t", timeout=3600)
        run_until_idle()
        row = continuum.get_run(run)
        assert (row.state, row.owner_id, row.next_wakeup_at) == ("suspended", None, row.deadline_at)
        now = timezone.now()
        Run.objects.filter(id=run.id).update(deadline_at=now, next_wakeup_at=now)
        with worker(), pytest.raises(RunCancelledError, match="timeout"):
            continuum.result(run, timeout=10)
        assert marks("t") == ["t:cleaned"]


@pytest.fixture
def park(monkeypatch):
    """Have a run parked: other code is loaded than that which made its history, until the context is undone."""

    def park(run, definition):
        monkeypatch.setattr(definition, "fn", flows.effects.fn)
        monkeypatch.setattr(definition, "decode_arguments", lambda text: (["x", 1], {}))
        continuum.signal(run, "item", "wakes it up")
        run_until_idle()
        assert state_of(run) == "stuck_unknown_version"
        return monkeypatch

    return park


class TestCancelOfAParkedRun:
    def parked(self, park, definition=flows.collects, *args):
        run = continuum.start(definition, *args)
        run_until_idle()
        continuum.signal(run, "item", 1)
        run_until_idle()
        other_code = park(run, definition)
        return run, other_code

    def test_ends_it_without_its_code(self, park):
        run, _ = self.parked(park, flows.collects, 3)
        continuum.cancel(run, reason="enough")
        run_until_idle()
        with pytest.raises(RunCancelledError, match="enough; the run's code could not be replayed, so nothing of it"):
            continuum.result(run, timeout=0)
        assert types_of(run) == ["signal_received", "cancel_requested", "run_cancelled"]
        assert seqs_of(run) == [1, 2, 3]
        row = continuum.get_run(run)
        assert (row.error["type"], row.owner_id, row.next_wakeup_at) == ("CancelledError", None, None)
        assert "position" in row.error["details"]
        assert row.completed_at is not None
        assert marks("x") == []
        with pytest.raises(RunNotActiveError):
            continuum.cancel(run)

    def test_runs_its_code_if_that_fits_again(self, park):
        run, other_code = self.parked(park, flows.collects, 3)
        other_code.undo()
        continuum.cancel(run, reason="enough")
        run_until_idle()
        with pytest.raises(RunCancelledError, match=r"^(?!.*replayed).*enough"):
            continuum.result(run, timeout=0)
        # What had woken it is taken in as well.
        assert types_of(run) == ["signal_received", "signal_received", "cancel_requested", "run_cancelled"]

    def test_nothing_less_takes_it_out_of_the_park(self, park):
        run, _ = self.parked(park, flows.collects, 3)
        token = continuum.get_run(run).lease_token
        continuum.signal(run, "item", 2)
        run_until_idle()
        assert (state_of(run), continuum.get_run(run).lease_token) == ("stuck_unknown_version", token)

    def test_reaches_its_children_and_takes_back_its_tasks(self, park):
        run = continuum.start(family.leaves_children, "wait", 2)
        run_until_idle()
        children = list(Run.objects.filter(parent_run_id=run.pk))
        continuum.signal(run, "again")  # so that it has a history the other code does not fit
        run_until_idle()
        park(run, family.leaves_children)
        ActivityTask.objects.create(run_id=run.pk, command_id="0:9", activity="a", args=[], state="ready")
        continuum.cancel(run, reason="enough")
        run_until_idle()
        assert [state_of(one) for one in [run, *children]] == ["cancelled"] * 3
        assert not ActivityTask.objects.exists()

    def test_of_a_child_is_told_to_its_parent(self, park):
        run = continuum.start(family.begets, "wait")
        run_until_idle()
        [child] = Run.objects.filter(parent_run_id=run.pk)
        continuum.signal(child, "go", "not yet")
        run_until_idle()
        park(child, family.raises_or_waits)
        continuum.cancel(child, reason="enough")
        run_until_idle()
        told = continuum.result(run, timeout=0)
        assert told["state"] == "cancelled"
        assert told["message"].startswith("enough; the run's code could not be replayed")


def test_a_parent_whose_children_are_refused_fails_and_does_not_try_for_ever():
    run = continuum.start(family.fans_out, 2)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse_children() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no children' USING ERRCODE = '22000'; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER refuse_children BEFORE INSERT ON continuum_runs FOR EACH ROW "
            "WHEN (NEW.parent_run_id IS NOT NULL) EXECUTE FUNCTION refuse_children()"
        )
    try:
        run_until_idle()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER refuse_children ON continuum_runs")
            cursor.execute("DROP FUNCTION refuse_children")
    row = continuum.get_run(run)
    assert (row.state, row.error["type"]) == ("failed", "JournalError")
    assert "no children" in row.error["message"]
    assert (types_of(run), seqs_of(run)) == (["run_failed"], [1])


def test_a_child_whose_record_is_refused_fails_and_its_parent_hears_of_it():
    run = continuum.start(family.begets, "raise")
    with events_refused("NEW.type = 'run_failed' AND NEW.data::text NOT LIKE '%JournalError%'", "22000"):
        run_until_idle()
    assert continuum.result(run, timeout=0)["type"] == "JournalError"
