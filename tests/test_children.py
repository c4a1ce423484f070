"""Children and successors, carried out by real workers."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest

import continuum
from continuum.core.asks import MAX_DEPTH
from continuum.exceptions import RunCancelledError, RunFailedError
from continuum.ids import uuid7_time_us
from continuum.models import InboxMessage, Run
from continuum.worker.journal import Journal
from tests.app import family_workflows as flows
from tests.app.models import Effect
from tests.test_cluster import assert_sound, start_worker  # noqa: F401
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def state_of(run):
    return continuum.get_run(run).state


def children_of(run):
    return list(Run.objects.filter(parent_run_id=continuum.get_run(run).pk).order_by("id"))


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def tip_of(run):
    run = continuum.get_run(run)
    while run.continued_to_run_id is not None:
        run = continuum.get_run(run.continued_to_run_id)
    return run


def unread():
    return InboxMessage.objects.filter(consumed_at=None).count()


class TestJoining:
    def test_a_child_is_awaited_for_its_result(self):
        run = continuum.start(flows.fans_out, 1)
        run_until_idle()
        assert continuum.result(run, timeout=0) == 0
        assert types_of(run) == ["child_completed", "run_completed"]

    def test_a_worker_is_busy_until_the_end_of_a_quiet_run_is_durable(self, monkeypatch):
        """Who was told of it goes on: a burst that stops meanwhile would leave that to others."""
        busy = []
        execute = Journal._execute

        async def noting(journal, connection, batch):
            if any(entry.update is not None and entry.update.completed_us for entry in batch):
                busy.append(journal._on_refused.__self__.busy)
            return await execute(journal, connection, batch)

        monkeypatch.setattr(Journal, "_execute", noting)
        run = continuum.start(flows.fans_out, 1)
        run_until_idle()
        assert state_of(run) == "completed"
        assert busy == [True, True]

    def test_a_thousand_children_are_joined(self):
        run = continuum.start(flows.fans_out, 1000)
        with worker():
            assert continuum.result(run, timeout=60) == sum(2 * n for n in range(1000))
        assert Run.objects.filter(parent_run_id=run.pk, state="completed").count() == 1000
        assert types_of(run) == ["child_completed"] * 1000 + ["run_completed"]
        assert unread() == 0

    def test_a_thousand_children_are_joined_by_several_workers(self):
        run = continuum.start(flows.fans_out, 1000)
        with worker(name="one"), worker(name="other"):
            assert continuum.result(run, timeout=60) == sum(2 * n for n in range(1000))
        assert len(children_of(run)) == 1000
        assert_sound()

    def test_children_inherit_namespace_and_attributes_unless_these_are_given(self):
        run = continuum.start(flows.asks_children, namespace="shop", attributes={"plan": "pro"})
        run_until_idle()
        one, other, known = continuum.result(run, timeout=0)
        assert (one["parent"], one["namespace"]) == (str(run.id), "shop")
        assert (other["parent"], other["namespace"]) == (str(run.id), "elsewhere")
        assert known["id"] == other["id"]
        first, second = continuum.get_run(one["id"]), continuum.get_run(other["id"])
        assert (first.attributes, second.attributes) == ({"plan": "pro"}, {"kind": "special", "n": [1]})
        assert {first.correlation_id, second.correlation_id} == {run.id}
        assert (first.depth, second.depth) == (1, 1)
        assert [run.pk for run in Run.objects.with_attributes(plan="pro").order_by("id")] == [run.pk, first.pk]

    def test_the_ids_of_children_have_the_time_at_which_they_were_asked_for(self):
        run = continuum.start(flows.fans_out, 3)
        run_until_idle()
        claimed_us = continuum.get_run(run).claimed_at.timestamp() * 1e6
        for child in children_of(run):
            assert abs(uuid7_time_us(child.pk) - claimed_us) < 2_000

    @pytest.mark.parametrize(
        ("how", "learned"),
        [
            ("raise", {"state": "failed", "type": "ValueError", "message": "no such luck", "same": True}),
            ("wait", {"state": "cancelled", "type": "", "message": "not wanted", "same": True}),
        ],
    )
    def test_what_became_of_a_child_that_did_not_complete(self, how, learned):
        run = continuum.start(flows.begets, how)
        with worker():
            if how == "wait":
                [child] = eventually(lambda: children_of(run))
                continuum.cancel(child, reason="not wanted")
            told = continuum.result(run, timeout=10)
        assert {**told, "type": told["type"] if how == "raise" else ""} == learned
        assert types_of(run) == ["child_failed", "run_completed"]

    def test_what_is_waited_for_is_told(self):
        run = continuum.start(flows.begets, "wait")
        with worker():
            [wait] = eventually(lambda: continuum.get_run(run).waiting_on)
            [child] = children_of(run)
        assert (wait["kind"], wait["name"]) == ("child", flows.raises_or_waits.name)
        assert str(child.pk) in wait.values()

    def test_there_is_an_end_to_nesting(self):
        run = continuum.start(flows.loses_track, 0)
        with worker(), pytest.raises(RunFailedError) as caught:
            continuum.result(run, timeout=60)
        assert caught.value.error["type"] == "ChildError"
        assert Run.objects.count() == MAX_DEPTH + 1
        deepest = Run.objects.order_by("-depth").first()
        assert (deepest.depth, deepest.error["type"]) == (MAX_DEPTH, "ChildDepthError")


class TestReplay:
    def test_a_parent_that_moves_to_another_worker_keeps_its_children(self):
        run = continuum.start(flows.leaves_children, "wait", 5)
        run_until_idle()
        before = [child.pk for child in children_of(run)]
        for _ in range(2):
            with worker() as running:
                continuum.signal(run, "something", 1)
                eventually(lambda: run.pk in running.node.engine.live)
                eventually(lambda: not running.node.engine.busy)
        assert [child.pk for child in children_of(run)] == before
        assert len(before) == 5

    def test_an_outcome_that_comes_while_nobody_owns_the_parent_wakes_it(self):
        run = continuum.start(flows.begets, "wait")
        run_until_idle()
        assert state_of(run) == "suspended"
        [child] = children_of(run)
        continuum.signal(child, "go", "well")
        run_until_idle()
        assert continuum.result(run, timeout=0) == {"value": "well"}

    @pytest.mark.cluster
    @pytest.mark.usefixtures("start_worker")
    def test_a_parent_that_dies_in_the_middle_of_a_fan_out(self, start_worker):  # noqa: F811
        run = continuum.start(flows.fans_out_and_dies, "f", 20)
        first = start_worker()
        assert first.wait() == -signal.SIGKILL
        start_worker()
        expected = [f"f:{n}" for n in range(20)] + [f"f:more:{n}" for n in range(20)]
        assert continuum.result(run, timeout=60) == expected
        assert Run.objects.filter(parent_run_id=run.pk, state="completed").count() == 40
        # At least once each, and recorded once.
        assert set(marks("f:")) - {"f:after"} == set(expected)
        assert types_of(run).count("child_completed") == 40
        assert_sound()


class TestCancel:
    def test_reaches_every_generation_and_each_cleans_up(self):
        run = continuum.start(flows.generations, 3, "g")
        with worker():
            eventually(lambda: Run.objects.filter(state="suspended").count() == 15, 20)
            continuum.cancel(run, reason="enough")
            with pytest.raises(RunCancelledError):
                continuum.result(run, timeout=20)
            eventually(lambda: Run.objects.filter(state="cancelled").count() == 15, 20)
        assert len(marks("g")) == 15
        assert_sound()

    def test_reaches_every_generation_also_if_nobody_owns_it(self):
        run = continuum.start(flows.generations, 3, "g")
        run_until_idle()
        assert Run.objects.filter(state="suspended", owner_id=None).count() == 15
        continuum.cancel(run)
        run_until_idle()
        assert Run.objects.filter(state="cancelled").count() == 15
        assert len(marks("g")) == len(set(marks("g"))) == 15

    def test_reaches_children_that_have_not_begun(self):
        run = continuum.start(flows.leaves_children, "wait", 3)
        with worker(concurrency=1):
            eventually(lambda: len(children_of(run)) == 3)
            continuum.cancel(run)
            eventually(lambda: Run.objects.filter(state="cancelled").count() == 4)

    def test_of_a_child_that_is_not_waited_for_any_more(self):
        run = continuum.start(flows.loses_patience_with_child)
        with worker():
            assert continuum.result(run, timeout=10) == "not waited for"
            eventually(lambda: [child.state for child in children_of(run)] == ["cancelled"])

    @pytest.mark.parametrize(("how", "state"), [("return", "completed"), ("raise", "failed")])
    def test_does_not_reach_children_that_outlive_their_parent(self, how, state):
        run = continuum.start(flows.leaves_children, how, 2)
        run_until_idle()
        assert state_of(run) == state
        children = children_of(run)
        assert [child.state for child in children] == ["suspended"] * 2
        for child in children:
            continuum.signal(child, "go", 7)
        run_until_idle()
        assert [continuum.result(child, timeout=0) for child in children] == [7, 7]

    def test_by_a_timeout_reaches_the_children(self):
        with worker():  # up before the time runs that the children have to be started in, on a busy machine too
            continuum.start(flows.leaves_children, "wait", 2, timeout=5)
            eventually(lambda: Run.objects.filter(state="cancelled").count() == 3, 30)


class TestContinuing:
    def test_a_run_goes_on_as_another_with_a_history_of_its_own(self):
        run = continuum.start(flows.goes_on, 3)
        with worker():
            assert continuum.result(run, timeout=20) == 6
        chain = list(Run.objects.order_by("started_at"))
        assert [one.state for one in chain] == ["completed"] * 4
        assert [one.continued_to_run_id for one in chain] == [one.pk for one in chain[1:]] + [None]
        assert [one.continued_from_run_id for one in chain] == [None] + [one.pk for one in chain[:-1]]
        assert {one.correlation_id for one in chain} == {run.id}
        assert [one.result for one in chain] == [None, None, None, 6]
        assert [types_of(one) for one in chain] == [["timer_fired", "run_continued"]] * 3 + [
            ["timer_fired", "run_completed"]
        ]
        assert all(a.completed_at <= b.started_at for a, b in pairwise(chain))
        assert continuum.get_run(run).pk == run.pk
        assert continuum.wait_run(run).pk == chain[-1].pk

    def test_a_child_that_goes_on_stays_its_parents_child(self):
        run = continuum.start(flows.has_child_that_goes_on, 3)
        with worker():
            assert continuum.result(run, timeout=20) == 6
        assert [child.state for child in children_of(run)] == ["completed"] * 4
        assert types_of(run) == ["child_completed", "run_completed"]

    def test_signals_sent_all_the_while_arrive_once_each_and_in_order(self):
        run = continuum.start(flows.subscribes, 60)
        with worker(name="one"), worker(name="other"):
            for n in range(60):
                continuum.signal(run, "item", n, delivery_id=f"delivery {n}")
                assert not continuum.signal(run, "item", n, delivery_id=f"delivery {n}")
            seen = continuum.result(run, timeout=30)
        assert seen == list(range(60))
        assert Run.objects.count() == 30
        assert unread() == 0

    def test_whoever_holds_the_first_id_cancels_the_tip(self):
        run = continuum.start(flows.subscribes, 100)
        with worker():
            for n in range(4):
                continuum.signal(run, "item", n)
            eventually(lambda: Run.objects.count() == 3)
            continuum.cancel(run, reason="enough")
            with pytest.raises(RunCancelledError, match="enough"):
                continuum.result(run, timeout=10)
        assert [one.state for one in Run.objects.order_by("started_at")] == ["completed", "completed", "cancelled"]

    def test_children_move_along_and_are_cancelled_with_the_successor(self):
        run = continuum.start(flows.adopts)
        with worker():
            [child] = eventually(lambda: children_of(run))
            continuum.signal(run, "on")
            tip = eventually(lambda: (tip := tip_of(run)).pk != run.pk and tip.state == "suspended" and tip)
            assert [moved.pk for moved in children_of(tip)] == [child.pk]
            continuum.cancel(run)
            eventually(lambda: (state_of(child), state_of(tip)) == ("cancelled", "cancelled"))
        assert children_of(run) == []

    def test_a_child_that_moved_along_ends_without_a_word(self):
        run = continuum.start(flows.adopts)
        with worker():
            [child] = eventually(lambda: children_of(run))
            continuum.signal(run, "on")
            eventually(lambda: children_of(tip_of(run)) and tip_of(run).pk != run.pk)
            continuum.signal(child, "go", 7)
            assert continuum.result(child, timeout=10) == 7
            eventually(lambda: state_of(tip_of(run)) == "suspended")
        assert unread() == 0
        assert types_of(tip_of(run)) == []

    def test_a_chain_keeps_its_deadline(self):
        run = continuum.start(flows.goes_on, 10_000, timeout=0.6)
        with worker(), pytest.raises(RunCancelledError, match="timeout"):
            continuum.result(run, timeout=20)
        assert Run.objects.values("deadline_at").distinct().count() == 1
        assert Run.objects.filter(state="cancelled").count() == 1

    @pytest.mark.cluster
    def test_a_chain_survives_its_workers(self, start_worker):  # noqa: F811
        # Long enough that it is not over before the third has been killed, however late that is noticed to be due.
        run = continuum.start(flows.goes_on, 150)
        for _ in range(3):
            one = start_worker()
            seen = Run.objects.count()
            eventually(lambda seen=seen: Run.objects.count() > seen + 3, 30)
            one.kill()
        start_worker()
        assert continuum.result(run, timeout=60) == sum(range(151))
        assert Run.objects.count() == 151
        assert Run.objects.values("continued_from_run_id").distinct().count() == 151
