"""Runs that kill their worker, again and again: they are found among the innocents that die with them, and given up."""

from __future__ import annotations

import asyncio
import signal
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import connection, transaction

import continuum
from continuum.models import ActivityTask, InboxMessage, Run, Worker
from continuum.worker import claims
from continuum.worker.connections import connect
from continuum.worker.journal import Journal
from continuum.worker.leases import declare_dead
from continuum.worker.loaded import Loaded
from continuum.worker.outbox_writing import write_outbox
from continuum.worker.suspects import TRIAL, Suspects, chances
from tests.app import poison_workflows as flows, workflows
from tests.app.models import Effect
from tests.waiting_for import eventually
from tests.workers import Lineage, run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)

TERMINAL = ("completed", "failed", "cancelled")
THREE_CHANCES = "tests.settings_three_chances"


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


def loaded():
    return Loaded.of([flows.innocent, workflows.listens])


def lose_worker(*runs, state="running", suspect=None, trial=None):
    """Have the owner of these runs die as if it had been at work on them, and its death be noticed."""
    dead = Worker.objects.create(name="dead", expires_at="2020-01-01T00:00:00Z", suspect_id=suspect, trial_token=trial)
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

    def test_if_a_group_was_on_trial_those_that_have_not_left_it_are_blamed(self):
        names = ("busy", "cleared", "quiet", "tried before", "fresh")
        runs = dict(zip(names, [continuum.start(flows.innocent, name) for name in names], strict=True))
        for name, run in runs.items():
            token = 10 if name == "tried before" else 20
            recoveries = 0 if name in ("cleared", "fresh") else 3
            Run.objects.filter(id=run.id).update(recoveries=recoveries, lease_token=token)
        lose_worker(*[run for name, run in runs.items() if name != "quiet"], trial=20)
        lose_worker(runs["quiet"], state="suspended", trial=20)
        found = {name: row(run).recoveries for name, run in runs.items()}
        assert found == {"busy": 4, "cleared": 1, "quiet": 3, "tried before": 3, "fresh": 1}

    def test_the_last_chance_is_taken_only_on_trial_alone(self):
        run = continuum.start(flows.innocent, "a")
        Run.objects.filter(id=run.id).update(recoveries=9)
        for trial in (None, 1):
            for _ in range(2):
                Run.objects.filter(id=run.id).update(lease_token=7)
                lose_worker(run, trial=trial)
                assert row(run).recoveries == 9
        Run.objects.filter(id=run.id).update(lease_token=7)
        lose_worker(run, suspect=run.id, trial=7)
        assert row(run).recoveries == 10

    @pytest.mark.parametrize(
        ("most", "expected"),
        [(1, (1, 0)), (2, (1, 1)), (3, (1, 2)), (4, (2, 3)), (10, (2, 9))],
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
        with transaction.atomic():  # a worker that is there already must not take them before they are suspects
            runs = [continuum.start(flows.innocent, f"i{n}", seconds) for n in range(count)]
            Run.objects.filter(id__in=[run.id for run in runs]).update(
                recoveries=recoveries, state="suspended", next_wakeup_at="2020-01-01T00:00:00Z"
            )
        return runs

    def claim(self, limit=200):
        """Claim as a worker of its own does; returns its row and the runs."""
        claimer = Worker.objects.create(name="claimer", expires_at="2100-01-01T00:00:00Z")

        async def claim():
            async with await connect("default", application_name="test") as connection:
                return await claims.claim_suspects(connection, claimer.id, loaded(), limit)

        claimed = asyncio.run(claim())
        claimer.refresh_from_db()
        return claimer, claimed

    @pytest.mark.parametrize(
        ("recoveries", "limit", "expected"),
        [(2, 500, 256), (2, 7, 7), (3, 500, 32), (4, 500, 4), (5, 500, 1), (8, 500, 1), (9, 500, 1), (10, 500, 270)],
    )
    def test_groups_shrink_with_each_death_until_each_is_alone(self, recoveries, limit, expected):
        self.suspects(270, recoveries=recoveries)
        claimer, claimed = self.claim(limit)
        assert len(claimed) == expected
        assert claimer.trial_token == min(run.token for run in claimed)
        assert claimer.suspect_id == (claimed[0].identity.id if expected == 1 else None)

    def test_few_chances_are_not_spent_in_company(self, settings):
        for most, sizes in {2: [1], 3: [50, 1], 4: [50, 1], 5: [50, 32, 1]}.items():
            settings.CONTINUUM = {"MAX_RECOVERIES": most}
            for recoveries, size in enumerate(sizes, start=chances()["suspected"]):
                Run.objects.all().delete()
                self.suspects(50, recoveries=recoveries)
                assert len(self.claim()[1]) == size, (most, recoveries)

    def test_those_with_most_deaths_come_first_and_by_themselves(self):
        for recoveries, count in {2: 5, 3: 4, 7: 2}.items():
            self.suspects(count, recoveries=recoveries)
        found = [sorted(run.recoveries for run in self.claim()[1]) for _ in range(5)]
        assert found == [[7], [7], [3] * 4, [2] * 5, []]

    def test_without_a_suspect_nobody_is_on_trial_any_more(self):
        claimer = Worker.objects.create(name="w", expires_at="2100-01-01T00:00:00Z", trial_token=5, suspect_id=uuid4())

        async def claim():
            async with await connect("default", application_name="test") as connection:
                return await claims.claim_suspects(connection, claimer.id, loaded(), 10)

        assert asyncio.run(claim()) == []
        claimer.refresh_from_db()
        assert (claimer.trial_token, claimer.suspect_id) == (None, None)

    @pytest.mark.parametrize("recoveries", [3, 9])
    def test_workers_that_claim_at_once_get_groups_of_their_own_without_waiting(self, recoveries):
        self.suspects(70, recoveries=recoveries)
        size = {3: 32, 9: 1}[recoveries]
        workers = [Worker.objects.create(name=f"w{n}", expires_at="2100-01-01T00:00:00Z") for n in range(2)]

        async def claim_within_each_other():
            first, second = [await connect("default", application_name="test") for _ in workers]
            async with first, second, first.transaction():
                mine = await claims.claim_suspects(first, workers[0].id, loaded(), 200)
                async with asyncio.timeout(30):  # which would never end
                    theirs = await claims.claim_suspects(second, workers[1].id, loaded(), 200)
            return mine, theirs

        mine, theirs = asyncio.run(claim_within_each_other())
        assert (len(mine), len(theirs)) == (size, size)
        assert not {run.identity.id for run in mine} & {run.identity.id for run in theirs}
        tokens = {each.id: each.trial_token for each in Worker.objects.all()}
        assert tokens == {
            owner.id: min(run.token for run in claimed) for owner, claimed in zip(workers, (mine, theirs), strict=True)
        }

    def test_a_worker_that_was_declared_dead_tries_nobody(self):
        self.suspects(1)
        Worker.objects.update(state="dead")
        claimer = Worker.objects.create(name="w", state="dead", expires_at="2100-01-01T00:00:00Z")

        async def claim():
            async with await connect("default", application_name="test") as connection:
                return await claims.claim_suspects(connection, claimer.id, loaded(), 10)

        assert asyncio.run(claim()) == []

    def test_suspects_take_half_of_the_room_and_others_go_on_meanwhile(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.suspects.TRIAL", 600.0)
        suspects = self.suspects(20, seconds=60.0, recoveries=2)
        with worker(drain_timeout=0, concurrency=10):
            eventually(lambda: Run.objects.filter(owner_id__isnull=False).count())
            assert continuum.result(continuum.start(flows.innocent, "other"), timeout=10) == "other"
            owned = Run.objects.filter(id__in=[run.id for run in suspects], owner_id__isnull=False)
            assert owned.count() == 5
            [running] = Worker.objects.filter(state="alive")
            assert (running.trial_token, running.suspect_id) == (min(run.lease_token for run in owned), None)

    def test_whoever_is_cleared_or_quiet_or_has_lived_through_it_is_on_trial_no_more(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.suspects.TRIAL", 0.2)
        slow, fast = self.suspects(1, seconds=60.0, recoveries=2), self.suspects(1, recoveries=2)
        quiet = continuum.start(workflows.listens)
        Run.objects.filter(id=quiet.id).update(recoveries=2)
        with worker(drain_timeout=0):
            continuum.wait_run(fast[0], timeout=10)
            eventually(lambda: (row(quiet).state, row(quiet).recoveries) == ("suspended", 0))
            # The next claim says that nobody is.
            eventually(lambda: Worker.objects.get(state="alive").trial_token is None)
            later = self.suspects(1, seconds=60.0, recoveries=9)
            eventually(lambda: Worker.objects.get(state="alive").suspect_id == later[0].id)
            token = Worker.objects.get(state="alive").trial_token
            assert (row(slow[0]).recoveries, row(slow[0]).state) == (2, "running")
            assert row(slow[0]).lease_token < token == row(later[0]).lease_token

    def test_suspects_are_taken_one_at_a_time_at_the_end_and_others_go_on_meanwhile(self):
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


class FakeLoop:
    def __init__(self):
        self.now, self.timers = 1000.0, []

    def call_later(self, seconds, fn):
        timer = SimpleNamespace(at=self.now + seconds, fn=fn)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def go_on(self, seconds):
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.fn()
        self.now = until


class FakeRun:
    def __init__(self, recoveries=2, replaying=False, **attempts):
        self.recoveries, self.replaying, self.attempts = recoveries, replaying, attempts


class TestHowLongATrialLasts:
    @pytest.fixture(autouse=True)
    def setting(self, monkeypatch):
        self.loop = FakeLoop()
        monkeypatch.setattr("continuum.worker.suspects.time", SimpleNamespace(monotonic=lambda: self.loop.now))
        self.over, self.frees = 0, 0

        def on_change():
            self.over += 1

        def on_free():
            self.frees += 1

        self.suspects = Suspects(self.loop, on_change)
        self.suspects.on_free = on_free

    def attempt(self, started=0.0, *, submitted=True):
        return SimpleNamespace(submitted=submitted, started=started, settled=False)

    @pytest.mark.parametrize(("recoveries", "seconds"), [(2, 1), (3, 2), (4, 4), (8, 64)])
    def test_twice_as_long_after_each_death(self, recoveries, seconds):
        for _ in range(3):
            self.suspects.admit(FakeRun(recoveries))
        self.loop.go_on(seconds - 0.1)
        assert (self.over, self.frees) == (0, 0)
        self.loop.go_on(0.1)
        assert (self.over, self.frees, self.suspects.trying) == (3, 1, False)

    @pytest.mark.parametrize("recoveries", [9, 10])
    def test_the_last_one_has_no_end(self, recoveries):
        run = FakeRun(recoveries)
        self.suspects.admit(run)
        self.loop.go_on(1_000_000)
        assert (self.over, self.suspects.trying) == (0, True)
        self.suspects.cleared(run)
        assert (self.over, self.frees, run.recoveries) == (1, 1, 0)

    def test_whoever_is_no_suspect_is_not_on_trial(self):
        self.suspects.admit(FakeRun(1))
        assert not self.suspects.trying
        self.suspects.over(FakeRun(1))
        assert (self.over, self.frees) == (0, 0)

    def test_the_next_group_comes_when_all_of_this_one_are_through(self):
        runs = [FakeRun() for _ in range(3)]
        for run in runs:
            self.suspects.admit(run)
        self.suspects.cleared(runs[0])
        self.suspects.over(runs[1])
        assert (self.over, self.frees) == (2, 0)
        self.suspects.cleared(runs[2])
        assert (self.over, self.frees, self.loop.timers) == (3, 1, [])

    def test_it_begins_when_the_run_is_replayed_and_all_it_asks_for_has_begun(self):
        run = FakeRun(replaying=True, a=self.attempt())
        self.suspects.admit(run)
        self.loop.go_on(3)
        run.replaying = False
        self.loop.go_on(2)
        run.attempts["b"] = self.attempt(started=self.loop.now - 0.5)
        run.attempts["a"].started = self.loop.now
        self.loop.go_on(0.9)
        assert self.suspects.trying
        self.loop.go_on(0.2)
        assert not self.suspects.trying

    def test_what_waits_for_a_key_that_others_hold_is_not_waited_for(self):
        self.suspects.admit(FakeRun(a=self.attempt(submitted=False)))
        self.loop.go_on(1)
        assert not self.suspects.trying

    def test_what_stays_in_line_does_not_keep_others_waiting_for_ever(self):
        self.suspects.admit(FakeRun(3, a=self.attempt()))
        self.suspects.admit(FakeRun(3))
        self.loop.go_on(2)
        assert (self.over, self.suspects.trying) == (1, True)
        self.loop.go_on(17.9)
        assert self.suspects.trying
        self.loop.go_on(0.2)
        assert not self.suspects.trying

    def test_those_that_come_late_have_their_time_as_well(self):
        self.suspects.admit(FakeRun())
        self.loop.go_on(0.9)
        self.suspects.admit(FakeRun())
        self.loop.go_on(0.2)
        assert (self.over, self.suspects.trying) == (1, True)
        self.loop.go_on(0.8)
        assert (self.over, self.suspects.trying) == (2, False)


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

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "_write", taken_meanwhile)
            with worker():
                eventually(lambda: row(run).owner_id)
                eventually(lambda: Worker.objects.get(state="alive").suspect_id is None)
                assert types_of(run) == []
        assert row(run).state == "running"


@pytest.fixture
def respawn(subprocess_environment, tmp_path):
    """Keep workers running, a new one for each that dies, until a condition holds; returns how many died."""
    lineages: list[Lineage] = []

    def until(condition, settings=THREE_CHANCES, workers=1, timeout=120):
        while len(lineages) < workers:
            environment = subprocess_environment | {"DJANGO_SETTINGS_MODULE": settings}
            lineages.append(Lineage(environment, log=tmp_path / f"workers{len(lineages)}.log"))
            lineages[-1].start()
        deaths = 0

        def look():
            nonlocal deaths
            for lineage in lineages:
                if (status := lineage.poll()) is not None:
                    assert status == -signal.SIGKILL, lineage.output
                    lineage.start()
                    deaths += 1
            return condition()

        eventually(look, timeout)
        return deaths

    yield until
    for lineage in lineages:
        lineage.close()


@pytest.mark.cluster
class TestKillers:
    @pytest.mark.parametrize(
        ("flow", "more"),
        [(flows.kills_in_activity, ()), (flows.kills_in_activity, (0.2,)), (flows.kills_in_code, ())],
        ids=["activity", "slow activity", "code"],
    )
    def test_one_killer_among_fifty_innocents_is_given_up_and_they_complete(self, respawn, tmp_path, flow, more):
        killer = continuum.start(flow, str(tmp_path / "never"), *more, priority=1)
        innocents = [continuum.start(flows.innocent, f"i{n}", n % 3 / 10) for n in range(50)]
        deaths = respawn(lambda: not unfinished())
        assert_given_up(killer, 3)
        assert deaths == 3
        assert {row(run).state for run in innocents} == {"completed"}

    def test_one_killer_among_hundreds_is_given_up_after_trials_in_groups(self, respawn, tmp_path):
        killer = continuum.start(flows.kills_in_activity, str(tmp_path / "never"), 0.05)
        innocents = [continuum.start(flows.innocent, f"i{n}", n % 5 / 10) for n in range(400)]
        began = time.monotonic()
        deaths = respawn(lambda: not unfinished(), "tests.settings_five_chances", workers=2)
        print(f"{deaths} deaths, over after {time.monotonic() - began:.1f} s")
        assert_given_up(killer, 5)
        assert deaths == 5
        assert {row(run).state for run in innocents} == {"completed"}
        assert Effect.objects.filter(key__startswith="i").values("key").distinct().count() == 400

    def test_a_retry_gives_it_as_many_chances_again_and_once_mended_it_completes(self, respawn, tmp_path):
        run = continuum.start(flows.mother, str(tmp_path / "stop"))
        for failures in (1, 2):
            respawn(lambda: not unfinished())
            assert row(run).error["type"] == "ChildError"
            [killer] = Run.objects.filter(parent_run_id=run.id)
            assert (killer.error["type"], killer.error["details"]) == ("PoisonRunError", {"recoveries": 3})
            assert types_of(killer).count("run_failed") == failures
            continuum.retry(run)
        (tmp_path / "stop").touch()
        respawn(lambda: not unfinished())
        assert continuum.result(run) == "tame"

    def test_innocents_with_activities_longer_than_any_life_complete_too(self, respawn, tmp_path):
        killer = continuum.start(flows.kills_in_activity, str(tmp_path / "never"), 0.3)
        innocents = [continuum.start(flows.innocent, f"i{n}", 2.0) for n in range(6)]
        respawn(lambda: not unfinished(), workers=2)
        assert_given_up(killer, 3)
        assert {row(run).state for run in innocents} == {"completed"}

    @pytest.mark.parametrize("flow", [flows.kills_when_told, flows.kills_after_a_nap])
    def test_one_that_sleeps_before_it_kills_is_found_as_well(self, respawn, tmp_path, flow):
        more = (1.0,) if flow is flows.kills_after_a_nap else ()
        killer = continuum.start(flow, str(tmp_path / "never"), *more)
        if not more:
            continuum.signal(killer, "go")
        deaths = respawn(lambda: not unfinished())
        assert_given_up(killer, 3)
        # What killed while its row said that it slept was not counted, once.
        assert deaths in (3, 4)

    def test_thousands_that_sleep_beside_a_killer_are_not_blamed(self, respawn, tmp_path):
        sleepers = continuum.start_many(workflows.collects, [1] * 300)
        respawn(lambda: Run.objects.filter(state="suspended").count() == 300)
        killer = continuum.start(flows.kills_in_code, str(tmp_path / "never"))
        respawn(lambda: row(killer).state == "failed")
        eventually(lambda: Run.objects.filter(state="suspended", recoveries=0).count() == 300, 30)
        for run in sleepers:
            continuum.signal(run, "item", 1)
        eventually(lambda: not unfinished(), 30)

    def test_a_run_that_gets_further_in_each_life_is_not_poison(self, respawn, tmp_path):
        run = continuum.start(flows.kills_at_every_step, str(tmp_path / "stop"), 5)
        assert respawn(lambda: not unfinished()) == 5
        assert row(run).state == "completed"
