"""A short storm with whole fences, and one each with broken ones, which must not go unnoticed."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from continuum.models import Run
from tests.chaos.storm import actions
from tests.chaos.takeover import TakeOver
from tests.factories import RunFactory, WorkerFactory
from tests.waiting_for import eventually
from tests.workers import ROOT

pytestmark = pytest.mark.cluster

SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(100_000))


def chaos(*arguments, timeout=900):  # a machine with other work may need most of its deadlines
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    print(done.stdout)
    return done


def test_nothing_is_lost_or_done_twice_while_everything_breaks():
    print(f"CHAOS_SEED={SEED}")
    done = chaos("--seed", str(SEED), "--minutes", "0.2", "--workers", "3", "--runs", "250")
    assert done.returncode == 0, f"CHAOS_SEED={SEED} repeats the storm:\n{done.stdout}"
    assert "survived: " in done.stdout


# A worker is stopped past its lease in an unlucky moment, and goes on without noticing that it has lost it: the fence
# is all that keeps it from harm.
AMBUSH = ("--seed", "5", "--ambush", "--minutes", "0.05", "--runs", "20", "--deadline", "15", "--broken")
# Whom the stops meet is chance.
STOPS = ("--minutes", "0.13", "--runs", "200", "--deadline", "30", "--broken")


@pytest.mark.parametrize(
    ("part", "harm"),
    [("journal", "runs that have not ended"), ("transactions", "transactional effects that took place twice")],
)
def test_a_broken_fence_does_not_go_unnoticed(part, harm):
    done = chaos(*AMBUSH, part)
    assert done.returncode == 1
    assert harm in done.stdout
    # Its own, that is: histories that it shows may have errors with tracebacks in them.
    assert not any(line.startswith("Traceback") for line in done.stdout.splitlines())


def test_a_whole_fence_is_not_accused():
    done = chaos(*AMBUSH, "notice")
    assert done.returncode == 0, done.stdout
    assert "SIGSTOP in an ambush" in done.stdout


def test_limits_of_queues_that_nobody_counts_do_not_go_unnoticed():
    done = chaos("--seed", "11", "--minutes", "0.07", "--runs", "40", "--broken", "limits")
    limits = ("a place in a queue of the cluster", "a worker's place in a queue", "of a queue began")
    assert [limit for limit in limits if limit not in done.stdout] == []


def test_a_fence_keeps_those_from_harm_who_notice_late_that_they_have_lost_their_lease():
    done = chaos("--seed", str(SEED), *STOPS, "notice")
    assert done.returncode == 0, f"CHAOS_SEED={SEED} repeats the stops:\n{done.stdout}"


@pytest.mark.django_db(transaction=True)
def test_runs_that_stay_bound_to_a_killed_worker_do_not_go_unnoticed(database_url):
    worker = WorkerFactory(pid=-1)
    run = RunFactory(owner_id=worker.id, state="running")
    watch = TakeOver(database_url, longest=0.1)
    watch.about_to_kill(-1)
    eventually(lambda: watch.violations)
    Run.objects.filter(id=run.id).update(owner_id=None)
    eventually(lambda: "freed after" in str(watch))
    watch.close()
    patient = TakeOver(database_url, longest=60)
    Run.objects.filter(id=run.id).update(owner_id=worker.id)
    patient.about_to_kill(-1)
    Run.objects.filter(id=run.id).update(owner_id=None)
    eventually(lambda: "freed after" in str(patient))
    patient.close()
    assert patient.violations == []


def test_a_seed_decides_what_goes_wrong():
    def first(seed):
        plan = actions(seed)
        return [str(next(plan)) for _ in range(50)]

    assert first(3) == first(3) != first(4)
