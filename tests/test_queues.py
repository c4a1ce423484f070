"""Activities that go through queues: a worker claims them, and their result comes back by mail."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager

import pytest
from django.db import connection, transaction

import continuum
from continuum.exceptions import RunFailedError
from continuum.models import ActivityTask, InboxMessage, Worker
from tests.app import queue_workflows as flows
from tests.app.models import Effect
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def marks():
    return list(Effect.objects.order_by("id").values_list("key", flat=True))


def task():
    return ActivityTask.objects.get()


def failure_of(run):
    with pytest.raises(RunFailedError):
        continuum.result(run, timeout=15)
    return continuum.get_run(run).error


def started(run):
    """When the activities of a run began, by the clock that limits go by: a thread may come to the first line later."""
    events = [event for event in continuum.get_run(run).history() if event.type == "activity_completed"]
    return sorted(event.recorded_at.timestamp() - event.data["took"] / 1e6 for event in events)


def history(run):
    return [event.type for event in continuum.get_run(run).history()]


@contextmanager
def owner():
    """A worker that runs workflows and serves no queue but the default one."""
    with worker(queues=("default",)) as running:
        yield running


class TestRoundTrip:
    def test_a_queued_activity_runs_and_its_result_comes_back_once(self):
        run = continuum.start(flows.posts, "a")
        with worker():
            assert continuum.result(run, timeout=15) == "a"
        assert len(marks()) == 1
        assert history(run) == ["activity_completed", "run_completed"]
        assert not ActivityTask.objects.exists()
        assert not InboxMessage.objects.exists()

    @pytest.mark.parametrize(
        "value", [None, "}", '{"result": 1}', [1, 2.5, {"é": "\u0000"}], 1e300, "\ud800", "x" * 100_000]
    )
    def test_results_arrive_as_they_were_returned(self, value):
        run = continuum.start(flows.passes_on, value)
        run_until_idle()
        assert continuum.result(run) == value

    def test_many_at_once(self):
        run = continuum.start(flows.posts_many, "m", 150)
        other = continuum.start(flows.posts_many_async, 150)
        with worker():
            assert continuum.result(run, timeout=30) == 150
            assert continuum.result(other, timeout=30) == 150
        assert len(marks()) == 150

    def test_an_async_activity_needs_no_thread(self, tmp_path):
        # Its threads are all taken: what is asynchronous goes on all the same.
        run = continuum.start(flows.waits_at_gate, "held", str(tmp_path / "gate"))
        with worker(threads=1):
            eventually(lambda: "held:begun" in marks())
            assert continuum.result(continuum.start(flows.posts_many_async, 3), timeout=15) == 3
            assert continuum.get_run(run).state != "completed"
            (tmp_path / "gate").touch()
            assert continuum.result(run, timeout=15) == "held"


class TestRouting:
    @pytest.mark.parametrize(
        "options",
        [{"queue": "other"}, {"priority": 3}, {"priority": -1}, {"queue": "default", "priority": 1}],
        ids=str,
    )
    def test_per_call_options_make_a_task(self, options):
        run = continuum.start(flows.overrides, "o", options)
        with owner():
            if options.get("queue") == "other":
                eventually(ActivityTask.objects.exists)
                row = task()
                assert (row.queue, row.priority, row.state, row.attempt) == ("other", 0, "ready", 1)
                assert (row.activity, row.args, row.owner_id) == (flows.plain.name, ["o"], None)
            else:
                assert continuum.result(run, timeout=15) == "o"
                assert history(run)[0] == "activity_completed"

    def test_the_default_queue_needs_no_row(self):
        seen = []
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE seen_tasks (command_id text)")
            cursor.execute(
                "CREATE FUNCTION note_task() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN INSERT INTO seen_tasks VALUES (NEW.command_id); RETURN NULL; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER note AFTER INSERT ON continuum_activity_tasks FOR EACH ROW EXECUTE FUNCTION note_task()"
            )
            try:
                for options in ({}, {"queue": "default"}, {"priority": 1}):
                    run = continuum.start(flows.overrides, "d", options)
                    run_until_idle()
                    assert continuum.result(run) == "d"
                    cursor.execute("SELECT count(*) FROM seen_tasks")
                    seen.append(cursor.fetchone()[0])
            finally:
                cursor.execute(
                    "DROP TRIGGER note ON continuum_activity_tasks; DROP FUNCTION note_task; DROP TABLE seen_tasks"
                )
        assert seen == [0, 0, 1]

    def test_a_limited_default_queue_is_a_queue(self, settings):
        settings.CONTINUUM = {"QUEUES": {"default": {"cluster_concurrency": 1}}}
        run = continuum.start(flows.naps_in_parallel, "n", 4, 0.0)
        run_until_idle()
        assert continuum.result(run) == 4
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM continuum_queues WHERE name = 'default'")
            assert cursor.fetchone()[0] == 1

    def test_a_worker_claims_from_its_queues_only(self):
        run = continuum.start(flows.posts, "q")
        with owner():
            eventually(ActivityTask.objects.exists)
            run_until_idle(queues=("elsewhere",))
            assert task().state == "ready"
            run_until_idle(queues=("elsewhere", "mail"))
            assert continuum.result(run, timeout=15) == "q"

    def test_a_worker_without_the_default_queue_runs_no_workflows(self):
        run = continuum.start(flows.posts, "w")
        run_until_idle(queues=("mail",))
        assert continuum.get_run(run).state == "pending"

    def test_activities_that_are_not_loaded_stay_ready(self):
        run = continuum.start(flows.posts, "x")
        later = continuum.start(flows.posts, "y")
        run_until_idle(queues=("default",))
        first = ActivityTask.objects.filter(run_id=run.id)
        first.update(activity="gone.activity")
        run_until_idle()
        assert continuum.result(later) == "y"
        assert (first.get().state, first.get().owner_id) == ("ready", None)
        first.update(activity=flows.post.name)
        run_until_idle()
        assert continuum.result(run) == "x"


class TestOrder:
    def test_a_higher_priority_goes_first_and_equals_in_turn(self):
        run = continuum.start(flows.by_priority, [0, 5, -5, 5, 300])
        run_until_idle(queues=("default",))
        run_until_idle(threads=1)
        continuum.result(run)
        assert [int(key.split(":")[1]) for key in marks()] == [300, 5, 5, 0, -5]

    def test_of_one_priority_the_longest_due_goes_first(self):
        runs = [continuum.start(flows.posts, f"t{n}") for n in range(5)]
        run_until_idle(queues=("default",))
        with connection.cursor() as cursor:
            for place, n in enumerate([3, 0, 4, 1, 2]):
                cursor.execute(
                    "UPDATE continuum_activity_tasks SET due_at = now() - interval '1 hour' + %s * interval '1 second'"
                    " WHERE run_id = %s",
                    [place, runs[n].id],
                )
        run_until_idle(threads=1)
        assert [key.split(":")[0] for key in marks()] == ["t3", "t0", "t4", "t1", "t2"]


class TestRetries:
    def test_a_failed_attempt_waits_in_the_queue_and_the_run_knows(self):
        run = continuum.start(flows.insists)
        run_until_idle()
        assert continuum.result(run) == 3
        assert marks() == ["u:1", "u:2", "u:3"]
        events = list(continuum.get_run(run).history())
        assert [event.type for event in events] == [*["activity_retried"] * 2, "activity_completed", "run_completed"]
        assert [event.data.get("attempt") for event in events[:3]] == [1, 2, 3]
        assert events[0].data["error"]["type"] == "ConnectionError"

    def test_the_next_attempt_is_due_when_the_policy_says(self):
        run = continuum.start(flows.postpones, "p")
        with worker():
            eventually(lambda: ActivityTask.objects.filter(attempt=2, state="ready").exists())
            row = task()
            assert 3500 < (row.due_at - row.created_at).total_seconds() < 3700
            [wait] = eventually(lambda: [w for w in continuum.get_run(run).waiting_on if w["attempt"] == 2])
            assert wait["next_try"] == row.due_at.isoformat()
            assert wait["last_error"].startswith("ConnectionError")
        # Released: news comes by mail, there is nothing to wake the run for.
        row = continuum.get_run(run)
        assert (row.state, row.next_wakeup_at, row.owner_id) == ("suspended", None, None)
        assert marks() == ["p"]

    @pytest.mark.parametrize("kind", ["listed", "own"])
    def test_what_is_not_to_be_retried_is_not(self, kind):
        error = continuum.start(flows.is_refused, kind)
        run_until_idle()
        assert history(error) == ["activity_failed", "run_failed"]

    def test_the_horizon_counts_from_the_call(self):
        run = continuum.start(flows.expires)
        run_until_idle()
        assert "failed" in continuum.get_run(run).state
        assert 2 <= history(run).count("activity_retried") <= 5

    def test_a_timeout_is_of_one_attempt(self):
        run = continuum.start(flows.runs_out_of_time)
        run_until_idle()
        [failed, _] = continuum.get_run(run).history()
        assert (failed.type, failed.data["error"]["type"]) == ("activity_failed", "ActivityTimeoutError")


class TestNobodyWaits:
    def test_a_task_nobody_waits_for_is_taken_away_before_it_begins(self):
        run = continuum.start(flows.asks_and_ends, "z")
        with owner():
            assert continuum.result(run, timeout=15) == "done"
        assert not ActivityTask.objects.exists()
        run_until_idle()
        assert marks() == []

    def test_the_attempt_is_cancelled_when_the_run_gives_it_up(self, tmp_path):
        run = continuum.start(flows.gives_up_waiting, "g", str(tmp_path / "never"))
        with worker():
            eventually(lambda: "g:begun" in marks())
            continuum.signal(run, "enough")
            eventually(lambda: "g:cancelled" in marks())
            assert not ActivityTask.objects.exists()
            continuum.signal(run, "end")
            assert continuum.result(run, timeout=15) == "gave up"

    def test_cancelling_the_run_takes_its_task_away(self, tmp_path):
        run = continuum.start(flows.waits_at_gate, "c", str(tmp_path / "never"))
        with owner():
            eventually(ActivityTask.objects.exists)
            continuum.cancel(run)
            eventually(lambda: continuum.get_run(run).state == "cancelled")
        assert not ActivityTask.objects.exists()

    def test_a_late_message_is_consumed_without_effect(self):
        run = continuum.start(flows.gives_up_waiting, "l", "never")
        with owner():
            eventually(ActivityTask.objects.exists)
            continuum.signal(run, "enough")
            eventually(lambda: not ActivityTask.objects.exists())
            send(run, "0.1:1", {"attempt": 1, "started": 1, "ended": 2, "result": "late"})
            eventually(lambda: not InboxMessage.objects.filter(consumed_at=None).exists())
            continuum.signal(run, "end")
            assert continuum.result(run, timeout=15) == "gave up"
        assert "activity_completed" not in history(run)

    def test_a_message_that_cannot_be_read_harms_nobody(self):
        run = continuum.start(flows.posts, "b")
        with owner():
            eventually(ActivityTask.objects.exists)
            send(run, task().command_id, {"odd": True})
            eventually(lambda: not InboxMessage.objects.filter(consumed_at=None).exists())
        run_until_idle()
        assert continuum.result(run) == "b"


def send(run, command_id, payload):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_inbox (run_id, kind, command_id, payload) VALUES (%s, 'activity', %s, %s)",
            [run.id, command_id, json.dumps(payload)],
        )


class TestWhoseTask:
    def test_a_run_that_is_given_back_finds_its_task_and_asks_no_second_time(self, tmp_path):
        run = continuum.start(flows.waits_at_gate, "r", str(tmp_path / "gate"))
        run_until_idle(queues=("default",))
        token = task().lease_token
        row = continuum.get_run(run)
        assert (row.state, row.next_wakeup_at) == ("suspended", None)
        assert row.waiting_on[0]["kind"] == "activity"
        with worker(queues=("mail",)):
            eventually(lambda: "r:begun" in marks())
            assert task().lease_token > token
            # It comes back for another reason, replays, and leaves the task alone.
            with worker(queues=("default",)):
                send(run, "nobody", {})
                eventually(lambda: not InboxMessage.objects.exists())
            assert task().state == "running"
            (tmp_path / "gate").touch()
            eventually(lambda: not ActivityTask.objects.exists())
        run_until_idle(queues=("default",))
        assert continuum.result(run) == "r"
        assert marks() == ["r:begun", "r:ended"]

    def test_a_task_in_other_hands_is_not_answered_by_the_first(self, tmp_path):
        run = continuum.start(flows.waits_at_gate, "t", str(tmp_path / "gate"))
        with worker():
            eventually(lambda: "t:begun" in marks())
            # Taken away, and claimed once more by the same worker, under another token.
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE continuum_activity_tasks SET state = 'ready', owner_id = NULL,"
                    " lease_token = nextval('continuum_lease_token_seq')"
                )
            eventually(lambda: marks().count("t:begun") == 2)
            (tmp_path / "gate").touch()
            assert continuum.result(run, timeout=15) == "t"
        assert history(run) == ["activity_completed", "run_completed"]

    def test_what_a_dead_worker_was_at_is_ready_again(self):
        run = continuum.start(flows.posts, "d")
        run_until_idle(queues=("default",))
        with connection.cursor() as cursor:
            cursor.execute("UPDATE continuum_activity_tasks SET state = 'running', owner_id = 999999, lease_token = 7")
        with worker():
            assert continuum.result(run, timeout=20) == "d"

    def test_a_claim_whose_answer_was_lost_is_given_back(self):
        run = continuum.start(flows.posts, "h")
        with worker() as running:
            session_worker = eventually(lambda: running.node.engine and running.node.engine.journal.worker_id)
            tasks = running.node.engine.attempts.on_slots.__self__
            with connection.cursor() as cursor:
                continuum.result(run, timeout=15)
                cursor.execute(
                    "INSERT INTO continuum_activity_tasks (run_id, command_id, activity, queue, args, options, state,"
                    " owner_id, lease_token, attempt) VALUES (gen_random_uuid(), '0:1', 'not.loaded', 'mail', '[]',"
                    " '{}', 'running', %s, nextval('continuum_lease_token_seq'), 1)",
                    [session_worker],
                )
            tasks._doubt()
            eventually(lambda: task().state == "ready")
            assert task().recoveries == 0

    def test_a_claim_that_ends_long_after_its_connection_broke_is_given_back_by_an_idle_worker(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.tasks.STRANGERS_EVERY", 0.2)
        run = continuum.start(flows.posts, "late")
        run_until_idle(queues=("default",))
        with worker(queues=("other",)) as running:
            [alive] = Worker.objects.filter(state="alive")
            ActivityTask.objects.update(state="running", owner_id=alive.id, lease_token=1)
            eventually(lambda: task().state == "ready")
            assert (task().owner_id, task().recoveries) == (None, 0)
            assert running.node.worker_id == alive.id
        run_until_idle()
        assert continuum.result(run) == "late"

    def test_a_task_whose_workers_keep_dying_fails_for_good(self, settings):
        settings.CONTINUUM = {"MAX_RECOVERIES": 3}
        run = continuum.start(flows.posts, "p")
        run_until_idle(queues=("default",))
        ActivityTask.objects.update(recoveries=3)
        run_until_idle()
        error = failure_of(run)
        assert "PoisonActivityError" in str(error)
        assert "3 workers died" in str(error)
        assert marks() == []

    @pytest.mark.parametrize(("column", "value"), [("options", "{}"), ("options", "[]"), ("heartbeat_details", "[{}")])
    def test_a_row_that_cannot_be_understood_fails_its_activity_and_no_worker(self, column, value):
        run = continuum.start(flows.posts, "o")
        fine = continuum.start(flows.posts, "f")
        run_until_idle(queues=("default",))
        with connection.cursor() as cursor:
            value = '{"$": "nobody knows", "v": 1}' if column == "heartbeat_details" else value
            cursor.execute(f"UPDATE continuum_activity_tasks SET {column} = %s WHERE run_id = %s", [value, run.id])
        with worker():
            assert continuum.result(fine, timeout=15) == "f"
            eventually(lambda: continuum.get_run(run).state in ("failed", "completed"))
        assert Worker.objects.count() == 2

    def test_draining_gives_back_what_does_not_end_in_time(self, tmp_path):
        continuum.start(flows.waits_at_gate, "s", str(tmp_path / "never"))
        with worker(drain_timeout=0.1):
            eventually(lambda: "s:begun" in marks())
        row = task()
        assert (row.state, row.owner_id, row.recoveries, row.attempt) == ("ready", None, 0, 1)
        (tmp_path / "never").touch()  # for the thread of the worker that has left
        eventually(lambda: "s:ended" in marks())

    def test_draining_lets_what_ends_in_time_be_reported(self, tmp_path):
        run = continuum.start(flows.waits_at_gate, "e", str(tmp_path / "gate"))
        with worker(drain_timeout=20) as running:
            eventually(lambda: "e:begun" in marks())
            running.node.stop()
            eventually(lambda: running.node.engine.draining)
            (tmp_path / "gate").touch()
        assert not ActivityTask.objects.exists()
        run_until_idle(queues=("default",))
        assert continuum.result(run) == "e"
        assert marks() == ["e:begun", "e:ended"]


class TestLimits:
    def intervals(self):
        """When each body began and ended, in order."""
        return sorted(tuple(map(float, key.split(":")[-2:])) for key in marks())

    def most_at_once(self):
        points = sorted([(began, 1) for began, _ in self.intervals()] + [(ended, -1) for _, ended in self.intervals()])
        most = now = 0
        for _, step in points:
            now += step
            most = max(most, now)
        return most

    def test_concurrency_bounds_what_one_worker_runs(self, settings):
        settings.CONTINUUM = {"QUEUES": {"few": {"concurrency": 2}}}
        run = continuum.start(flows.intervals, "i", 12, 0.02)
        with worker(threads=8):
            continuum.result(run, timeout=30)
        assert self.most_at_once() == 2

    def test_other_queues_are_not_held_up_by_a_full_one(self, settings, tmp_path):
        settings.CONTINUUM = {"QUEUES": {"mail": {"concurrency": 1}}}
        runs = [continuum.start(flows.waits_at_gate, str(n), str(tmp_path / "gate")) for n in range(3)]
        with worker(threads=4):
            eventually(lambda: len(marks()) == 1)
            other = continuum.start(flows.overrides, "free", {"queue": "other"})
            assert continuum.result(other, timeout=15) == "free"
            assert len([key for key in marks() if key.endswith("begun")]) == 1
            (tmp_path / "gate").touch()
            assert [continuum.result(run, timeout=15) for run in runs] == ["0", "1", "2"]

    def test_cluster_concurrency_bounds_what_all_workers_run(self, settings):
        settings.CONTINUUM = {"QUEUES": {"few": {"cluster_concurrency": 3}}}
        run = continuum.start(flows.intervals, "i", 24, 0.03)
        with worker(threads=4, name="a"), worker(threads=4, name="b"):
            continuum.result(run, timeout=30)
        assert self.most_at_once() == 3

    def test_a_rate_holds_in_every_window(self, settings):
        # Whoever went on with a poll only would not be done in time.
        settings.CONTINUUM = {"QUEUES": {"few": {"rate": (4, 0.5)}}, "POLL_INTERVAL": 3600, "LEASE_TTL": 7200}
        run = continuum.start(flows.intervals, "i", 14, 0.0)
        with worker(threads=8, name="a"), worker(threads=8, name="b"):
            continuum.result(run, timeout=30)
        starts = started(run)
        assert len(starts) == len(self.intervals()) == 14
        assert all(later - earlier >= 0.5 for earlier, later in zip(starts, starts[4:], strict=False))

    def test_unlimited_queues_touch_no_row_of_limits(self):
        run = continuum.start(flows.posts, "u")
        run_until_idle()
        continuum.result(run)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM continuum_queues")
            assert cursor.fetchone()[0] == 0

    def test_a_limited_queue_held_by_another_is_claimed_from_as_soon_as_it_is_free(self, settings):
        settings.CONTINUUM = {"QUEUES": {"mail": {"cluster_concurrency": 5}}}
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO continuum_queues (name) VALUES ('mail')")
        run = continuum.start(flows.posts, "k")
        free = continuum.start(flows.overrides, "other", {"queue": "other"})
        with ExitStack() as stack:
            # Before the worker is there, which would be done with it.
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM continuum_queues WHERE name = 'mail' FOR UPDATE")
                stack.enter_context(worker())
                eventually(lambda: continuum.get_run(free).state == "completed")
                eventually(lambda: ActivityTask.objects.filter(run_id=run.id).exists())
                assert task().state == "ready"
            assert continuum.result(run, timeout=15) == "k"


class TestSaturation:
    def test_what_waits_too_long_goes_to_another_worker_and_runs_once(self, tmp_path):
        gate = tmp_path / "gate"
        with worker(threads=1, name="full"):
            run = continuum.start(flows.stands_in_parallel, "n", 12, str(gate))
            eventually(lambda: len(marks()) == 1)
            # The other claims no runs: it has room for none.
            with worker(threads=4, name="idle", concurrency=1):
                eventually(lambda: len(marks()) == 5)
                assert ActivityTask.objects.filter(state="running").count() == 4
                gate.touch()
                assert continuum.result(run, timeout=30) == 12
        keys = [key.rsplit(":", 1)[0] for key in marks()]
        assert sorted(keys) == sorted({f"n:{i}" for i in range(12)})

    def test_a_worker_alone_keeps_its_own(self):
        with worker(threads=1):
            run = continuum.start(flows.naps_in_parallel, "n", 8, 0.4)
            eventually(lambda: len(marks()) >= 7, 15)
            assert not ActivityTask.objects.exists()
            assert continuum.result(run, timeout=30) == 8


class TestBurst:
    def test_a_burst_is_over_when_there_is_nothing_to_do(self, settings):
        # Without waiting for a poll, which would come after all patience.
        settings.CONTINUUM = {"POLL_INTERVAL": 3600, "LEASE_TTL": 7200}
        run = continuum.start(flows.posts, "b")
        run_until_idle()
        assert continuum.get_run(run).state == "completed"
        run_until_idle()

    def test_a_burst_waits_for_retries_it_can_do_and_for_nothing_else(self):
        run = continuum.start(flows.insists)
        run_until_idle()
        assert continuum.get_run(run).state == "completed"
        other = continuum.start(flows.posts, "n")
        assert run_until_idle(queues=("default",)).status == 0
        assert continuum.get_run(other).state == "suspended"


class TestInsideAnAttempt:
    """What attempts of the run's own worker can do, those of any other can do as well."""

    def test_the_next_attempt_sees_the_last_heartbeat_of_the_one_before(self):
        run = continuum.start(flows.through_queue, "counts_up", 3)
        run_until_idle()
        assert continuum.result(run) == [3, 2, 1.0]

    def test_heartbeats_are_durable_while_it_runs(self, tmp_path):
        continuum.start(flows.through_queue, "beats_until", "b", str(tmp_path / "gate"))
        with worker():
            eventually(lambda: ActivityTask.objects.filter(state="running", heartbeat_details__isnull=False).exists())
            (tmp_path / "gate").touch()
            eventually(lambda: not ActivityTask.objects.exists())

    def test_a_thread_learns_from_its_heartbeat_that_nobody_waits_any_more(self, tmp_path):
        told = tmp_path / "told"
        run = continuum.start(flows.through_queue_while_wanted, "beats_until_stopped", "s", str(told))
        with worker():
            eventually(lambda: marks() == ["s"])
            continuum.signal(run, "enough")
            eventually(told.exists)
            assert not ActivityTask.objects.exists()
            continuum.signal(run, "end")
            assert continuum.result(run, timeout=15) == "gave up"

    def test_a_heartbeat_timeout_ends_a_silent_attempt(self):
        run = continuum.start(flows.through_queue, "falls_silent_async")
        run_until_idle()
        [failed, _] = continuum.get_run(run).history()
        assert failed.data["error"]["type"] == "ActivityTimeoutError"
        assert "heartbeat" in failed.data["error"]["message"]

    def test_a_transactional_attempt_commits_with_the_end_of_its_task(self):
        run = continuum.start(flows.through_queue, "writes", "t")
        with worker():
            assert continuum.result(run, timeout=15) == "t"
        assert marks() == ["t"]
        assert history(run) == ["activity_completed", "run_completed"]
        assert not ActivityTask.objects.exists()
        assert not InboxMessage.objects.exists()

    def test_a_transactional_attempt_that_fails_leaves_nothing_behind(self):
        run = continuum.start(flows.through_queue, "writes_and_fails", "f")
        run_until_idle()
        assert continuum.result(run) == 3
        assert marks() == ["f:3"]

    def test_a_transactional_attempt_whose_task_is_in_other_hands_takes_no_effect(self, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.through_queue, "writes_and_waits", "h", str(gate))
        with worker():
            eventually(lambda: list(tmp_path.iterdir()))
            with connection.cursor() as cursor:
                cursor.execute("UPDATE continuum_activity_tasks SET lease_token = nextval('continuum_lease_token_seq')")
            # The attempt rolls back; the task, which nobody carries out now, is found and made again.
            gate.touch()
            assert continuum.result(run, timeout=15) == "h"
        assert len(list(tmp_path.iterdir())) == 2
        assert marks() == ["h"]
        assert history(run).count("activity_completed") == 1

    def test_one_result_for_each_key_also_when_two_runs_ask_at_the_same_time(self, tmp_path):
        gate = tmp_path / "gate"
        runs = [continuum.start(flows.through_queue, "charges", "k", str(gate)) for _ in range(3)]
        with worker():
            eventually(lambda: marks() == ["k"])
            gate.touch()
            receipts = {continuum.result(run, timeout=15) for run in runs}
        assert len(receipts) == 1
        assert marks() == ["k"]
        assert receipts.pop().endswith(" k")

    def test_a_key_whose_activity_fails_for_good_is_free_for_others(self, tmp_path):
        (tmp_path / "gate").touch()
        first = continuum.start(flows.through_queue, "charges_if", "k", str(tmp_path / "gate"), False)
        run_until_idle()
        assert continuum.get_run(first).state == "failed"
        second = continuum.start(flows.through_queue, "charges_if", "k", str(tmp_path / "gate"), True)
        run_until_idle()
        assert continuum.get_run(second).state == "completed"
