"""An audit beside real workers, while code changes from deploy to deploy."""

from __future__ import annotations

from pathlib import Path

import pytest

import continuum
from continuum import activity, patched, wait_signal, workflow
from continuum.audit import audit
from continuum.audit.proofs import prove_live_histories
from continuum.core.registry import registry
from continuum.models import Run, WorkflowVersion
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def only_the_tests_own_workflows(monkeypatch):
    monkeypatch.setattr(registry, "_workflows", {})
    monkeypatch.setattr("continuum.worker.claims.PATIENCE", 0.0)  # others may take runs at once


@activity(name="test_audit_deploys.price")
def price(order: str) -> int:
    return 100


def deploy(fn):
    """Load code in place of what was loaded before."""
    registry._workflows.clear()
    return workflow(name="shop.sell")(fn)


async def old(order: str) -> str:
    await wait_signal("paid")
    await price(order)
    await wait_signal("sent")
    return "old"


async def new(order: str) -> str:
    await wait_signal("paid")
    branch = "new" if patched("free") else "old"
    if branch == "old":
        await price(order)
    await wait_signal("sent")
    return branch


def tax():
    [[site]] = [each.patch_sites for each in audit().workflows]
    return site.verdict, site.in_flight_pre_patch


def waits_for(run, name):
    run = Run.objects.get(pk=run.pk)
    return [wait.get("name") for wait in run.waiting_on] == [name] and run.owner_id is None


def send(run, name):
    continuum.signal(run, name)
    run_until_idle()


def test_a_patch_is_in_use_until_the_last_run_has_ended_that_went_past_it_without_asking():
    definition = deploy(old)
    first = continuum.start(definition, "1")
    send(first, "paid")
    assert waits_for(first, "sent")

    definition = deploy(new)
    assert tax() == ("still-in-use", 1)
    assert prove_live_histories("default").proved == 1
    assert audit().workflows[0].patch_sites[0].first_seen_at is None
    second = continuum.start(definition, "2")
    send(second, "paid")  # asks, and its history holds the answer
    assert tax() == ("still-in-use", 1)
    assert audit().workflows[0].patch_sites[0].first_seen_at is not None
    send(first, "sent")  # adopted, in the old branch, and over

    assert continuum.result(first, timeout=10) == "old"
    assert waits_for(second, "sent")
    assert tax() == ("safe-to-remove", 0)


def test_a_run_that_was_started_for_new_code_and_taken_past_the_place_by_an_old_worker_counts():
    definition = deploy(new)
    run = continuum.start(definition, "1")
    deploy(old)
    send(run, "paid")
    assert waits_for(run, "sent")
    deploy(new)
    assert tax() == ("still-in-use", 1)

    registry._workflows.clear()

    @workflow(name="shop.sell")
    async def newer(order: str) -> str:
        await wait_signal("paid")
        if not patched("free"):
            await price(order)
        await wait_signal("sent")
        await wait_signal("received")
        return "end"

    send(run, "sent")
    assert Run.objects.get(pk=run.pk).version_hash == newer.version_hash
    assert waits_for(run, "received")
    assert tax() == ("still-in-use", 1)


def test_while_a_worker_of_the_old_code_lives_new_runs_may_still_go_past_the_place():
    deploy(old)
    with worker():
        deploy(new)
        assert tax() == ("still-in-use", 0)
        found = audit().workflow_registration
        assert [each.workers for each in found.not_loaded_here] == [1]
        assert len(found.not_registered) == 1
    with worker():
        assert tax() == ("safe-to-remove", 0)
        found = audit().workflow_registration
        assert (found.not_registered, found.not_loaded_here, found.on_no_live_worker) == ((), (), ())


def test_a_worker_registers_where_its_code_asks_also_where_that_was_not_known():
    definition = deploy(new)
    row = WorkflowVersion.objects.create(workflow="shop.sell", version=1, version_hash=definition.version_hash)
    run_until_idle()
    row.refresh_from_db()
    line = Path(__file__).read_text().split('patched("free")')[0].count("\n") + 1
    assert row.patch_sites == [{"name": "free", "file": "tests/test_audit_deploys.py", "line": line}]


def test_a_history_that_the_code_does_not_fit_is_found_before_the_deploy_and_the_run_goes_on():
    async def wrong(order: str) -> str:
        await price(order)
        return "wrong"

    definition = deploy(old)
    run = continuum.start(definition, "1")
    send(run, "paid")
    deploy(wrong)
    report = prove_live_histories("default")
    assert (report.proved, report.drifted) == (0, 1)
    assert audit(replay=report).failures() == ["1 history not replayed by the code at hand"]

    deploy(old)
    send(run, "sent")
    assert continuum.result(run, timeout=10) == "old"
