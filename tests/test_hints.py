"""Hints from application processes: when they are sent, to whom, and that nothing about them hurts the caller."""

import logging
import os
import subprocess
import sys
import threading
import time
import uuid
import warnings

import psycopg
import pytest
from django.db import connection, transaction

import continuum
from continuum import hint_sender, hints
from continuum.models import Run
from continuum.worker.connections import Backoff
from tests.concurrency import Background
from tests.hearing import listening_on
from tests.waiting_for import eventually, sessions_of

pytestmark = pytest.mark.django_db(transaction=True)

READY, MAIL, DONE = "continuum_ready", "continuum_mail", "continuum_done"
WORKER, MARK = "continuum_worker_41", "continuum_worker_999"


@continuum.workflow(name="tests.hints.flow")
async def flow(value): ...


@pytest.fixture
def ears(database_url):
    # Workers that a test before this one has ended may still have something to say.
    eventually(lambda: not sessions_of("continuum %"))
    with listening_on(database_url, READY, MAIL, WORKER, MARK) as ears:
        yield ears


@pytest.fixture(autouse=True)
def kept_connections(monkeypatch):
    """Keep idle connections as outside of tests."""
    monkeypatch.setattr(hint_sender, "idle_seconds", lambda: hint_sender.IDLE_SECONDS)


def heard_by_now(ears):
    """Return what was heard up to a mark sent after everything else."""
    hints.send_run("default", uuid.uuid4(), 999)
    return ears.until(MARK)


def heard_so_far(ears):
    """Return what was heard up to a mark that does not go the way of hints."""
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {MARK}")
    return ears.until(MARK)


def hint_sessions():
    return list(sessions_of("continuum hints"))


def terminate(pids):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::integer[]) AS pid", [list(pids)])
    eventually(lambda: not set(pids) & set(hint_sessions()))


# When


def test_a_start_outside_a_transaction_is_announced_at_once(ears):
    continuum.start(flow, 1)
    assert ears.until(READY) == []


def test_nothing_is_announced_before_the_commit(ears):
    with transaction.atomic():
        continuum.start(flow, 1)
        # Sent by another thread, whose connection is in no transaction: it overtakes.
        Background(hints.send_run, "default", uuid.uuid4(), 999).result()
        assert ears.until(MARK) == []
    assert ears.until(READY) == []


def test_a_transaction_announces_all_its_runs_once(ears):
    with transaction.atomic():
        for number in range(50):
            continuum.start(flow, number)
        continuum.start_many(flow, range(50))
    assert heard_by_now(ears) == [(READY, "")]


def test_a_transaction_that_rolls_back_announces_nothing(ears):
    with transaction.atomic():
        continuum.start(flow, 1)
        transaction.set_rollback(True)
    assert heard_by_now(ears) == []


def test_a_run_started_after_a_savepoint_that_rolled_back_is_announced(ears):
    with transaction.atomic():
        with transaction.atomic():
            continuum.start(flow, 1)
            transaction.set_rollback(True)
        continuum.start(flow, 2)
    assert heard_by_now(ears) == [(READY, "")]


def test_a_run_started_before_a_savepoint_that_rolled_back_is_announced(ears):
    with transaction.atomic():
        continuum.start(flow, 1)
        with transaction.atomic():
            continuum.start(flow, 2)
            transaction.set_rollback(True)
    assert heard_by_now(ears) == [(READY, "")]


def test_a_message_sent_in_a_savepoint_that_rolled_back_is_not_announced(ears):
    with transaction.atomic():
        continuum.start(flow, 1)
        with transaction.atomic():
            hints.send_run("default", uuid.uuid4(), 41)
            transaction.set_rollback(True)
    assert heard_by_now(ears) == [(READY, "")]


def test_hooks_of_others_in_between_change_nothing(ears):
    called = []
    with transaction.atomic():
        continuum.start(flow, 1)
        transaction.on_commit(lambda: called.append(1))
        continuum.start(flow, 2)
    assert called == [1]
    assert set(heard_by_now(ears)) == {(READY, "")}


def test_under_manual_transaction_management_the_poll_has_to_do(ears):
    transaction.set_autocommit(False)
    try:
        continuum.start(flow, 1)
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert Run.objects.count() == 1
    assert heard_by_now(ears) == []


# To whom


def test_a_message_to_a_run_with_an_owner_is_announced_to_the_owner_alone(ears):
    run = continuum.start(flow, 1)
    ears.until(READY)
    Run.objects.filter(pk=run.pk).update(owner_id=41, state="running")
    continuum.signal(run, "go")
    hints.flush(10)
    continuum.cancel(run)
    assert heard_by_now(ears) == [(WORKER, run.id.hex)] * 2


def test_a_message_to_a_run_without_an_owner_is_announced_to_all(ears):
    run = continuum.start(flow, 1)
    ears.until(READY)
    continuum.signal(run, "go")
    assert heard_by_now(ears) == [(MAIL, run.pk.hex)]


def test_a_repeated_delivery_is_not_announced(ears):
    run = continuum.start(flow, 1)
    Run.objects.filter(pk=run.pk).update(owner_id=41)
    ears.until(READY)
    for _ in range(2):
        continuum.signal(run, "go", delivery_id="d1")
        hints.flush(10)
    assert heard_by_now(ears) == [(WORKER, run.id.hex)]


def test_many_runs_of_one_owner_share_messages_that_are_not_too_long(ears):
    run_ids = [uuid.uuid4() for _ in range(450)]
    with transaction.atomic():
        for run_id in run_ids:
            hints.send_run("default", run_id, 41)
    payloads = [payload for _, payload in heard_by_now(ears)]
    assert [len(payload.split(",")) for payload in payloads] == [200, 200, 50]
    assert ",".join(payloads).split(",") == [run_id.hex for run_id in run_ids]


def test_very_many_runs_of_one_owner_become_look_at_all(ears, monkeypatch):
    monkeypatch.setattr(hint_sender, "MOST_PENDING_IDS", 3)
    with transaction.atomic():
        for _ in range(5):
            hints.send_run("default", uuid.uuid4(), 41)
    assert heard_by_now(ears) == [(WORKER, "")]


@pytest.fixture
def commands(monkeypatch):
    """The commands that were made of hints, each one a round."""
    made, real = [], hint_sender._command

    def command(pending):
        made.append(real(pending))
        return made[-1]

    monkeypatch.setattr(hint_sender, "_command", command)
    return made


@pytest.fixture
def connected(ears):
    """A hint was sent, so that there is a connection to send the next ones over."""
    hints.send_ready("default")
    assert hints.flush(10)
    assert ears.until(READY) == []


def many_ids(count):
    return [uuid.uuid4() for _ in range(count)]


def send_runs(run_ids):
    for run_id in run_ids:
        hints.send_run("default", run_id, 41)


def heard_ids(heard):
    return [digits for channel, payload in heard if channel == WORKER for digits in payload.split(",")]


def test_hints_that_come_while_one_is_under_way_go_together_in_the_next(ears, commands, monkeypatch):
    sending, go_on = threading.Event(), threading.Event()
    real = hint_sender._execute

    def slow_execute(connection, command):
        sending.set()
        assert go_on.wait(10)
        real(connection, command)

    monkeypatch.setattr(hint_sender, "_execute", slow_execute)
    hints.send_ready("default")
    assert sending.wait(10)
    run_ids = many_ids(20)
    send_runs(run_ids)
    go_on.set()
    assert hints.flush(10)
    assert len(commands) == 2
    assert heard_by_now(ears) == [(READY, ""), (WORKER, ",".join(run_id.hex for run_id in run_ids))]


def test_the_pause_grows_while_a_burst_lasts_and_a_hint_on_its_own_goes_at_once():
    pace = hint_sender.Pace()
    assert pace.sent(0.0) == hint_sender.PAUSE_SECONDS
    now, pauses = 0.005, []
    for _ in range(6):
        pauses.append(pace.sent(now))
        now += pauses[-1] + 0.004
    assert pauses == [0.008, 0.016, 0.032, 0.064, 0.1, 0.1]
    assert pace.sent(now + hint_sender.LONGEST_PAUSE_SECONDS) == hint_sender.PAUSE_SECONDS
    # Sixty a second, one by one.
    pace = hint_sender.Pace()
    assert {pace.sent(number / 60) for number in range(100)} == {hint_sender.PAUSE_SECONDS}


def test_who_asks_sends_and_wakes_no_thread_for_it(ears, connected, monkeypatch):
    senders, real = [], hint_sender._post

    def post(connection, command):
        senders.append(threading.current_thread())
        real(connection, command)

    monkeypatch.setattr(hint_sender, "_post", post)
    eventually(lambda: time.monotonic() > hints._sender(connection)._due)
    continuum.start(flow, 1)
    assert senders == [threading.current_thread()]
    assert ears.until(READY) == []


def test_the_last_hint_of_a_burst_needs_nobody_else_to_ask(ears, connected, commands):
    run_ids = many_ids(40)
    send_runs(run_ids)
    heard = []

    def everything_is_heard():
        heard.extend(heard_ids(heard_so_far(ears)))
        return run_ids[-1].hex in heard

    eventually(everything_is_heard)
    assert heard == [run_id.hex for run_id in run_ids]
    assert len(commands) < 15


@pytest.fixture
def in_a_burst(connected, monkeypatch):
    """One more round goes out at once, and the next is a long time in coming."""
    for name in ("SOON_SECONDS", "FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(hint_sender, name, 600.0)
    eventually(lambda: time.monotonic() > hints._sender(connection)._due)


def test_a_burst_is_sent_when_somebody_waits_for_what_comes_of_it(ears, in_a_burst):
    run_ids = many_ids(30)
    send_runs(run_ids)
    run = continuum.start(flow, 1)
    Run.objects.filter(pk=run.pk).update(state="completed", result=1)
    assert run_ids[-1].hex not in heard_ids(heard_so_far(ears))
    assert continuum.result(run) == 1
    assert run_ids[-1].hex in heard_ids(ears.until(READY))


def test_a_burst_is_not_held_back_by_a_flush(ears, in_a_burst):
    run_ids = many_ids(30)
    send_runs(run_ids)
    assert hints.flush(10)
    assert heard_ids(heard_so_far(ears)) == [run_id.hex for run_id in run_ids]


def test_more_than_the_network_takes_at_once_is_sent_as_well(ears, connected):
    run_ids = many_ids(5_000)
    with transaction.atomic():
        send_runs(run_ids)
    assert hints.flush(10)
    assert heard_ids(heard_by_now(ears)) == [run_id.hex for run_id in run_ids]


@pytest.fixture
def stuck(connected, monkeypatch):
    """The server does not answer to what was sent last, nor carry it out."""
    made = []

    def command(pending):
        made.append(pending)
        return b"SELECT pg_sleep(600)"

    with monkeypatch.context() as patched:
        patched.setattr(hint_sender, "_command", command)
        hints.send_run("default", uuid.UUID(int=7), 41)
        eventually(lambda: made)
    yield
    # That its client has gone, the server would not notice before its sleep is over.
    hints.close_all()
    terminate(hint_sessions())


def test_nobody_waits_for_a_server_that_does_not_answer(ears, stuck):
    run_ids = many_ids(20)
    send_runs(run_ids)
    assert not hints.flush(0.05)
    assert heard_ids(heard_so_far(ears)) == []


def test_what_was_not_answered_before_the_connection_broke_is_sent_again(ears, stuck):
    run_id = uuid.uuid4()
    hints.send_run("default", run_id, 41)
    terminate(hint_sessions())
    assert hints.flush(10)
    assert set(heard_ids(heard_by_now(ears))) == {uuid.UUID(int=7).hex, run_id.hex}


@pytest.mark.parametrize("posted", [True, False], ids=["posted", "sent by the thread"])
def test_a_connection_over_which_no_answer_comes_is_given_up_for_another(ears, connected, monkeypatch, posted):
    """What stands in between may have lost the way to the server, and keep the connection."""
    run_id, real, sent = uuid.uuid4(), hint_sender._command, []

    def command(pending):
        sent.append(pending)
        return real(pending) if len(sent) > 1 else b"SELECT pg_sleep(600)"

    monkeypatch.setattr(hint_sender, "_command", command)
    monkeypatch.setattr(hint_sender, "GIVE_UP_SECONDS", 0.5)
    if not posted:
        monkeypatch.setattr(hint_sender, "MOST_POSTED_BYTES", 0)
    hints.send_run("default", run_id, 41)
    assert hints.flush(25)
    assert len(sent) > 1
    assert set(heard_ids(heard_by_now(ears))) == {run_id.hex}
    hints.close_all()
    terminate(hint_sessions())  # the server sleeps on


def test_what_the_server_refuses_afterwards_is_reported_and_not_tried_again(connected, monkeypatch, caplog):
    made = []

    def command(pending):
        made.append(pending)
        return b"SELECT 1/0"

    monkeypatch.setattr(hint_sender, "_command", command)
    with caplog.at_level(logging.WARNING, "continuum.hints"):
        hints.send_ready("default")
        assert hints.flush(10)
        hints.send_ready("default")
        assert hints.flush(10)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["division by zero"]
    assert len(made) == 1


def test_a_statement_that_is_refused_is_an_error(database_url):
    with psycopg.connect(database_url, autocommit=True) as session, pytest.raises(psycopg.errors.SyntaxError):
        hint_sender._execute(session, b"BEGIN; NOTIFY; COMMIT")


# What must not happen


def test_a_hint_that_cannot_be_sent_is_the_callers_affair_no_more_than_once_in_the_log(ears, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise psycopg.OperationalError("nobody is there")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "continuum.hints"):
        patched.setattr(hint_sender, "connect_sync", refuse)
        for _ in range(3):
            continuum.start(flow, 1)
            assert hints.flush(10)
            hints._sender(connection)._muted_until = 0.0
        assert [record.getMessage() for record in caplog.records] == [
            "hints for database 'default' cannot be sent, workers will poll until they can: nobody is there"
        ]
    assert Run.objects.count() == 3
    continuum.start(flow, 1)
    assert ears.until(READY) == []


def test_after_a_failure_it_is_not_tried_for_a_while(monkeypatch):
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(1)
        raise psycopg.OperationalError("nobody is there")

    monkeypatch.setattr(hint_sender, "connect_sync", refuse)
    monkeypatch.setattr(hints._sender(connection), "_backoff", Backoff(base=600.0, cap=600.0))
    for _ in range(5):
        hints.send_ready("default")
        assert hints.flush(10)
    assert attempts == [1]


def test_a_connection_that_was_cut_is_replaced(ears):
    continuum.start(flow, 1)
    ears.until(READY)
    hints.flush(10)
    first = hint_sessions()
    terminate(first)
    continuum.start(flow, 1)
    assert ears.until(READY) == []
    assert hint_sessions() != first


def test_many_hints_use_one_connection(ears):
    for _ in range(5):
        continuum.start(flow, 1)
        assert hints.flush(10)
    eventually(lambda: len(hint_sessions()) == 1)  # what a test before this one had closed may still be ending


def test_a_connection_without_work_is_closed(ears, monkeypatch):
    monkeypatch.setattr(hint_sender, "idle_seconds", lambda: 0.0)
    continuum.start(flow, 1)
    ears.until(READY)
    eventually(lambda: not hint_sessions())
    continuum.start(flow, 1)
    assert ears.until(READY) == []


def test_close_all_leaves_no_connection_and_the_next_hint_opens_another(ears):
    continuum.start(flow, 1)
    assert hints.flush(10)
    hints.close_all()
    eventually(lambda: not hint_sessions())
    ears.until(READY)
    continuum.start(flow, 1)
    assert ears.until(READY) == []


def test_hints_wait_for_no_disk_but_leave_the_sessions_settings_alone(database_url):
    with psycopg.connect(database_url, autocommit=True) as session:
        session.execute("SET synchronous_commit TO on")
        command = hint_sender._command({MARK: None})
        hint_sender._execute(session, command.removesuffix(b"; COMMIT"))
        assert session.execute("SHOW synchronous_commit").fetchone() == ("off",)
        hint_sender._execute(session, b"COMMIT")
        assert session.execute("SHOW synchronous_commit").fetchone() == ("on",)


SCRIPT = """
import django
django.setup()
import continuum
@continuum.workflow
async def flow(): ...
continuum.start(flow)
"""


def test_a_script_that_ends_right_after_its_start_has_sent_its_hint(ears, subprocess_environment):
    subprocess.run([sys.executable, "-c", SCRIPT], env=subprocess_environment, check=True, timeout=60)
    assert heard_by_now(ears) == [(READY, "")]


ABRUPT = """
import os
import django
django.setup()
import continuum
from continuum import hints
@continuum.workflow
async def flow(): ...
hints.send_run("default", __import__("uuid").UUID(int=1), 41)
hints.flush(10)
continuum.start(flow)
os._exit(0)
"""


def test_a_process_that_is_gone_right_after_its_start_has_sent_its_hint(ears, subprocess_environment):
    subprocess.run([sys.executable, "-c", ABRUPT], env=subprocess_environment, check=True, timeout=60)
    assert ears.until(READY) == [(WORKER, uuid.UUID(int=1).hex)]


def test_a_forked_child_sends_over_a_connection_of_its_own(ears):
    continuum.start(flow, 1)
    ears.until(READY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: this is about their getting on
        child = os.fork()
    if child == 0:
        try:
            hints._sender(connection).add({WORKER: None})
            os._exit(0 if hints.flush(10) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ears.until(WORKER) == []
    continuum.start(flow, 1)
    assert ears.until(READY) == []
    eventually(lambda: len(hint_sessions()) == 1)  # the child's ends a moment after its process
