"""Workers that are told to stop hand over at once what they are not at; others go on with it without waiting.

The workers here neither poll nor let a lease run out while a test lasts: whatever waited for either would never end.
"""

from __future__ import annotations

import signal
from collections import Counter
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

import continuum
from continuum.models import Run, Worker
from tests.app import drain_workflows as flows, workflows
from tests.app.models import Effect
from tests.test_cluster import assert_sound
from tests.waiting_for import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]


def stop(worker):
    worker.send(signal.SIGTERM)
    eventually(lambda: "draining" in worker.output, 60)


def marks():
    return Counter(Effect.objects.values_list("key", flat=True))


def owner_of(run):
    return continuum.get_run(run).owner_id


def one_at_work_and_three_in_line(tmp_path):
    """Start a run that keeps the only thread until there is a gate, and three whose activities wait for it."""
    busy = continuum.start(workflows.holds, "h", str(tmp_path / "gate"))
    eventually(lambda: marks()["h:held"], 60)
    behind = [continuum.start(workflows.effects, f"l{n}", 2) for n in range(3)]
    eventually(lambda: all(map(owner_of, behind)), 60)
    return busy, behind


class TestRollingRestart:
    def test_every_worker_is_replaced_in_turn_and_no_step_is_lost_or_made_twice(self, start_patient_worker):
        workers = [start_patient_worker("--threads", "4") for _ in range(4)]
        runs = [continuum.start(flows.walks, f"w{n}", 20) for n in range(12)]
        waiting = [continuum.start(flows.waits_and_walks, f"s{n}", 3) for n in range(8)]
        for n, worker in enumerate(workers):
            eventually(lambda n=n: Effect.objects.count() >= 15 + 50 * n, 60)
            worker.send(signal.SIGTERM)
            start_patient_worker("--threads", "4")
            for run in waiting[2 * n : 2 * n + 2]:
                continuum.signal(run, "go")
        assert [worker.wait(60) for worker in workers] == [0] * 4
        assert [continuum.result(run, timeout=60) for run in (*runs, *waiting)] == [20] * 12 + [3] * 8
        # Every activity could end in the time its worker had, so none was begun anew.
        assert set(marks().values()) == {1}
        assert sum(marks().values()) == 12 * 20 + 8 * 3
        assert_sound()


class TestHandOver:
    def test_runs_that_wait_do_not_wait_for_the_activities_of_others(self, start_patient_worker, tmp_path):
        first = start_patient_worker()
        busy = continuum.start(workflows.holds, "h", str(tmp_path / "gate"))
        quiet = continuum.start(flows.waits_and_walks, "q", 3)
        eventually(lambda: marks()["h:held"] and continuum.get_run(quiet).state == "suspended", 60)
        stop(first)
        eventually(lambda: owner_of(quiet) is None)
        start_patient_worker()
        continuum.signal(quiet, "go")
        assert continuum.result(quiet, timeout=60) == 3
        assert first.process.poll() is None
        assert owner_of(busy) == Worker.objects.get(pid=first.process.pid).id
        (tmp_path / "gate").touch()
        assert first.wait(60) == 0
        assert continuum.result(busy, timeout=60) == "h:held"
        assert set(marks().values()) == {1}

    def test_activities_still_in_line_begin_elsewhere(self, start_patient_worker, tmp_path):
        first = start_patient_worker("--threads", "1")
        busy, behind = one_at_work_and_three_in_line(tmp_path)
        stop(first)
        start_patient_worker()
        for n, run in enumerate(behind):
            assert continuum.result(run, timeout=60) == [f"l{n}:0", f"l{n}:1"]
        assert first.process.poll() is None
        (tmp_path / "gate").touch()
        assert first.wait(60) == 0
        assert continuum.result(busy, timeout=60) == "h:held"
        assert set(marks().values()) == {1}

    def test_what_was_begun_goes_on_before_what_was_not(self, start_patient_worker, tmp_path):
        first = start_patient_worker("--threads", "1")
        busy, begun = one_at_work_and_three_in_line(tmp_path)
        in_line = timezone.now() - timedelta(hours=1)
        Run.objects.create(id=uuid4(), workflow="in nobody's code", correlation_id=uuid4(), next_wakeup_at=in_line)
        stop(first)
        eventually(lambda: not any(map(owner_of, begun)), 60)
        assert {run.next_wakeup_at for run in Run.objects.filter(id__in=[run.id for run in begun])} == {in_line}
        (tmp_path / "gate").touch()
        assert first.wait(60) == 0
        start_patient_worker()
        for n, run in enumerate(begun):
            assert continuum.result(run, timeout=60) == [f"l{n}:0", f"l{n}:1"]
        assert continuum.result(busy, timeout=60) == "h:held"

    def test_a_branch_goes_on_elsewhere_while_another_of_the_same_run_is_let_end(self, start_patient_worker, tmp_path):
        first = start_patient_worker()
        run = continuum.start(flows.branches, "b", str(tmp_path / "gate"), 3)
        eventually(lambda: marks()["b began"] and continuum.get_run(run).waiting_on, 60)
        stop(first)
        start_patient_worker()
        continuum.signal(run, "go")
        eventually(lambda: marks()["b:keyed"], 60)
        assert first.process.poll() is None
        (tmp_path / "gate").touch()
        assert first.wait(60) == 0
        assert continuum.result(run, timeout=60) == ["b ended", "b:keyed"]
        assert set(marks().values()) == {1}
        assert_sound()

    def test_a_run_goes_as_soon_as_its_own_activity_has_ended(self, start_patient_worker, tmp_path):
        first = start_patient_worker()
        runs = {name: continuum.start(workflows.holds, name, str(tmp_path / name)) for name in ("early", "late")}
        eventually(lambda: marks()["early:held"] and marks()["late:held"], 60)
        stop(first)
        start_patient_worker()
        (tmp_path / "early").touch()
        assert continuum.result(runs["early"], timeout=60) == "early:held"
        assert first.process.poll() is None
        (tmp_path / "late").touch()
        assert first.wait(60) == 0
        assert continuum.result(runs["late"], timeout=60) == "late:held"
        assert set(marks().values()) == {1}


class TestLostLease:
    def test_a_worker_that_loses_its_lease_while_it_drains_leaves_at_once(self, start_patient_worker, tmp_path):
        first = start_patient_worker("--drain-timeout", "3600", settings="tests.settings_short_lease")
        run = continuum.start(workflows.holds, "d", str(tmp_path / "gate"))
        # Quiet, so that there is nothing to write by which it would notice sooner that the run is not its own.
        eventually(lambda: marks()["d:held"] and continuum.get_run(run).waiting_on, 60)
        stop(first)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE continuum_workers SET state = 'dead' WHERE pid = %s", [first.process.pid])
        assert first.wait(60) == 1
        (tmp_path / "gate").touch()
        start_patient_worker(settings="tests.settings_short_lease")
        assert continuum.result(run, timeout=60) == "d:held"
        assert_sound()
