"""Queues served by real worker processes, which are killed, stopped and drained."""

from __future__ import annotations

import json
import signal

import pytest

import continuum
from continuum.models import ActivityTask, InboxMessage, Worker
from tests.app import queue_workflows as flows
from tests.app.models import Effect
from tests.test_cluster import assert_sound
from tests.test_queues import started
from tests.waiting_for import eventually
from tests.workers import ProcessWorker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]

OWNER = ("--queues", "default")
CLAIMER = ("--queues", "mail")


@pytest.fixture
def start_worker(subprocess_environment, tmp_path):
    """Start worker processes; whatever still runs at the end of the test is killed."""
    started = []

    def start(*arguments):
        process = ProcessWorker(subprocess_environment, *arguments, log=tmp_path / f"worker{len(started)}.log")
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def marks():
    return sorted(Effect.objects.values_list("key", flat=True))


def intervals():
    return sorted(tuple(map(float, key.split(":")[-2:])) for key in marks())


def most_at_once():
    points = sorted([(began, 1) for began, _ in intervals()] + [(ended, -1) for _, ended in intervals()])
    most = now = 0
    for _, step in points:
        now += step
        most = max(most, now)
    return most


def completions(run):
    return [event.type for event in continuum.get_run(run).history()].count("activity_completed")


class TestDeath:
    def test_a_killed_claimers_task_runs_elsewhere_and_its_result_arrives_once(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "k", str(gate))
        start_worker(*OWNER)
        first = start_worker(*CLAIMER)
        eventually(lambda: marks() == ["k:begun"], 60)
        first.kill()
        start_worker(*CLAIMER)
        eventually(lambda: marks().count("k:begun") == 2, 60)
        assert ActivityTask.objects.get().recoveries == 1
        gate.touch()
        assert continuum.result(run, timeout=60) == "k"
        assert completions(run) == 1
        assert not ActivityTask.objects.exists()
        assert_sound()

    def test_the_result_reaches_a_run_whose_owner_died_meanwhile(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "o", str(gate))
        first = start_worker(*OWNER)
        start_worker(*CLAIMER)
        eventually(lambda: marks() == ["o:begun"], 60)
        first.kill()
        gate.touch()
        # Nobody is there to read it, and it is not lost.
        eventually(InboxMessage.objects.exists, 60)
        start_worker(*OWNER)
        assert continuum.result(run, timeout=60) == "o"
        assert marks() == ["o:begun", "o:ended"]
        assert completions(run) == 1
        assert_sound()

    def test_the_next_owner_waits_for_the_task_that_is_under_way(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "n", str(gate))
        first = start_worker(*OWNER)
        start_worker(*CLAIMER)
        eventually(lambda: marks() == ["n:begun"], 60)
        token, owner = ActivityTask.objects.get().lease_token, continuum.get_run(run).owner_id
        assert owner is not None
        first.kill()
        start_worker(*OWNER)
        eventually(lambda: continuum.get_run(run).owner_id not in (None, owner), 60)
        eventually(lambda: continuum.get_run(run).waiting_on, 60)
        assert ActivityTask.objects.get().lease_token == token
        gate.touch()
        assert continuum.result(run, timeout=60) == "n"
        assert marks() == ["n:begun", "n:ended"]

    def test_a_task_that_kills_every_worker_fails_its_run(self, start_worker, subprocess_environment, tmp_path):
        subprocess_environment["DJANGO_SETTINGS_MODULE"] = "tests.settings_poison"
        run = continuum.start(flows.is_poison, "p")
        start_worker(*OWNER)
        for lives in range(1, 4):
            assert start_worker(*CLAIMER).wait(60) == -signal.SIGKILL
            eventually(lambda lives=lives: ActivityTask.objects.filter(recoveries=lives, state="ready").exists(), 60)
        start_worker(*CLAIMER)
        eventually(lambda: continuum.get_run(run).state == "failed", 60)
        assert "PoisonActivityError" in str(continuum.get_run(run).error)
        assert marks() == ["p"] * 3
        assert_sound()

    def test_a_claimer_that_was_stopped_too_long_reports_nothing_when_it_comes_back(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "s", str(gate))
        short = ("--settings", "tests.settings_short_lease")
        start_worker(*OWNER, *short)
        first = start_worker(*CLAIMER, *short)
        eventually(lambda: marks() == ["s:begun"], 60)
        first.send(signal.SIGSTOP)
        start_worker(*CLAIMER, *short)
        eventually(lambda: marks().count("s:begun") == 2, 60)
        first.send(signal.SIGCONT)
        eventually(lambda: "coming back as a new worker" in first.output, 60)
        gate.touch()
        assert continuum.result(run, timeout=60) == "s"
        assert completions(run) == 1
        assert not InboxMessage.objects.exists()
        assert_sound()

    def test_many_tasks_survive_claimer_after_claimer_and_owner(self, start_worker):
        runs = [continuum.start(flows.posts_many, f"m{n}", 40) for n in range(10)]
        owners = [start_worker(*OWNER)]
        claimers = [start_worker(*CLAIMER), start_worker(*CLAIMER)]
        for goal in (60, 160, 260, 340):
            eventually(lambda goal=goal: Effect.objects.count() >= goal, 60)
            claimers.pop(0).kill()
            claimers.append(start_worker(*CLAIMER))
            if goal in (160, 340):
                owners.pop().kill()
                owners.append(start_worker(*OWNER))
        assert [continuum.result(run, timeout=90) for run in runs] == [40] * 10
        assert [completions(run) for run in runs] == [40] * 10
        assert {key.rpartition(":")[0] for key in marks()} == {f"m{n}:{i}" for n in range(10) for i in range(40)}
        assert not ActivityTask.objects.exists()
        assert_sound()


class TestDrain:
    def test_sigterm_hands_back_what_does_not_end_in_time(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "d", str(gate))
        start_worker(*OWNER)
        first = start_worker(*CLAIMER, "--drain-timeout", "0.2")
        second = None
        eventually(lambda: marks() == ["d:begun"], 60)
        first.send(signal.SIGTERM)
        assert first.wait(60) == 0
        row = ActivityTask.objects.get()
        assert (row.state, row.owner_id, row.recoveries, row.attempt) == ("ready", None, 0, 1)
        gate.touch()
        second = start_worker(*CLAIMER)
        assert continuum.result(run, timeout=60) == "d"
        second.send(signal.SIGTERM)
        assert second.wait(60) == 0

    def test_sigterm_lets_what_ends_in_time_be_reported(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.waits_at_gate, "e", str(gate))
        start_worker(*OWNER)
        first = start_worker(*CLAIMER, "--drain-timeout", "120")
        eventually(lambda: marks() == ["e:begun"], 60)
        first.send(signal.SIGTERM)
        eventually(lambda: "draining" in first.output)
        gate.touch()
        assert first.wait(60) == 0
        assert continuum.result(run, timeout=60) == "e"
        assert marks() == ["e:begun", "e:ended"]


class TestLimits:
    def start_three(self, start_worker, environment, limits, **settings):
        """Start workers, and return when all are there: little work would be done before the last of them is."""
        environment["DJANGO_SETTINGS_MODULE"] = "tests.settings_queues"
        environment["QUEUE_LIMITS"] = json.dumps({"few": limits})
        environment["QUEUE_SETTINGS"] = json.dumps(settings)
        workers = [start_worker("--threads", "4") for _ in range(3)]
        eventually(lambda: Worker.objects.filter(session_lock=True).count() == 3, 60)
        return workers

    def test_cluster_concurrency_is_never_exceeded(self, start_worker, subprocess_environment):
        self.start_three(start_worker, subprocess_environment, {"cluster_concurrency": 3})
        run = continuum.start(flows.intervals, "c", 40, 0.05)
        continuum.result(run, timeout=60)
        assert len(intervals()) == 40
        assert most_at_once() == 3

    def test_a_killed_workers_places_are_free_again(self, start_worker, subprocess_environment):
        workers = self.start_three(start_worker, subprocess_environment, {"cluster_concurrency": 2})
        run = continuum.start(flows.intervals, "k", 12, 0.3)
        eventually(lambda: len(marks()) >= 2, 60)
        workers[0].kill()
        workers[1].kill()
        continuum.result(run, timeout=60)
        assert len({key.split(":")[1] for key in marks()}) == 12
        assert most_at_once() <= 2

    def test_a_rate_is_never_exceeded_in_any_window(self, start_worker, subprocess_environment):
        # Whoever went on with a poll only would not be done in time.
        never = {"POLL_INTERVAL": 3600, "LEASE_TTL": 7200}
        self.start_three(start_worker, subprocess_environment, {"rate": [6, 1.0]}, **never)
        run = continuum.start(flows.intervals, "r", 30, 0.0)
        continuum.result(run, timeout=60)
        starts = started(run)
        assert len(starts) == len(intervals()) == 30
        assert all(later - earlier >= 1.0 for earlier, later in zip(starts, starts[6:], strict=False))

    def test_all_limits_hold_together(self, start_worker, subprocess_environment):
        limits = {"concurrency": 1, "cluster_concurrency": 2, "rate": [8, 0.5]}
        self.start_three(start_worker, subprocess_environment, limits)
        run = continuum.start(flows.intervals, "a", 24, 0.1)
        continuum.result(run, timeout=60)
        starts = started(run)
        assert most_at_once() == 2
        assert all(later - earlier >= 0.5 for earlier, later in zip(starts, starts[8:], strict=False))


class TestLostHints:
    def test_everything_completes_by_polling_alone(self, start_worker):
        start_worker(*OWNER, "--settings", "tests.settings_deaf")
        start_worker(*CLAIMER, "--settings", "tests.settings_deaf")
        runs = [continuum.start(flows.posts, "p"), continuum.start(flows.insists)]
        assert [continuum.result(run, timeout=60) for run in runs] == ["p", 3]


class TestBurst:
    def test_processes_with_a_burst_work_off_queues_as_well(self, start_worker):
        runs = [continuum.start(flows.posts_many, f"b{n}", 20) for n in range(5)]
        assert start_worker("--burst").wait(60) == 0
        assert [continuum.result(run) for run in runs] == [20] * 5


class TestLostConnections:
    def test_tasks_go_on_when_every_connection_breaks(self, start_worker):
        from django.db import connection

        run = continuum.start(flows.posts_many, "c", 300)
        start_worker(*OWNER)
        start_worker(*CLAIMER, "--threads", "2")
        for goal in (20, 80, 150):
            eventually(lambda goal=goal: Effect.objects.count() >= goal, 60)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ %s",
                    ["continuum (tasks|outcomes|journal) "],
                )
        assert continuum.result(run, timeout=60) == 300
        assert completions(run) == 300
        eventually(lambda: not ActivityTask.objects.exists())
        assert_sound()
