"""Runs whose code is not the code they were started with: adopted by proof, pinned, parked, and how they go on."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

import continuum
from continuum import RunCancelledError, RunNotActiveError
from continuum.models import InboxMessage, Run, Worker, WorkflowVersion
from continuum.worker import claims
from continuum.worker.connections import connect
from continuum.worker.leases import Lease
from continuum.worker.loaded import Loaded, token
from continuum.worker.stranded import park_unknown
from continuum.worker.versions import as_loaded
from tests.app import family_workflows as family
from tests.versions import (
    NAME,
    deployed,
    extended,
    history_of,
    longer,
    other,
    parked,
    plain,
    row_of,
    step,
    unlike,
    version,
)
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = version(plain), version(extended)


def begun(definition=OLD, **options):
    """A run that waits for its signal, as this code left it."""
    with deployed(definition):
        run = continuum.start(definition, "o", **options)
        run_until_idle()
    assert row_of(run).state == "suspended"
    return run


def work_with(*definitions, **options):
    with deployed(*definitions):
        run_until_idle(**options)


def signalled(run):
    continuum.signal(run, "go", "now")
    return run


@pytest.fixture
def pinned(settings):
    settings.CONTINUUM = {"VERSION_POLICY": "pin"}


class TestAdoption:
    def test_a_run_whose_history_fits_goes_on_with_the_code_there_is(self):
        run = signalled(begun())
        work_with(NEW)
        assert continuum.result(run, timeout=0) == ["o1", "now", 1, "o2"]

    def test_an_event_and_the_row_say_which_code_has_it_now(self):
        run = signalled(begun())
        work_with(version(extended, 2))
        types = ["activity_completed", "version_adopted", "signal_received", "activity_completed", "run_completed"]
        assert history_of(run) == types
        [adopted] = [event for event in row_of(run).history() if event.type == "version_adopted"]
        assert adopted.data.items() >= {
            "from": OLD.version_hash, "to": NEW.version_hash, "from_version": 1, "to_version": 2,
        }.items()  # fmt: skip
        assert (row_of(run).version, row_of(run).version_hash) == (2, NEW.version_hash)

    def test_the_event_and_the_row_are_one_commit(self):
        run = signalled(begun())
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE FUNCTION refuse_version() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not this version' USING ERRCODE = '22000'; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER refuse_version BEFORE UPDATE ON continuum_runs FOR EACH ROW "
                "WHEN (NEW.version_hash <> OLD.version_hash) EXECUTE FUNCTION refuse_version()"
            )
        try:
            work_with(NEW)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DROP TRIGGER refuse_version ON continuum_runs")
                cursor.execute("DROP FUNCTION refuse_version")
        assert "version_adopted" not in history_of(run)
        assert row_of(run).version_hash == OLD.version_hash

    def test_a_run_that_has_not_begun_is_adopted_as_well(self):
        with deployed(OLD):
            run = continuum.start(OLD, "o")
        work_with(NEW)
        assert history_of(run) == ["version_adopted", "activity_completed"]
        assert row_of(run).version_hash == NEW.version_hash

    def test_it_happens_once_and_every_later_replay_walks_past(self):
        run = begun()
        continuum.signal(run, "unasked", 1)
        work_with(NEW)
        continuum.signal(run, "unasked", 2)
        work_with(NEW)
        signalled(run)
        work_with(NEW)
        assert continuum.result(run, timeout=0) == ["o1", "now", 1, "o2"]
        assert history_of(run).count("version_adopted") == 1

    def test_the_code_is_told_the_version_that_it_is_from_the_first_replay_on(self):
        second = version(plain, 2)
        at_once, later = begun(), begun()
        signalled(at_once)
        continuum.signal(later, "unasked")
        work_with(second)
        signalled(later)
        work_with(second)
        assert [continuum.result(run, timeout=0) for run in (at_once, later)] == [["o1", "now", 2]] * 2

    def test_a_run_of_this_very_code_costs_no_event(self):
        run = signalled(begun())
        work_with(OLD)
        assert "version_adopted" not in history_of(run)

    def test_a_run_cancelled_before_it_began_has_no_code_that_could_adopt_it(self):
        with deployed(OLD):
            run = continuum.start(OLD, "o")
        continuum.cancel(run, reason="enough")
        work_with(NEW)
        assert history_of(run) == ["cancel_requested", "run_cancelled"]
        assert row_of(run).version_hash == OLD.version_hash

    def test_an_adoption_is_no_proof_that_a_run_kills_no_worker(self):
        run = begun()
        Run.objects.filter(pk=run.pk).update(recoveries=1, next_wakeup_at=timezone.now())
        seen = []
        with deployed(NEW), connection.cursor() as cursor:
            cursor.execute("CREATE TABLE seen (recoveries integer)")
            cursor.execute(
                "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN INSERT INTO seen VALUES (NEW.recoveries); RETURN NEW; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER see BEFORE UPDATE OF version_hash ON continuum_runs FOR EACH ROW EXECUTE FUNCTION see()"
            )
            try:
                run_until_idle()
                cursor.execute("SELECT recoveries FROM seen")
                seen = cursor.fetchall()
            finally:
                cursor.execute("DROP TRIGGER see ON continuum_runs")
                cursor.execute("DROP FUNCTION see")
                cursor.execute("DROP TABLE seen")
        assert seen == [(1,)]

    def test_a_failed_run_is_retried_with_mended_code_and_adopted(self):
        async def fails(order: str):
            await step(order, 1)
            raise ValueError("a bug")

        async def mended(order: str):
            return await step(order, 1)

        with deployed(version(fails)):
            run = continuum.start(version(fails), "o")
            run_until_idle()
            assert row_of(run).state == "failed"
            continuum.retry(run)
        for _ in range(2):
            work_with(version(mended))
        assert continuum.result(run, timeout=0) == "o1"
        assert history_of(run)[2:] == ["run_retried", "run_resumed", "version_adopted", "run_completed"]

    def test_a_fork_of_an_adopted_run_is_of_its_last_version(self):
        run = begun()
        continuum.signal(run, "unasked")
        work_with(NEW)
        fork = continuum.fork(run, before="0:2")
        signalled(fork)
        work_with(NEW)
        assert continuum.result(fork, timeout=0) == ["o1", "now", 1, "o2"]
        assert row_of(fork).version_hash == NEW.version_hash
        assert history_of(fork).count("version_adopted") == 1


class TestNumbers:
    def test_a_run_goes_to_its_own_number_whatever_else_is_loaded(self):
        run = begun()
        Run.objects.filter(pk=run.pk).update(version_hash="changed since")
        signalled(run)
        work_with(version(plain, 1), version(longer, 2))
        assert continuum.result(run, timeout=0) == ["o1", "now", 1]

    def test_where_its_number_is_gone_it_goes_to_the_highest_if_its_history_fits(self):
        run = signalled(begun())
        work_with(version(longer, 2), version(extended, 3))
        assert continuum.result(run, timeout=0) == ["o1", "now", 3, "o2"]

    def test_a_run_that_has_not_begun_waits_for_its_number_or_a_higher_one(self):
        with deployed(version(extended, 2)):
            run = continuum.start(version(extended, 2), "o")
        work_with(version(plain, 1))
        row = row_of(run)
        assert (row.state, history_of(run)) == ("stuck_unknown_version", [])
        assert "was started for version 2" in row.error["message"]
        assert "the highest version that this worker has loaded is 1" in row.error["message"]
        work_with(version(extended, 3))
        assert (row_of(run).state, row_of(run).version) == ("suspended", 3)

    def test_a_run_that_has_begun_goes_back_to_a_lower_number_if_its_history_fits(self):
        run = signalled(begun(version(extended, 2)))
        work_with(version(plain, 1))
        assert continuum.result(run, timeout=0) == ["o1", "now", 1]


class TestDrift:
    def test_a_run_whose_history_does_not_fit_is_parked_and_says_why(self):
        run = signalled(begun())
        work_with(version(other))
        row = row_of(run)
        assert (row.state, row.owner_id, row.next_wakeup_at) == ("stuck_unknown_version", None, None)
        assert (row.error["type"], row.error["traceback"]) == ("ReplayDriftError", "")
        assert "argument 2 (number): 1 in the history, 8 in the code" in row.error["message"]
        details = row.error["details"]
        assert details["position"] == "0:1 (event 1)"
        assert details["history"] == '0:1 activity completed tests.versions.step with arguments ["o",1]'
        assert details["code"] == '0:1 activity tests.versions.step with arguments ["o",8]'
        assert details["version_hash"] == version(other).version_hash
        assert "tests/versions.py" in details["location"]
        assert details["location"].endswith(" in other")
        assert history_of(run) == ["activity_completed"]

    def test_it_keeps_its_signals_and_goes_on_when_code_that_fits_is_loaded(self):
        run = signalled(begun())
        work_with(version(other))
        continuum.signal(run, "go", "second")
        work_with(NEW)
        assert continuum.result(run, timeout=0) == ["o1", "now", 1, "o2"]

    def test_code_that_was_tried_is_not_tried_again(self):
        run = signalled(begun())
        work_with(version(other))
        work_with(version(unlike))
        row = row_of(run)
        tried = [token(1, version(fn).version_hash) for fn in (other, unlike)]
        assert row.tried_versions.split() == tried
        for fn in (other, unlike, other):
            work_with(version(fn))
        assert row_of(run).lease_token == row.lease_token

    def test_a_new_number_is_reason_to_try_the_same_code_again(self):
        run = signalled(begun())
        work_with(version(other))
        work_with(version(other, 2))
        assert row_of(run).tried_versions.split()[-1] == token(2, version(other).version_hash)

    def test_of_many_versions_tried_the_last_are_remembered(self):
        run = signalled(begun())
        Run.objects.filter(pk=run.pk).update(tried_versions=" ".join(f"1:{n:016}" for n in range(16)))
        work_with(version(other))
        tried = row_of(run).tried_versions.split()
        assert (len(tried), tried[0], tried[-1]) == (16, f"1:{1:016}", token(1, version(other).version_hash))

    def test_what_was_tried_is_forgotten_once_it_is_adopted(self):
        run = signalled(begun())
        work_with(version(other))
        work_with(NEW)
        assert row_of(run).tried_versions == ""

    def test_of_many_that_drift_alike_one_is_told_at_length(self, caplog, monkeypatch):
        monkeypatch.setattr("continuum.worker.setbacks._reported", set())
        with deployed(OLD):
            runs = continuum.start_many(OLD, ["o", "p", "q"])
            run_until_idle()
        for run in runs:
            signalled(run)
        work_with(version(unlike))
        told = [record.getMessage() for record in caplog.records if "cannot go on" in record.getMessage()]
        assert sorted(len(text.splitlines()) > 5 for text in told) == [False, False, True]
        assert {text.split()[1] for text in told} == {str(run.id) for run in runs}

    def test_other_code_that_does_not_let_go_in_the_replay_is_no_reason_to_fail(self, settings):
        async def spins(order: str):
            while order:
                pass
            return await step(order, 1)

        settings.CONTINUUM = {"DEADLOCK_TIMEOUT": 0.3, "MAX_RECOVERIES": 1}
        run = signalled(begun())
        work_with(version(spins))
        row = row_of(run)
        assert (row.state, row.error["type"]) == ("stuck_unknown_version", "WorkflowDeadlockError")
        assert "in spins" in row.error["traceback"]
        assert row.tried_versions == token(1, version(spins).version_hash)
        work_with(OLD)
        assert row_of(run).state == "completed"

    def test_cancelled_it_ends_without_its_code_and_tells_so(self):
        run = signalled(begun())
        work_with(version(other))
        continuum.cancel(run, reason="enough")
        work_with(version(other))
        with pytest.raises(RunCancelledError, match="enough; the run's code could not be replayed"):
            continuum.result(run, timeout=0)


class TestTimeLimitOfAParkedRun:
    def drifted(self):
        run = begun(timeout=600)
        continuum.signal(run, "unasked")
        work_with(version(other))
        row = row_of(run)
        assert (row.state, row.next_wakeup_at) == ("stuck_unknown_version", row.deadline_at)
        return run

    def over(self, run):
        past = timezone.now() - timedelta(seconds=1)
        Run.objects.filter(pk=run.pk).update(deadline_at=past, next_wakeup_at=past)

    def test_does_not_bring_it_back_before_it_is_over(self):
        run = self.drifted()
        before = row_of(run).lease_token
        work_with(version(other))
        assert row_of(run).lease_token == before

    def test_ends_it_without_its_code(self):
        run = self.drifted()
        self.over(run)
        work_with(version(other))
        with pytest.raises(RunCancelledError, match="the run's timeout is over; the run's code could not be replayed"):
            continuum.result(run, timeout=0)
        assert history_of(run) == ["activity_completed", "cancel_requested", "run_cancelled"]

    def test_is_told_to_its_code_if_that_fits_by_then(self):
        run = self.drifted()
        self.over(run)
        work_with(OLD)
        with pytest.raises(RunCancelledError, match=r"^(?!.*replayed).*timeout is over"):
            continuum.result(run, timeout=0)

    def test_does_not_cut_short_what_was_told_to_clean_up(self):
        async def cleans(order: str):
            try:
                await continuum.wait_signal("go")
            finally:
                await continuum.wait_signal("cleaned")

        run = begun(version(cleans), timeout=600)
        continuum.signal(run, "unasked")
        continuum.cancel(run, reason="enough")
        work_with(version(cleans))
        Run.objects.filter(pk=run.pk).update(deadline_at=timezone.now() - timedelta(seconds=1))
        continuum.signal(run, "cleaned")

        async def ended_early(order: str):
            return None

        work_with(version(ended_early))
        row = row_of(run)
        assert (row.state, row.next_wakeup_at) == ("stuck_unknown_version", None)
        work_with(version(cleans))
        assert row_of(run).state == "cancelled"


class TestPin:
    @pytest.mark.usefixtures("pinned")
    def test_other_code_leaves_a_run_alone_and_its_own_takes_it(self):
        run = signalled(begun())
        before = row_of(run).lease_token
        work_with(NEW)
        assert (row_of(run).state, row_of(run).lease_token) == ("suspended", before)
        work_with(OLD)
        assert continuum.result(run, timeout=0) == ["o1", "now", 1]

    @pytest.mark.usefixtures("pinned")
    def test_so_it_does_with_one_that_has_not_begun_and_one_that_is_suspected(self):
        with deployed(OLD):
            run, suspect = continuum.start(OLD, "o"), continuum.start(OLD, "o")
        Run.objects.filter(pk=suspect.pk).update(recoveries=3)
        work_with(NEW)
        assert [(row_of(each).state, row_of(each).lease_token) for each in (run, suspect)] == [("pending", 0)] * 2

    @pytest.mark.usefixtures("pinned")
    def test_the_same_code_under_another_number_is_the_same_code(self):
        run = signalled(begun())
        work_with(version(plain, 2))
        assert continuum.result(run, timeout=0) == ["o1", "now", 1]
        assert "version_adopted" not in history_of(run)

    @pytest.mark.usefixtures("pinned")
    def test_it_is_parked_with_a_plain_reason_when_nobody_has_its_code(self):
        run = signalled(begun())
        workers_with(NEW)
        assert park(pinned=True) == {NAME: 1}
        row = row_of(run)
        assert row.state == "stuck_unknown_version"
        assert row.error["message"].startswith(
            f"no live worker has loaded the code of this run, version 1 ({OLD.version_hash}) of workflow {NAME}, and "
            'VERSION_POLICY is "pin"; last seen 20'
        )
        work_with(NEW)
        assert row_of(run).state == "stuck_unknown_version"
        work_with(OLD)
        assert continuum.result(run, timeout=0) == ["o1", "now", 1]

    @pytest.mark.usefixtures("pinned")
    def test_a_parked_run_can_be_cancelled_by_a_worker_with_other_code(self):
        run = signalled(begun())
        workers_with(NEW)
        park(pinned=True)
        continuum.cancel(run, reason="enough")
        work_with(NEW)
        with pytest.raises(RunCancelledError, match=r'enough; .*VERSION_POLICY is "pin"'):
            continuum.result(run, timeout=0)


# What is known of the workers


def workers_with(*definitions, gone=True):
    """All workers there were are gone, for long; and there is one that has loaded these."""
    if gone:
        past = timezone.now() - timedelta(hours=1)
        Worker.objects.update(state="dead", stopped_at=past, expires_at=past)
        WorkflowVersion.objects.update(last_seen_at=past)

    async def register():
        async with await connect("default", application_name="test") as opened:
            return await Lease(30.0).register(opened, name="another", workflows=as_loaded(definitions))

    return asyncio.run(register())


def park(*, pinned=False, grace=0.0):
    async def do():
        async with await connect("default", application_name="test") as opened:
            return dict(await park_unknown(opened, grace=grace, pinned=pinned))

    return asyncio.run(do())


def claim(statement, worker, have, limit=10):
    async def do():
        async with await connect("default", application_name="test") as opened:
            return [run.identity.id for run in await getattr(claims, statement)(opened, worker, have, limit)]

    return asyncio.run(do())


class TestWorkers:
    def test_say_what_they_have_loaded(self):
        both = [OLD, version(extended, 2)]
        with deployed(*both, version(plain, name="tests.versions.second")), worker():
            row = Worker.objects.get()
            assert row.workflows == {
                NAME: {OLD.version_hash: 1, NEW.version_hash: 2},
                "tests.versions.second": {OLD.version_hash: 1},
            }

    def test_keep_saying_so(self, monkeypatch):
        monkeypatch.setattr("continuum.worker.maintenance.PRUNE_EVERY", 0.05)
        past = timezone.now() - timedelta(days=3)
        with deployed(OLD), worker():
            WorkflowVersion.objects.create(workflow=NAME, version=1, version_hash="another", last_seen_at=past)
            WorkflowVersion.objects.update(last_seen_at=past)
            eventually(lambda: WorkflowVersion.objects.get(version_hash=OLD.version_hash).last_seen_at > past)
            assert WorkflowVersion.objects.get(version_hash="another").last_seen_at == past

    def test_that_run_no_workflows_have_loaded_none(self):
        with worker(queues=("mail",)):
            assert Worker.objects.get().workflows == {}


class TestUnknownWorkflows:
    @pytest.fixture
    def waiting(self):
        """A run that nobody has the code for, and whose last worker has been gone for long."""
        run = begun()
        workers_with()
        signalled(run)
        InboxMessage.objects.update(created_at=timezone.now() - timedelta(seconds=60))
        return run

    def test_a_run_is_parked_once_no_live_worker_has_had_its_workflow_for_a_while(self, waiting):
        assert park(grace=30) == {NAME: 1}
        row = row_of(waiting)
        assert (row.state, row.next_wakeup_at, row.waiting_on) == ("stuck_unknown_version", None, [])
        assert row.error["type"] == "UnknownWorkflowError"
        assert row.error["message"].startswith(f"no live worker has loaded workflow {NAME}; last seen 20")
        assert row.error["details"]["last_seen"]

    def test_one_that_is_due_is_too(self):
        run = begun()
        workers_with()
        Run.objects.filter(pk=run.pk).update(next_wakeup_at=timezone.now() - timedelta(seconds=60))
        assert park(grace=30) == {NAME: 1}
        assert row_of(run).state == "stuck_unknown_version"

    def test_nobody_ever_had_it(self):
        run = continuum.start(family.begets, "wait")
        WorkflowVersion.objects.all().delete()
        workers_with()
        park()
        assert "; last seen never." in row_of(run).error["message"]

    @pytest.mark.parametrize("what", ["asleep", "fresh", "owned", "ended", "starts later"])
    def test_others_are_left_alone(self, waiting, what):
        later = timezone.now() + timedelta(hours=1)
        changes = {
            "asleep": {"next_wakeup_at": later},
            "fresh": {"next_wakeup_at": timezone.now()},
            "owned": {"owner_id": 1, "next_wakeup_at": None},
            "ended": {"state": "completed"},
            "starts later": {"state": "pending", "next_wakeup_at": later},
        }[what]
        if what in ("asleep", "fresh"):
            InboxMessage.objects.all().delete()
        Run.objects.filter(pk=waiting.pk).update(**changes)
        assert park(grace=30) == {}

    @pytest.mark.parametrize(
        ("state", "since", "parked"),
        [("alive", 0, 0), ("draining", 0, 0), ("dead", 5, 0), ("dead", 50, 1)],
    )
    def test_a_worker_counts_while_it_lives_and_for_a_while_after(self, waiting, state, since, parked):
        Worker.objects.filter(pk=workers_with(OLD)).update(
            state=state, stopped_at=timezone.now() - timedelta(seconds=since) if state == "dead" else None
        )
        assert sum(park(grace=30).values()) == parked

    def test_a_worker_that_does_not_say_what_it_has_may_have_anything(self, waiting):
        Worker.objects.filter(pk=workers_with()).update(workflows=None)
        assert park(grace=30) == {}

    def test_more_of_them_than_a_batch_are_parked(self, waiting, monkeypatch):
        monkeypatch.setattr("continuum.worker.stranded.BATCH", 2)
        with deployed(OLD):
            continuum.start_many(OLD, ["a", "b", "c", "d", "e"], priority=1)
        assert park() == {NAME: 6}

    def test_a_worker_parks_them_in_its_rounds(self, waiting, settings, monkeypatch):
        settings.CONTINUUM = {"LEASE_TTL": 1.5}
        monkeypatch.setattr("continuum.worker.maintenance.STRANDED_EVERY", 0.05)
        with deployed(), worker():
            eventually(lambda: row_of(waiting).state == "stuck_unknown_version", 30)

    def test_it_goes_on_by_itself_when_a_worker_comes_that_has_it(self, waiting):
        park()
        with deployed(), worker(), deployed(NEW), worker():
            assert continuum.result(waiting, timeout=15) == ["o1", "now", 1, "o2"]

    def test_it_takes_signals_meanwhile(self, waiting):
        park()
        assert continuum.signal(waiting, "go", "again")
        assert InboxMessage.objects.filter(run_id=waiting.pk, consumed_at=None).count() == 2

    def test_any_worker_ends_it_when_it_is_cancelled(self, waiting):
        park()
        continuum.cancel(waiting, reason="enough")
        with deployed(version(plain, name="tests.versions.unrelated")):
            run_until_idle()
        with pytest.raises(RunCancelledError, match=f"enough; .*no live worker has loaded workflow {NAME}"):
            continuum.result(waiting, timeout=0)
        assert history_of(waiting) == ["activity_completed", "cancel_requested", "run_cancelled"]
        with pytest.raises(RunNotActiveError):
            continuum.cancel(waiting)

    def test_or_when_its_time_is_over(self):
        run = begun(timeout=600)
        workers_with()
        past = timezone.now() - timedelta(seconds=60)
        Run.objects.filter(pk=run.pk).update(next_wakeup_at=past, deadline_at=past)
        park()
        assert row_of(run).next_wakeup_at == past
        with deployed(version(plain, name="tests.versions.unrelated")):
            run_until_idle()
        with pytest.raises(RunCancelledError, match=r"timeout is over; .*no live worker has loaded"):
            continuum.result(run, timeout=0)

    def test_but_not_while_a_worker_that_has_it_lives(self, waiting):
        park()
        continuum.cancel(waiting)
        me, _ = workers_with(version(plain, name="tests.versions.unrelated")), workers_with(OLD, gone=False)
        assert claim("claim_mail", me, Loaded(["tests.versions.unrelated"])) == []

    def test_one_that_never_began_is_cancelled_like_any_other(self):
        with deployed(OLD):
            run = continuum.start(OLD, "o")
        workers_with()
        park()
        continuum.cancel(run, reason="enough")
        with deployed(version(plain, name="tests.versions.unrelated")):
            run_until_idle()
        assert (row_of(run).state, row_of(run).error["message"]) == ("cancelled", "enough")

    def test_its_parent_and_its_children_hear_of_it(self):
        run = continuum.start(family.begets, "wait")
        run_until_idle()
        [child] = Run.objects.filter(parent_run_id=run.pk)
        Run.objects.filter(pk=child.pk).update(workflow="tests.versions.lost")
        grandchild = Run.objects.create(
            workflow=family.begets.name,
            version_hash=family.begets.version_hash,
            input=["wait"],
            parent_run_id=child.pk,
            parent_command_id="0:1",
            next_wakeup_at=timezone.now(),
        )
        continuum.signal(child, "go", 1)
        workers_with()
        park()
        assert row_of(child).state == "stuck_unknown_version"
        continuum.cancel(child, reason="enough")
        Run.objects.filter(pk=grandchild.pk, state="stuck_unknown_version").update(
            state="pending", next_wakeup_at=timezone.now()
        )
        run_until_idle()
        assert (row_of(child).state, row_of(grandchild).state) == ("cancelled", "cancelled")
        assert continuum.result(run, timeout=0)["state"] == "cancelled"


class TestTwoVersionsAtOnce:
    """Claims, statement by statement."""

    @pytest.fixture
    def fleet(self, monkeypatch):
        """A worker with the old code and one with the new; and what each has."""
        monkeypatch.setattr(claims, "PATIENCE", 600.0)
        old, new = workers_with(OLD), workers_with(NEW, gone=False)
        return (old, Loaded.of([OLD])), (new, Loaded.of([NEW]))

    def due(self, run, *, since=0):
        Run.objects.filter(pk=run.pk).update(next_wakeup_at=timezone.now() - timedelta(seconds=since))

    def test_a_run_is_left_to_the_worker_that_has_its_code(self, fleet):
        (old, new), run = fleet, begun_before(fleet)
        self.due(run)
        assert claim("claim_due", *new) == []
        assert claim("claim_due", *old) == [run.pk]

    def test_not_for_ever(self, fleet):
        (_, new), run = fleet, begun_before(fleet)
        self.due(run, since=claims.PATIENCE + 1)
        assert claim("claim_due", *new) == [run.pk]

    @pytest.mark.parametrize("change", [{"state": "draining"}, {"state": "dead"}, {"expires_at": timezone.now()}])
    def test_nor_once_that_worker_takes_nothing_any_more(self, fleet, change):
        (old, new), run = fleet, begun_before(fleet)
        self.due(run)
        Worker.objects.filter(pk=old[0]).update(**change)
        assert claim("claim_due", *new) == [run.pk]

    def test_so_with_mail(self, fleet):
        (_, new), run = fleet, begun_before(fleet)
        signalled(run)
        assert claim("claim_mail", *new) == []
        InboxMessage.objects.update(created_at=timezone.now() - timedelta(seconds=claims.PATIENCE + 1))
        assert claim("claim_mail", *new) == [run.pk]

    def test_a_run_that_was_parked_goes_to_code_that_has_not_been_tried(self, fleet):
        old, new = fleet
        parked(version_hash=OLD.version_hash, tried=token(1, OLD.version_hash))
        assert claim("claim_parked", *old) == []
        assert len(claim("claim_parked", *new)) == 1

    @pytest.mark.parametrize(
        ("number", "tried", "taken"),
        [
            (1, [(1, "plain")], False),
            (1, [(2, "extended")], True),
            (2, [(2, "extended")], False),
            (2, [(1, "plain")], True),
            (7, [(1, "plain")], True),
            (7, [(1, "plain"), (2, "extended")], False),
        ],
    )
    def test_what_counts_is_the_version_it_would_get(self, fleet, number, tried, taken):
        have = {"plain": OLD, "extended": version(extended, 2)}
        (me, _), _ = fleet
        parked(number=number, tried=" ".join(token(n, have[fn].version_hash) for n, fn in tried))
        assert bool(claim("claim_parked", me, Loaded.of(have.values()))) is taken

    def test_pinned_only_the_very_code_counts(self, fleet):
        (me, _), _ = fleet
        parked(version_hash=NEW.version_hash)
        assert claim("claim_parked", me, Loaded.of([OLD], pinned=True)) == []
        parked(version_hash=OLD.version_hash)
        assert len(claim("claim_parked", me, Loaded.of([OLD], pinned=True))) == 1

    def test_what_is_not_repeatable_is_tried_once_more_by_each_worker_that_comes_later(self, fleet):
        (old, have), (new, _) = fleet
        assert old < new
        parked(tried=f"{token(1, OLD.version_hash)}<{old}")
        assert claim("claim_parked", old, have) == []
        assert len(claim("claim_parked", new, have)) == 1

    def test_other_workflows_are_not_touched(self, fleet):
        (me, have), _ = fleet
        parked(workflow="tests.versions.lost", count=3)
        assert claim("claim_parked", me, have) == []

    def test_a_thousand_of_several_kinds_are_claimed_in_batches(self, fleet):
        (me, have), _ = fleet
        for number in range(4):
            parked(version_hash=f"h{number}", tried=f"1:{number}", count=10)
        taken = [len(claim("claim_parked", me, have, 15)) for _ in range(4)]
        assert taken == [15, 15, 10, 0]


def begun_before(fleet):
    """A run that the old code has left, while both workers live."""
    with deployed(OLD):
        run = continuum.start(OLD, "o")
        run_until_idle()
    return run


def test_what_a_parked_run_says_is_json_for_programs_and_text_for_people():
    run = signalled(begun())
    work_with(version(other))
    with connection.cursor() as cursor:
        cursor.execute("SELECT error ->> 'message', error -> 'details' FROM continuum_runs WHERE id = %s", [run.id])
        message, details = cursor.fetchone()
    details = json.loads(details) if isinstance(details, str) else details
    assert message.splitlines()[0].startswith(f"run {run.id} of {NAME} cannot go on")
    assert [row[0] for row in details["around"]] == [1]
    assert set(details) >= {"position", "history", "code", "location", "difference", "command_id", "event", "version"}
