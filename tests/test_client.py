"""Starting runs and sending them messages; waiting for them is in ``test_waiting.py``."""

import inspect
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Optional

import pytest
from django.db import IntegrityError, connection, transaction

import continuum
from continuum import starting
from continuum.core.definitions import Registry
from continuum.exceptions import (
    AlreadyStartedError,
    DurableValueError,
    RunNotActiveError,
    RunNotFoundError,
    SignalRefusedError,
    UnknownWorkflowError,
)
from continuum.models import ActivityResult, InboxMessage, Run
from continuum.worker.sql import load
from tests.concurrency import Background
from tests.waiting_for import eventually

AHEAD = datetime(2999, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
AWKWARD = 'it\'s a "test" \\ 100% %s %(id)s; DROP TABLE x -- ünï 🙂'


@dataclass
class Order:
    id: str
    cents: int


@continuum.workflow(name="tests.client.greet", version=3)
async def greet(name, greeting="hello"): ...


@continuum.workflow(name="tests.client.ship")
async def ship(order: Order) -> Order: ...


@continuum.workflow(
    name="tests.client.review",
    signals={
        "verdict": str,
        "amended": Order,
        "score": float | None,
        "orders": list[Order],
        "cents": Annotated[int, "more than none"],
        "maybe": Optional[Order],  # noqa: UP045 - its name is Optional
    },
)
async def review(order): ...


@continuum.workflow(name="tests.client.pair")
async def pair(left, right): ...


def row(run):
    return Run.objects.get(pk=run.pk)


def columns(run):
    return {field.attname: getattr(run, field.attname) for field in Run._meta.concrete_fields}


def set_state(run, state, **changes):
    Run.objects.filter(pk=run.pk).update(state=state, **changes)


def inbox(run):
    return list(InboxMessage.objects.filter(run_id=run.pk).order_by("id"))


def chain(*states):
    """Return runs of which each but the last was continued as the next; the last is in the last state."""
    runs = [continuum.start(greet, str(number), namespace="chains") for number in range(len(states))]
    for run, successor in zip(runs, [*runs[1:], None], strict=True):
        set_state(run, states[runs.index(run)], continued_to_run_id=successor and successor.pk)
    return runs


def blocked_sessions():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0]


# start


@pytest.mark.django_db
def test_start_returns_the_run_as_it_is_stored():
    options = {
        "namespace": "billing",
        "attributes": {"plan": "pro", "seats": [1, 2.5, None, True, {"a": {}}]},
        "idempotency_key": AWKWARD,
        "start_at": AHEAD,
        "timeout": timedelta(minutes=5),
        "priority": -7,
    }
    run = continuum.start(greet, AWKWARD, {"b": 1, "a": [2]}, **options)
    assert columns(run) == columns(row(run))
    assert not run._state.adding
    assert run._state.db == "default"
    assert run.get_deferred_fields() == set()
    assert (run.workflow, run.version, run.version_hash) == ("tests.client.greet", 3, greet.version_hash)
    assert (run.state, run.namespace, run.priority) == ("pending", "billing", -7)
    assert run.input == [AWKWARD, {"b": 1, "a": [2]}]
    assert run.attributes == options["attributes"]
    assert run.idempotency_key == AWKWARD
    assert run.correlation_id == run.id


@pytest.mark.django_db
def test_a_plain_start_is_due_at_once_and_has_no_deadline():
    run = continuum.start(greet, "Ada")
    assert columns(run) == columns(row(run))
    assert run.next_wakeup_at == run.started_at
    assert run.deadline_at is None
    assert (run.namespace, run.attributes, run.priority) == ("default", {}, 0)


@pytest.mark.django_db
def test_start_is_one_statement(django_assert_num_queries):
    with django_assert_num_queries(1):
        continuum.start(greet, "Ada")
    with django_assert_num_queries(1):
        continuum.start(greet, "Ada", idempotency_key="k")


@pytest.mark.django_db
def test_the_returned_input_is_a_copy_of_the_arguments():
    order = {"lines": []}
    run = continuum.start(greet, order)
    order["lines"].append(1)
    assert run.input == [{"lines": []}]


@pytest.mark.django_db
def test_a_returned_run_can_be_saved_and_refreshed():
    run = continuum.start(greet, "Ada")
    run.progress = {"done": 1}
    run.save()
    run.refresh_from_db()
    assert run.progress == {"done": 1}


@pytest.mark.django_db
def test_arguments_are_encoded_by_the_parameters_annotations():
    run = continuum.start(ship, Order("o1", 900))
    with connection.cursor() as cursor:
        cursor.execute("SELECT input::text FROM continuum_runs WHERE id = %s", [run.pk])
        assert cursor.fetchone()[0] == '[{"id":"o1","cents":900}]'


@pytest.mark.django_db
def test_a_workflow_can_be_started_by_its_name():
    assert continuum.start("tests.client.greet", "Ada").version == 3


def test_an_unknown_name_says_what_is_known():
    with pytest.raises(UnknownWorkflowError, match=r"Did you mean 'tests\.client\.greet'"):
        continuum.start("tests.client.great", "Ada")


@pytest.mark.parametrize("flow", [print, greet.fn, None, 5])
def test_what_is_no_workflow_is_refused(flow):
    with pytest.raises(TypeError, match="flow must be"):
        continuum.start(flow)


@pytest.mark.parametrize(("args", "complaint"), [((), "'name'"), ((1, 2, 3), "too many positional arguments")])
def test_arguments_that_do_not_fit_the_signature_are_refused(args, complaint):
    with pytest.raises(TypeError, match=complaint):
        continuum.start(greet, *args)


def test_an_argument_that_cannot_be_stored_is_refused_with_its_path():
    with pytest.raises(DurableValueError, match=r"^input\[1\]\.lines\[0\]"):
        continuum.start(greet, 1, {"lines": [print]})


@pytest.mark.parametrize("args", [("x" * 100,), ("x" * 60, "x" * 60)])
def test_input_that_is_too_big_is_refused(settings, args):
    settings.CONTINUUM = {"MAX_VALUE_BYTES": 100}
    with pytest.raises(DurableValueError, match=r"^input"):
        continuum.start(greet, *args)


BAD_OPTIONS = [
    ("namespace", "", ValueError),
    ("namespace", "x" * 201, ValueError),
    ("namespace", "a\nb", ValueError),
    ("namespace", "a\ud800", ValueError),
    ("namespace", None, TypeError),
    ("attributes", [1], TypeError),
    ("attributes", {1: 2}, TypeError),
    ("attributes", {"a": [{2: 3}]}, TypeError),
    ("attributes", {"a": datetime.now()}, TypeError),
    ("attributes", {"a": (1, 2)}, TypeError),
    ("attributes", {"a": float("nan")}, ValueError),
    ("attributes", {"a": ["\x00"]}, ValueError),
    ("attributes", {"\ud800": 1}, ValueError),
    ("start_at", "tomorrow", TypeError),
    ("start_at", datetime(2030, 1, 1), ValueError),
    ("start_at", datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))), ValueError),
    ("timeout", 0, ValueError),
    ("timeout", -1, ValueError),
    ("timeout", timedelta(0), ValueError),
    ("timeout", float("inf"), ValueError),
    ("timeout", 1e12, ValueError),
    ("timeout", "5", TypeError),
    ("timeout", True, TypeError),
    ("priority", 32768, ValueError),
    ("priority", -32769, ValueError),
    ("priority", 1.0, TypeError),
    ("priority", True, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD_OPTIONS)
def test_a_bad_option_is_refused_by_name_before_the_database_is_touched(name, value, error):
    for call in (lambda **o: continuum.start(greet, 1, **o), lambda **o: continuum.start_many(greet, [1], **o)):
        with pytest.raises(error, match=name) as caught:
            call(**{name: value})
        assert type(caught.value) is error


@pytest.mark.parametrize(
    ("key", "error"), [("", ValueError), ("x" * 501, ValueError), ("\x00", ValueError), (5, TypeError)]
)
def test_a_bad_idempotency_key_is_refused_by_name(key, error):
    for call in (continuum.start, continuum.get_or_start):
        with pytest.raises(error, match="idempotency_key"):
            call(greet, 1, idempotency_key=key)


def test_attributes_nested_without_end_are_refused():
    deep = here = {}
    for _ in range(5000):
        here["a"] = here = {}
    with pytest.raises(ValueError, match="attributes"):
        continuum.start(greet, 1, attributes=deep)


@pytest.mark.django_db
def test_start_at_delays_the_run():
    run = continuum.start(greet, "Ada", start_at=AHEAD)
    assert run.next_wakeup_at == AHEAD
    assert run.next_wakeup_at.utcoffset() == timedelta(0)
    assert run.started_at < AHEAD


@pytest.mark.django_db
@pytest.mark.parametrize("timeout", [90, 90.0, timedelta(seconds=90)])
def test_the_deadline_counts_from_the_start(timeout):
    run = continuum.start(greet, "Ada", timeout=timeout)
    assert run.deadline_at - run.started_at == timedelta(seconds=90)


@pytest.mark.django_db
def test_the_deadline_of_a_delayed_run_counts_from_when_it_may_begin():
    assert continuum.start(greet, "Ada", start_at=AHEAD, timeout=90).deadline_at == AHEAD + timedelta(seconds=90)
    late = continuum.start(greet, "Ada", start_at=datetime(2020, 1, 1, tzinfo=UTC), timeout=90)
    assert late.deadline_at == late.started_at + timedelta(seconds=90)


@pytest.mark.django_db
def test_a_deadline_is_exact_across_a_change_of_the_clocks():
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL TimeZone TO 'Europe/Berlin'")
        continuum.start(greet, "Ada", start_at=datetime(2030, 3, 30, 12, tzinfo=UTC), timeout=timedelta(days=1))
        cursor.execute("SELECT extract(epoch FROM deadline_at - next_wakeup_at) FROM continuum_runs")
        assert cursor.fetchone()[0] == 86_400


@pytest.mark.django_db
def test_runs_of_one_transaction_keep_their_order():
    runs = [continuum.start(greet, number) for number in range(5)]
    moments = [run.started_at for run in runs]
    assert moments == sorted(set(moments))
    assert [run.id for run in runs] == sorted(run.id for run in runs)


@pytest.mark.django_db(transaction=True)
def test_a_run_started_in_a_transaction_that_rolls_back_was_never_there():
    with pytest.raises(ZeroDivisionError), transaction.atomic():  # noqa: PT012
        continuum.start(greet, "Ada", idempotency_key="k")
        continuum.start_many(greet, ["Ada", "Bob"])
        raise ZeroDivisionError
    assert not Run.objects.exists()
    assert continuum.start(greet, "Ada", idempotency_key="k").state == "pending"


# Idempotency keys


@pytest.mark.django_db
def test_a_taken_key_names_the_run_that_has_it():
    first = continuum.start(greet, "Ada", idempotency_key="k")
    with pytest.raises(AlreadyStartedError, match=r"tests\.client\.greet with idempotency key 'k'") as caught:
        continuum.start(greet, "Bob", idempotency_key="k")
    assert caught.value.run_id == first.id
    assert Run.objects.get().input == ["Ada"]


@pytest.mark.django_db
def test_a_key_is_taken_within_its_namespace_and_workflow_only():
    runs = [
        continuum.start(greet, "Ada", idempotency_key="k"),
        continuum.start(greet, "Ada", idempotency_key="K"),
        continuum.start(greet, "Ada", idempotency_key="k", namespace="other"),
        continuum.start(ship, Order("o1", 1), idempotency_key="k"),
    ]
    assert Run.objects.filter(pk__in=[run.pk for run in runs]).count() == 4


@pytest.mark.django_db
def test_a_key_outlives_its_run():
    first = continuum.start(greet, "Ada", idempotency_key="k")
    Run.objects.filter(pk=first.pk).delete()
    with pytest.raises(AlreadyStartedError) as caught:
        continuum.start(greet, "Ada", idempotency_key="k")
    assert caught.value.run_id == first.id
    assert ActivityResult.objects.get().kind == "start_key"
    with pytest.raises(RunNotFoundError, match=r"'k'.*no longer stored"):
        continuum.get_or_start(greet, "Ada", idempotency_key="k")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commits", [True, False])
def test_of_two_that_race_for_a_key_the_second_waits_for_the_outcome_of_the_first(commits):
    with transaction.atomic():
        first = continuum.start(greet, "first", idempotency_key="k")
        second = Background(continuum.get_or_start, greet, "second", idempotency_key="k")
        eventually(blocked_sessions)
        transaction.set_rollback(not commits)
    run, created = second.result()
    assert created is not commits
    assert (run.id == first.id) is commits
    assert Run.objects.get().input == ["first" if commits else "second"]


@pytest.mark.django_db
def test_get_or_start_starts_once():
    run, created = continuum.get_or_start(greet, "Ada", idempotency_key="k", priority=2)
    again, created_again = continuum.get_or_start(greet, "Bob", idempotency_key="k")
    assert (created, created_again) == (True, False)
    assert columns(run) == columns(again)
    assert run.priority == 2


# start_many


@pytest.mark.django_db
def test_start_many_returns_the_runs_as_they_are_stored_in_the_order_of_the_inputs():
    inputs = [AWKWARD, "", None, 1e5, -0.0, 2**70, {"z": 1, "a": [AWKWARD]}, {"nul": "\x00"}, b"\x00\xff", (1, {2})]
    options = {"namespace": "bulk", "attributes": {"batch": AWKWARD}, "start_at": AHEAD, "timeout": 60, "priority": 3}
    runs = continuum.start_many(greet, iter(inputs), **options)
    assert [run.input for run in runs] == [[value] for value in inputs]
    assert [columns(run) for run in runs] == [columns(row(run)) for run in runs]
    assert runs[0].deadline_at == AHEAD + timedelta(seconds=60)


@pytest.mark.django_db
def test_start_many_and_start_store_the_same():
    [many], one = continuum.start_many(ship, [Order("o1", 5)]), continuum.start(ship, Order("o1", 5))
    own = {"id", "correlation_id", "started_at", "next_wakeup_at"}
    assert {k: v for k, v in columns(row(many)).items() if k not in own} == {
        k: v for k, v in columns(row(one)).items() if k not in own
    }


@pytest.mark.django_db
@pytest.mark.parametrize(("limit", "value"), [("_BATCH_ROWS", 2), ("_BATCH_BYTES", 5)])
def test_many_inputs_go_in_batches_that_share_one_moment(monkeypatch, django_assert_num_queries, limit, value):
    monkeypatch.setattr(starting, limit, value)
    with django_assert_num_queries(3):
        runs = continuum.start_many(greet, range(5) if limit == "_BATCH_ROWS" else ["long text", 1, "long text"])
    assert [columns(run) for run in runs] == [columns(row(run)) for run in runs]
    assert len({run.started_at for run in runs}) == 1


@pytest.mark.django_db(transaction=True)
def test_start_many_starts_all_or_none(monkeypatch):
    taken = uuid.uuid4()
    monkeypatch.setattr(starting, "_BATCH_ROWS", 1)
    monkeypatch.setattr(starting.ids, "uuid7", lambda: taken)
    with pytest.raises(IntegrityError):
        continuum.start_many(greet, [1, 2])
    assert not Run.objects.exists()


@pytest.mark.django_db
def test_no_inputs_start_no_runs(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert continuum.start_many(greet, []) == []


def test_one_input_that_cannot_be_stored_is_named_before_anything_is_written():
    with pytest.raises(DurableValueError, match=r"^inputs\[17\]\.fn: function is not durable"):
        continuum.start_many(greet, [1] * 17 + [{"fn": print_order}])


def print_order(): ...


@pytest.mark.parametrize("inputs", ["text", b"bytes", {"a": 1}, 5])
def test_inputs_must_be_a_collection_of_inputs(inputs):
    with pytest.raises(TypeError, match="inputs must be"):
        continuum.start_many(greet, inputs)


def test_start_many_needs_a_workflow_of_one_argument():
    with pytest.raises(TypeError, match="'right'"):
        continuum.start_many(pair, [1])


# get_run


@pytest.mark.django_db
def test_a_run_is_found_by_its_id_in_any_form():
    run = continuum.start(greet, "Ada")
    assert run == continuum.get_run(run.id) == continuum.get_run(str(run.id)) == continuum.get_run(run)


@pytest.mark.django_db
def test_a_run_of_another_namespace_looks_like_none():
    run = continuum.start(greet, "Ada", namespace="mine")
    missing = uuid.uuid4()
    assert continuum.get_run(run.id, "mine") == run
    complaints = []
    for call in (continuum.get_run, continuum.cancel, continuum.wait_run, continuum.result):
        for wanted in (run.id, missing):
            with pytest.raises(RunNotFoundError) as caught:
                call(wanted, namespace="theirs")
            complaints.append(str(caught.value).replace(str(wanted), "…"))
    for wanted in (run.id, missing):
        with pytest.raises(RunNotFoundError) as caught:
            continuum.signal(wanted, "go", namespace="theirs")
        complaints.append(str(caught.value).replace(str(wanted), "…"))
    assert set(complaints) == {"there is no run …"}
    assert inbox(run) == []


CALLS = [
    continuum.get_run,
    lambda run_id, **o: continuum.signal(run_id, "go", **o),
    continuum.cancel,
    continuum.wait_run,
    continuum.result,
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("bad", "error"), [("no uuid", ValueError), ("", ValueError), (None, TypeError), (5, TypeError)]
)
def test_a_bad_run_id_is_refused_by_name(call, bad, error):
    with pytest.raises(error, match="run_id"):
        call(bad)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("bad", "error"), [("", ValueError), ("a\x00", ValueError), (5, TypeError)])
def test_a_bad_namespace_is_refused_by_name(call, bad, error):
    with pytest.raises(error, match="namespace"):
        call(uuid.uuid4(), namespace=bad)


# signal


@pytest.mark.django_db
def test_a_signal_lands_in_the_inbox():
    run = continuum.start(greet, "Ada")
    payload = {"when": datetime(2024, 5, 1, tzinfo=UTC), "text": AWKWARD}
    assert continuum.signal(run, AWKWARD, payload) is True
    assert continuum.signal(str(run.id), "empty") is True
    first, second = inbox(run)
    assert (first.kind, first.name, first.payload, first.delivery_id) == ("signal", AWKWARD, payload, None)
    assert first.consumed_at is None
    assert (second.name, second.payload) == ("empty", None)


@pytest.mark.django_db
def test_a_signal_is_one_statement_unless_a_workflow_declares_its_signals(monkeypatch, django_assert_num_queries):
    run = continuum.start(greet, "Ada")
    with django_assert_num_queries(2):
        continuum.signal(run, "go")
    monkeypatch.setattr("continuum.client.registry", Registry())
    with django_assert_num_queries(1):
        continuum.signal(run, "go")
    with django_assert_num_queries(1):
        continuum.cancel(run)


@pytest.mark.django_db
def test_a_repeated_delivery_is_dropped():
    run, other = continuum.start(greet, "Ada"), continuum.start(greet, "Bob")
    assert continuum.signal(run, "paid", 1, delivery_id="d1") is True
    assert continuum.signal(run, "paid", 1, delivery_id="d1") is False
    assert continuum.signal(run, "paid", 2, delivery_id="d2") is True
    assert continuum.signal(other, "paid", 1, delivery_id="d1") is True
    assert [message.payload for message in inbox(run)] == [1, 2]


@pytest.mark.django_db
def test_a_delivery_is_known_after_it_was_consumed_and_after_the_run_has_ended():
    run = continuum.start(greet, "Ada")
    continuum.signal(run, "paid", delivery_id="d1")
    InboxMessage.objects.update(consumed_at=datetime.now(UTC))
    assert continuum.signal(run, "paid", delivery_id="d1") is False
    set_state(run, "completed")
    assert continuum.signal(run, "paid", delivery_id="d1") is False
    with pytest.raises(RunNotActiveError):
        continuum.signal(run, "paid", delivery_id="d2")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("commits", [True, False])
def test_of_two_equal_deliveries_at_the_same_time_one_counts(commits):
    run = continuum.start(greet, "Ada")
    with transaction.atomic():
        continuum.signal(run, "paid", "first", delivery_id="d1")
        second = Background(continuum.signal, run, "paid", "second", delivery_id="d1")
        eventually(blocked_sessions)
        transaction.set_rollback(not commits)
    assert second.result() is not commits
    assert [message.payload for message in inbox(run)] == ["first" if commits else "second"]


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_run_that_has_ended_takes_neither_signal_nor_cancellation(state):
    run = continuum.start(greet, "Ada")
    set_state(run, state)
    for call in (lambda: continuum.signal(run, "go"), lambda: continuum.cancel(run)):
        with pytest.raises(RunNotActiveError, match=state) as caught:
            call()
        assert (caught.value.run_id, caught.value.state) == (run.id, state)
    assert inbox(run) == []


@pytest.mark.django_db
def test_messages_follow_a_chain_of_continued_runs_to_its_live_tip():
    first, second, tip = chain("completed", "completed", "suspended")
    continuum.signal(first, "go", namespace="chains")
    continuum.signal(second, "go")
    continuum.cancel(first)
    assert [message.kind for message in inbox(tip)] == ["signal", "signal", "cancel"]
    assert inbox(first) == inbox(second) == []


@pytest.mark.django_db
def test_a_chain_that_has_ended_takes_no_messages():
    first, tip = chain("completed", "failed")
    with pytest.raises(RunNotActiveError, match="failed") as caught:
        continuum.signal(first, "go")
    assert caught.value.run_id == tip.id


@pytest.mark.django_db
def test_a_delivery_to_a_continued_run_is_not_repeated_to_its_successor():
    first, tip = chain("suspended", "suspended")
    set_state(first, "suspended", continued_to_run_id=None)
    continuum.signal(first, "paid", delivery_id="d1")
    set_state(first, "completed", continued_to_run_id=tip.pk)
    assert continuum.signal(first, "paid", delivery_id="d1") is False
    assert inbox(tip) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "payload", "complaint"),
    [
        ("verdct", "approved", "declares amended, cents, maybe, orders, score, verdict"),
        ("verdict", 5, "declares it with str, not int"),
        ("verdict", None, "declares it with str, not NoneType"),
        ("score", True, "float | None, not bool"),
        ("amended", {"id": "o1", "cents": 1}, "declares it with Order, not dict"),
        ("orders", [Order("o1", 5), "o2"], "declares it with list[Order], but payload[1] is str"),
        ("maybe", 5, "declares it with Order | None, not int"),
    ],
)
def test_what_the_workflow_does_not_declare_is_refused(name, payload, complaint):
    run = continuum.start(review, {})
    with pytest.raises(SignalRefusedError) as caught:
        continuum.signal(run, name, payload)
    assert complaint in str(caught.value)
    assert inbox(run) == []


@pytest.mark.django_db
def test_declared_signals_are_welcome_and_encoded_by_their_type():
    run = continuum.start(review, {})
    order = Order("o1", 5)
    for name, payload in (("verdict", "ok"), ("score", 1), ("score", None), ("amended", order), ("cents", 5)):
        assert continuum.signal(run, name, payload) is True
    assert continuum.signal(run, "orders", [order]) is True
    assert [message.payload for message in inbox(run)] == ["ok", 1, None, asdict(order), 5, [asdict(order)]]


@pytest.mark.django_db
def test_a_workflow_that_is_not_loaded_here_is_left_to_its_worker_to_judge():
    run = continuum.start(greet, "Ada")
    Run.objects.filter(pk=run.pk).update(workflow="not.loaded.here")
    assert continuum.signal(run, "anything", 5) is True


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"name": ""}, ValueError, "name"),
        ({"name": 5}, TypeError, "name"),
        ({"name": "x" * 201}, ValueError, "name"),
        ({"delivery_id": ""}, ValueError, "delivery_id"),
        ({"delivery_id": 7}, TypeError, "delivery_id"),
    ],
)
def test_a_bad_argument_of_signal_is_refused_by_name(options, error, named):
    with pytest.raises(error, match=named):
        continuum.signal(uuid.uuid4(), **{"name": "go"} | options)


@pytest.mark.django_db
def test_a_payload_that_cannot_be_stored_is_refused_with_its_path():
    run = continuum.start(greet, "Ada")
    with pytest.raises(DurableValueError, match=r"^payload\.fn"):
        continuum.signal(run, "go", {"fn": print})
    assert inbox(run) == []


# cancel


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["pending", "running", "suspended", "stuck_unknown_version"])
def test_every_run_that_has_not_ended_can_be_cancelled(state):
    run = continuum.start(greet, "Ada")
    set_state(run, state)
    assert continuum.cancel(run, reason=AWKWARD) is None
    [message] = inbox(run)
    assert (message.kind, message.name, message.payload) == ("cancel", None, {"reason": AWKWARD})


def test_a_bad_reason_is_refused_by_name():
    with pytest.raises(TypeError, match="reason"):
        continuum.cancel(uuid.uuid4(), reason=None)


# Statements


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["client_send", "client_state", "client_start_key"])
def test_lookups_use_indexes_only(name):
    parameters = dict.fromkeys(("run_id", "key_id"), str(uuid.uuid4())) | dict.fromkeys(
        ("namespace", "kind", "name", "payload"), None
    )
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan TO off")
        cursor.execute("EXPLAIN " + load(name), parameters | {"delivery_id": "d1"})
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Seq Scan on continuum" not in plan, plan
    assert "Index" in plan


@pytest.mark.django_db
def test_a_chain_that_bites_its_own_tail_comes_to_an_end():
    first, second = chain("completed", "completed")
    set_state(second, "completed", continued_to_run_id=first.pk)
    with pytest.raises(RunNotActiveError):
        continuum.signal(first, "go")


def test_the_twins_have_the_signatures_of_the_originals():
    names = ["start", "get_or_start", "start_many", "get_run", "signal", "cancel", "result"]
    pairs = [(getattr(continuum, name), getattr(continuum, f"a{name}")) for name in names]
    pairs.append((continuum.wait_run, continuum.await_run))
    for original, twin in pairs:
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(twin) == inspect.signature(original)
        assert original.__name__ in (twin.__doc__ or "")
