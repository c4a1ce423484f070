"""What ``continuum_health`` looks at: each check finds its trouble, and nothing where there is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

import continuum
from continuum import health
from continuum.health import Status
from continuum.ids import smallest_uuid7
from continuum.models import ActivityTask, InboxMessage, Run
from continuum.worker.partitions import ensure_partitions
from tests.app.models import Effect
from tests.app.workflows import five_steps, holds
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory
from tests.test_cluster import start_worker  # noqa: F401
from tests.waiting_for import eventually
from tests.workers import worker as running_worker

LONG_AGO = timedelta(minutes=10)


@pytest.fixture
def now(db):
    with connection.cursor() as cursor:
        ensure_partitions(cursor, datetime.now(UTC))
    return datetime.now(UTC)


@pytest.fixture
def worker(now):
    return WorkerFactory(state="alive", name="shop-1", expires_at=now + LONG_AGO)


def check(name):
    return next(each for each in health.examine().checks if each.name == name)


def message_to(run, *, age=LONG_AGO, kind="signal"):
    message = InboxMessage.objects.create(run_id=run.id, kind=kind, name="s")
    InboxMessage.objects.filter(pk=message.pk).update(created_at=datetime.now(UTC) - age)


def task(queue="mail", *, due=LONG_AGO, **fields):
    return ActivityTask.objects.create(
        run_id=RunFactory().id,
        command_id="0:1",
        activity="a",
        args=[],
        queue=queue,
        due_at=datetime.now(UTC) - due,
        **fields,
    )


class TestAllIsWell:
    def test_an_empty_database_with_a_worker(self, worker):
        found = health.examine()
        assert [each.status for each in found.checks] == [Status.OK] * len(health.CHECKS)
        assert found.status is Status.OK

    def test_runs_that_wait_for_good_reason(self, worker, now):
        RunFactory(next_wakeup_at=now + LONG_AGO)
        message_to(RunFactory(next_wakeup_at=now + LONG_AGO))  # its start lies ahead
        message_to(RunFactory(state="suspended", error={"type": "X"}, next_wakeup_at=now + LONG_AGO))  # left alone
        message_to(RunFactory(state="suspended", owner_id=worker.id), age=timedelta(seconds=1))  # just sent
        message_to(RunFactory(ended=True))
        RunFactory(state="suspended", owner_id=worker.id, next_wakeup_at=now + LONG_AGO)
        assert health.examine().status is Status.OK

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.cluster
    def test_a_worker_at_work_on_timers_signals_and_queues(self, start_worker):  # noqa: F811
        start_worker()
        for n in range(5):
            continuum.start(five_steps, n)
        eventually(lambda: Run.objects.filter(state="completed").count() == 5, 60)
        assert health.examine().status is Status.OK


class TestTrouble:
    def test_no_worker_while_runs_would_go_on(self, now):
        RunFactory()
        found = check("workers")
        assert (found.status, found.message) == (
            Status.CRITICAL,
            "no worker is at work, and 1 run would go on",
        )

    def test_no_worker_while_nothing_is_to_be_done(self, now):
        RunFactory(ended=True)
        assert check("workers").status is Status.OK

    def test_a_lease_that_ran_out_unnoticed(self, now):
        WorkerFactory(state="alive", name="shop-9", expires_at=now - LONG_AGO)
        found = check("leases")
        assert found.status is Status.CRITICAL
        assert "the lease of shop-9 has run out" in found.message

    def test_runs_and_activities_of_the_dead(self, worker):
        RunFactory(state="running", owner_id=WorkerFactory(state="dead").id)
        task(state="running", owner_id=10_000_000)
        assert (check("leases").status, check("leases").count) == (Status.WARNING, 2)

    @pytest.mark.parametrize("state", ["pending", "suspended"])
    def test_a_run_that_is_due_and_that_nobody_takes(self, worker, now, state):
        run = RunFactory(state=state, next_wakeup_at=now - LONG_AGO, workflow="shop.orders")
        found = check("overdue")
        assert (found.status, found.count, found.examples) == (Status.WARNING, 1, [str(run.id)])
        assert found.message == "1 run due for up to 10 min and nobody has taken them: shop.orders (1)"
        worker.delete()
        assert check("overdue").status is Status.CRITICAL

    @pytest.mark.django_db(transaction=True)
    def test_a_run_that_was_just_given_back_is_not_late_though_it_goes_on_first(
        self, worker, now, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("continuum.health.findings.GRACE", LONG_AGO.total_seconds() / 2)
        late = RunFactory(next_wakeup_at=now - LONG_AGO, workflow="shop.orders", state="pending")
        run = continuum.start(holds, "h", str(tmp_path / "gate"))
        with running_worker(drain_timeout=0.1):
            eventually(Effect.objects.filter(key="h:held").exists)
        (tmp_path / "gate").touch()
        handed_over = Run.objects.get(pk=run.id)
        assert (handed_over.owner_id, handed_over.next_wakeup_at) == (None, late.next_wakeup_at)
        assert (check("overdue").count, check("overdue").examples) == (1, [str(late.id)])

    def test_one_that_was_given_back_is_late_for_no_longer_than_it_is_begun(self, worker, now):
        due, begun = now - timedelta(hours=3), now - timedelta(minutes=2)
        RunFactory(next_wakeup_at=due, workflow="shop.orders", state="suspended", claimed_at=begun)
        assert check("overdue").message == "1 run due for up to 2 min and nobody has taken them: shop.orders (1)"

    def test_a_timer_that_its_worker_lets_pass(self, worker, now):
        run = RunFactory(state="suspended", owner_id=worker.id, next_wakeup_at=now - LONG_AGO)
        assert (check("timers").status, check("timers").examples) == (Status.WARNING, [str(run.id)])

    @pytest.mark.parametrize("owned", [True, False])
    def test_a_message_nobody_reads(self, worker, owned):
        run = RunFactory(state="suspended", owner_id=worker.id if owned else None)
        message_to(run)
        assert (check("wakes").status, check("wakes").count) == (Status.WARNING, 1)

    def test_a_request_to_cancel_that_nobody_hears(self, worker, now):
        message_to(RunFactory(next_wakeup_at=now + LONG_AGO), kind="cancel")
        assert check("wakes").status is Status.WARNING

    def test_a_signal_that_does_not_reach_the_next_run_of_a_chain(self, worker):
        message_to(RunFactory(ended=True, continued_to_run_id=RunFactory().id))
        assert check("wakes").count == 1

    def test_a_queue_that_no_worker_serves(self, worker):
        worker.queues = ["default"]
        worker.save()
        task()
        found = check("backlog")
        assert (found.status, found.message) == (
            Status.CRITICAL,
            "no worker serves the queue mail (1 due)",
        )
        assert found.hint == "start one: manage.py continuum_worker --queues mail"

    def test_a_queue_that_lags_behind(self, worker):
        task()
        found = check("backlog")
        assert (found.status, found.count) == (Status.WARNING, 1)
        assert found.message == "the queue mail has 1 due, the first for 10 min"

    def test_a_queue_that_keeps_up(self, worker):
        task(due=timedelta(seconds=2))
        task("video", state="running", owner_id=worker.id)
        found = check("backlog")
        assert (found.status, found.message) == (Status.OK, "1 task due on queues, 1 at work")

    def test_parked_runs(self, worker):
        run = RunFactory(state="stuck_unknown_version")
        assert (check("stuck").status, check("stuck").examples) == (Status.WARNING, [str(run.id)])

    def test_failed_runs_of_the_last_day(self, worker, now):
        RunFactory(state="failed", completed_at=now - timedelta(days=2), error={"type": "ValueError"})
        assert check("dead-letters").status is Status.OK
        RunFactory(state="failed", completed_at=now, error={"type": "ValueError"})
        found = check("dead-letters")
        assert found.status is Status.WARNING
        assert found.message == "1 run failed in the last 24 hours: shop.order_flow with ValueError (1)"

    def test_a_run_that_killed_its_workers(self, worker, now):
        RunFactory(state="failed", completed_at=now, error={"type": "PoisonRunError"})
        assert check("dead-letters").status is Status.CRITICAL

    @pytest.mark.parametrize("what", ["database", "role"])
    def test_connections_that_are_nearly_all_in_use(self, worker, what):
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database()" if what == "database" else "SELECT session_user")
            limited = f"{what} {connection.ops.quote_name(cursor.fetchone()[0])}"
            assert check("connections").status is Status.OK
            cursor.execute(f"ALTER {limited} CONNECTION LIMIT 1")
            found = check("connections")
            assert found.status is Status.WARNING
            assert f"of 1 connections of the {what} are in use" in found.message
            cursor.execute(f"ALTER {limited} CONNECTION LIMIT 100000")
            assert check("connections").status is Status.OK

    def test_months_without_a_partition(self, worker, now):
        with connection.cursor() as cursor:
            following = (now.replace(day=1) + timedelta(days=32)).strftime("continuum_events_y%Ym%m")
            cursor.execute(f"DROP TABLE {following}")
            assert check("partitions").status is Status.WARNING
            cursor.execute(f"DROP TABLE {now:continuum_events_y%Ym%m}")
        assert check("partitions").status is Status.CRITICAL

    def test_events_in_the_default_partition(self, worker):
        HistoryEventFactory(run_id=smallest_uuid7(datetime(2001, 1, 1, tzinfo=UTC)))
        found = check("default-partition")
        assert (found.status, found.count) == (Status.WARNING, 1)


def run_command(*arguments):
    out = StringIO()
    call_command("continuum_health", *arguments, stdout=out, no_color=True)
    return out.getvalue()


class TestCommand:
    def test_says_that_all_is_well(self, worker):
        assert run_command("--strict").endswith("All is well.\n")

    def test_strict_exits_with_1_when_something_was_found(self, worker):
        RunFactory(state="stuck_unknown_version")
        assert "1 of 13 checks found something." in run_command()
        with pytest.raises(SystemExit) as ended:
            run_command("--strict")
        assert ended.value.code == 1

    def test_a_check_can_be_left_out(self, worker):
        RunFactory(state="stuck_unknown_version")
        assert "stuck" not in run_command("--strict", "--ignore", "stuck")

    def test_json_has_what_the_text_has(self, worker):
        run = RunFactory(state="stuck_unknown_version")
        told = json.loads(run_command("--format", "json"))
        assert told["status"] == "warning"
        assert [each["name"] for each in told["checks"]] == list(health.CHECKS)
        assert set(told["checks"][0]) == {"name", "status", "message", "count", "hint", "examples"}
        stuck = next(each for each in told["checks"] if each["name"] == "stuck")
        assert stuck["examples"] == [str(run.id)]

    def test_no_line_is_longer_than_a_terminal(self, now):
        for n in range(9):
            RunFactory(workflow=f"shop.workflows.a_workflow_with_a_long_name_{n}", next_wakeup_at=now - LONG_AGO)
        assert max(map(len, run_command().splitlines())) <= 110

    @pytest.mark.parametrize("arguments", [["--database", "nowhere"], ["--ignore", "weather"], ["--format", "xml"]])
    def test_wrong_usage_is_refused_in_a_sentence(self, now, arguments):
        with pytest.raises(CommandError):
            run_command(*arguments)

    def test_missing_tables_are_a_sentence(self, now):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE continuum_workers RENAME TO elsewhere")
        with pytest.raises(CommandError, match=r"Is it migrated\? `manage.py migrate continuum --database default`"):
            run_command()
