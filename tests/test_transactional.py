"""Transactional activities take effect exactly once: what they write commits with the record of its result, or not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from django.db import connection, transaction

import continuum
from continuum.models import ActivityResult, InboxMessage, Run
from continuum.worker import transactional
from continuum.worker.connections import connect, connect_sync
from continuum.worker.live import Message
from continuum.worker.transactional import Transactions
from tests.app import attempt_workflows as flows
from tests.app.models import Effect
from tests.factories import RunFactory, WorkerFactory
from tests.test_activities import attempt_of, defined, executor
from tests.test_cluster import assert_sound, start_worker  # noqa: F401
from tests.waiting_for import eventually, eventually_async
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


def marks(prefix=""):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def records_of(run):
    return list(ActivityResult.objects.filter(run_id=run.id).values_list("command_id", "attempt", "result"))


class Owned:
    """A run that a worker owns, and attempts of its activity made without that worker."""

    def __init__(self):
        self.worker = WorkerFactory()
        self.run = RunFactory(state="running", owner_id=self.worker.pk, lease_token=7)
        self.transactions = Transactions(
            "default",
            self.worker.pk,
            lambda: time.time_ns() // 1000,
            lambda: connect("default", application_name="fence"),
        )

    def attempt(self, fn, *, number=1, token=7, task_token=None, **options):
        attempt = attempt_of(defined(fn, transactional=True), number=number)
        attempt.run_id = self.run.id
        attempt.run_token = token
        attempt.task_token = task_token
        for name, value in options.items():
            setattr(attempt, name, value)
        return attempt

    def make(self, *attempts, while_running=None):
        """Make attempts in a worker's executor and return their results."""

        async def scenario():
            async with executor(transactions=self.transactions) as (running, reported):
                for attempt in attempts:
                    running.submit(attempt)
                if while_running is not None:
                    await while_running(running)
                await eventually_async(lambda: len(reported) == len(attempts), 60)
                return list(reported)

        return asyncio.run(scenario())

    def mail(self):
        return list(InboxMessage.objects.filter(run_id=self.run.id).order_by("id"))


@pytest.fixture
def owned():
    return Owned()


def writing(key, result="done"):
    def write():
        flows.mark(key)
        return result

    return write


def writes_all_the_same(key):
    """An attempt in a session that may write, though others that are opened now may not."""

    def write():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ WRITE")
        flows.mark(key)
        return "done"

    return write


def error_of(results):
    [result] = results
    assert not result.ok
    return result.error


class TestOneTransaction:
    def test_what_it_writes_its_record_and_its_message_are_there_together(self, owned):
        [result] = owned.make(owned.attempt(writing("a")))
        assert result.ok
        [mail] = owned.mail()
        assert result.message == Message(
            owned.run.id, mail.id, "activity", "write", "0:1", result.message.payload, None
        )
        assert result.owner == owned.worker.pk
        payload = json.loads(result.message.payload)
        assert payload == {
            "attempt": 1, "started": result.started_us, "ended": result.ended_us, "result": "done"
        } == mail.payload  # fmt: skip
        assert marks() == ["a"]
        assert records_of(owned.run) == [("0:1", 1, "done")]

    def test_a_failure_leaves_nothing_but_a_fence(self, owned):
        def fails():
            flows.mark("a")
            raise LookupError("nothing here")

        error = error_of(owned.make(owned.attempt(fails)))
        assert (error["type"], error["retryable"]) == ("LookupError", True)
        assert (marks(), owned.mail()) == ([], [])
        assert records_of(owned.run) == [("0:1", 2, None)]

    def test_a_result_that_cannot_be_recorded_takes_the_writes_with_it(self, owned):
        error = error_of(owned.make(owned.attempt(writing("a", result=object()))))
        assert error["type"] == "DurableValueError"
        assert marks() == []

    def test_nested_blocks_and_hooks_after_the_commit_work(self, owned):
        seen = []

        def write():
            flows.mark("outer")
            try:
                with transaction.atomic():
                    flows.mark("inner")
                    transaction.on_commit(lambda: seen.append("never"))
                    raise LookupError
            except LookupError:
                pass
            transaction.on_commit(lambda: seen.append(outside()))

        def outside():
            # What another connection sees when the hook runs.
            with other() as watcher:
                return watcher.execute("SELECT count(*) FROM testapp_effect").fetchone()[0]

        [result] = owned.make(owned.attempt(write))
        assert result.ok, result.error
        assert (marks(), seen) == (["outer"], [1])

    def test_a_hook_that_fails_after_the_commit_undoes_nothing(self, owned):
        def write():
            flows.mark("a")
            transaction.on_commit(lambda: 1 / 0)
            return "done"

        [result] = owned.make(owned.attempt(write))
        assert (result.ok, result.value_json) == (True, '"done"')
        assert result.message.id == owned.mail()[0].id
        assert marks() == ["a"]

    def test_a_transaction_that_the_code_has_spoiled_is_a_failure(self, owned):
        def spoils():
            flows.mark("a")
            transaction.set_rollback(True)

        assert error_of(owned.make(owned.attempt(spoils)))["type"] == "TransactionManagementError"
        assert (marks(), owned.mail()) == ([], [])

    def test_another_database_is_refused_before_anything_runs(self, owned):
        attempt = owned.attempt(writing("a"))
        attempt.definition = defined(writing("a"), transactional="elsewhere")
        error = error_of(owned.make(attempt))
        assert (error["type"], error["retryable"]) == ("NonRetryableError", False)
        assert "'elsewhere'" in error["message"]
        assert "'default'" in error["message"]
        assert marks() == []


def other():
    """Another connection, for a look from outside."""
    return connect_sync("default", application_name="other")


class TestFence:
    def test_an_attempt_of_a_stale_owner_takes_no_effect(self, owned):
        Run.objects.filter(id=owned.run.id).update(lease_token=8)
        error = error_of(owned.make(owned.attempt(writing("a"))))
        assert error["type"] == "ActivityCancelledError"
        assert (marks(), owned.mail()) == ([], [])

    def test_an_attempt_of_a_worker_that_was_declared_dead_takes_no_effect(self, owned):
        type(owned.worker).objects.filter(pk=owned.worker.pk).update(state="dead")
        assert error_of(owned.make(owned.attempt(writing("a"))))["type"] == "ActivityCancelledError"
        assert (marks(), owned.mail(), records_of(owned.run)) == ([], [], [])

    def test_a_worker_cannot_be_declared_dead_between_the_record_and_the_commit(self, owned, monkeypatch):
        record = Transactions._record
        refused = []

        def looked_at(self, attempt, value_json):
            result = record(self, attempt, value_json)
            with other() as watcher, pytest.raises(psycopg.errors.LockNotAvailable):
                watcher.execute("SELECT 1 FROM continuum_workers WHERE id = %s FOR UPDATE NOWAIT", (owned.worker.pk,))
            refused.append(True)
            return result

        monkeypatch.setattr(Transactions, "_record", looked_at)
        [result] = owned.make(owned.attempt(writing("a")))
        assert result.ok, result.error
        assert refused == [True]

    def test_the_second_of_two_attempts_rolls_back_and_finds_the_result_of_the_first(self, owned):
        owned.make(owned.attempt(writing("first", "one")))
        [result] = owned.make(owned.attempt(writing("second", "two"), number=2))
        assert (result.ok, result.value_json, result.message) == (True, '"one"', None)
        assert marks() == ["first"]
        assert len(owned.mail()) == 1

    def test_two_attempts_at_once_take_effect_once(self, owned):
        barrier = threading.Barrier(2)

        def meets(key):
            def write():
                flows.mark(key)
                barrier.wait(30)
                return key

            return write

        results = owned.make(owned.attempt(meets("x")), owned.attempt(meets("y")))
        assert {result.value_json for result in results} == {json.dumps(marks()[0])}
        assert len(marks()) == len(owned.mail()) == 1

    def test_an_attempt_that_timed_out_takes_no_effect_however_late_it_comes_back(self, owned):
        late, over = threading.Event(), threading.Event()

        def writes_late():
            flows.mark("late")
            late.wait(30)
            return "late"

        attempt = owned.attempt(writes_late, timeout=0.1)
        real = owned.transactions.run

        def run(attempt, call):
            try:
                return real(attempt, call)
            finally:
                over.set()

        owned.transactions.run = run

        async def then(running):
            await eventually_async(lambda: attempt.settled)
            # Its failure is reported: from here on nothing of it may show.
            assert records_of_async() == [("0:1", 2, None)]
            late.set()
            await eventually_async(over.is_set)

        def records_of_async():
            with other() as watcher:
                return watcher.execute(
                    "SELECT command_id, attempt, result FROM continuum_activity_results WHERE run_id = %s",
                    (owned.run.id,),
                ).fetchall()

        assert error_of(owned.make(attempt, while_running=then))["type"] == "ActivityTimeoutError"
        assert (marks(), owned.mail()) == ([], [])
        [second] = owned.make(owned.attempt(writing("again"), number=2))
        assert second.ok, second.error
        assert marks() == ["again"]

    def test_a_fence_meets_an_attempt_that_has_passed_every_check_but_not_committed(self, owned, monkeypatch):
        """It times out between record and commit: the fence waits, and what is reported is that it took effect."""
        record = Transactions._record
        recorded, may_commit = threading.Event(), threading.Event()

        def held(self, attempt, value_json):
            result = record(self, attempt, value_json)
            recorded.set()
            may_commit.wait(60)
            return result

        monkeypatch.setattr(Transactions, "_record", held)
        attempt = owned.attempt(writing("a"), timeout=3600)

        async def then(running):
            await eventually_async(recorded.is_set, 30)
            # Its time is over now, and not before it had come so far.
            attempt.timeout = 0.001
            running._check_timeout(attempt)
            await eventually_async(lambda: attempt.timed_out)
            await eventually_async(fence_waits)
            assert not attempt.settled
            may_commit.set()

        def fence_waits():
            with other() as watcher:
                query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'fence' AND wait_event_type = 'Lock'"
                return watcher.execute(query).fetchone()

        [result] = owned.make(attempt, while_running=then)
        assert (result.ok, result.value_json) == (True, '"done"')
        assert marks() == ["a"]

    def test_a_fence_an_earlier_owner_left_does_not_stop_the_attempts_of_the_next(self, owned):
        """It had given up on attempt 1 and died before it could say so: attempt 1 is made again."""
        error_of(owned.make(owned.attempt(self.broken)))
        Run.objects.filter(id=owned.run.id).update(lease_token=8)
        [result] = owned.make(owned.attempt(writing("a"), token=8))
        assert result.ok, result.error
        assert records_of(owned.run) == [("0:1", 1, "done")]

    @staticmethod
    def broken():
        raise LookupError

    def test_an_attempt_that_is_not_wanted_any_more_takes_no_effect(self, owned):
        going, may_end = threading.Event(), threading.Event()

        def write():
            flows.mark("a")
            going.set()
            may_end.wait(30)

        attempt = owned.attempt(write)

        async def scenario():
            async with executor(transactions=owned.transactions) as (running, reported):
                running.submit(attempt)
                await eventually_async(going.is_set)
                running.abandon(attempt)
                may_end.set()
                await eventually_async(lambda: not attempt.running)
                assert not reported

        asyncio.run(scenario())
        assert (marks(), owned.mail()) == ([], [])


class TestTasks:
    """Attempts that were claimed from a queue: the row of the task is the lease."""

    @pytest.fixture
    def task(self, owned):
        from continuum.models import ActivityTask

        return ActivityTask.objects.create(
            run_id=owned.run.id, command_id="0:1", activity="write", args=[], state="running",
            owner_id=owned.worker.pk, lease_token=70,
        )  # fmt: skip

    def tasks(self, owned):
        from continuum.models import ActivityTask

        return ActivityTask.objects.filter(run_id=owned.run.id)

    def test_the_task_ends_in_the_same_transaction(self, owned, task):
        elsewhere = WorkerFactory()
        Run.objects.filter(id=owned.run.id).update(owner_id=elsewhere.pk, lease_token=9)
        [result] = owned.make(owned.attempt(writing("a"), token=None, task_token=70))
        assert result.ok, result.error
        assert (result.owner, result.message.command_id) == (elsewhere.pk, "0:1")
        assert not self.tasks(owned).exists()
        assert (marks(), len(owned.mail())) == (["a"], 1)

    @pytest.mark.parametrize("change", [{"lease_token": 71}, {"state": "ready", "owner_id": None}, None])
    def test_a_task_in_other_hands_keeps_the_attempt_from_taking_effect(self, owned, task, change):
        if change is None:
            self.tasks(owned).delete()
        else:
            self.tasks(owned).update(**change)
        error = error_of(owned.make(owned.attempt(writing("a"), token=None, task_token=70)))
        assert error["type"] == "ActivityCancelledError"
        assert (marks(), owned.mail()) == ([], [])
        assert self.tasks(owned).exists() is (change is not None)

    def test_a_failure_leaves_the_task_to_whoever_reports_it(self, owned, task):
        error_of(owned.make(owned.attempt(TestFence.broken, token=None, task_token=70)))
        assert self.tasks(owned).get().state == "running"
        assert records_of(owned.run) == [("0:1", 2, None)]

    def test_a_late_attempt_stays_fenced_while_its_failure_is_on_the_way(self, owned, task):
        attempt = owned.attempt(writing("a"), token=None, task_token=70)
        asyncio.run(owned.transactions.fence(attempt))
        attempt.timed_out = True
        error_of(owned.make(attempt))
        assert (marks(), owned.mail()) == ([], [])
        assert self.tasks(owned).exists()


class TestConflicts:
    @pytest.fixture(autouse=True)
    def rows(self):
        Effect.objects.bulk_create([Effect(key="left"), Effect(key="right")])

    @staticmethod
    def touches(first, second, barrier, level=None):
        tries = []

        def write():
            tries.append(1)
            with connection.cursor() as cursor:
                if level:
                    cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
                for key in (first, second):
                    cursor.execute("UPDATE testapp_effect SET key = key || '!' WHERE key ~ %s", (f"^{key}",))
                    if key == first and len(tries) == 1:
                        barrier.wait(30)
            return len(tries)

        return write

    def test_deadlocks_are_no_failures(self, owned):
        barrier = threading.Barrier(2)
        one = owned.attempt(self.touches("left", "right", barrier))
        two = owned.attempt(self.touches("right", "left", barrier))
        two.command_id = "0:2"
        results = owned.make(one, two)
        assert [result.ok for result in results] == [True, True], [result.error for result in results]
        assert sorted(result.value_json for result in results) == ["1", "2"]
        assert marks() == ["left!!", "right!!"]

    def test_serialization_failures_are_no_failures(self, owned):
        barrier = threading.Barrier(2)
        tries = []

        def counts():
            tries.append(1)
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                cursor.execute("SELECT count(*) FROM testapp_effect")
                n = cursor.fetchone()[0]
                if len(tries) <= 2:
                    barrier.wait(30)
                cursor.execute("INSERT INTO testapp_effect (key, created_at) VALUES (%s, now())", (f"n{n}",))
            return n

        two = owned.attempt(counts)
        two.command_id = "0:2"
        results = owned.make(owned.attempt(counts), two)
        assert [result.ok for result in results] == [True, True], [result.error for result in results]
        assert sorted(result.value_json for result in results) == ["2", "3"]
        assert marks("n") == ["n2", "n3"]

    def test_a_conflict_that_does_not_end_is_a_failure_that_may_be_retried(self, owned):
        tries = []

        def loses():
            tries.append(1)
            with connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$")

        error = error_of(owned.make(owned.attempt(loses)))
        assert (error["type"], error["retryable"]) == ("OperationalError", True)
        assert len(tries) == transactional.TRIES


class TestBrokenConnections:
    @contextmanager
    def broken_commit(self, monkeypatch, *, after):
        """Have the connection break in the first commit: after the server has done its work, or before it began."""
        from django.db.backends.postgresql.base import DatabaseWrapper

        commit = DatabaseWrapper._commit
        broken = []

        def breaking(wrapper):
            if broken or threading.current_thread() is threading.main_thread():
                return commit(wrapper)
            broken.append(1)
            if after:
                commit(wrapper)
            with other() as watcher:
                watcher.execute("SELECT pg_terminate_backend(%s, 5000)", (wrapper.connection.info.backend_pid,))
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(DatabaseWrapper, "_commit", breaking)
        yield broken

    def test_a_commit_whose_answer_is_lost_counts_if_it_took_place(self, owned, monkeypatch):
        with self.broken_commit(monkeypatch, after=True) as broken:
            [result] = owned.make(owned.attempt(writing("a")))
        assert broken
        assert (result.ok, result.value_json) == (True, '"done"')
        assert result.message.id == owned.mail()[0].id
        assert marks() == ["a"]

    def test_whether_a_commit_took_place_is_asked_until_there_is_an_answer(self, owned, monkeypatch, caplog):
        """As long as a standby has not been promoted, the fence cannot be written, and its word counts for nothing."""
        caplog.set_level("INFO", "continuum.worker")
        with other() as watcher, self.broken_commit(monkeypatch, after=True):
            database = watcher.info.dbname
            watcher.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')

            async def then(running):
                await eventually_async(lambda: "not known yet: cannot execute INSERT in a read-only" in caplog.text)
                watcher.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')

            attempt = owned.attempt(writes_all_the_same("a"))
            try:
                [result] = owned.make(attempt, while_running=then)
            finally:
                watcher.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        assert (result.ok, result.value_json) == (True, '"done"')
        assert marks() == ["a"]

    @pytest.mark.parametrize("error", [psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege])
    def test_a_fence_is_tried_until_it_is_written(self, owned, error):
        real, failed = owned.transactions._connect, []

        async def connect():
            if len(failed) < 2:
                failed.append(1)
                raise error("not now")
            return await real()

        owned.transactions._connect = connect
        attempt = owned.attempt(writing("a"))
        assert asyncio.run(owned.transactions.fence(attempt)) is None
        assert records_of(owned.run) == [("0:1", 2, None)]

    def test_a_commit_that_did_not_take_place_is_a_failure_that_may_be_retried(self, owned, monkeypatch):
        with self.broken_commit(monkeypatch, after=False) as broken:
            error = error_of(owned.make(owned.attempt(writing("a"))))
        assert broken
        assert error["retryable"]
        assert (marks(), owned.mail()) == ([], [])
        [second] = owned.make(owned.attempt(writing("b"), number=2))
        assert second.ok
        assert marks() == ["b"]

    def test_a_connection_that_breaks_in_the_body_is_a_failure_that_may_be_retried(self, owned):
        def breaks():
            flows.mark("a")
            with other() as watcher:
                watcher.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.connection.info.backend_pid,))
            flows.mark("b")

        error = error_of(owned.make(owned.attempt(breaks)))
        assert (error["type"], error["retryable"]) == ("OperationalError", True)
        assert marks() == []
        assert records_of(owned.run) == [("0:1", 2, None)]


class TestRuns:
    def test_the_run_goes_on_with_the_result_at_once(self, settings):
        settings.CONTINUUM = {"POLL_INTERVAL": 30}
        with worker():
            run = continuum.start(flows.writes_a_few, "a", 5)
            assert continuum.result(run, timeout=10) == [f"a:{n}" for n in range(5)]
        assert types_of(run) == ["activity_completed"] * 5 + ["run_completed"]
        assert marks() == [f"a:{n}" for n in range(5)]
        assert not InboxMessage.objects.exists()

    def test_many_at_once(self):
        with worker():
            run = continuum.start(flows.writes_many, "a", 40)
            assert len(continuum.result(run, timeout=20)) == 40
        assert len(marks()) == 40
        assert not InboxMessage.objects.exists()

    def test_failed_attempts_leave_nothing_behind(self):
        run = continuum.start(flows.writes_at_last, "a")
        run_until_idle()
        assert continuum.result(run) == 3
        assert marks() == ["a:3"]
        assert types_of(run) == ["activity_retried"] * 2 + ["activity_completed", "run_completed"]

    def test_a_late_attempt_does_not_disturb_the_next(self, tmp_path):
        gate = tmp_path / "gate"
        with worker():
            run = continuum.start(flows.writes_twice_in_vain, "a", str(gate))
            eventually(lambda: "activity_retried" in types_of(run))
            assert continuum.result(run, timeout=10) == 2
            gate.touch()
        assert marks() == ["a:2"]

    def test_by_queue_the_run_hears_of_it_at_once(self, settings):
        settings.CONTINUUM = {"POLL_INTERVAL": 30}
        with worker():
            run = continuum.start(flows.writes_by_queue, "a", 5)
            assert continuum.result(run, timeout=10) == [f"a:{n}" for n in range(5)]
        assert types_of(run) == ["activity_completed"] * 5 + ["run_completed"]
        assert marks() == [f"a:{n}" for n in range(5)]
        assert not InboxMessage.objects.exists()

    def test_by_queue_a_late_attempt_does_not_disturb_the_next(self, tmp_path):
        gate = tmp_path / "gate"
        with worker():
            run = continuum.start(flows.writes_late_by_queue, "a", str(gate))
            eventually(lambda: "activity_retried" in types_of(run))
            assert continuum.result(run, timeout=10) == 2
            gate.touch()
        assert marks() == ["a:2"]

    def test_a_result_that_finds_its_run_given_back_waits_for_the_next_owner(self, monkeypatch):
        """The worker leaves right after the commit: what it had no time to journal is in the inbox."""
        from continuum.worker.attempts import Attempts

        monkeypatch.setattr(Attempts, "on_results", lambda self, results: None)
        with worker(drain_timeout=0.1) as first:
            run = continuum.start(flows.writes_once, "a")
            eventually(lambda: marks() == ["a"])
            monkeypatch.undo()
        assert first.status == 0
        run_until_idle()
        assert continuum.result(run) == "a"
        assert marks() == ["a"]


@pytest.mark.cluster
class TestKill:
    def test_in_the_body(self, start_worker, tmp_path):  # noqa: F811
        run = continuum.start(flows.writes_after_death, "a", str(tmp_path / "died"))
        assert start_worker().wait(60) == -signal.SIGKILL
        assert marks() == []
        start_worker()
        assert continuum.result(run, timeout=60) == "a"
        assert marks() == ["a"]
        assert_sound()

    @pytest.mark.parametrize("flow", [flows.writes_a_few, flows.writes_by_queue], ids=["local", "queued"])
    @pytest.mark.parametrize(("moment", "left"), [("recorded", []), ("committed", ["a:0"])])
    def test_around_the_commit(self, start_worker, subprocess_environment, moment, left, flow):  # noqa: F811
        subprocess_environment["CRASH"] = f"transaction:{moment}"
        run = continuum.start(flow, "a", 3)
        assert start_worker().wait(60) == -signal.SIGKILL
        assert marks() == left
        assert types_of(run) == []
        del subprocess_environment["CRASH"]
        start_worker()
        assert continuum.result(run, timeout=60) == ["a:0", "a:1", "a:2"]
        assert marks() == ["a:0", "a:1", "a:2"]
        assert types_of(run) == ["activity_completed"] * 3 + ["run_completed"]
        assert_sound()

    @pytest.mark.parametrize("crash", ["before:1", "after:1"])
    def test_around_each_commit_of_the_journal(self, start_worker, subprocess_environment, crash):  # noqa: F811
        subprocess_environment["CRASH"] = crash
        run = continuum.start(flows.writes_a_few, "a", 3)
        first = start_worker()
        assert first.wait(60) == -signal.SIGKILL
        del subprocess_environment["CRASH"]
        start_worker()
        assert continuum.result(run, timeout=60) == ["a:0", "a:1", "a:2"]
        assert marks() == ["a:0", "a:1", "a:2"]
        assert_sound()

    def test_a_stale_owner_that_comes_back_late_takes_no_second_effect(self, start_worker, tmp_path):  # noqa: F811
        path = tmp_path / "gate"
        run = continuum.start(flows.writes_when_told, "a", str(path))
        first = start_worker("--settings", "tests.settings_short_lease")
        eventually(lambda: list(tmp_path.glob("gate.*")), 60)
        os.kill(int(next(tmp_path.glob("gate.*")).suffix[1:]), signal.SIGSTOP)
        start_worker("--settings", "tests.settings_short_lease")
        eventually(lambda: len(list(tmp_path.glob("gate.*"))) == 2, 60)
        path.touch()
        assert continuum.result(run, timeout=60) == "a"
        first.send(signal.SIGCONT)
        eventually(lambda: "coming back as a new worker" in first.output, 60)
        eventually(lambda: nothing_open(), 60)
        assert marks() == ["a"]
        assert_sound()


def nothing_open():
    """No transaction of an activity is under way any more."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND state LIKE 'idle in transaction%%' AND pid <> pg_backend_pid()"
        )
        return cursor.fetchone()[0] == 0
