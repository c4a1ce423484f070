"""Waiting for runs and reading results, with a hand that finishes them in place of a worker."""

import asyncio
import threading
import uuid
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from django.db import OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError

import continuum
from continuum import hint_sender, hints, listening, waiting
from continuum.exceptions import ContinuumError, RunCancelledError, RunFailedError, RunNotFoundError
from continuum.models import Run
from tests.concurrency import Background
from tests.ending import announce, finish
from tests.waiting_for import eventually, sessions_of

pytestmark = pytest.mark.django_db(transaction=True)

# Longer than any test may take: who gets on in spite of it was notified.
HARDLY_EVER = 300.0


@dataclass
class Receipt:
    order: str
    cents: int


@continuum.workflow(name="tests.waiting.flow")
async def flow(value): ...


@continuum.workflow(name="tests.waiting.ship")
async def ship(value) -> Receipt: ...


@pytest.fixture
def run():
    return continuum.start(flow, 1)


@pytest.fixture
def poll_interval(settings):
    def set_to(seconds):
        settings.CONTINUUM = {"POLL_INTERVAL": seconds, "LEASE_TTL": 10 * seconds}

    return set_to


@pytest.fixture
def notified_only(poll_interval, monkeypatch):
    """Let polling find nothing in time."""
    poll_interval(HARDLY_EVER)
    monkeypatch.setattr(waiting, "FIRST_PAUSE", HARDLY_EVER)


@pytest.fixture
def polling_only(monkeypatch):
    """Let notifications not arrive, as behind a transaction pooler."""
    monkeypatch.setattr(listening._Listener, "_probe", lambda *args: False)


@pytest.fixture
def kept_connections(monkeypatch):
    """Keep idle connections as outside of tests."""
    monkeypatch.setattr(listening, "idle_seconds", lambda: hint_sender.IDLE_SECONDS)


def listener():
    return listening._listener("default")


def waiters():
    return sum(map(len, list(listener()._wakes.values())))  # other threads change it


def begin(call, *args, count=1, **kwargs):
    """Call in the background; return once it waits and is sure to be notified."""
    waiter = Background(call, *args, **kwargs)
    eventually(lambda: waiter.done or (listener().listening and waiters() >= count))
    return waiter


def terminate(pids):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [list(pids)])


# Being woken


@pytest.mark.usefixtures("notified_only")
def test_a_notification_ends_the_wait(run):
    waiter = begin(continuum.wait_run, run)
    finish(run, result="done")
    ended = waiter.result()
    assert (ended, ended.state, ended.result) == (run, "completed", "done")


def test_a_notification_about_another_run_does_not(run):
    other = continuum.start(flow, 2)
    mine, others = threading.Event(), threading.Event()
    with listening.watch("default", mine.set) as watch, listening.watch("default", others.set) as other_watch:
        watch.add(run.pk)
        other_watch.add(other.pk)
        # Whoever watches is woken once when listening begins.
        eventually(lambda: watch.listening and mine.is_set() and others.is_set())
        mine.clear()
        others.clear()
        announce(other)
        assert others.wait(10)
        assert not mine.is_set()
        announce(run)
        assert mine.wait(10)


@pytest.mark.usefixtures("notified_only")
def test_a_notification_that_names_no_run_wakes_all(run):
    waiter = begin(continuum.wait_run, run)
    finish(run, announced=False)
    announce()
    waiter.result()


@pytest.mark.usefixtures("notified_only")
def test_an_end_that_falls_between_the_first_look_and_listening_is_not_missed(run, monkeypatch):
    connecting, go_on = threading.Event(), threading.Event()
    real = listening.connect_sync

    def slow(*args, **kwargs):
        connecting.set()
        assert go_on.wait(10)
        return real(*args, **kwargs)

    looked = threading.Event()
    real_pause = waiting._Wait.pause
    monkeypatch.setattr(waiting._Wait, "pause", lambda self: (looked.set(), real_pause(self))[1])
    monkeypatch.setattr(listening, "connect_sync", slow)
    waiter = Background(continuum.wait_run, run)
    assert connecting.wait(10)
    assert looked.wait(10)
    finish(run)
    go_on.set()
    waiter.result()


@pytest.mark.usefixtures("notified_only")
def test_an_end_right_after_the_first_look_is_not_missed(run, monkeypatch):
    other = continuum.start(flow, 2)
    other_waiter = begin(continuum.wait_run, other)
    real = waiting.read_status

    def look_and_finish(*args):
        status = real(*args)
        if not status.has_ended:
            finish(run)
        return status

    monkeypatch.setattr(waiting, "read_status", look_and_finish)
    assert Background(continuum.wait_run, run).result().state == "completed"
    monkeypatch.setattr(waiting, "read_status", real)
    finish(other)
    other_waiter.result()


@pytest.mark.usefixtures("kept_connections")
def test_all_who_wait_share_one_connection_and_leave_nothing_behind():
    runs = [continuum.start(flow, number) for number in range(8)]
    started = [Background(continuum.wait_run, run) for run in runs]
    eventually(lambda: waiters() == 8 and listener().listening)
    eventually(lambda: len(sessions_of("continuum waiting")) == 1)  # one of a test before this may still be ending
    for run in runs:
        finish(run)
    assert [waiter.result() for waiter in started] == runs
    assert waiters() == 0
    assert len(sessions_of("continuum waiting")) == 1


def test_without_anybody_waiting_the_connection_goes_away(run):
    waiter = begin(continuum.wait_run, run)
    finish(run)
    waiter.result()
    eventually(lambda: not sessions_of("continuum waiting"))
    again = continuum.start(flow, 2)
    waiter = begin(continuum.wait_run, again)
    finish(again)
    waiter.result()


@pytest.mark.usefixtures("notified_only", "kept_connections")
def test_a_listening_connection_that_was_cut_is_replaced_and_what_it_missed_is_looked_up(run):
    waiter = begin(continuum.wait_run, run)
    first = sessions_of("continuum waiting")
    finish(run, announced=False)
    terminate(first)
    waiter.result()


@pytest.mark.usefixtures("kept_connections")
def test_close_all_leaves_no_connection_and_those_who_wait_go_on(run, poll_interval):
    poll_interval(0.05)
    waiter = begin(continuum.wait_run, run)
    listening.close_all()
    eventually(lambda: not sessions_of("continuum waiting"))
    finish(run)
    assert waiter.result() == run


def test_the_listen_database_is_used_for_the_configured_database_only(settings, monkeypatch):
    asked = []
    monkeypatch.setattr(listening, "_listener", lambda alias: asked.append(alias))
    settings.CONTINUUM = {"LISTEN_DATABASE": "direct"}
    listening.watch("default", print)
    listening.watch("other", print)
    assert asked == ["direct", "other"]


# Polling


@pytest.mark.usefixtures("polling_only")
def test_where_notifications_do_not_arrive_polling_begins_at_a_quick_pace(run, poll_interval):
    poll_interval(HARDLY_EVER)
    waiter = Background(continuum.wait_run, run)
    eventually(lambda: waiters() == 1)
    finish(run, announced=False)
    waiter.result()


def test_a_lost_notification_costs_the_poll_interval(run, poll_interval):
    poll_interval(0.1)
    waiter = begin(continuum.wait_run, run)
    finish(run, announced=False)
    waiter.result()


def test_polling_slows_down_to_the_poll_interval(poll_interval, monkeypatch):
    poll_interval(1)
    monkeypatch.setattr(waiting.random, "uniform", lambda low, high: 1.0)
    run_id = uuid.uuid4()
    with listening.Watch(listening._Listener(("default",)), print) as interest:
        monkeypatch.setattr(interest._listener, "add", lambda *args: None)
        monkeypatch.setattr(interest._listener, "remove", lambda *args: None)
        wait = waiting._Wait("default", run_id, None, None, interest)
        pauses = [wait.pause() for _ in range(20)]
        assert pauses[0] == 0.02
        assert pauses == sorted(pauses)
        assert pauses[-1] == 1
        interest._listener.listening = True
        assert wait.pause() == 1


@pytest.mark.usefixtures("polling_only")
def test_it_is_said_once_that_notifications_do_not_arrive(run, caplog):
    waiter = Background(continuum.wait_run, run)
    eventually(lambda: caplog.records)
    finish(run)
    waiter.result()
    [message] = [record.getMessage() for record in caplog.records]
    assert "does not deliver notifications" in message
    assert 'CONTINUUM["LISTEN_DATABASE"]' in message


def test_an_unreachable_listening_server_leaves_polling(run, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise psycopg.OperationalError("nobody is there")

    monkeypatch.setattr(listening, "connect_sync", refuse)
    waiter = Background(continuum.wait_run, run)
    eventually(lambda: caplog.records)
    finish(run)
    waiter.result()
    assert "nobody is there" in caplog.text


# Transactions


def test_no_transaction_is_held_while_waiting(run):
    def wait():
        with connection.cursor() as cursor:
            cursor.execute("SET application_name TO 'a waiter'")
        return continuum.wait_run(run)

    waiter = begin(wait)
    eventually(lambda: set(sessions_of("a waiter").values()) == {"idle"})
    finish(run)
    waiter.result()


def test_a_run_that_has_not_ended_cannot_be_waited_for_inside_a_transaction(run):
    for call in (continuum.wait_run, continuum.result):
        with (
            transaction.atomic(),
            pytest.raises(TransactionManagementError, match=r"pending.*inside a transaction") as caught,
        ):
            call(run, timeout=5)
        assert isinstance(caught.value, ContinuumError)
        assert (caught.value.run_id, caught.value.state) == (run.id, "pending")


def test_a_run_that_has_ended_can(run):
    finish(run, result=7)
    with transaction.atomic():
        assert continuum.wait_run(run).state == "completed"
        assert continuum.result(run) == 7


def test_under_manual_transaction_management_it_cannot_either(run):
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError):
            continuum.wait_run(run)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_a_connection_that_is_cut_while_waiting_is_replaced(run, poll_interval):
    poll_interval(0.05)

    def wait():
        with connection.cursor() as cursor:
            cursor.execute("SET application_name TO 'a waiter'")
        return continuum.wait_run(run)

    waiter = begin(wait)
    terminate(sessions_of("a waiter"))
    eventually(lambda: not sessions_of("a waiter"))
    finish(run)
    assert waiter.result() == run


def test_a_database_that_stays_away_is_the_callers_error_in_the_end(run, poll_interval, monkeypatch):
    poll_interval(0.01)
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.05)
    real, looks = waiting.read_status, []

    def fail_after_the_first(*args):
        looks.append(1)
        if len(looks) > 1:
            raise OperationalError("gone")
        return real(*args)

    monkeypatch.setattr(waiting, "read_status", fail_after_the_first)
    with pytest.raises(OperationalError, match="gone"):
        continuum.wait_run(run)
    assert len(looks) > 2


def test_an_error_at_the_first_look_is_the_callers_at_once(run, monkeypatch):
    def fail(*args):
        raise OperationalError("gone")

    monkeypatch.setattr(waiting, "read_status", fail)
    with pytest.raises(OperationalError, match="gone"):
        continuum.wait_run(run)
    assert waiters() == 0


# Giving up


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_timeout_names_the_run_and_its_state(run, timeout):
    for call in (continuum.wait_run, continuum.result):
        with pytest.raises(TimeoutError, match=f"{run.id} was still pending after {timeout} seconds") as caught:
            call(run, timeout)
        assert isinstance(caught.value, ContinuumError)
    assert waiters() == 0


def test_looking_once_is_one_statement(run, django_assert_num_queries):
    with django_assert_num_queries(1), pytest.raises(TimeoutError):
        continuum.wait_run(run, timeout=0)


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_a_bad_timeout_is_refused_by_name(run, timeout, error):
    for call in (continuum.wait_run, continuum.result):
        with pytest.raises(error, match="timeout"):
            call(run, timeout)


def test_there_is_no_waiting_for_a_run_that_does_not_exist():
    with pytest.raises(RunNotFoundError):
        continuum.wait_run(uuid.uuid4())


def test_a_run_that_is_deleted_meanwhile_ends_the_wait(run, poll_interval):
    poll_interval(0.05)
    waiter = begin(continuum.wait_run, run)
    Run.objects.all().delete()
    with pytest.raises(RunNotFoundError):
        waiter.result()


# Chains


@pytest.mark.usefixtures("notified_only")
def test_a_chain_of_continued_runs_is_followed_to_its_end(run):
    second, third = continuum.start(flow, 2), continuum.start(flow, 3)
    waiter = begin(continuum.result, run, namespace="default")
    finish(run, successor=second)
    eventually(lambda: waiters() == 2)
    finish(second, successor=third)
    eventually(lambda: waiters() == 3)
    finish(third, result="the end")
    assert waiter.result() == "the end"


def test_a_chain_that_has_ended_already_gives_its_last_run(run):
    tip = continuum.start(flow, 2)
    finish(run, successor=tip)
    finish(tip, result=2)
    assert continuum.wait_run(run) == tip


# Results


def test_a_result_is_what_the_return_annotation_says():
    shipped = continuum.start(ship, 1)
    finish(shipped, result={"order": "o1", "cents": 900})
    assert continuum.result(shipped) == Receipt("o1", 900)


def test_the_result_of_a_workflow_that_is_not_loaded_is_plain_data():
    shipped = continuum.start(ship, 1)
    Run.objects.update(workflow="not.loaded.here")
    finish(shipped, result={"order": "o1", "cents": 900})
    assert continuum.result(shipped) == {"order": "o1", "cents": 900}


@pytest.mark.parametrize("value", [None, 0, "", [], (1, 2), b"\x00", {"a": {1, 2}}])
def test_a_result_comes_back_as_it_was(run, value):
    finish(run, result=value)
    restored = continuum.result(run)
    assert restored == value
    assert type(restored) is type(value)


def test_a_failed_run_raises_what_made_it_fail(run):
    error = {"type": "ValueError", "message": "no such order", "traceback": "Traceback …", "details": {"id": 5}}
    finish(run, "failed", error=error)
    with pytest.raises(RunFailedError, match=f"{run.id} failed: ValueError: no such order") as caught:
        continuum.result(run)
    assert caught.value.error == error
    assert continuum.wait_run(run).state == "failed"


@pytest.mark.parametrize(
    ("error", "reason"), [(None, ""), ({"type": "CancelledError", "message": "changed my mind"}, "changed my mind")]
)
def test_a_cancelled_run_raises_that_and_why(run, error, reason):
    finish(run, "cancelled", error=error)
    with pytest.raises(RunCancelledError) as caught:
        continuum.result(run)
    assert (caught.value.run_id, caught.value.reason) == (run.id, reason)
    assert continuum.wait_run(run).state == "cancelled"


# Waiting for what was just sent


@pytest.fixture
def looks(monkeypatch):
    """The looks that were taken, by run."""
    looks, real = [], waiting.read_status
    monkeypatch.setattr(waiting, "read_status", lambda alias, *args: (looks.append(args[0]), real(alias, *args))[1])
    return looks


@pytest.fixture
def patient(monkeypatch):
    """The first look comes late, and what was sent stays fresh."""
    monkeypatch.setattr(waiting, "FIRST_LOOK", HARDLY_EVER)
    monkeypatch.setattr(hints, "FRESH_SECONDS", HARDLY_EVER)


@contextmanager
def hearing(run):
    """Somebody waits for another run, so that hints arrive."""
    waiter = begin(continuum.wait_run, run)
    yield
    finish(run)
    waiter.result()


@pytest.mark.usefixtures("notified_only", "patient")
@pytest.mark.parametrize("sends", ["start", "signal", "cancel"])
def test_whoever_waits_for_what_was_just_sent_looks_when_it_is_told(run, looks, sends):
    with hearing(run):
        mine = continuum.start(flow, 2)
        if sends != "start":
            hints.is_fresh(mine.id)  # once
            call = {"signal": (continuum.signal, mine, "go"), "cancel": (continuum.cancel, mine)}[sends]
            call[0](*call[1:])
        waiter = begin(continuum.result, mine, count=2)
        assert mine.id not in looks
        finish(mine, result=7)
        assert waiter.result() == 7
        assert looks.count(mine.id) == 1


@pytest.mark.usefixtures("notified_only", "patient")
def test_a_coroutine_that_waits_for_what_was_just_sent_does_so_too(run, looks):
    with hearing(run):
        mine = continuum.start(flow, 2)
        waiter = begin(asyncio.run, continuum.aresult(mine), count=2)
        assert mine.id not in looks
        finish(mine, result=7)
        assert waiter.result() == 7
        assert looks.count(mine.id) == 1


@pytest.mark.usefixtures("notified_only")
def test_an_end_that_nobody_told_of_is_found_by_the_first_look(run, monkeypatch):
    with hearing(run):
        monkeypatch.setattr(hints, "FRESH_SECONDS", HARDLY_EVER)
        mine = continuum.start(flow, 2)
        finish(mine, result=7, announced=False)
        assert Background(continuum.result, mine).result() == 7
        hints.note_sent(mine.id)
        assert Background(asyncio.run, continuum.aresult(mine)).result() == 7


@pytest.mark.usefixtures("notified_only", "patient")
def test_a_look_is_taken_at_once_where_it_may_be_needed(run, monkeypatch):
    with hearing(run):
        mine = continuum.start(flow, 2)
        finish(mine, result=7)

        def fresh():
            hints.note_sent(mine.id)
            return mine

        assert continuum.result(fresh(), timeout=10) == 7
        assert continuum.result(fresh(), namespace="default") == 7
        with transaction.atomic():
            assert continuum.result(fresh()) == 7
        hints.is_fresh(fresh().id)
        assert continuum.result(mine) == 7, "asked for the second time"
        monkeypatch.setattr(hints, "FRESH_SECONDS", 0.0)
        assert continuum.result(fresh()) == 7
        monkeypatch.setattr(hints, "FRESH_SECONDS", HARDLY_EVER)
        monkeypatch.setattr(listener(), "listening", False)
        assert continuum.result(fresh()) == 7


def test_what_is_sent_in_a_transaction_is_not_on_its_way():
    with transaction.atomic():
        mine = continuum.start(flow, 2)
    assert not hints.is_fresh(mine.id)


def test_no_more_is_noted_than_is_good():
    for _ in range(3 * hints.MOST_NOTED):
        hints.note_sent(uuid.uuid4())
    assert len(hints._sent_at) <= hints.MOST_NOTED


def test_a_listener_that_is_about_to_leave_does_not_say_that_it_listens(run, monkeypatch):
    leaving, go_on = threading.Event(), threading.Event()
    real = psycopg.Connection.close

    def close(self):
        if threading.current_thread().name.startswith("continuum-waiting"):
            leaving.set()
            assert go_on.wait(10)
        real(self)

    waiter = begin(continuum.wait_run, run)
    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Connection, "close", close)
        finish(run)
        waiter.result()
        assert leaving.wait(10)
        assert not listener().listening
        first = listener()._thread
        again = continuum.start(flow, 2)
        patched.setattr(psycopg.Connection, "close", real)
        waiter = begin(continuum.wait_run, again)
        go_on.set()
        first.join(10)
    assert not first.is_alive()
    assert listener().listening
    finish(again)
    waiter.result()
