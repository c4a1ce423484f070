"""Hints that go along with the statements they speak of: behind the commit, and only if there is something to tell."""

import signal
import threading
import time
import uuid

import psycopg
import pytest
from django.db import DatabaseError, DataError, OperationalError, connection, transaction

import continuum
from continuum import along, hint_sender, hints, statements
from continuum.exceptions import AlreadyStartedError
from continuum.models import InboxMessage, Run
from continuum.worker.sql import load
from tests.concurrency import Background
from tests.conftest import url_of
from tests.ending import finish
from tests.fails_at_commit import ENDINGS, commits_end
from tests.hearing import listening_on
from tests.waiting_for import eventually, sessions_of

pytestmark = pytest.mark.django_db(transaction=True)

READY, MAIL = "continuum_ready", "continuum_mail"
WORKER, MARK = "continuum_worker_41", "continuum_worker_999"


@continuum.workflow(name="tests.along.flow")
async def flow(value): ...


@pytest.fixture(autouse=True)
def warm():
    """Begin with a session that has prepared what is asked here, and with no hint on its way."""
    connection.close()
    run = continuum.start(flow, 0)
    for number in range(3):
        continuum.start(flow, number)
        continuum.start(flow, number, idempotency_key=str(number))
        continuum.signal(run, "go", number)
    calm()
    yield
    connection.close()


@pytest.fixture
def run(warm):
    """A run that the worker with id 41 has, with no mail."""
    run = continuum.start(flow, 1)
    Run.objects.filter(pk=run.pk).update(owner_id=41, state="running")
    calm()
    return run


@pytest.fixture
def ears(database_url, run):
    eventually(lambda: not sessions_of("continuum %"))
    with listening_on(database_url, READY, MAIL, WORKER, MARK) as ears:
        yield ears


@pytest.fixture
def others(monkeypatch):
    """The hints that did not go along."""
    others = []
    monkeypatch.setattr(hint_sender.Sender, "add", lambda self, channels: others.append(dict(channels)))
    return others


def calm():
    """Wait until the next hint is one on its own."""
    hints.hurry("default")
    assert hints.flush(10)
    eventually(lambda: time.monotonic() > hints._sender(connection)._due)


def heard_by_now(ears):
    with psycopg.connect(url_of(connection.settings_dict), autocommit=True) as other:
        other.execute(f"NOTIFY {MARK}")
    return ears.until(MARK)


def usable():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone() == (1,)


# What goes along


def test_a_start_tells_all_workers_and_needs_no_other_session(ears, others):
    continuum.start(flow, 1)
    assert heard_by_now(ears) == [(READY, "")]
    assert others == []
    assert not sessions_of("continuum hints")


def test_a_message_tells_the_owner_alone(ears, others, run):
    assert continuum.signal(run, "go")
    calm()
    continuum.cancel(run)
    assert heard_by_now(ears) == [(WORKER, run.id.hex)] * 2
    assert others == []


def test_a_message_to_a_run_without_an_owner_tells_all(ears, others, run):
    Run.objects.filter(pk=run.pk).update(owner_id=None)
    continuum.signal(run, "go")
    assert heard_by_now(ears) == [(MAIL, run.id.hex)]
    assert others == []


def test_whoever_hears_of_it_finds_it_committed(ears, others, run, database_url):
    continuum.signal(run, "go")
    assert ears.until(WORKER) == []
    with psycopg.connect(database_url) as other:
        assert other.execute("SELECT count(*) FROM continuum_inbox WHERE run_id = %s", [run.id]).fetchone() == (1,)


def test_it_is_a_transaction_of_its_own():
    """The statement that writes holds no lock of NOTIFY's while its transaction gets to the disk."""
    hint = along.Along("default", "hint_of_run", Run.objects.first().pk)
    hint.text = "SELECT %(run_id)s::uuid, pg_current_xact_id()::text"
    ids = []
    real = statements._checked

    def checked(results):
        ids.append(results[-1].get_value(0, results[-1].nfields - 1))
        return real(results)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statements, "load", lambda name: "SELECT pg_current_xact_id()::text")
        for _ in range(3):
            statements.first_row("default", "", {})
        calm()
        patched.setattr(statements, "_checked", checked)
        statements.first_row("default", "", {}, hint)
    assert hint.told is not None
    written, told = ids[-2:]
    assert written != told


def test_it_waits_for_no_disk_but_leaves_the_sessions_settings_alone(ears):
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
        continuum.start(flow, 1)
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)
    for name in ("hint_of_run", "hint_of_mail", "hint_of_end"):
        assert "set_config('synchronous_commit', 'off', true)" in load(name)


# What is not told


def test_a_start_that_is_refused_is_not_told_of(ears, others):
    with pytest.raises(AlreadyStartedError):
        continuum.start(flow, 1, idempotency_key="0")
    assert heard_by_now(ears) == []
    assert others == []


def test_a_statement_that_fails_is_not_told_of(ears, others, run):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE continuum_inbox ADD CONSTRAINT no_mail CHECK (false) NOT VALID")
    try:
        with pytest.raises(Exception, match="no_mail"):
            continuum.signal(run, "go")
        assert usable()
        assert heard_by_now(ears) == []
        assert others == []
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE continuum_inbox DROP CONSTRAINT no_mail")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_start_that_fails_in_its_commit_is_no_run(ears, others, ending):
    before = Run.objects.count()
    with commits_end("continuum_runs", ending):
        with pytest.raises(DatabaseError):
            continuum.start(flow, "lost")
        assert ending == "its session is ended" or usable()
    assert Run.objects.count() == before
    assert heard_by_now(ears) == []
    assert others == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_message_that_fails_in_its_commit_is_not_sent(ears, others, run, ending):
    with commits_end("continuum_inbox", ending), pytest.raises(DatabaseError):
        continuum.signal(run, "go")
    assert not InboxMessage.objects.filter(run_id=run.id).exists()
    assert heard_by_now(ears) == []
    assert others == []


def test_a_repeated_delivery_is_not_told_of(ears, others, run):
    assert continuum.signal(run, "go", delivery_id="d1")
    InboxMessage.objects.filter(run_id=run.pk).update(consumed_at="2026-01-01T00:00:00Z")  # kept, to know it again
    assert ears.until(WORKER) == []
    calm()
    assert not continuum.signal(run, "go", delivery_id="d1")
    assert heard_by_now(ears) == []
    assert others == []


def test_nothing_is_told_before_the_callers_transaction_is_committed(ears, others, run):
    with transaction.atomic():
        continuum.start(flow, 1)
        continuum.signal(run, "go")
        assert heard_by_now(ears) == []
        assert others == []
    assert others == [{READY: None, WORKER: {run.id.hex: None}}]
    with transaction.atomic():
        continuum.start(flow, 1)
        transaction.set_rollback(True)
    assert len(others) == 1


# What goes the other way


@pytest.mark.parametrize("has_strays", [False, True])
def test_the_tip_of_a_chain_is_told_the_other_way(ears, others, run, has_strays):
    tip = continuum.start(flow, 2)
    assert ears.until(READY) == []
    finish(run, successor=tip)
    Run.objects.filter(pk=tip.pk).update(owner_id=41, state="running")
    if has_strays:  # the hint that goes along finds something to tell of as well
        InboxMessage.objects.create(run_id=run.pk, kind="signal", name="go", payload=1)
    calm()
    continuum.signal(run, "go")
    assert others == [{WORKER: {tip.id.hex: None}}]
    assert heard_by_now(ears) == [(WORKER, run.id.hex)] * has_strays


def test_in_a_distributed_database_hints_go_the_other_way(ears, others, run):
    """There the statement is carried out on another node, with its notification."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
            " VALUES (4711, 'citus', 10, 11, false, '1')"
        )
    try:
        continuum.start(flow, 1)
        calm()
        continuum.signal(run, "go")
        assert heard_by_now(ears) == []
        assert [list(channels) for channels in others] == [[READY], [WORKER]]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM pg_extension WHERE extname = 'citus'")


def test_what_comes_soon_after_another_goes_the_other_way(ears, others, monkeypatch):
    monkeypatch.setattr(hint_sender.Pace, "sent", lambda self, now: 600.0)
    for number in range(3):
        continuum.start(flow, number)
    assert others == [{READY: None}] * 2
    assert heard_by_now(ears) == [(READY, "")]


def test_what_goes_along_counts_in_a_burst(monkeypatch):
    sender = hint_sender.Sender(("default",))
    now = [100.0]
    monkeypatch.setattr(hint_sender.time, "monotonic", lambda: now[0])
    gone = []
    for _ in range(200):
        gone.append(sender.goes_along())
        now[0] += 0.002
    assert 0 < sum(gone) < 15
    now[0] += 1.0
    assert sender.goes_along()
    # Who waits for what comes of each hint makes no burst.
    waited_for = []
    for _ in range(200):
        now[0] += 0.002
        waited_for.append(sender.goes_along())
        sender.hurry()
    assert all(waited_for)


def test_a_hint_that_fails_goes_the_other_way_and_is_nobodys_error(ears, others, monkeypatch):
    monkeypatch.setattr(along, "load", lambda name: "SELECT %(run_id)s::uuid, 1/0")
    run = continuum.start(flow, 1)
    assert Run.objects.filter(pk=run.pk).exists()
    assert others == [{READY: None}]
    assert usable()


@pytest.mark.parametrize("forgotten", ["continuum_%", "NOTIFY"])
def test_what_the_session_has_forgotten_is_done_and_told_of_all_the_same(ears, others, run, forgotten):
    continuum.signal(run, "go")
    calm()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name FROM pg_prepared_statements WHERE statement LIKE %s",
            ["%pg_notify%" if forgotten == "NOTIFY" else "%"],
        )
        names = [name for (name,) in cursor.fetchall()]
        assert names
        for name in names:
            cursor.execute(f"DEALLOCATE {name}")
    continuum.signal(run, "go")
    assert InboxMessage.objects.filter(run_id=run.pk).count() == 2
    assert others == [{WORKER: {run.id.hex: None}}]


def test_where_nothing_is_prepared_hints_go_the_other_way(ears, others, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    connection.close()
    for number in range(5):
        continuum.start(flow, number)
        eventually(lambda: time.monotonic() > hints._sender(connection)._due)
    assert others == [{READY: None}] * 5


def test_without_pipelines_hints_go_the_other_way(ears, others, monkeypatch):
    monkeypatch.setattr(along.flights, "possible", lambda: False)
    continuum.start(flow, 1)
    assert others == [{READY: None}]


# Trouble


@pytest.mark.parametrize("where", ["statement", "hint"])
def test_who_interrupts_it_finds_the_connection_usable(where):
    """As Ctrl-C does, which psycopg has the server told of."""
    hint = along.Along("default", "hint_of_run", Run.objects.first().pk)
    hint.text = "SELECT %(run_id)s::uuid, pg_sleep(30)" if where == "hint" else "SELECT %(run_id)s::uuid"
    address, pid = url_of(connection.settings_dict), connection.connection.info.backend_pid
    text = "SELECT pg_sleep(%(seconds)s::float8)::text"

    def interrupt():
        asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        with psycopg.connect(address, autocommit=True) as other:
            eventually(lambda: other.execute(asleep, [pid]).fetchone(), 25)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statements, "load", lambda name: text)
        for _ in range(3):
            statements.first_row("default", "", {"seconds": "0"})
        calm()
        watcher = threading.Thread(target=interrupt)
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            statements.first_row("default", "", {"seconds": "30" if where == "statement" else "0"}, hint)
        watcher.join()
        assert usable()
        assert statements.first_row("default", "", {"seconds": "0"}) == ("",)


def test_a_session_that_ends_between_the_two_leaves_what_was_committed(ears, others):
    """The caller has its run: that the connection broke, the next who uses it will see."""
    pid = connection.connection.info.backend_pid
    hint = along.Along("default", "hint_of_run", Run.objects.first().pk)
    hint.text = "SELECT %(run_id)s::uuid, pg_sleep(30)"
    waiter = Background(ended_while_it_sleeps, pid, url_of(connection.settings_dict))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statements, "load", lambda name: "SELECT 'done'")
        for _ in range(3):
            statements.first_row("default", "", {})
        calm()
        assert statements.first_row("default", "", {}, hint) == ("done",)
    waiter.result()
    assert hint.told is None
    assert connection.connection.closed


def ended_while_it_sleeps(pid, address):
    asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    with psycopg.connect(address, autocommit=True) as other:
        eventually(lambda: other.execute(asleep, [pid]).fetchone(), 25)
        other.execute("SELECT pg_terminate_backend(%s)", [pid])


def test_errors_are_djangos_with_a_hint_as_well(others):
    hint = along.Along("default", "hint_of_run", uuid.uuid4())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statements, "load", lambda name: "SELECT 1 / %(number)s::int")
        for _ in range(3):
            statements.first_row("default", "", {"number": "1"})
        calm()
        with pytest.raises(DataError):
            statements.first_row("default", "", {"number": "0"}, hint)
    assert hint.told is None
    assert usable()


def test_a_session_that_was_cut_before_is_djangos_error():
    with psycopg.connect(url_of(connection.settings_dict), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.connection.info.backend_pid])
    with pytest.raises(OperationalError):
        continuum.start(flow, "lost")
    connection.close()
    continuum.start(flow, "kept")
    inputs = [run.input for run in Run.objects.all()]
    assert inputs.count(["kept"]) == 1
    assert ["lost"] not in inputs
