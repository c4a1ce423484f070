"""Real worker processes that are killed, stopped and drained. Every run must go on exactly where it stood."""

from __future__ import annotations

import random
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

import continuum
from continuum import hints
from continuum.models import HistoryEvent, Run
from tests.app import workflows as flows
from tests.app.models import Effect
from tests.factories import WorkerFactory
from tests.waiting_for import eventually
from tests.workers import Lineage, ProcessWorker, run_until_idle

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]

TERMINAL = ("completed", "failed", "cancelled")


@pytest.fixture
def start_worker(subprocess_environment, tmp_path):
    """Start worker processes; whatever still runs at the end of the test is killed."""
    started = []

    def start(*arguments):
        worker = ProcessWorker(subprocess_environment, *arguments, log=tmp_path / f"worker{len(started)}.log")
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()


def unfinished():
    return Run.objects.exclude(state__in=TERMINAL).count()


def assert_sound():
    """What must hold of every history, whatever happened: one end, nothing after it, no gap, nothing answered twice."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT run_id FROM continuum_events GROUP BY run_id HAVING max(seq) <> count(*) OR min(seq) <> 1"
        )
        assert cursor.fetchall() == [], "gaps"
        cursor.execute(
            "SELECT r.id, count(e.seq), max(e.seq) = (SELECT max(seq) FROM continuum_events l WHERE l.run_id = r.id) "
            "FROM continuum_runs r LEFT JOIN continuum_events e ON e.run_id = r.id "
            "AND e.type IN ('run_completed', 'run_failed', 'run_cancelled', 'run_continued') "
            "WHERE r.state IN ('completed', 'failed', 'cancelled') GROUP BY r.id"
        )
        assert [row for row in cursor.fetchall() if row[1:] != (1, True)] == [], "not exactly one end"
        cursor.execute(
            "SELECT run_id, command_id FROM continuum_events WHERE type IN ('activity_completed', 'activity_failed', "
            "'timer_fired', 'side_effect') GROUP BY 1, 2 HAVING count(*) > 1"
        )
        assert cursor.fetchall() == [], "answered twice"
        cursor.execute("SELECT id FROM continuum_runs WHERE owner_id IS NOT NULL AND state = ANY(%s)", [list(TERMINAL)])
        assert cursor.fetchall() == [], "ended and owned"


def effects_of(prefix):
    return sorted(Effect.objects.filter(key__startswith=prefix).values_list("key", flat=True))


class TestKill:
    def test_the_next_worker_goes_on_where_the_killed_one_stood(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.holds, "k", str(gate))
        first = start_worker()
        eventually(lambda: "k:held" in effects_of("k"), 30)
        first.kill()
        gate.touch()
        start_worker()
        assert continuum.result(run, timeout=30) == "k:held"
        # The activity the worker died in ran again; the one before it, which was recorded, did not.
        assert effects_of("k") == ["k:after", "k:before", "k:held", "k:held"]
        assert_sound()

    def test_clock_randomness_and_side_effects_are_the_same_after_a_kill(self, start_worker):
        run = continuum.start(flows.draws)
        first = start_worker()
        eventually(lambda: continuum.get_run(run).waiting_on, 30)
        first.kill()
        continuum.signal(run, "go")
        second = start_worker()
        drawn = continuum.result(run, timeout=30)
        second.send(signal.SIGTERM)
        assert second.wait() == 0
        # A third replay, of the finished history, must still agree with what the first two said.
        events = list(continuum.get_run(run).history())
        assert [event.type for event in events].count("side_effect") == 1
        assert events[0].data["result"].hex() == drawn[3]
        assert effects_of(str(run.id)) == [f"{run.id}:draws"]

    def test_an_activity_that_kills_its_worker_is_run_again_by_the_next(self, start_worker):
        run = continuum.start(flows.kills_its_worker, "p")
        first = start_worker()
        assert first.wait() == -signal.SIGKILL
        start_worker()
        assert continuum.result(run, timeout=30) == "survived"
        assert effects_of("p") == ["p", "p:after", "p:before"]

    @pytest.mark.parametrize("seed", [11, 23])
    def test_a_crowd_of_mixed_runs_survives_worker_after_worker(self, start_worker, seed):
        chance = random.Random(seed)
        runs = [continuum.start(flows.everything, f"e{n}") for n in range(60)]
        for run in runs[::2]:
            continuum.signal(run, "answer", "early")
        workers = [start_worker(), start_worker()]
        late = runs[1::2]
        for goal in (80, 260, 440, 620):
            goal += chance.randrange(100)
            eventually(lambda goal=goal: HistoryEvent.objects.count() >= goal, 60)
            workers.pop(chance.randrange(2)).kill()
            workers.append(start_worker())
            for run in late[:8]:
                continuum.signal(run, "answer", "late")
            late = late[8:]
        results = [continuum.result(run, timeout=60) for run in runs]
        assert {result["attempts"] for result in results} == {3}
        assert {(result["sum"], result["raced"]) for result in results} == {(10, 1)}
        assert_sound()
        for n, result in enumerate(results):
            # Each step was recorded once, with the draws the run kept through all its lives.
            assert f"e{n}:last:{result['drawn']}:{result['token']}" in effects_of(f"e{n}:last")
            assert len(set(effects_of(f"e{n}:last"))) == 1


class TestKillAtEachCommit:
    @pytest.mark.parametrize("crash", ["after:1", "before:2"])
    def test_nothing_is_lost_or_done_twice(self, subprocess_environment, tmp_path, crash):
        # Each life of the worker makes one commit durable: it dies right after its first, or right before its second.
        environment = subprocess_environment | {"CRASH": crash, "DJANGO_SETTINGS_MODULE": "tests.settings_watchful"}
        run = continuum.start(flows.everything, "c")
        continuum.signal(run, "answer", "early")
        lives = 0
        with closing(Lineage(environment, log=tmp_path / "workers.log")) as worker:
            while not ended(run):
                worker.start()
                eventually(lambda: worker.poll() is not None or ended(run), 30)
                lives += 1
                assert lives < 40
        assert lives >= 8
        result = continuum.result(run)
        assert (result["attempts"], result["sum"], result["answer"], result["raced"]) == (3, 10, "early", 1)
        assert_sound()
        # Commits with events are made one by one, so each death can have cost the body of what was under way then.
        recorded = [e.data["args"][0] for e in continuum.get_run(run).history() if e.name == flows.effect.name]
        assert sorted(recorded) == sorted(set(effects_of("c:first") + effects_of("c:fan") + effects_of("c:last")))
        assert len(effects_of("c:first")) <= 2


def ended(run):
    return continuum.get_run(run).state in TERMINAL


class TestDrain:
    def test_sigterm_gives_runs_back_and_ends_with_status_0(self, start_worker):
        run = continuum.start(flows.listens)
        first = start_worker()
        eventually(lambda: continuum.get_run(run).state == "suspended", 30)
        first.send(signal.SIGTERM)
        assert first.wait() == 0
        row = continuum.get_run(run)
        assert (row.state, row.owner_id) == ("suspended", None)
        start_worker()
        continuum.signal(run, "go", "on")
        assert continuum.result(run, timeout=30) == "on"

    def test_current_activities_may_end_before_the_worker_leaves(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.holds, "d", str(gate))
        first = start_worker("--drain-timeout", "30")
        eventually(lambda: "d:held" in effects_of("d"), 30)
        first.send(signal.SIGTERM)
        eventually(lambda: "draining" in first.output)
        gate.touch()
        assert first.wait() == 0
        run_until_idle()
        assert continuum.result(run) == "d:held"
        assert effects_of("d") == ["d:after", "d:before", "d:held"]

    def test_a_second_signal_leaves_at_once(self, start_worker, tmp_path):
        continuum.start(flows.holds, "s", str(tmp_path / "never"))
        first = start_worker("--drain-timeout", "60")
        eventually(lambda: "s:held" in effects_of("s"), 30)
        first.send(signal.SIGTERM)
        eventually(lambda: "draining" in first.output)
        first.send(signal.SIGTERM)
        assert first.wait(10) == 128 + signal.SIGTERM

    def test_burst_works_everything_off_and_stops(self, start_worker):
        runs = continuum.start_many(flows.five_steps, range(50))
        assert start_worker("--burst").wait(60) == 0
        assert [continuum.result(run) for run in runs] == [n + 5 for n in range(50)]
        assert_sound()


class TestFencing:
    def test_a_worker_that_was_stopped_too_long_changes_nothing_when_it_comes_back(self, start_worker, tmp_path):
        gate = tmp_path / "gate"
        run = continuum.start(flows.holds, "f", str(gate))
        first = start_worker("--settings", "tests.settings_short_lease")
        eventually(lambda: "f:held" in effects_of("f"), 30)
        first.send(signal.SIGSTOP)
        # On a busy machine it may have lost such a lease before.
        held, back = effects_of("f").count("f:held"), first.output.count("coming back as a new worker")
        second = start_worker("--settings", "tests.settings_short_lease")
        eventually(lambda: effects_of("f").count("f:held") > held, 30)
        first.send(signal.SIGCONT)
        eventually(lambda: first.output.count("coming back as a new worker") > back, 30)
        gate.touch()
        assert continuum.result(run, timeout=30) == "f:held"
        assert second.process.poll() is None
        assert first.process.poll() is None
        assert effects_of("f").count("f:after") == 1
        assert_sound()

    def test_a_stale_token_writes_nothing(self, start_worker):
        run = continuum.start(flows.collects, 3)
        first = start_worker()
        eventually(lambda: continuum.get_run(run).state == "suspended", 30)
        # In the hands of somebody who is not there: nobody writes to its history, nor does the first take it up again.
        owner, heir = continuum.get_run(run).owner_id, WorkerFactory(expires_at=datetime.now(UTC) + timedelta(hours=1))
        Run.objects.filter(id=run.id).update(lease_token=connection_next_token(), owner_id=heir.id)
        continuum.signal(run, "item", 1)
        hints.send_run("default", run.id, owner)
        eventually(lambda: "in other hands" in first.output, 30)
        assert list(continuum.get_run(run).history()) == []


def connection_next_token():
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('continuum_lease_token_seq')")
        return cursor.fetchone()[0]


class TestLostHints:
    def test_everything_completes_by_polling_alone(self, start_worker):
        start_worker("--settings", "tests.settings_deaf")
        soon = datetime.now(UTC) + timedelta(seconds=1)
        runs = [continuum.start(flows.listens), continuum.start(flows.five_steps, 1, start_at=soon)]
        eventually(lambda: continuum.get_run(runs[0]).state == "suspended", 30)
        continuum.signal(runs[0], "go", "heard")
        assert continuum.result(runs[0], timeout=30) == "heard"
        assert continuum.result(runs[1], timeout=30) == 6


class TestFlatCost:
    def test_a_long_run_is_kept_in_memory_and_replayed_only_when_claimed(self, start_worker):
        run = continuum.start(flows.counts, 1200)
        first = start_worker()
        eventually(lambda: sum(1 for _ in continuum.get_run(run).history()) > 300, 60)
        first.kill()
        start_worker()
        assert continuum.result(run, timeout=60) == 1200
        assert_sound()
