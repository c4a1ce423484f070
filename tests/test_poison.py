"""Runs that kill their worker, again and again: they are found among the innocents that die with them, and given up."""

from __future__ import annotations

import asyncio
import signal
from uuid import uuid4

import pytest
from django.db import connection

import continuum
from continuum.models import ActivityTask, InboxMessage, Run, Worker
from continuum.worker.connections import connect
from continuum.worker.journal import Journal
from continuum.worker.leases import declare_dead
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.suspects import TRIAL, chances
from tests.app import poison_workflows as flows, workflows
from tests.app.models import Effect
from tests.waiting_for import eventually
from tests.workers import ProcessWorker, run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)

TERMINAL = ("completed", "failed", "cancelled")
THREE_CHANCES = ("--settings", "tests.settings_three_chances")


def row(run):
    return Run.objects.get(id=run.id)


def types_of(run):
    return [event.type for event in continuum.get_run(run).history()]


def unfinished():
    return Run.objects.exclude(state__in=TERMINAL).count()


def assert_given_up(run, recoveries):
    failed = row(run)
    assert (failed.state, failed.owner_id) == ("failed", None)
    assert failed.error["type"] == "PoisonRunError"
    assert f"lost its worker {recoveries} times in a row" in failed.error["message"]
    assert failed.error["details"] == {"recoveries": recoveries}
    assert failed.completed_at is not None
    events = list(run.history())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events].count("run_failed") == 1
    assert events[-1].type == "run_failed"


def lose_worker(*runs, state="running", suspect=None):
    """Have the owner of these runs die as if it had been at work on them, and its death be noticed."""
    dead = Worker.objects.create(name="dead", expires_at="2020-01-01T00:00:00Z", suspect_id=suspect)
    Run.objects.filter(id__in=[run.id for run in runs]).update(state=state, owner_id=dead.id, next_wakeup_at=None)
    sweep()


def sweep():
    async def look():
        connection = await connect("default", application_name="test")
        async with connection:
            await declare_dead(connection, 0)

    asyncio.run(look())


class TestBlame:
    def test_a_run_that_was_at_work_is_blamed_and_one_that_slept_is_not(self):
        busy, quiet = continuum.start(flows.innocent, "a"), continuum.start(flows.innocent, "b")
        lose_worker(busy)
        lose_worker(quiet, state="suspended")
        assert (row(busy).recoveries, row(quiet).recoveries) == (1, 0)

    def test_if_there_was_a_suspect_on_trial_it_is_blamed_and_other_suspects_are_not(self):
        tried, aged, fresh = (continuum.start(flows.innocent, key) for key in "abc")
        Run.objects.filter(id__in=[tried.id, aged.id]).update(recoveries=4)
        lose_worker(tried, aged, fresh, suspect=tried.id)
        assert [row(run).recoveries for run in (tried, aged, fresh)] == [5, 4, 1]

    def test_the_last_chance_is_taken_only_on_trial(self):
        run = continuum.start(flows.innocent, "a")
        Run.objects.filter(id=run.id).update(recoveries=9)
        for _ in range(3):
            lose_worker(run)
            assert row(run).recoveries == 9
        lose_worker(run, suspect=run.id)
        assert row(run).recoveries == 10

    @pytest.mark.parametrize(
        ("most", "expected"),
        [(1, (1, 0)), (2, (1, 1)), (3, (2, 2)), (10, (2, 9))],
    )
    def test_the_budget_follows_the_setting(self, settings, most, expected):
        settings.CONTINUUM = {"MAX_RECOVERIES": most}
        assert tuple(chances().values()) == expected


class TestProgress:
    def test_what_is_journaled_clears_a_run_in_the_same_commit(self):
        run = continuum.start(workflows.five_steps, 1)
        with connection.cursor() as cursor:
            # Whatever is journaled while the row still says it is to blame fails the test.
            cursor.execute(
                "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT recoveries FROM "
                "continuum_runs WHERE id = NEW.run_id) > 0 THEN RAISE EXCEPTION 'still blamed'; END IF; "
                "RETURN NULL; END $$"
            )
            cursor.execute(
                "CREATE CONSTRAINT TRIGGER seen AFTER INSERT ON continuum_events DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION seen()"
            )
        try:
            lose_worker(run)
            run_until_idle()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DROP TRIGGER seen ON continuum_events")
                cursor.execute("DROP FUNCTION seen")
        assert (row(run).state, row(run).recoveries) == ("completed", 0)

    def test_steps_in_quick_succession_count_although_the_row_is_not_due(self):
        run = continuum.start(workflows.counts, 400)
        Run.objects.filter(id=run.id).update(recoveries=1)
        with worker():
            eventually(lambda: types_of(run))
            assert row(run).recoveries == 0

    def test_an_activity_under_way_clears_nothing(self):
        run = continuum.start(flows.innocent, "a", 60.0)
        Run.objects.filter(id=run.id).update(recoveries=1)
        with worker(drain_timeout=0):
            eventually(lambda: row(run).waiting_on)
            assert (row(run).state, row(run).recoveries) == ("running", 1)

    def test_going_quiet_clears_a_run(self):
        run = continuum.start(workflows.listens)
        Run.objects.filter(id=run.id).update(recoveries=1)
        with worker():
            eventually(lambda: row(run).state == "suspended")
            assert row(run).recoveries == 0


class TestTrials:
    def suspects(self, count, seconds=0.0, recoveries=5):
        runs = [continuum.start(flows.innocent, f"i{n}", seconds) for n in range(count)]
        Run.objects.filter(id__in=[run.id for run in runs]).update(
            recoveries=recoveries, state="suspended", next_wakeup_at="2020-01-01T00:00:00Z"
        )
        return runs

    def test_suspects_are_taken_one_at_a_time_and_others_go_on_meanwhile(self):
        suspects = self.suspects(3, seconds=60.0, recoveries=9)
        with worker(drain_timeout=0):
            eventually(lambda: Run.objects.filter(owner_id__isnull=False).count() == 1)
            assert continuum.result(continuum.start(flows.innocent, "other"), timeout=10) == "other"
            assert Run.objects.filter(id__in=[run.id for run in suspects], owner_id__isnull=False).count() == 1
            [running] = Worker.objects.filter(state="alive")
            assert running.suspect_id == Run.objects.get(owner_id__isnull=False).id

    def test_the_next_is_taken_when_one_is_cleared(self):
        suspects = self.suspects(20)
        with worker():
            for run in suspects:
                continuum.wait_run(run, timeout=20)
            eventually(lambda: Worker.objects.get(state="alive").suspect_id is None)
        assert [row(run).state for run in suspects] == ["completed"] * 20

    def test_one_that_takes_long_has_had_its_trial_after_a_while(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.suspects.TRIAL", 0.05)
        suspects = self.suspects(3, seconds=60.0, recoveries=2)
        with worker(drain_timeout=0):
            eventually(lambda: Run.objects.filter(owner_id__isnull=False).count() == 3)
            assert {row(run).recoveries for run in suspects} == {2}
        assert TRIAL >= 1

    def test_a_burst_does_not_end_before_all_suspects_were_tried(self):
        suspects = self.suspects(8)
        quiet = continuum.start(workflows.listens)
        Run.objects.filter(id=quiet.id).update(recoveries=7)
        run_until_idle()
        assert {row(run).state for run in suspects} == {"completed"}
        assert row(quiet).state == "suspended"

    def test_mail_does_not_get_a_suspect_in_through_the_back_door(self):
        blocking, other = self.suspects(2, seconds=60.0, recoveries=9)
        with worker(drain_timeout=0):
            eventually(lambda: Run.objects.filter(owner_id__isnull=False).count() == 1)
            waiting = Run.objects.get(id__in=[blocking.id, other.id], owner_id__isnull=True)
            continuum.signal(waiting.id, "anything")
            assert continuum.result(continuum.start(flows.innocent, "x"), timeout=10) == "x"
            assert row(waiting).owner_id is None

    def test_a_run_given_back_in_good_order_starts_afresh(self):
        [run] = self.suspects(1, seconds=60.0)
        with worker(drain_timeout=0):
            eventually(lambda: row(run).owner_id)
        assert (row(run).state, row(run).recoveries) == ("suspended", 0)


class TestVerdict:
    def condemned(self, flow, *arguments):
        run = continuum.start(flow, *arguments)
        Run.objects.filter(id=run.id).update(state="suspended", claimed_at="2020-01-01T00:00:00Z")
        self.condemn(run)
        return run

    def condemn(self, run):
        Run.objects.filter(id=run.id).update(recoveries=10, next_wakeup_at="2020-01-01T00:00:00Z")

    def test_a_run_out_of_chances_fails_without_its_code_being_run(self):
        run = self.condemned(flows.innocent, "never")
        run_until_idle()
        assert_given_up(run, 10)
        assert not Effect.objects.filter(key="never").exists()
        with pytest.raises(continuum.RunFailedError, match="PoisonRunError"):
            continuum.result(run)

    def test_the_failure_comes_after_what_history_holds(self):
        run = continuum.start(workflows.collects, 2)
        continuum.signal(run, "item", 1)
        run_until_idle()
        assert types_of(run) == ["signal_received"]
        Run.objects.filter(id=run.id).update(recoveries=10, next_wakeup_at="2020-01-01T00:00:00Z")
        run_until_idle()
        assert types_of(run) == ["signal_received", "run_failed"]
        assert_given_up(run, 10)

    def test_the_mail_of_a_run_given_up_is_kept_for_its_retry(self):
        run = self.condemned(workflows.listens)
        continuum.signal(run, "go", "later")
        run_until_idle()
        assert_given_up(run, 10)
        assert InboxMessage.objects.filter(run_id=run.id, consumed_at=None).count() == 1

    def test_the_parent_is_told(self, monkeypatch):
        child = self.condemned(flows.innocent, "a")
        Run.objects.filter(id=child.id).update(parent_run_id=uuid4(), parent_command_id="0:1")
        written = []

        async def write(connection, entries):
            written.extend(entry for entry in entries if entry.outbox is not None and entry.outbox.report)
            return await write_outbox(connection, entries)

        monkeypatch.setattr("continuum.worker.recording.write_outbox", write)
        run_until_idle()
        assert_given_up(child, 10)
        assert [entry.live.id for entry in written] == [child.id]

    def test_its_tasks_are_taken_back_and_its_children_go_on(self):
        run = continuum.start(flows.provider, "far")
        run_until_idle(queues=("default",))
        [child] = Run.objects.filter(parent_run_id=run.id)
        assert ActivityTask.objects.filter(run_id=run.id).count() == 1
        self.condemn(run)
        run_until_idle(queues=("default",))
        assert_given_up(run, 10)
        assert not ActivityTask.objects.exists()
        assert (row(child).state, InboxMessage.objects.filter(run_id=child.id).count()) == ("suspended", 0)
        continuum.retry(run)
        continuum.signal(child, "go", "near")
        run_until_idle()
        assert continuum.result(run) == ["far", "near"]
        assert Effect.objects.filter(key="far").count() == 1

    def test_a_retry_goes_on_with_a_new_budget(self):
        run = continuum.start(workflows.collects, 2)
        continuum.signal(run, "item", 1)
        run_until_idle()
        self.condemn(run)
        run_until_idle()
        assert_given_up(run, 10)
        assert continuum.retry(run).recoveries == 0
        lose_worker(run)
        assert row(run).recoveries == 1
        continuum.signal(run, "item", 2)
        run_until_idle()
        assert continuum.result(run) == [1, 2]
        assert (row(run).recoveries, row(run).error) == (0, None)
        assert types_of(run) == [
            "signal_received", "run_failed", "run_retried", "run_resumed", "signal_received", "run_completed",
        ]  # fmt: skip

    def test_one_that_is_given_up_again_before_its_retry_was_taken_up_can_be_retried_again(self):
        run = continuum.start(workflows.collects, 2)
        continuum.signal(run, "item", 1)
        run_until_idle()
        for _ in range(2):
            self.condemn(run)
            run_until_idle()
            assert row(run).error["type"] == "PoisonRunError"
            continuum.retry(run)
        continuum.signal(run, "item", 2)
        run_until_idle()
        assert continuum.result(run) == [1, 2]

    def test_a_parent_that_failed_of_it_is_retried_together_with_it(self):
        run = continuum.start(flows.guardian)
        run_until_idle()
        [child] = Run.objects.filter(parent_run_id=run.id)
        self.condemn(child)
        run_until_idle()
        assert_given_up(child, 10)
        assert (row(run).state, row(run).recoveries) == ("failed", 0)
        continuum.retry(run)
        run_until_idle()
        assert (row(child).state, row(child).recoveries, row(child).error) == ("suspended", 0, None)
        continuum.signal(child, "go", "on")
        run_until_idle()
        assert continuum.result(run) == "on"

    def test_its_record_is_fenced_like_any_other(self):
        run = self.condemned(flows.innocent, "a")
        write = Journal._write

        async def taken_meanwhile(journal, batch):
            with_token = [entry for entry in batch if entry.live.id == run.id]
            for entry in with_token:
                entry.live.token -= 1
            return await write(journal, batch)

        with pytest.MonkeyPatch.context() as patch, worker():
            patch.setattr(Journal, "_write", taken_meanwhile)
            eventually(lambda: row(run).owner_id)
            eventually(lambda: Worker.objects.get(state="alive").suspect_id is None)
            assert types_of(run) == []
        assert row(run).state == "running"


@pytest.fixture
def respawn(subprocess_environment, tmp_path):
    """Keep workers running, a new one for each that dies, until a condition holds; returns how many died."""
    lives = []

    def until(condition, *arguments, workers=1, timeout=120):
        running: list[ProcessWorker] = []
        deaths = 0

        def look():
            nonlocal deaths
            for dead in [each for each in running if each.process.poll() is not None]:
                assert dead.wait() == -signal.SIGKILL, dead.output
                running.remove(dead)
                deaths += 1
            while len(running) < workers:
                log = tmp_path / f"worker{len(lives)}-{uuid4().hex[:4]}.log"
                lives.append(ProcessWorker(subprocess_environment, *arguments, log=log))
                running.append(lives[-1])
            return condition()

        eventually(look, timeout)
        return deaths

    yield until
    for life in lives:
        life.close()


@pytest.mark.cluster
class TestKillers:
    @pytest.mark.parametrize(
        ("flow", "more"),
        [(flows.kills_in_activity, ()), (flows.kills_in_activity, (0.5,)), (flows.kills_in_code, ())],
        ids=["activity", "slow activity", "code"],
    )
    def test_one_killer_among_fifty_innocents_is_given_up_and_they_complete(self, respawn, tmp_path, flow, more):
        killer = continuum.start(flow, str(tmp_path / "never"), *more, priority=1)
        innocents = [continuum.start(flows.innocent, f"i{n}", n % 3 / 4) for n in range(50)]
        deaths = respawn(lambda: not unfinished(), *THREE_CHANCES)
        assert_given_up(killer, 3)
        assert deaths == 3
        assert {row(run).state for run in innocents} == {"completed"}

    def test_a_retry_gives_it_as_many_chances_again_and_once_mended_it_completes(self, respawn, tmp_path):
        run = continuum.start(flows.mother, str(tmp_path / "stop"))
        for failures in (1, 2):
            respawn(lambda: not unfinished(), *THREE_CHANCES)
            assert row(run).error["type"] == "ChildError"
            [killer] = Run.objects.filter(parent_run_id=run.id)
            assert (killer.error["type"], killer.error["details"]) == ("PoisonRunError", {"recoveries": 3})
            assert types_of(killer).count("run_failed") == failures
            continuum.retry(run)
        (tmp_path / "stop").touch()
        respawn(lambda: not unfinished(), *THREE_CHANCES)
        assert continuum.result(run) == "tame"

    def test_innocents_with_activities_longer_than_any_life_complete_too(self, respawn, tmp_path):
        killer = continuum.start(flows.kills_in_activity, str(tmp_path / "never"), 0.3)
        innocents = [continuum.start(flows.innocent, f"i{n}", 2.0) for n in range(6)]
        respawn(lambda: not unfinished(), *THREE_CHANCES, workers=2)
        assert_given_up(killer, 3)
        assert {row(run).state for run in innocents} == {"completed"}

    @pytest.mark.parametrize("flow", [flows.kills_when_told, flows.kills_after_a_nap])
    def test_one_that_sleeps_before_it_kills_is_found_as_well(self, respawn, tmp_path, flow):
        more = (1.0,) if flow is flows.kills_after_a_nap else ()
        killer = continuum.start(flow, str(tmp_path / "never"), *more)
        if not more:
            continuum.signal(killer, "go")
        deaths = respawn(lambda: not unfinished(), *THREE_CHANCES)
        assert_given_up(killer, 3)
        # What killed while its row said that it slept was not counted, once.
        assert deaths in (3, 4)

    def test_thousands_that_sleep_beside_a_killer_are_not_blamed(self, respawn, tmp_path):
        sleepers = continuum.start_many(workflows.collects, [1] * 300)
        respawn(lambda: Run.objects.filter(state="suspended").count() == 300, *THREE_CHANCES)
        killer = continuum.start(flows.kills_in_code, str(tmp_path / "never"))
        respawn(lambda: row(killer).state == "failed", *THREE_CHANCES)
        eventually(lambda: Run.objects.filter(state="suspended", recoveries=0).count() == 300, 30)
        for run in sleepers:
            continuum.signal(run, "item", 1)
        eventually(lambda: not unfinished(), 30)

    def test_a_run_that_gets_further_in_each_life_is_not_poison(self, respawn, tmp_path):
        run = continuum.start(flows.kills_at_every_step, str(tmp_path / "stop"), 5)
        assert respawn(lambda: not unfinished(), *THREE_CHANCES) == 5
        assert row(run).state == "completed"
