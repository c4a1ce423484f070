"""Namespaces and attributes: set at the start or later, handed on, and never touched by anything else."""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

import continuum
from continuum.exceptions import DurableValueError, RunNotFoundError
from continuum.models import HistoryEvent, InboxMessage, Run
from tests.app import workflows as flows
from tests.concurrency import Background
from tests.ending import finish
from tests.factories import RunFactory
from tests.waiting_for import eventually
from tests.workers import run_until_idle, worker

pytestmark = pytest.mark.django_db(transaction=True)


@continuum.workflow(name="tests.attributes.waits")
async def waits():
    return await continuum.wait_signal("go")


@continuum.workflow(name="tests.attributes.goes_on")
async def goes_on(left):
    if left:
        continuum.continue_as_new(left - 1)
    return left


@continuum.workflow(name="tests.attributes.parent")
async def parent():
    plain = await continuum.start_child(flows.echo, 1)
    other = await continuum.start_child(flows.echo, 2, namespace="elsewhere", attributes={})
    awaited = await flows.echo(3)
    return [str(plain.id), str(other.id), awaited, await plain, await other]


def attributes_of(run):
    return continuum.get_run(run).attributes


class TestSetAttributes:
    def test_merges_key_by_key(self):
        run = RunFactory(attributes={"plan": "free", "address": {"city": "Oslo", "zip": "0150"}})
        assert continuum.set_attributes(run, {"plan": "pro", "address": {"city": "Bergen"}, "seats": [1, None]}) is None
        assert attributes_of(run) == {"plan": "pro", "address": {"city": "Bergen"}, "seats": [1, None]}

    def test_none_is_kept_as_null(self):
        run = RunFactory(attributes={"plan": "free"})
        continuum.set_attributes(str(run.id), {"plan": None})
        assert attributes_of(run) == {"plan": None}
        assert continuum.query(where=[("exists", ["attributes", "plan"])]).entries == [run]

    @pytest.mark.parametrize("state", Run.State.values)
    def test_works_in_any_state_and_changes_nothing_else(self, state):
        run = Run.objects.get(pk=RunFactory(state=state, result="r", lease_token=7, owner_id=3).pk)
        continuum.set_attributes(run.id, {"a": 1})
        after = Run.objects.get(pk=run.pk)
        assert after.attributes == {"a": 1}
        assert all(
            getattr(after, field.attname) == getattr(run, field.attname)
            for field in Run._meta.concrete_fields
            if field.attname != "attributes"
        )
        assert not HistoryEvent.objects.exists()
        assert not InboxMessage.objects.exists()

    def test_is_one_statement_and_tells_nobody(self, monkeypatch, django_assert_num_queries):
        for name in ("send_ready", "send_run"):
            monkeypatch.setattr(f"continuum.hints.{name}", lambda *args: pytest.fail("a hint was sent"))
        run = RunFactory()
        with django_assert_num_queries(1):
            continuum.set_attributes(run, {"a": 1})

    def test_commits_and_rolls_back_with_the_callers_rows(self):
        run = RunFactory()
        with transaction.atomic():
            continuum.set_attributes(run, {"a": 1})
            assert attributes_of(run) == {"a": 1}
            transaction.set_rollback(True)
        assert attributes_of(run) == {}

    def test_of_two_at_the_same_time_neither_is_lost(self):
        run = RunFactory(attributes={"n": 0})
        with transaction.atomic():
            continuum.set_attributes(run, {"a": 1, "n": 1})
            other = Background(continuum.set_attributes, run.id, {"b": 2, "n": 2})
            eventually(lambda: waiting() == 1)
        other.result()
        assert attributes_of(run) == {"a": 1, "b": 2, "n": 2}

    def test_of_many_at_the_same_time_none_is_lost(self):
        run = RunFactory()
        barrier = threading.Barrier(8)

        def merge(number):
            barrier.wait()
            for place in range(10):
                continuum.set_attributes(run.id, {f"{number}.{place}": place})

        for background in [Background(merge, number) for number in range(8)]:
            background.result(30)
        assert len(attributes_of(run)) == 80

    @pytest.mark.parametrize(
        ("attributes", "error"),
        [
            (None, TypeError),
            ([], TypeError),
            ({1: 1}, TypeError),
            ({"a": (1,)}, TypeError),
            ({"a": timedelta(1)}, TypeError),
            ({"a": float("inf")}, ValueError),
            ({"a": {"b": "\x00"}}, ValueError),
            ({"\ud800": 1}, ValueError),
            ({"a": 10**5000}, ValueError),
        ],
    )
    def test_what_is_no_plain_json_is_refused_by_name(self, attributes, error, django_assert_num_queries):
        run = RunFactory()
        with django_assert_num_queries(0), pytest.raises(error, match=r"^attributes"):
            continuum.set_attributes(run, attributes)

    def test_there_is_a_limit_to_what_comes_together(self, settings):
        settings.CONTINUUM = {"MAX_VALUE_BYTES": 2000}
        run = RunFactory(attributes={"a": "x" * 1500})
        with pytest.raises(DurableValueError, match=r"^attributes: together with those of the run .* 2,000 bytes"):
            continuum.set_attributes(run, {"b": "x" * 600})
        assert set(attributes_of(run)) == {"a"}
        continuum.set_attributes(run, {"a": "x" * 600})
        with pytest.raises(DurableValueError, match=r"^attributes: "):
            continuum.set_attributes(run, {"a": "x" * 3000})

    def test_an_unknown_run_is_not_found(self):
        with pytest.raises(RunNotFoundError):
            continuum.set_attributes(uuid4(), {"a": 1})

    async def test_has_an_async_twin(self):
        run = await sync_to_async(RunFactory)()
        try:
            await continuum.aset_attributes(run, {"a": 1}, "default")
            assert (await continuum.aget_run(run)).attributes == {"a": 1}
        finally:
            await sync_to_async(connections.close_all)()


def waiting():
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0]


class TestSurfaces:
    OPTIONS = {"namespace": "billing", "attributes": {"plan": "pro", "n": {"deep": [1]}}}

    def stored(self, run):
        run = Run.objects.get(pk=run.pk)
        return {"namespace": run.namespace, "attributes": run.attributes}

    def test_start(self):
        run = continuum.start(flows.echo, 1, **self.OPTIONS)
        assert self.stored(run) == self.OPTIONS == {"namespace": run.namespace, "attributes": run.attributes}

    def test_start_with_a_key(self):
        assert self.stored(continuum.start(flows.echo, 1, idempotency_key="k", **self.OPTIONS)) == self.OPTIONS

    def test_get_or_start(self):
        run, _ = continuum.get_or_start(flows.echo, 1, idempotency_key="k", **self.OPTIONS)
        assert self.stored(run) == self.OPTIONS
        again, created = continuum.get_or_start(
            flows.echo, 1, idempotency_key="k", namespace="billing", attributes={"plan": "free"}
        )
        assert (again, created) == (run, False)
        assert self.stored(run) == self.OPTIONS

    def test_start_many(self):
        for run in continuum.start_many(flows.echo, [1, 2], **self.OPTIONS):
            assert self.stored(run) == self.OPTIONS

    def test_children_inherit_both_unless_given_others(self):
        run = continuum.start(parent, **self.OPTIONS)
        run_until_idle()
        plain, other, *values = continuum.result(run, timeout=0)
        assert values == [3, 1, 2]
        children = {str(child.id): self.stored(child) for child in Run.objects.filter(parent_run_id=run.id)}
        assert children.pop(other) == {"namespace": "elsewhere", "attributes": {}}
        assert len(children) == 2
        assert plain in children
        assert all(stored == self.OPTIONS for stored in children.values())

    def test_children_inherit_what_their_parent_bears_when_they_are_started(self):
        run = continuum.start(parent, **self.OPTIONS)
        continuum.set_attributes(run, {"plan": "late"})
        run_until_idle()
        child = Run.objects.filter(parent_run_id=run.id, namespace="billing").first()
        assert child.attributes == self.OPTIONS["attributes"] | {"plan": "late"}

    def test_successors(self):
        run = continuum.start(goes_on, 2, **self.OPTIONS)
        continuum.set_attributes(run, {"plan": "late"})
        run_until_idle()
        late = self.OPTIONS | {"attributes": self.OPTIONS["attributes"] | {"plan": "late"}}
        assert [self.stored(each) for each in Run.objects.filter(correlation_id=run.id)] == [late] * 3

    def test_forks_and_retried_runs(self):
        run = continuum.start(flows.fails, **self.OPTIONS)
        run_until_idle()
        assert self.stored(continuum.retry(run)) == self.OPTIONS
        assert self.stored(continuum.fork(run, before="0:1")) == self.OPTIONS

    def test_a_worker_leaves_attributes_alone_that_were_set_meanwhile(self):
        run = continuum.start(waits, **self.OPTIONS)
        with worker():
            eventually(lambda: continuum.get_run(run).waiting_on)
            continuum.set_attributes(run, {"plan": "late"})
            continuum.signal(run, "go", 1)
            assert continuum.result(run, timeout=10) == 1
        assert attributes_of(run) == self.OPTIONS["attributes"] | {"plan": "late"}

    def test_workflow_code_does_not_see_attributes(self):
        assert "attributes" not in continuum.RunInfo.__dataclass_fields__

    def test_no_statement_of_the_worker_writes_attributes_of_runs_that_are_there(self):
        from importlib.resources import files

        for file in files("continuum.worker.sql").iterdir():
            text = file.read_text() if file.name.endswith(".sql") else ""
            assert file.name == "client_set_attributes.sql" or "attributes =" not in text, file.name


UUID_TEXT = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")
GUARDED = {
    "get_run": continuum.get_run,
    "signal": lambda run_id, namespace: continuum.signal(run_id, "go", 1, namespace=namespace),
    "cancel": lambda run_id, namespace: continuum.cancel(run_id, namespace=namespace),
    "wait_run": lambda run_id, namespace: continuum.wait_run(run_id, 0, namespace),
    "result": lambda run_id, namespace: continuum.result(run_id, 0, namespace),
    "set_attributes": lambda run_id, namespace: continuum.set_attributes(run_id, {"a": 1}, namespace),
    "retry": continuum.retry,
    "fork": lambda run_id, namespace: continuum.fork(run_id, "0:1", namespace),
}


@pytest.mark.parametrize("call", GUARDED.values(), ids=GUARDED)
class TestNamespaceGuard:
    @pytest.fixture(params=["pending", "failed", "completed", "continued"])
    def run(self, request):
        if request.param == "continued":
            run = continuum.start(goes_on, 1, namespace="theirs")
            run_until_idle()
        else:
            run = continuum.start(flows.echo, 1, namespace="theirs")
            if request.param != "pending":
                finish(run, request.param)
        return run

    def test_a_run_of_another_namespace_is_as_good_as_none(self, call, run):
        before = everything()
        told = []
        for wanted in (run.id, uuid4()):
            with CaptureQueriesContext(connection) as queries, pytest.raises(RunNotFoundError) as caught:
                call(wanted, "ours")
            shape = [UUID_TEXT.sub("…", query["sql"]) for query in queries.captured_queries]
            told.append((str(caught.value).replace(str(wanted), "…"), type(caught.value), shape))
        assert told[0] == told[1]
        assert told[0][0] == "there is no run …"
        assert everything() == before

    def test_the_right_namespace_opens(self, call, run):
        try:
            call(run.id, "theirs")
        except RunNotFoundError:
            pytest.fail("it was not found in its own namespace")
        except (continuum.ContinuumError, TimeoutError, ValueError):
            pass  # found, and not in the state for this

    def test_a_run_given_as_such_is_guarded_too(self, call, run):
        with pytest.raises(RunNotFoundError):
            call(continuum.get_run(run), "ours")


def everything():
    with connection.cursor() as cursor:
        rows = []
        for table in ("runs", "events", "inbox", "activity_tasks", "activity_results"):
            cursor.execute(f"SELECT t::text FROM continuum_{table} t ORDER BY 1")
            rows += cursor.fetchall()
        return rows
