"""The audit: what it finds in the tables, set beside the code that is loaded."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection, transaction

from continuum import patched, sleep, workflow
from continuum.audit import audit
from continuum.audit.snapshot import snapshot
from continuum.core.registry import registry
from continuum.models import ActivityTask, Run, WorkflowVersion
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory

pytestmark = pytest.mark.django_db

OLD = "0123456789abcdef"
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def only_the_tests_own_workflows(monkeypatch):
    monkeypatch.setattr(registry, "_workflows", {})


@pytest.fixture
def sell():
    """A workflow with a patch."""

    @workflow(name="shop.sell")
    async def sell(order: str) -> None:
        if patched("tax"):
            await sleep(2)
        await sleep(1)

    return sell


def make_run(definition=None, *, version_hash=None, begun=True, **fields):
    fields = {"workflow": "shop.sell", "state": "suspended" if begun else "pending"} | fields
    return RunFactory(
        version_hash=version_hash or definition.version_hash,
        claimed_at=datetime.now(UTC) if begun else None,
        **fields,
    )


def register(workflow="shop.sell", version_hash=OLD, *names, version=1, at=None):
    row = WorkflowVersion.objects.create(
        workflow=workflow,
        version=version,
        version_hash=version_hash,
        patch_sites=[{"name": name, "file": "shop/workflows.py", "line": 7} for name in names],
    )
    if at is not None:
        WorkflowVersion.objects.filter(pk=row.pk).update(first_seen_at=at)


def worker_with(*definitions, **fields):
    """A live worker that has these loaded: definitions, or name, hash and version."""
    loaded = {}
    for each in definitions:
        name, version_hash, version = each if isinstance(each, tuple) else (each.name, each.version_hash, each.version)
        loaded.setdefault(name, {})[version_hash] = version
    return WorkerFactory(**{"workflows": loaded} | fields)


def site_of(found, name="tax"):
    [site] = [site for each in found.workflows for site in each.patch_sites if site.name == name]
    return site


# Workflows


def test_a_loaded_workflow_comes_with_the_active_runs_that_are_recorded_with_it(sell):
    for _ in range(2):
        make_run(sell)
    make_run(sell, begun=False)
    make_run(sell, state="completed")
    make_run(version_hash=OLD)
    [found] = audit().workflows
    assert (found.workflow, found.version, found.version_hash) == ("shop.sell", 1, sell.version_hash)
    assert found.active_runs == 3


@pytest.mark.parametrize(
    ("state", "active"),
    [
        ("pending", 1),
        ("running", 1),
        ("suspended", 1),
        ("stuck_unknown_version", 1),
        ("completed", 0),
        ("failed", 0),
        ("cancelled", 0),
    ],
)
def test_active_is_what_can_still_go_on(sell, state, active):
    make_run(sell, state=state)
    found = audit()
    assert (found.active_runs, found.workflows[0].active_runs) == (active, active)


def test_runs_of_every_namespace_count(sell):
    for namespace in ("default", "a", "z", "billing"):
        make_run(sell, namespace=namespace)
    assert audit().active_runs == 4


def test_versions_that_are_loaded_side_by_side_are_told_apart(sell):
    @workflow(name="shop.sell", version=2)
    async def second(order: str) -> None:
        await sleep(3)

    make_run(second, version=2)
    assert [(each.version, each.active_runs) for each in audit().workflows] == [(1, 0), (2, 1)]


def test_versions_of_the_same_source_are_told_apart_by_their_numbers():
    async def flow(order: str) -> None:
        await sleep(3)

    first, second = workflow(name="shop.sell")(flow), workflow(name="shop.sell", version=2)(flow)
    assert first.version_hash == second.version_hash
    make_run(second, version=2)
    assert [(each.version, each.active_runs) for each in audit().workflows] == [(1, 0), (2, 1)]


# Patches


def test_a_site_has_its_name_and_its_place_in_the_project(sell):
    site = site_of(audit())
    line = Path(__file__).read_text().split('patched("tax")')[0].count("\n") + 1
    assert (site.name, site.file, site.line) == ("tax", "tests/test_audit.py", line)


def test_a_site_is_still_in_use_while_a_run_may_need_the_old_branch(sell):
    register()
    make_run(version_hash=OLD)
    site = site_of(audit())
    assert (site.verdict, site.in_flight_pre_patch) == ("still-in-use", 1)


def test_a_site_is_safe_to_remove_when_no_run_may(sell):
    register()
    make_run(sell)
    make_run(version_hash=OLD, begun=False)
    make_run(version_hash=OLD, state="completed")
    worker_with(sell)
    site = site_of(audit())
    assert (site.verdict, site.in_flight_pre_patch) == ("safe-to-remove", 0)


def test_a_decision_in_the_history_tells_that_a_run_is_not_in_the_old_branch(sell):
    run = make_run(version_hash=OLD)
    HistoryEventFactory(run=run, type="patched", name="tax", command_id="patch:tax")
    other = make_run(version_hash=OLD)
    HistoryEventFactory(run=other, type="patched", name="discount", command_id="patch:discount")
    assert site_of(audit()).in_flight_pre_patch == 1


def test_an_adopted_run_counts_by_all_the_code_it_was_run_by(sell):
    register(version_hash=OLD)
    register("shop.sell", "with", "tax")
    for before in (OLD, "with"):
        run = make_run(sell)
        HistoryEventFactory(run=run, type="version_adopted", data={"from": before, "to": sell.version_hash})
    assert site_of(audit()).in_flight_pre_patch == 1


def test_a_fork_counts_as_nobody_knows_who_made_the_history_it_shares(sell):
    make_run(sell, forked_from_run_id=uuid4())
    assert site_of(audit()).in_flight_pre_patch == 1


def test_code_that_asks_at_fewer_places_does_not_have_the_site():
    @workflow(name="shop.sell")
    async def sell(order: str) -> None:
        if patched("tax"):
            await sleep(2)
        if patched("tax"):
            await sleep(1)

    register("shop.sell", OLD, "tax")
    make_run(version_hash=OLD)
    assert {site.in_flight_pre_patch for site in audit().workflows[0].patch_sites} == {1}


def test_a_live_worker_without_the_site_keeps_it_in_use(sell):
    register()
    old = worker_with(("shop.sell", OLD, 1))
    site = site_of(audit())
    assert (site.verdict, site.in_flight_pre_patch) == ("still-in-use", 0)

    old.state = "dead"
    old.save()
    assert site_of(audit()).verdict == "safe-to-remove"


@pytest.mark.parametrize(
    "fields",
    [{"state": "dead"}, {"expires_at": LONG_AGO}, {"queues": ["mail"]}],
    ids=["dead", "its lease is over", "serves no workflows"],
)
def test_a_worker_that_runs_no_workflows_now_makes_no_difference(sell, fields):
    worker_with(("shop.sell", OLD, 1), **fields)
    found = audit()
    assert site_of(found).verdict == "safe-to-remove"
    assert found.workflow_registration.live_workers == 0


@pytest.mark.parametrize("fields", [{"state": "draining"}, {"queues": ["mail", "default"]}])
def test_a_worker_that_drains_or_serves_the_default_queue_among_others_runs_workflows(sell, fields):
    worker_with(("shop.sell", OLD, 1), **fields)
    assert site_of(audit()).verdict == "still-in-use"


def test_a_live_worker_with_other_code_that_has_the_site_does_not(sell):
    register("shop.sell", "with", "tax")
    worker_with(("shop.sell", "with", 1))
    assert site_of(audit()).verdict == "safe-to-remove"


def test_a_live_worker_that_does_not_tell_what_it_has_keeps_every_site_in_use(sell):
    worker_with(workflows=None, name="elder")
    found = audit()
    assert site_of(found).verdict == "still-in-use"
    assert found.workflow_registration.silent_workers == ("elder",)


def test_a_worker_is_judged_by_the_version_it_would_run_such_a_run_with(sell):
    register("shop.sell", "with", "tax", version=2)
    worker = worker_with(("shop.sell", OLD, 1), ("shop.sell", "with", 2))
    assert site_of(audit()).verdict == "still-in-use"  # version 1, as the site's

    worker.workflows = {"shop.sell": {OLD: 2, "with": 3}}  # it lacks version 1: then the highest
    worker.save()
    assert site_of(audit()).verdict == "safe-to-remove"

    worker.workflows = {"shop.sell": {OLD: 3, "with": 2}}
    worker.save()
    assert site_of(audit()).verdict == "still-in-use"


def test_runs_of_a_version_that_is_loaded_beside_it_are_not_the_sites_business(sell):
    @workflow(name="shop.sell", version=2)
    async def second(order: str) -> None:
        await sleep(3)

    make_run(version_hash=OLD, version=2)
    assert site_of(audit()).in_flight_pre_patch == 0
    make_run(version_hash=OLD, version=1)
    assert site_of(audit()).in_flight_pre_patch == 1


def test_a_site_was_first_seen_with_the_first_version_that_had_a_patch_of_its_name(sell):
    register("shop.sell", OLD, at=LONG_AGO - timedelta(days=9))
    register("shop.sell", "b", "discount", "tax", at=LONG_AGO)
    register("shop.sell", "c", "tax", at=LONG_AGO + timedelta(days=9))
    register("shop.other", "d", "tax", at=LONG_AGO - timedelta(days=5))
    assert site_of(audit()).first_seen_at == LONG_AGO


def test_a_site_that_no_worker_has_registered_was_never_seen(sell):
    assert site_of(audit()).first_seen_at is None


def test_a_site_whose_name_is_computed_cannot_be_judged():
    change = "".join(["t", "ax"])

    @workflow(name="shop.sell")
    async def sell(order: str) -> None:
        if patched(change + "!"):
            await sleep(2)

    site = site_of(audit(), None)
    assert (site.verdict, site.in_flight_pre_patch) == ("still-in-use", 0)
    make_run(sell)
    assert site_of(audit(), None).in_flight_pre_patch == 1


# Registration


def test_registration_tells_what_nobody_has_registered_what_lives_elsewhere_and_what_lives_nowhere(sell):
    @workflow(name="shop.ship")
    async def ship() -> None: ...

    register("shop.ship", ship.version_hash)
    worker_with(("shop.sell", OLD, 1), ("shop.bill", "b", 3))
    worker_with(("shop.bill", "b", 3))
    found = audit().workflow_registration

    def told(versions):
        return [(each.workflow, each.version, each.version_hash, each.workers) for each in versions]

    assert told(found.not_registered) == [("shop.sell", 1, sell.version_hash, 0)]
    assert told(found.not_loaded_here) == [("shop.bill", 3, "b", 2), ("shop.sell", 1, OLD, 1)]
    assert told(found.on_no_live_worker) == [("shop.ship", 1, ship.version_hash, 0)]
    assert (found.live_workers, found.silent_workers) == (2, ())


# Unloaded versions


def test_runs_of_other_code_of_a_loaded_workflow_can_be_adopted(sell):
    runs = [make_run(version_hash=OLD, state=state) for state in ("running", "suspended") for _ in range(4)]
    worker_with(("shop.sell", OLD, 1))
    [found] = audit().unloaded_versions
    assert (found.workflow, found.version, found.version_hash, found.active_runs) == ("shop.sell", 1, OLD, 8)
    assert (found.workflow_loaded, found.adoptable, found.workers) == (True, True, 1)
    assert len(found.examples) == 3
    assert set(found.examples) <= {run.id for run in runs}


def test_runs_of_a_workflow_that_is_not_loaded_cannot(sell):
    make_run(version_hash=OLD, workflow="shop.gone")
    [found] = audit().unloaded_versions
    assert (found.workflow_loaded, found.adoptable) == (False, False)


def test_pinned_runs_cannot(sell, settings):
    settings.CONTINUUM = {"VERSION_POLICY": "pin"}
    make_run(version_hash=OLD)
    [found] = audit().unloaded_versions
    assert (found.workflow_loaded, found.adoptable) == (True, False)


def test_runs_that_were_started_for_a_higher_version_and_have_not_begun_cannot(sell):
    make_run(version_hash=OLD, version=2, begun=False)
    assert [each.adoptable for each in audit().unloaded_versions] == [False]
    Run.objects.update(claimed_at=LONG_AGO, state="suspended")
    assert [each.adoptable for each in audit().unloaded_versions] == [True]


def test_ended_runs_need_no_code(sell):
    make_run(version_hash=OLD, workflow="shop.gone", state="failed")
    assert audit().unloaded_versions == ()


# Stuck runs, claims


def test_stuck_runs_are_listed_with_the_reason_oldest_first_up_to_the_limit(sell):
    error = {"type": "ReplayDriftError", "message": "they do not fit", "traceback": "", "details": None}
    runs = [
        make_run(version_hash=OLD, state="stuck_unknown_version", error=error, namespace=namespace)
        for namespace in ("z", "a", "default")
    ]
    make_run(version_hash=OLD, workflow="shop.gone", state="stuck_unknown_version")
    found = audit(limit=3)
    assert [run.run_id for run in found.stuck_unknown_version_runs] == [run.id for run in runs]
    assert {run.reason for run in found.stuck_unknown_version_runs} == {"they do not fit"}
    assert found.stuck_runs == 4
    last = audit().stuck_unknown_version_runs[-1]
    assert (last.workflow, last.workflow_loaded, last.reason) == ("shop.gone", False, "")


def claim(owner, **fields):
    fields = {"state": "running", "claimed_at": LONG_AGO, "command_id": "0:1"} | fields
    return ActivityTask.objects.create(
        run_id=uuid4(), activity="mail.send", queue="mail", args=[], owner_id=owner and owner.id, attempt=2, **fields
    )


def test_an_activity_with_a_worker_that_is_gone_is_an_expired_claim():
    dead = WorkerFactory(state="dead", name="dead", stopped_at=LONG_AGO)
    late = WorkerFactory(name="late", expires_at=LONG_AGO)
    tasks = [claim(dead), claim(late, claimed_at=LONG_AGO + timedelta(1))]
    unknown = claim(dead, claimed_at=LONG_AGO + timedelta(2))
    ActivityTask.objects.filter(run_id=unknown.run_id).update(owner_id=1_000_000)
    found = audit()
    assert [each.run_id for each in found.expired_activity_claims] == [*(t.run_id for t in tasks), unknown.run_id]
    assert [(each.worker, each.since) for each in found.expired_activity_claims] == [
        ("dead", LONG_AGO),
        ("late", LONG_AGO),
        ("worker 1000000", None),
    ]
    first = found.expired_activity_claims[0]
    assert (first.activity, first.queue, first.attempt, first.command_id) == ("mail.send", "mail", 2, "0:1")
    assert (len(audit(limit=2).expired_activity_claims), audit(limit=2).expired_claims) == (2, 3)


def test_other_tasks_are_not():
    claim(WorkerFactory())
    claim(None, state="ready")
    claim(WorkerFactory(state="dead"), state="local")
    found = audit()
    assert (found.expired_activity_claims, found.expired_claims) == ((), 0)


# What is strict


def failures_of(found):
    return "\n".join(found.failures())


def test_nothing_is_wrong_with_an_empty_database_and_code_without_patches():
    @workflow(name="shop.ship")
    async def ship() -> None: ...

    assert audit().failures() == []


def test_code_of_the_past_that_can_be_adopted_and_sites_in_use_are_no_failures(sell):
    make_run(version_hash=OLD)
    assert audit().failures() == []


def test_a_site_that_may_go_is_a_failure(sell):
    assert re.search(r"patched\('tax'\) at tests/test_audit.py:\d+ of shop.sell is safe", failures_of(audit()))


def test_runs_of_a_workflow_that_is_not_loaded_are_a_failure():
    make_run(version_hash=OLD, workflow="shop.gone")
    make_run(version_hash=OLD, workflow="shop.gone")
    assert failures_of(audit()) == (
        f"2 active runs of shop.gone version 1 ({OLD}) cannot be adopted: the workflow is not loaded"
    )


def test_pinned_runs_of_other_code_are_a_failure(sell, settings):
    settings.CONTINUUM = {"VERSION_POLICY": "pin"}
    make_run(version_hash=OLD)
    assert f'1 active run of shop.sell version 1 ({OLD}) cannot be adopted: VERSION_POLICY is "pin"' in failures_of(
        audit()
    )


def test_runs_for_a_higher_version_are_a_failure(sell):
    make_run(version_hash=OLD, version=2, begun=False)
    assert "cannot be adopted: 1 have not begun, and version 1 is the highest" in failures_of(audit())


def test_stuck_runs_are_a_failure(sell):
    make_run(sell, state="stuck_unknown_version", version_hash=OLD)
    assert "1 run stuck" in failures_of(audit())


# Reading only


def test_nothing_can_be_written_within_a_snapshot_and_everything_can_after_it():
    with pytest.raises(DatabaseError, match="read-only"), snapshot("default"):
        RunFactory()
    with snapshot("default") as cursor:
        cursor.execute("SELECT current_setting('enable_seqscan')")
        assert cursor.fetchone() == ("off",)
    RunFactory()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('enable_seqscan')")
        assert cursor.fetchone() == ("on",)


def test_an_audit_sees_what_the_callers_transaction_has_written(sell):
    with transaction.atomic():
        make_run(sell)
        assert audit().active_runs == 1
        make_run(sell)
    assert Run.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_an_audit_sees_one_moment():
    with snapshot("default") as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("repeatable read",)
