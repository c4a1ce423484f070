"""Proving the histories in the database against the code at hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from continuum import activity, patched, run_info, sleep, wait_signal, workflow
from continuum.audit.proofs import prove_live_histories
from continuum.core.registry import registry
from continuum.ids import uuid7
from continuum.models import HistoryEvent, Run
from tests.core.driver import EPOCH_US, Driver
from tests.factories import RunFactory

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def only_the_tests_own_workflows(monkeypatch):
    monkeypatch.setattr(registry, "_workflows", {})


@activity(name="test_proofs.take")
def take(n: int) -> int:
    return n


async def old(n: int) -> int:
    await take(n)
    await wait_signal("go")
    return n


async def fitting(n: int) -> int:
    await take(n)
    if patched("tax"):
        await sleep(1)
    await wait_signal("go")
    return n + 1


async def other(n: int) -> int:
    await take(n + 1)
    await wait_signal("go")
    return n


def declare(fn, *, name="shop.sell", version=1):
    """Load code, in place of what was loaded under that name and version."""
    registry._workflows.get(name, {}).pop(version, None)
    return workflow(name=name, version=version)(fn)


def record(definition, *arguments, state="suspended", **fields):
    """Store a run of a workflow that waits for what nobody sends, and its history."""
    driver = Driver(definition, arguments or (1,)).open().go()
    began = datetime.fromtimestamp(EPOCH_US / 1e6, UTC)
    run = RunFactory(
        **{
            "id": uuid7(),
            "workflow": definition.name,
            "version": definition.version,
            "version_hash": definition.version_hash,
            "state": state,
            "input": list(arguments or (1,)),
            "claimed_at": began,
            **fields,
        }
    )
    HistoryEvent.objects.bulk_create(_row(run.id, event) for event in driver.history)
    driver.close()
    return run


def _row(run_id, event):
    return HistoryEvent(
        run_id=run_id,
        seq=event.seq,
        type=event.type,
        command_id=event.command_id,
        name=event.name,
        data=json.loads(event.data),
        recorded_at=datetime.fromtimestamp(event.time_us / 1e6, UTC),
    )


def told(report):
    return report.live, report.proved, report.drifted, report.skipped


def test_histories_that_the_code_replays_are_proved():
    definition = declare(old)
    for number in range(3):
        record(definition, number)
    declare(fitting)
    assert told(prove_live_histories("default")) == (3, 3, 0, {})


def test_one_that_it_does_not_replay_is_told_with_both_sides():
    definition = declare(old)
    run = record(definition, 1)
    declare(other)
    report = prove_live_histories("default")
    assert told(report) == (1, 0, 1, {})
    [drift] = report.drifts
    assert (drift.run_id, drift.workflow, drift.version, drift.version_hash) == (
        run.id,
        "shop.sell",
        1,
        definition.version_hash,
    )
    assert drift.error == "ReplayDriftError"
    assert drift.position.startswith("0:1")
    assert "[1]" in drift.history
    assert "[2]" in drift.code
    assert drift.history in drift.message


def test_the_histories_of_ended_runs_are_left_alone():
    record(declare(old), state="completed")
    declare(other)
    assert told(prove_live_histories("default")) == (0, 0, 0, {})


def test_stuck_runs_are_proved_too():
    record(declare(old), state="stuck_unknown_version")
    declare(fitting)
    assert told(prove_live_histories("default")) == (1, 1, 0, {})


def test_a_run_that_has_not_begun_has_to_fit_the_workflows_arguments():
    definition = declare(old)
    RunFactory(workflow="shop.sell", version_hash=definition.version_hash, input=[1])
    assert told(prove_live_histories("default")) == (1, 1, 0, {})

    async def of_two(n: int, m: int) -> int: ...

    declare(of_two)
    assert told(prove_live_histories("default")) == (1, 0, 1, {})


def test_workflows_that_are_not_loaded_are_skipped():
    record(declare(old))
    registry._workflows.clear()
    assert told(prove_live_histories("default")) == (1, 0, 0, {"not_loaded": 1})


def test_pinned_runs_are_proved_against_their_own_code_only(settings):
    settings.CONTINUUM = {"VERSION_POLICY": "pin"}
    record(declare(old))
    assert told(prove_live_histories("default")) == (1, 1, 0, {})
    declare(other)
    assert told(prove_live_histories("default")) == (1, 0, 0, {"pinned": 1})


def test_a_run_that_waits_for_a_higher_version_is_skipped_unless_it_has_begun():
    definition = declare(old, version=2)
    record(definition)
    RunFactory(workflow="shop.sell", version=2, version_hash=definition.version_hash, input=[1])
    registry._workflows.clear()
    declare(fitting)
    assert told(prove_live_histories("default")) == (2, 1, 0, {"newer_version": 1})


def test_each_version_is_proved_by_its_own_code():
    record(declare(old))
    record(declare(other, version=2))
    assert told(prove_live_histories("default")) == (2, 2, 0, {})
    declare(other)
    declare(old, version=2)
    assert told(prove_live_histories("default")) == (2, 0, 2, {})


def test_code_sees_the_version_that_it_adopts_a_run_with():
    record(declare(old))
    registry._workflows.clear()

    async def asking(n: int) -> int:
        await take(n + run_info().version - 2)
        await wait_signal("go")
        return n

    declare(asking, version=2)
    assert told(prove_live_histories("default")) == (1, 1, 0, {})


def test_nothing_is_recorded():
    run = record(declare(old))
    before = Run.objects.values().get(), list(HistoryEvent.objects.values())
    declare(fitting)
    prove_live_histories("default")
    assert (Run.objects.values().get(), list(HistoryEvent.objects.values())) == before
    assert run.history()


def test_a_sample_is_taken_of_each_version_from_the_oldest_to_the_newest():
    first = declare(old)
    runs = [record(first, number) for number in range(5)]
    second = declare(fitting)
    record(second)

    async def nothing(n: int) -> None: ...

    declare(nothing)
    report = prove_live_histories("default", sample=2)
    assert told(report) == (6, 0, 3, {"not_sampled": 3})
    assert {runs[0].id, runs[-1].id} < {drift.run_id for drift in report.drifts}
    assert told(prove_live_histories("default", sample=1)) == (6, 0, 2, {"not_sampled": 4})
    assert told(prove_live_histories("default", sample=9)) == (6, 0, 6, {})


def test_drifts_are_described_up_to_the_limit_and_counted_beyond_it():
    definition = declare(old)
    for number in range(4):
        record(definition, number)
    declare(other)
    report = prove_live_histories("default", limit=2)
    assert (report.drifted, len(report.drifts)) == (4, 2)


def test_histories_are_read_in_batches_that_are_neither_many_runs_nor_many_events(monkeypatch):
    monkeypatch.setattr("continuum.audit.proofs._BATCH", 3)
    monkeypatch.setattr("continuum.audit.proofs._MOST_EVENTS", 2)
    definition = declare(old)
    for number in range(7):
        record(definition, number)
    steps = []
    with CaptureQueriesContext(connection) as queries:
        report = prove_live_histories("default", progress=lambda done, total: steps.append((done, total)))
    assert told(report) == (7, 7, 0, {})
    reads = [query["sql"] for query in queries if "FROM continuum_events e\nWHERE e.run_id = ANY" in query["sql"]]
    assert len(reads) == 5  # of two and one, two and one, and one
    assert steps == [(3, 7), (6, 7), (7, 7)]


def test_a_run_that_ends_meanwhile_is_skipped(monkeypatch):
    monkeypatch.setattr("continuum.audit.proofs._BATCH", 1)
    definition = declare(old)
    record(definition)
    last = record(definition)

    def end(done, total):
        Run.objects.filter(id=last.id).update(state="completed")

    assert told(prove_live_histories("default", progress=end)) == (2, 1, 0, {"ended": 1})


def test_code_that_does_not_let_go_is_interrupted_and_the_others_are_proved(settings):
    settings.CONTINUUM = {"DEADLOCK_TIMEOUT": 0.2}
    definition = declare(old)
    record(definition, 1)
    record(definition, 2)

    async def endless(n: int) -> int:
        while n == 1:
            pass
        await take(n)
        await wait_signal("go")
        return n

    declare(endless)
    report = prove_live_histories("default")
    assert told(report) == (2, 1, 1, {})
    assert report.drifts[0].error == "WorkflowDeadlockError"


def test_a_history_is_proved_as_of_one_moment_with_its_row():
    """Timers fire in the past of the audit: a history's own clock is what counts."""

    async def slow(n: int) -> int:
        await sleep(timedelta(days=30))
        return n

    record(declare(slow))
    assert told(prove_live_histories("default"))[1:3] == (1, 0)
