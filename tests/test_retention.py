"""Deleting runs whose time is over: which may go, that nothing else goes, and that all of what goes is gone."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import pairwise

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.django import TestCase as HypothesisTestCase

import continuum
from continuum import client, retention
from continuum.ids import derived, smallest_uuid7, uuid7
from continuum.models import ActivityResult, ActivityTask, HistoryEvent, InboxMessage, Run
from continuum.worker.partitions import ensure_partitions, existing_partitions, partition_name
from tests.app.workflows import echo
from tests.factories import HistoryEventFactory, RunFactory

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def a_run(*, over=True, state="completed", ended=2 * DAY, **fields):
    """A run that has ended ``ended`` ago, and whose retention is over, or is not."""
    if state in ("completed", "failed", "cancelled"):
        fields.setdefault("retention_until", NOW - timedelta(hours=1) if over else NOW + DAY)
        fields.setdefault("completed_at", NOW - ended)
    return RunFactory(state=state, **fields)


def left():
    return set(Run.objects.values_list("id", flat=True))


def prune(**options):
    return retention.prune(**options)


def link(first, second):
    """Let ``second`` be what ``first`` was continued as."""
    Run.objects.filter(pk=first.pk).update(continued_to_run_id=second.pk)
    Run.objects.filter(pk=second.pk).update(continued_from_run_id=first.pk)


@pytest.mark.django_db
class TestWhatGoes:
    def test_a_run_whose_retention_is_over_goes_and_one_whose_is_not_stays(self):
        a_run()
        kept = a_run(over=False)
        assert prune().runs == 1
        assert left() == {kept.id}

    @pytest.mark.parametrize("state", ["pending", "running", "suspended", "stuck_unknown_version"])
    def test_a_live_run_stays_whatever_its_row_says(self, state):
        run = a_run(state=state, retention_until=NOW - DAY, completed_at=NOW - DAY)
        assert prune(older_than=timedelta(0)).runs == 0
        assert left() == {run.id}

    def test_a_run_kept_for_ever_stays_however_old(self):
        run = a_run(retention_until=None, ended=1_000 * DAY)
        prune()
        prune(older_than=DAY)
        assert left() == {run.id}

    def test_older_than_counts_from_the_end_and_not_from_the_retention(self):
        a_run(over=False, ended=3 * DAY)
        young = a_run(over=True, ended=DAY)
        assert prune(older_than=2 * DAY).runs == 1
        assert left() == {young.id}

    def test_everything_of_a_run_goes_and_nothing_of_another(self):
        runs = [a_run(), a_run(over=False)]
        for run in runs:
            HistoryEventFactory.create_batch(3, run=run)
            InboxMessage.objects.create(run_id=run.id, kind="signal", name="s", delivery_id="d", consumed_at=NOW)
            ActivityTask.objects.create(run_id=run.id, command_id="0:1", activity="a", args=[])
            ActivityResult.objects.create(run_id=run.id, command_id="0:1", kind="activity")
        done = prune()
        assert (done.runs, done.events, done.messages, done.tasks, done.records) == (1, 3, 1, 1, 1)
        for model in (HistoryEvent, InboxMessage, ActivityTask, ActivityResult):
            assert set(model.objects.values_list("run_id", flat=True)) == {runs[1].id}
        assert HistoryEvent.objects.count() == 3

    def test_batches_end_up_at_the_same(self):
        parents = [a_run() for _ in range(5)]
        for parent in parents:
            a_run(parent_run_id=parent.id, depth=1)
        chain = [a_run() for _ in range(7)]
        for first, second in pairwise(chain):
            link(first, second)
        seen = []
        done = prune(batch_size=2, on_progress=lambda *told: seen.append(told))
        assert (done.runs, done.left, left()) == (17, 0, set())
        assert seen[0] == (2, 17)
        assert seen[-1] == (17, 17)

    def test_a_survey_deletes_nothing_and_says_what_would_go(self):
        a_run(workflow="a")
        a_run(workflow="a", over=False)
        a_run(workflow="b", retention_until=None)
        RunFactory()
        found = retention.survey()
        assert (found.runs, found.ended, found.kept_for_ever, found.due) == (4, 3, 1, 1)
        assert (found.may_go, found.needed, found.keys) == ({"a": 1}, 0, 0)
        assert len(left()) == 4

    def test_a_survey_counts_in_the_database_and_puts_no_run_aside_that_has_no_relatives(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO continuum_runs (id, workflow, correlation_id, state, completed_at, retention_until)"
                " SELECT gen_random_uuid(), 'w' || n % 3, gen_random_uuid(), 'completed', now() - interval '2 days',"
                " now() - interval '1 day' FROM generate_series(1, 20000) n"
            )
            cursor.execute("ANALYZE continuum_runs")
        with CaptureQueriesContext(connection) as queries:
            found = retention.survey()
        assert found.may_go.total() == found.due == 20_000
        (survey,) = [query["sql"] for query in queries if "stays" in query["sql"]]
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {survey}")
            plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "temp written" not in plan
        assert "CTE related" in plan
        assert "CTE standing" not in plan


@pytest.mark.django_db
class TestRelatives:
    @pytest.mark.parametrize("tip", ["running", "stuck_unknown_version", "kept"])
    def test_a_chain_stays_as_long_as_its_last_run(self, tip):
        chain = [a_run(), a_run(), a_run(over=False) if tip == "kept" else a_run(state=tip)]
        link(chain[0], chain[1])
        link(chain[1], chain[2])
        assert retention.survey().needed == 2
        assert prune().runs == 0
        assert len(left()) == 3

    def test_a_chain_goes_as_a_whole(self):
        chain = [a_run() for _ in range(3)]
        link(chain[0], chain[1])
        link(chain[1], chain[2])
        assert prune().runs == 3

    def test_a_child_stays_as_long_as_its_parent(self):
        # Were a failed child to go before its failed parent, a retry of the parent would do its work once more.
        parent = a_run(state="failed", over=False)
        child = a_run(state="failed", parent_run_id=parent.id, depth=1)
        a_run(parent_run_id=child.id, depth=2)
        prune()
        assert len(left()) == 3

    def test_a_child_whose_parent_has_gone_goes_when_its_own_time_is_over(self):
        a_run(parent_run_id=uuid7(), depth=1)
        assert prune().runs == 1

    def test_a_parent_stays_as_long_as_a_child_lives_and_goes_before_one_that_is_only_kept(self):
        alive, bereft = a_run(), a_run()
        child = a_run(state="running", parent_run_id=alive.id, depth=1)
        kept = a_run(over=False, parent_run_id=bereft.id, depth=1)
        prune()
        assert left() == {alive.id, child.id, kept.id}

    def test_the_children_of_earlier_runs_of_a_live_chain_stay(self):
        first, tip = a_run(), a_run(state="running")
        link(first, tip)
        a_run(parent_run_id=first.id, depth=1)
        assert prune().runs == 0


class TestAgainstAModel(HypothesisTestCase):
    """Families of every shape: what goes is what a few lines of Python say, in whatever batches."""

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["due", "due", "due", "kept", "live"]),
                st.sampled_from(["alone", "child", "next"]),
                st.integers(0, 30),
            ),
            max_size=14,
        ),
        st.integers(1, 5),
    )
    def test_what_goes_is_what_nobody_needs(self, shapes, batch_size):
        runs, standing, parent, nxt = [], {}, {}, {}
        for kind, relation, other in shapes:
            run = a_run(over=kind == "due", state="running" if kind == "live" else "completed", depth=0)
            if runs and relation == "child":
                parent[run.id] = runs[other % len(runs)]
            elif runs and relation == "next":
                before = runs[other % len(runs)]
                if before not in nxt and standing[before] != "live":
                    nxt[before] = run.id
            runs.append(run.id)
            standing[run.id] = kind
        depths = {}
        for run_id in runs:
            earlier = next((first for first, second in nxt.items() if second == run_id), None)
            depths[run_id] = depths[parent[run_id]] + 1 if run_id in parent else depths.get(earlier, 0)
            Run.objects.filter(pk=run_id).update(
                parent_run_id=parent.get(run_id), depth=depths[run_id], continued_to_run_id=nxt.get(run_id),
                continued_from_run_id=earlier,
            )  # fmt: skip
        children = defaultdict(list)
        for child, of in parent.items():
            children[of].append(child)

        def stays(run_id):
            return (
                standing[run_id] != "due"
                or (run_id in nxt and stays(nxt[run_id]))
                or (run_id in parent and stays(parent[run_id]))
                or any(standing[child] == "live" for child in children[run_id])
            )

        expected = {run_id for run_id in runs if stays(run_id)}
        found = retention.survey()
        due = [run_id for run_id in runs if standing[run_id] == "due"]
        assert (found.runs, found.due) == (len(runs), len(due))
        assert found.may_go.total() == len(runs) - len(expected)
        assert found.needed == len(expected.intersection(due))
        done = prune(batch_size=batch_size)
        assert left() == expected
        assert (done.runs, done.left) == (len(runs) - len(expected), 0)


@pytest.mark.django_db(transaction=True)
class TestMeanwhile:
    @pytest.mark.parametrize("batch_size", [1, 1_000])
    def test_a_run_that_somebody_is_about_to_retry_stays_with_its_descendants(self, batch_size):
        parent = a_run(state="failed")
        child = a_run(state="failed", parent_run_id=parent.id, depth=1)
        a_run(state="failed", parent_run_id=child.id, depth=2)
        held, over = threading.Event(), threading.Event()

        def retry():
            try:
                with transaction.atomic():
                    continuum.retry(parent)
                    held.set()
                    assert over.wait(30)
            finally:
                connections.close_all()

        thread = threading.Thread(target=retry)
        thread.start()
        try:
            assert held.wait(30)
            done = prune(batch_size=batch_size)
        finally:
            over.set()
            thread.join()
        assert (done.runs, done.left) == (0, 3)
        assert len(left()) == 3

    def test_two_at_once_delete_each_run_once(self):
        for _ in range(40):
            a_run()
        results = []

        def work():
            try:
                results.append(prune(batch_size=3))
            finally:
                connections.close_all()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(done.runs for done in results) == 40
        assert left() == set()


def a_past_month():
    """A month a year ago, with a partition; returns its name and an id maker."""
    moment = datetime(NOW.year - 1, NOW.month, 10, tzinfo=UTC)
    with connection.cursor() as cursor:
        ensure_partitions(cursor, moment, 0)
    base = smallest_uuid7(moment).int
    return partition_name(moment.year, moment.month), lambda n: type(uuid7())(int=base + n)


@pytest.mark.django_db(transaction=True)
class TestMonths:
    def test_a_month_of_which_no_run_is_left_goes_whole_and_its_events_are_not_touched_one_by_one(self):
        name, id_of = a_past_month()
        for n in range(3):
            HistoryEventFactory.create_batch(2, run=a_run(id=id_of(n)))
        now = a_run()
        HistoryEventFactory(run=now)
        assert set(retention.survey().months) == {name}
        done = prune()
        assert (done.runs, done.events, done.months) == (4, 1, [name])
        assert HistoryEvent.objects.count() == 0
        with connection.cursor() as cursor:
            assert name not in existing_partitions(cursor)

    def test_a_month_with_one_run_that_stays_loses_the_events_of_the_others(self):
        name, id_of = a_past_month()
        HistoryEventFactory.create_batch(2, run=a_run(id=id_of(1)))
        HistoryEventFactory(run=a_run(id=id_of(2), state="running"))
        found = retention.survey()
        assert (found.runs, found.may_go.total(), found.months) == (2, 1, {})
        done = prune()
        assert (done.events, done.months) == (2, [])
        assert set(HistoryEvent.objects.values_list("run_id", flat=True)) == {id_of(2)}
        RunFactory._meta.model.objects.all().delete()
        assert prune().months == [name]

    def test_the_current_month_and_those_ahead_stay(self):
        with connection.cursor() as cursor:
            before = existing_partitions(cursor)
        a_run()
        prune()
        with connection.cursor() as cursor:
            assert existing_partitions(cursor) == before

    def test_a_month_that_somebody_reads_is_left_for_the_next_time_and_nothing_hangs(self):
        name, id_of = a_past_month()
        HistoryEventFactory(run=a_run(id=id_of(1)))
        reading, over = threading.Event(), threading.Event()

        def read():
            try:
                with transaction.atomic():
                    list(HistoryEvent.objects.all())
                    reading.set()
                    assert over.wait(30)
            finally:
                connections.close_all()

        thread = threading.Thread(target=read)
        thread.start()
        try:
            assert reading.wait(30)
            done = prune()
        finally:
            over.set()
            thread.join()
        assert (done.runs, done.months, done.left_months) == (1, [], [name])
        assert prune().months == [name]

    def test_a_run_that_comes_to_an_old_month_at_the_last_moment_keeps_the_month_and_its_events(self, monkeypatch):
        name, id_of = a_past_month()
        HistoryEventFactory(run=a_run(id=id_of(1)))
        drop = retention.drop_month

        def late(cursor, month):
            if month.name == name:
                HistoryEventFactory(run=a_run(id=id_of(2), state="running"))
            return drop(cursor, month)

        monkeypatch.setattr(retention, "drop_month", late)
        done = prune()
        assert (done.runs, done.events, done.months) == (1, 1, [])
        assert set(HistoryEvent.objects.values_list("run_id", flat=True)) == {id_of(2)}
        monkeypatch.undo()
        Run.objects.all().delete()
        prune()


@pytest.mark.django_db
class TestKeys:
    def a_key(self, run_id, *, age=3 * DAY):
        key = ActivityResult.objects.create(
            run_id=derived("k", run_id), command_id="start", kind="start_key", result=str(run_id)
        )
        ActivityResult.objects.filter(pk=key.pk).update(created_at=NOW - age)

    def an_activity_key(self, *, result, age=3 * DAY):
        key = ActivityResult.objects.create(
            run_id=derived("a", str(result)), command_id="key", kind="activity_key", result=result
        )
        ActivityResult.objects.filter(pk=key.pk).update(created_at=NOW - age)

    def test_a_key_outlives_its_run(self):
        run = continuum.start(echo, "you", idempotency_key="k")
        Run.objects.filter(pk=run.id).update(state="completed", completed_at=NOW, retention_until=NOW - DAY)
        prune()
        assert left() == set()
        with pytest.raises(continuum.AlreadyStartedError):
            continuum.start(echo, "you", idempotency_key="k")
        with pytest.raises(client.RunPrunedError):
            continuum.get_or_start(echo, "you", idempotency_key="k")

    def test_told_to_old_keys_go_but_for_those_of_runs_that_are_there(self):
        stored = a_run(over=False)
        self.a_key(stored.id)
        self.a_key(uuid7())
        self.a_key(uuid7(), age=DAY)
        assert retention.survey(keys_older_than=2 * DAY).keys == 1
        assert prune(keys_older_than=2 * DAY).keys == 1
        assert ActivityResult.objects.count() == 2

    def test_an_activity_key_goes_unless_a_live_run_is_at_work_on_it(self):
        live = a_run(state="running")
        self.an_activity_key(result={"holder": [str(live.id), "0:1"]})
        self.an_activity_key(result={"holder": [str(a_run(over=False).id), "0:1"]})
        self.an_activity_key(result={"value": 3})
        assert prune(keys_older_than=DAY).keys == 2
        assert ActivityResult.objects.get().result["holder"][0] == str(live.id)

    def test_pages_miss_nothing(self, monkeypatch):
        monkeypatch.setattr(retention, "_CHUNK", 3)
        for _ in range(10):
            self.a_key(uuid7())
        assert prune(keys_older_than=DAY).keys == 10


def run_command(*arguments):
    out = StringIO()
    call_command("continuum_prune", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.django_db
class TestCommand:
    def test_without_execute_it_only_tells(self):
        a_run(workflow="shop.orders")
        said = run_command()
        assert "           1    shop.orders\n" in said
        assert said.endswith("Nothing was deleted. Say --execute to delete.\n")
        assert len(left()) == 1

    def test_with_execute_it_deletes_and_tells(self):
        HistoryEventFactory.create_batch(2, run=a_run())
        assert run_command("--execute") == "Deleted 1 run, 2 events of their histories.\n"
        assert left() == set()

    def test_says_when_there_is_nothing(self):
        assert run_command().endswith("There is nothing to delete.\n")

    def test_older_than_and_batches_are_understood(self):
        a_run(over=False, ended=40 * DAY)
        a_run(over=False, ended=20 * DAY)
        assert run_command("--older-than", "30d", "--batch-size", "1", "--execute").startswith("Deleted 1 run,")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--older-than", "30"], "is not a duration such as 90s, 15m, 12h, 30d or 4w"),
            (["--older-than=-3d"], "is not a duration"),
            (["--keys-older-than", "soon"], "is not a duration"),
            (["--batch-size", "0"], "is not a whole number, 1 or more"),
            (["--database", "nowhere"], "There is no database 'nowhere'"),
        ],
    )
    def test_wrong_usage_is_refused_in_a_sentence(self, arguments, said):
        with pytest.raises(CommandError, match=said) as refused:
            run_command(*arguments)
        assert refused.value.returncode in (1, 2)  # through the command line the parser exits with 2 itself

    def test_missing_tables_are_a_sentence(self):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE continuum_runs RENAME TO elsewhere")
        with pytest.raises(CommandError, match=r"Is it migrated\? `manage.py migrate continuum --database default`"):
            run_command()
