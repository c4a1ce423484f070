"""Who owns a run among several workers, and whom news for it reaches.

The workers here neither poll nor let a lease run out while a test lasts: hints and lost locks bring about what
happens. Each claim of a run, and each time one is freed, takes a fencing token: so tokens tell how often runs changed
hands.
"""

from __future__ import annotations

import signal

import pytest
from django.db import connection, transaction

import continuum
from continuum.models import Run, Worker
from tests.app import drain_workflows as flows
from tests.app.models import Effect
from tests.test_cluster import assert_sound
from tests.waiting_for import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]


def tokens():
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_value - (NOT is_called)::int FROM continuum_lease_token_seq")
        return cursor.fetchone()[0]


def worker_id(process):
    return Worker.objects.get(pid=process.process.pid).id


def standing(run):
    return Run.objects.values_list("owner_id", "lease_token", "state").get(id=run.id)


class TestDispatchRace:
    def test_of_many_workers_that_hear_of_a_run_one_claims_it(self, start_patient_worker):
        for _ in range(4):
            start_patient_worker()
        before = tokens()
        keys = [f"r{n}" for n in range(160)]
        for first in range(0, 160, 20):
            runs = continuum.start_many(flows.effect_once, keys[first : first + 20])
            assert [continuum.result(run, timeout=30) for run in runs] == keys[first : first + 20]
        assert tokens() == before + 160
        assert sorted(Effect.objects.values_list("key", flat=True)) == sorted(keys)

    def test_mail_for_a_run_that_nobody_owns_brings_it_one_owner(self, start_patient_worker):
        first = start_patient_worker()
        runs = [continuum.start(flows.waits_and_walks, f"m{n}", 1) for n in range(20)]
        eventually(lambda: all(standing(run)[2] == "suspended" for run in runs), 30)
        first.send(signal.SIGTERM)
        assert first.wait() == 0
        for _ in range(3):
            start_patient_worker()
        before = tokens()
        with transaction.atomic():  # so that all of them are there to be raced for
            for run in runs:
                continuum.signal(run, "go")
        assert [continuum.result(run, timeout=30) for run in runs] == [1] * 20
        assert tokens() == before + 20
        assert_sound()


class TestDeath:
    def test_survivors_share_what_a_killed_worker_leaves_and_take_each_run_once(self, start_patient_worker):
        doomed = start_patient_worker()
        runs = [continuum.start(flows.waits_and_walks, f"d{n}", 2) for n in range(30)]
        eventually(lambda: all(standing(run)[2] == "suspended" for run in runs), 30)
        survivors = [start_patient_worker(), start_patient_worker()]
        before = tokens()
        doomed.kill()
        heirs = {worker_id(survivor) for survivor in survivors}
        eventually(lambda: all(standing(run)[0] in heirs for run in runs), 30)
        # Each was freed once and claimed once, however many looked.
        assert tokens() == before + 60
        for run in runs:
            continuum.signal(run, "go")
        assert [continuum.result(run, timeout=30) for run in runs] == [2] * 30
        assert set(Effect.objects.values_list("key", flat=True)) == {f"d{n}:{i}" for n in range(30) for i in range(2)}
        assert Effect.objects.count() == 60
        assert_sound()


class TestCancel:
    def test_reaches_the_owner_among_several_workers(self, start_patient_worker):
        owner = start_patient_worker()
        run = continuum.start(flows.cleans_up, "c")
        eventually(lambda: standing(run)[2] == "suspended", 30)
        for _ in range(2):
            start_patient_worker()
        owner_id, token, _ = standing(run)
        assert owner_id == worker_id(owner)
        continuum.cancel(run)
        with pytest.raises(continuum.RunCancelledError):
            continuum.result(run, timeout=30)
        # By the one that had it: nobody else has claimed it for that.
        assert standing(run)[1] == token
        assert Effect.objects.get().key == "c:cleaned"

    def test_of_a_parent_reaches_its_child_on_another_node(self, start_patient_worker, tmp_path):
        # Full with the parent, which is at an activity, it leaves the child to the other.
        first = start_patient_worker("--concurrency", "1")
        parent = continuum.start(flows.has_a_child, "p", str(tmp_path / "gate"))
        eventually(lambda: Effect.objects.filter(key="p began").exists(), 30)
        second = start_patient_worker()
        child = Run.objects.get(parent_run_id=parent.id)
        eventually(lambda: standing(child)[::2] == (worker_id(second), "suspended"), 30)
        (tmp_path / "gate").touch()
        eventually(lambda: standing(parent)[::2] == (worker_id(first), "suspended"), 30)
        held = [standing(run)[1] for run in (parent, child)]
        continuum.cancel(parent)
        for run in (parent, child):
            with pytest.raises(continuum.RunCancelledError):
                continuum.result(run, timeout=30)
        assert [standing(run)[1] for run in (parent, child)] == held
        assert_sound()
