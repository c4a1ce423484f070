"""Runs through a real worker and a real database: what each construct does, seen from outside."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction

import continuum
from continuum import RunCancelledError, RunFailedError
from continuum.models import Run
from continuum.worker.engine import Engine
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


def state_of(run):
    return continuum.get_run(run).state


class TestCompletion:
    def test_returns_what_the_workflow_returns(self):
        run = continuum.start(flows.five_steps, 1)
        run_until_idle()
        assert continuum.result(run) == 6

    def test_journals_each_step_and_one_end_without_gaps(self):
        run = continuum.start(flows.five_steps, 1)
        run_until_idle()
        assert types_of(run) == ["activity_completed"] * 5 + ["run_completed"]
        assert [event.seq for event in continuum.get_run(run).history()] == [1, 2, 3, 4, 5, 6]

    def test_leaves_a_row_that_says_it_is_over(self):
        run = continuum.start(flows.five_steps, 1)
        run_until_idle()
        row = Run.objects.get(id=run.id)
        assert (row.state, row.owner_id, row.next_wakeup_at, row.waiting_on) == ("completed", None, None, [])
        assert row.completed_at >= row.claimed_at >= row.started_at
        assert row.retention_until == row.completed_at + timedelta(days=30)

    def test_keeps_dataclasses_and_decimals_as_they_are(self):
        run = continuum.start(flows.totals, flows.Order("o1", Decimal("1.10")))
        run_until_idle()
        assert continuum.result(run) == flows.Order("o1", Decimal("2.20"))

    @pytest.mark.parametrize(
        "value",
        [None, 1e300, -0.0, "\x00 \ud800", {"b": 1, "a": [1, (2, 3)]}, {1: "one"}, datetime(2026, 1, 1, tzinfo=UTC)],
    )
    def test_carries_any_durable_value_through_the_database(self, value):
        run = continuum.start(flows.echo, value)
        run_until_idle()
        result = continuum.result(run)
        assert (repr(result), type(result)) == (repr(value), type(value))

    def test_runs_a_thousand_activities_at_once(self):
        run = continuum.start(flows.fan_out, 1000)
        run_until_idle()
        assert continuum.result(run) == sum(range(1000)) + 1000

    def test_finishes_many_runs_each_once(self):
        runs = continuum.start_many(flows.five_steps, range(300))
        run_until_idle()
        assert [continuum.result(run) for run in runs] == [n + 5 for n in range(300)]


class TestFailure:
    def test_keeps_type_message_and_a_traceback_of_the_users_code(self):
        run = continuum.start(flows.raises, "no such order")
        run_until_idle()
        with pytest.raises(RunFailedError, match="no such order"):
            continuum.result(run)
        error = continuum.get_run(run).error
        assert (error["type"], error["message"]) == ("ValueError", "no such order")
        assert "tests/app/workflows.py" in error["traceback"]
        assert "continuum/core" not in error["traceback"]

    def test_an_activity_that_fails_fails_the_run_with_its_cause(self):
        run = continuum.start(flows.fails)
        run_until_idle()
        error = continuum.get_run(run).error
        assert error["type"] == "ActivityError"
        assert "nothing here" in error["message"]
        assert types_of(run) == ["activity_failed", "run_failed"]

    def test_a_result_that_cannot_be_journaled_fails_that_run_with_the_path(self):
        run, other = continuum.start(flows.returns_undurable), continuum.start(flows.five_steps, 0)
        run_until_idle()
        assert "result.lines[1].fn" in continuum.get_run(run).error["message"]
        assert continuum.result(other) == 5

    def test_an_activity_result_that_cannot_be_journaled_is_not_retried(self):
        run = continuum.start(flows.gets_undurable)
        run_until_idle()
        assert "is not durable" in continuum.get_run(run).error["message"]

    def test_retries_until_it_succeeds_and_journals_each_failure(self):
        run = continuum.start(flows.tries, "t")
        run_until_idle()
        assert continuum.result(run) == 3
        assert types_of(run) == ["activity_retried", "activity_retried", "activity_completed", "run_completed"]
        assert marks("t") == ["t:1", "t:2", "t:3"]

    def test_non_retryable_errors_end_the_attempts(self):
        run = continuum.start(flows.gives_up)
        run_until_idle()
        assert types_of(run) == ["activity_failed", "run_failed"]

    def test_an_attempt_that_takes_too_long_is_tried_again_and_then_fails(self):
        run = continuum.start(flows.times_out)
        run_until_idle()
        assert types_of(run) == ["activity_retried", "activity_failed", "run_failed"]

    def test_a_record_postgresql_refuses_fails_that_run_and_no_neighbour(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER TABLE continuum_events ADD CONSTRAINT no_seven CHECK (data::text NOT LIKE '%%\"result\":7}')"
            )
        try:
            runs = continuum.start_many(flows.five_steps, range(40))
            run_until_idle()
            states = [state_of(run) for run in runs]
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE continuum_events DROP CONSTRAINT no_seven")
        # 2 … 6 count through seven on their way.
        assert states == ["failed" if 2 <= n <= 6 else "completed" for n in range(40)]
        error = continuum.get_run(runs[2]).error
        assert error["type"] == "JournalError"
        assert "no_seven" in error["message"]
        assert types_of(runs[2])[-1] == "run_failed"


class TestWaiting:
    def test_a_durable_timer_fires_on_time(self):
        with worker():
            run = continuum.start(flows.naps, 0.3)
            assert continuum.result(run, timeout=10) == "late"
        row = continuum.get_run(run)
        assert timedelta(seconds=0.3) <= row.completed_at - row.claimed_at < timedelta(seconds=3)

    def test_a_signal_reaches_a_run_that_waits(self):
        with worker():
            run = continuum.start(flows.listens)
            eventually(lambda: state_of(run) == "suspended")
            assert continuum.signal(run, "go", {"by": "me"}) is True
            assert continuum.result(run, timeout=10) == {"by": "me"}

    def test_a_signal_sent_before_the_run_began_is_kept(self):
        run = continuum.start(flows.listens)
        continuum.signal(run, "go", 1)
        run_until_idle()
        assert continuum.result(run) == 1

    def test_signals_arrive_in_order(self):
        run = continuum.start(flows.collects, 20)
        for n in range(20):
            continuum.signal(run, "item", n)
        run_until_idle()
        assert continuum.result(run) == list(range(20))

    def test_consumed_messages_leave_the_inbox_but_a_delivery_id_is_remembered(self):
        run = continuum.start(flows.collects, 3)
        assert continuum.signal(run, "item", 1, delivery_id="a")
        assert continuum.signal(run, "item", 2)
        run_until_idle()
        assert continuum.signal(run, "item", 1, delivery_id="a") is False
        assert continuum.signal(run, "item", 3, delivery_id="b")
        run_until_idle()
        assert continuum.result(run) == [1, 2, 3]
        with connection.cursor() as cursor:
            cursor.execute("SELECT delivery_id, consumed_at IS NOT NULL FROM continuum_inbox ORDER BY id")
            assert cursor.fetchall() == [("a", True), ("b", True)]

    def test_a_wait_that_times_out_says_so(self):
        run = continuum.start(flows.listens, 0.05)
        with worker():
            assert continuum.result(run, timeout=10) == "timed out"

    def test_the_row_says_what_a_quiet_run_waits_for(self):
        with worker():
            run = continuum.start(flows.listens, 3600)
            row = eventually(lambda: (row := continuum.get_run(run)).waiting_on and row)
        assert row.state == "suspended"
        [wait] = row.waiting_on
        assert (wait["kind"], wait["name"]) == ("signal", "go")
        since, until = datetime.fromisoformat(wait["since"]), datetime.fromisoformat(wait["until"])
        assert until - since == timedelta(hours=1)

    @pytest.mark.parametrize(("count", "more"), [(99, []), (100, []), (140, [{"kind": "more", "count": 40}])])
    def test_of_very_many_waits_the_row_names_a_hundred(self, count, more):
        run = continuum.start(flows.listens_for_many, count)
        run_until_idle()
        waits = continuum.get_run(run).waiting_on
        assert [wait.get("name") for wait in waits[:100]] == [f"word {n}" for n in range(min(count, 100))]
        assert waits[100:] == more

    def test_progress_shows_while_the_run_lives(self):
        with worker():
            run = continuum.start(flows.reports_progress)
            eventually(lambda: continuum.get_run(run).progress == {"done": 1})

    def test_a_run_with_a_start_in_the_future_is_left_alone(self):
        run = continuum.start(flows.echo, 1, start_at=datetime.now(UTC) + timedelta(hours=1))
        run_until_idle()
        assert state_of(run) == "pending"

    def test_a_run_with_a_start_soon_begins_then(self):
        run = continuum.start(flows.echo, 1, start_at=datetime.now(UTC) + timedelta(seconds=0.5))
        with worker():
            assert continuum.result(run, timeout=10) == 1
        assert continuum.get_run(run).claimed_at >= run.next_wakeup_at


class TestCancel:
    def test_ends_a_run_that_waits(self):
        with worker():
            run = continuum.start(flows.listens)
            eventually(lambda: state_of(run) == "suspended")
            continuum.cancel(run, reason="not wanted")
            with pytest.raises(RunCancelledError):
                continuum.result(run, timeout=10)
        assert types_of(run) == ["cancel_requested", "run_cancelled"]

    def test_keeps_its_reason_whatever_is_in_it(self):
        reason = "NUL \x00, half a pair \ud800, ünï"
        runs = [
            continuum.start(flows.listens),
            continuum.start(flows.listens, start_at=datetime(2100, 1, 1, tzinfo=UTC)),
        ]
        with worker():
            eventually(lambda: state_of(runs[0]) == "suspended")
            for run in runs:
                continuum.cancel(run, reason=reason)
                with pytest.raises(RunCancelledError) as caught:
                    continuum.result(run, timeout=10)
                assert str(caught.value).endswith(f"was cancelled: {reason}")
        [asked, _] = continuum.get_run(runs[0]).history()
        assert asked.data == {"reason": reason}

    def test_ends_a_run_that_has_not_begun_without_running_its_code(self):
        run = continuum.start(flows.effects, "c", 3, start_at=datetime.now(UTC) + timedelta(hours=1))
        continuum.cancel(run)
        run_until_idle()
        assert state_of(run) == "cancelled"
        assert marks("c") == []

    def test_is_heard_by_the_next_worker_if_the_first_is_told_to_stop_before_the_run_has_begun(self, monkeypatch):
        begin = Engine._begin

        def begin_late(engine, live, *args):
            engine.draining = True
            begin(engine, live, *args)

        with monkeypatch.context() as patch, worker():
            patch.setattr(Engine, "_begin", begin_late)
            with transaction.atomic():
                run = continuum.start(flows.listens)
                continuum.cancel(run)
            eventually(lambda: state_of(run) == "suspended")
        assert types_of(run) == []
        run_until_idle()
        assert state_of(run) == "cancelled"

    def test_lets_the_code_clean_up(self):
        with worker():
            run = continuum.start(flows.cleans_up, "c")
            eventually(lambda: state_of(run) == "suspended")
            continuum.cancel(run)
            eventually(lambda: state_of(run) == "cancelled")
        assert marks("c") == ["c:cleaned"]

    def test_code_that_catches_it_and_returns_has_completed(self):
        with worker():
            run = continuum.start(flows.shrugs_off_cancel)
            eventually(lambda: state_of(run) == "suspended")
            continuum.cancel(run)
            assert continuum.result(run, timeout=10) == "cancelled, and so what"

    def test_comes_by_itself_at_the_runs_timeout(self):
        run = continuum.start(flows.listens, timeout=0.2)
        with worker(), pytest.raises(RunCancelledError):
            continuum.result(run, timeout=10)


class TestLettingGo:
    def test_a_released_run_goes_on_where_it_stood(self):
        run = continuum.start(flows.draws)
        run_until_idle()
        row = continuum.get_run(run)
        assert (row.state, row.owner_id) == ("suspended", None)
        continuum.signal(run, "go")
        run_until_idle()
        drawn = continuum.result(run)
        assert len(set(drawn)) >= 6
        assert marks() == [f"{run.id}:draws"]

    def test_a_released_timer_wakes_the_run_on_its_own(self):
        run = continuum.start(flows.naps, 0.3)
        run_until_idle()
        assert continuum.get_run(run).next_wakeup_at is not None
        with worker():
            assert continuum.result(run, timeout=10) == "late"

    def test_more_runs_than_fit_in_memory_are_released_and_come_back(self, settings):
        settings.CONTINUUM = {"LIVE_RUNS": 10}
        runs = continuum.start_many(flows.listens, [None] * 40)
        with worker() as running:
            eventually(lambda: Run.objects.filter(state="suspended").count() == 40)
            eventually(lambda: len(running.node.engine.live) <= 10)
            for run in runs:
                continuum.signal(run, "go", "x")
            assert [continuum.result(run, timeout=20) for run in runs] == ["x"] * 40

    def test_a_run_released_in_the_middle_of_an_activity_runs_it_again_elsewhere(self, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.holds, "h", str(gate))
        first = worker(drain_timeout=0.1)
        with first:
            eventually(lambda: "h:held" in marks("h"))
        gate.touch()
        run_until_idle()
        assert continuum.result(run) == "h:held"
        assert marks("h") == ["h:after", "h:before", "h:held", "h:held"]


class TestDrift:
    def test_a_run_whose_code_no_longer_fits_is_parked_with_the_difference(self, monkeypatch):
        run = continuum.start(flows.draws)
        run_until_idle()
        monkeypatch.setattr(flows.draws, "fn", flows.effects.fn)
        monkeypatch.setattr(flows.draws, "decode_arguments", lambda text: (["x", 1], {}))
        continuum.signal(run, "go")
        run_until_idle()
        row = continuum.get_run(run)
        assert row.state == "stuck_unknown_version"
        assert row.error["type"] == "ReplayDriftError"
        assert "0:1 side effect urandom" in row.error["message"]
        assert marks("x") == []

    def test_it_goes_on_when_code_that_fits_is_loaded(self, monkeypatch):
        run = continuum.start(flows.draws)
        run_until_idle()
        with monkeypatch.context() as other_code:
            other_code.setattr(flows.draws, "fn", flows.effects.fn)
            other_code.setattr(flows.draws, "decode_arguments", lambda text: (["x", 1], {}))
            other_code.setitem(flows.draws.__dict__, "version_hash", "other code")
            continuum.signal(run, "go")
            run_until_idle()
            assert state_of(run) == "stuck_unknown_version"
        run_until_idle()
        assert state_of(run) == "completed"


class TestOtherPeoplesRuns:
    def test_a_run_of_a_workflow_that_is_not_loaded_is_never_claimed(self):
        run = continuum.start(flows.echo, 1)
        Run.objects.filter(id=run.id).update(workflow="elsewhere.flow")
        run_until_idle()
        assert (state_of(run), continuum.get_run(run).owner_id) == ("pending", None)

    def test_higher_priority_goes_first(self):
        low = [continuum.start(flows.effects, f"low{i}", 1) for i in range(3)]
        high = continuum.start(flows.effects, "high", 1, priority=5)
        run_until_idle(concurrency=1, threads=1)
        order = list(Effect.objects.order_by("id").values_list("key", flat=True))
        assert order[0] == "high:0"
        assert all(state_of(run) == "completed" for run in [*low, high])


def test_history_is_json_a_person_can_read_in_psql():
    run = continuum.start(flows.five_steps, 1)
    run_until_idle()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT data ->> 'result', data -> 'args' ->> 0, name FROM continuum_events WHERE run_id = %s AND seq = 1",
            [run.id],
        )
        assert cursor.fetchone() == ("2", "1", "tests.app.workflows.add")
        cursor.execute("SELECT data::text FROM continuum_events WHERE run_id = %s", [run.id])
        assert all(isinstance(json.loads(text), dict) for (text,) in cursor.fetchall())
