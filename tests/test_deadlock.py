"""Workflow code that does not let go of its worker is interrupted: the run fails with its stack, all others go on."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time

import pytest

import continuum
from continuum.core.definitions import registry
from continuum.core.execution import Execution, RunIdentity
from continuum.core.history import Event
from continuum.core.watching import Interrupted, Watch, guarded
from continuum.models import HistoryEvent, Run
from continuum.worker import setbacks
from continuum.worker.deadlocks import PATIENCE, Watchdog
from tests.app import deadlock_workflows as flows, workflows
from tests.waiting_for import eventually
from tests.workers import ProcessWorker, run_until_idle, worker


@pytest.fixture(autouse=True)
def impatient(settings):
    settings.CONTINUUM = {"DEADLOCK_TIMEOUT": 0.3, "MAX_RECOVERIES": 3}
    yield
    flows.mended = False


def row(run):
    return Run.objects.get(id=run.id)


def execution_of(run):
    return Execution(
        registry.workflow(run.workflow, run.version), RunIdentity(run.id, "default", 1, None, 0, None), "[]"
    )


def events_of(run):
    rows = HistoryEvent.objects.filter(run_id=run.id).order_by("seq")
    return [Event(event.seq, event.type, event.command_id, event.name, json.dumps(event.data), 0) for event in rows]


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def assert_deadlocked(run, *lines):
    failed = row(run)
    assert (failed.state, failed.owner_id) == ("failed", None)
    assert failed.error["type"] == "WorkflowDeadlockError"
    assert "more than 0.3 seconds" in failed.error["message"]
    assert failed.error["traceback"].startswith("Traceback (most recent call last):\n")
    for line in lines:
        assert line in failed.error["traceback"]
    assert "continuum/worker" not in failed.error["traceback"]
    assert types_of(run)[-1] == "run_failed"
    assert types_of(run).count("run_failed") == 1


# Where a loop without an end is interrupted: where it jumps back from, the last line of it since Python 3.14.
ENDLESS = "while not mended" if sys.version_info < (3, 14) else "    pass\n"


@pytest.mark.django_db(transaction=True)
class TestRuns:
    @pytest.mark.parametrize(
        ("flow", "lines"),
        [
            (flows.computes, ["in computes", ENDLESS]),
            (flows.spins, ["in spins"]),
            (flows.swallows, ["in swallows"]),
            (flows.loops_in_a_task, ["in _loop", ENDLESS]),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_one_that_does_not_let_go_fails_with_its_stack_and_the_worker_lives_on(self, flow, lines):
        with worker() as running:
            waiting = continuum.start(workflows.listens)
            eventually(lambda: row(waiting).state == "suspended")
            run = continuum.start(flow)
            continuum.wait_run(run, timeout=60)
            assert_deadlocked(run, *lines)
            continuum.signal(waiting, "go", "on")
            assert continuum.result(waiting, timeout=10) == "on"
            assert continuum.result(continuum.start(workflows.five_steps, 1), timeout=10) == 6
            eventually(lambda: running.node.engine.finished == 3)  # counted once the last commit is acknowledged

    def test_what_came_in_before_is_recorded(self):
        run = continuum.start(flows.steps_then_computes)
        run_until_idle()
        assert_deadlocked(run, "in steps_then_computes")
        assert types_of(run) == ["activity_completed", "activity_completed", "run_failed"]

    def test_the_history_of_such_an_end_replays_whatever_the_code_does_now(self):
        run = continuum.start(flows.steps_then_computes)
        run_until_idle()
        flows.mended = True
        execution = execution_of(run)
        execution.begin(0, events_of(run))
        assert execution.replay()

    def test_retried_once_it_is_mended_it_goes_on_from_where_it_was(self):
        run = continuum.start(flows.steps_then_computes)
        run_until_idle()
        continuum.retry(run)
        run_until_idle()
        assert row(run).error["type"] == "WorkflowDeadlockError"
        assert types_of(run) == [
            "activity_completed", "activity_completed", "run_failed", "run_retried", "run_resumed", "run_failed",
        ]  # fmt: skip
        flows.mended = True
        continuum.retry(run)
        run_until_idle()
        assert continuum.result(run) == 4
        assert types_of(run)[-4:] == ["run_retried", "run_resumed", "activity_completed", "run_completed"]
        assert (row(run).error, row(run).recoveries) == (None, 0)
        execution = execution_of(run)
        execution.begin(0, events_of(run))
        assert execution.replay()

    def test_one_that_failed_in_its_replays_has_as_many_again_once_it_is_retried(self, monkeypatch):
        monkeypatch.setattr(setbacks, "QUARANTINE_US", 0)
        run = self.suspended_beyond_a_loop()
        with worker():
            eventually(lambda: row(run).state == "failed", 60)
        monkeypatch.setattr(setbacks, "QUARANTINE_US", 3_600_000_000)
        continuum.retry(run)
        run_until_idle()
        assert (row(run).state, row(run).recoveries) == ("suspended", 1)
        flows.mended = True
        Run.objects.filter(id=run.id).update(next_wakeup_at="2020-01-01T00:00:00Z")
        continuum.signal(run, "go", 1)
        run_until_idle()
        assert continuum.result(run) == 4
        assert (row(run).error, row(run).recoveries) == (None, 0)

    def test_one_that_lives_through_its_history_twice_is_watched_both_times(self):
        run = continuum.start(flows.undoes_its_step)
        run_until_idle()
        assert types_of(run) == ["activity_completed", "activity_completed", "run_failed"]
        continuum.retry(run)
        flows.mended = True
        execution = execution_of(run)
        first = execution.loop
        watch = first.watch = Watch()
        execution.begin(0, events_of(run))
        assert execution.replay()
        assert execution.loop is not first
        assert execution.loop.watch is watch
        execution.close()

    def test_one_that_loops_while_it_is_given_back_does_not_keep_the_worker(self):
        run = continuum.start(flows.loops_when_released)
        with worker() as running:
            eventually(lambda: row(run).state == "suspended")
        assert running.status == 0
        assert (row(run).state, row(run).owner_id) == ("suspended", None)

    def test_in_the_middle_of_a_replay_it_is_tried_again_and_nothing_is_recorded(self, monkeypatch):
        monkeypatch.setattr(setbacks, "QUARANTINE_US", 3_600_000_000)
        run = self.suspended_beyond_a_loop()
        run_until_idle()
        aside = row(run)
        assert (aside.state, aside.owner_id, aside.recoveries) == ("suspended", None, 1)
        assert aside.error["type"] == "WorkflowDeadlockError"
        assert "in computes_in_the_middle" in aside.error["traceback"]
        assert types_of(run) == ["activity_completed"] * 2
        flows.mended = True
        Run.objects.filter(id=run.id).update(next_wakeup_at="2020-01-01T00:00:00Z")
        continuum.signal(run, "go", 1)
        run_until_idle()
        assert continuum.result(run) == 4
        assert (row(run).error, row(run).recoveries) == (None, 0)

    def test_a_request_to_cancel_has_it_tried_at_once_although_it_is_a_suspect_by_now(self, monkeypatch):
        monkeypatch.setattr(setbacks, "QUARANTINE_US", 3_600_000_000)
        run = self.suspended_beyond_a_loop()
        Run.objects.filter(id=run.id).update(recoveries=1)
        run_until_idle()
        assert row(run).recoveries == 2
        flows.mended = True
        continuum.signal(run, "go", 1)
        run_until_idle()
        assert (row(run).state, row(run).recoveries) == ("suspended", 2)
        continuum.cancel(run)
        run_until_idle()
        # The signal came first.
        assert continuum.result(run, timeout=10) == 4

    def test_a_replay_that_never_gets_past_it_fails_in_the_end(self, monkeypatch):
        monkeypatch.setattr(setbacks, "QUARANTINE_US", 0)
        run = self.suspended_beyond_a_loop()
        with worker():
            eventually(lambda: row(run).state == "failed", 60)
        assert_deadlocked(run, "in computes_in_the_middle")
        assert types_of(run) == ["activity_completed", "activity_completed", "run_failed"]

    def suspended_beyond_a_loop(self):
        flows.mended = True
        run = continuum.start(flows.computes_in_the_middle)
        run_until_idle()
        assert types_of(run) == ["activity_completed"] * 2
        flows.mended = False
        Run.objects.filter(id=run.id).update(next_wakeup_at="2020-01-01T00:00:00Z")
        return run

    def test_code_that_blocks_without_computing_is_reported_and_goes_on(self, caplog, monkeypatch):
        reported = threading.Event()
        monkeypatch.setattr(flows, "awake", reported)

        def wakes(record):
            if "kept its worker" in record.getMessage():
                reported.set()
            return True

        run = continuum.start(flows.dozes, 60.0)
        with caplog.at_level(logging.WARNING, "continuum.worker"), caplog.filtering(wakes):
            run_until_idle()
        assert continuum.result(run) == "rested"
        [said] = [record.getMessage() for record in caplog.records if "kept its worker" in record.getMessage()]
        assert str(run.id) in said
        assert "in dozes" in said


@pytest.mark.cluster
@pytest.mark.django_db(transaction=True)
def test_a_process_that_was_stopped_does_not_blame_its_runs(subprocess_environment, tmp_path):
    run = continuum.start(flows.dozes, 1.5)
    process = ProcessWorker(
        subprocess_environment, "--settings", "tests.settings_three_chances", log=tmp_path / "worker.log"
    )
    try:
        eventually(lambda: row(run).state == "running", 30)
        for _ in range(2):
            process.send(signal.SIGSTOP)
            stopped = time.monotonic()
            eventually(lambda stopped=stopped: time.monotonic() > stopped + 2)
            process.send(signal.SIGCONT)
        assert continuum.result(run, timeout=20) == "rested"
    finally:
        process.close()


class TestWatchdog:
    """The handshake: an interruption hits the code it is meant for, or nothing at all."""

    def test_it_never_hits_after_the_code_has_ended(self):
        # A watchdog without patience, against stretches of code that end at any moment.
        hits = misses = 0
        watchdog = Watchdog(3600.0)
        watch = watchdog.watch
        over = threading.Event()

        def harass():
            while not over.is_set():
                if watch.active:
                    watch.interrupt(watch.serial, "")

        def code():
            for _ in range(50):
                pass

        thread = threading.Thread(target=harass)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        thread.start()
        try:
            began = time.monotonic()
            # Fewer hits where other processes want the processors as well.
            while min(hits, misses) < 200 and time.monotonic() < began + (20 if min(hits, misses) > 20 else 120):
                if guarded(watch, None, code):
                    hits += 1
                else:
                    misses += 1
                sum(range(100))  # an interruption that is left over would hit here, and fail the test
        finally:
            over.set()
            thread.join()
            sys.setswitchinterval(interval)
        assert min(hits, misses) > 20

    def test_an_interruption_for_a_stretch_that_is_over_is_not_sent(self):
        watch = Watchdog(1.0).watch
        assert not guarded(watch, None, lambda: None)
        assert not watch.interrupt(watch.serial, "")
        sent = []
        assert not guarded(watch, None, lambda: sent.append(watch.interrupt(watch.serial - 1, "")))
        assert sent == [False]

    def test_one_that_is_swallowed_counts_all_the_same(self):
        watch = Watchdog(1.0).watch

        def code():
            try:
                watch.interrupt(watch.serial, "here")
                for _ in range(1000):
                    pass
            except Interrupted:
                pass

        assert guarded(watch, None, code)
        assert watch.verdict().stack == "here"
        assert not guarded(watch, None, lambda: None)

    @pytest.mark.parametrize("hits", [True, False])
    def test_nothing_of_it_is_left_in_the_interpreter(self, hits):
        """Told by a call that is traced: in 3.11 it does not return while an exception is looked for."""
        script = f"""
import sys, threading
from continuum.core.watching import guarded
from continuum.worker.deadlocks import ThreadWatch

watch = ThreadWatch(1.0)

def loops():
    def raise_it():
        assert watch.interrupt(watch.serial, "")
        raised.set()
    raised = threading.Event()
    thread = threading.Thread(target=raise_it)
    if not {hits}:
        assert not watch.raised
        watch._hit, watch.raised = True, True  # as if it had been raised too late to hit
        return
    thread.start()
    while True:
        pass

assert guarded(watch, None, loops)
sys.settrace(lambda *event: None)
(lambda: None)()
print("went on")
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stdout == "went on\n", done.stderr

    def test_without_a_watchdog_nothing_is_ever_interrupted(self):
        assert not guarded(Watch(), None, lambda: None)

    def test_looks_that_come_late_do_not_count(self, monkeypatch):
        watchdog = Watchdog(1.0)
        watch = watchdog.watch
        watch.active, watch.serial = True, 7
        now = 100.0
        monkeypatch.setattr("continuum.worker.deadlocks.time.monotonic", lambda: now)
        sent = []
        monkeypatch.setattr(watch, "interrupt", lambda serial, stack: sent.append(serial))
        watchdog.look()
        for _ in range(5):
            now += 60.0
            watchdog.look()
        assert sent == []
        for _ in range(int(PATIENCE / 0.25) + 1):
            now += 0.25
            watchdog.look()
        assert sent == [7]
