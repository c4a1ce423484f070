"""The database goes away under load: real workers reconnect, finish everything, and nobody is declared dead."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection, connections

import continuum
from continuum import hints, listening
from continuum.models import ActivityTask, HistoryEvent, Run, Worker
from tests.app.models import Effect
from tests.app.trouble_workflows import weathers
from tests.conftest import url_of
from tests.poolers import LossyWire
from tests.test_cluster import TERMINAL, assert_sound, start_worker  # noqa: F401
from tests.waiting_for import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.cluster]

SETTINGS = ("--settings", "tests.settings_pooled")  # for their workflow modules
KEYS = 3  # shared by all runs
PATIENCE = 120  # seconds; on a busy machine even the start of a worker may take a while
# The journal, claims of runs and of tasks, what came of tasks, keys, and the transactions of activities.
PURPOSES = {"journal", "claims", "tasks", "outcomes", "attempts", "django"}


def start_load(count, *, first=0, words=("one", "two")):
    """Start runs, of which each has two rounds, and each round takes a word."""
    runs = []
    for n in range(first, first + count):
        run = continuum.start(weathers, f"r{n}", f"k{n % KEYS}")
        for word in words:
            continuum.signal(run, "answer", word)
        runs.append(run)
    return runs


def check(runs):
    """Everything is finished; what was to happen once has happened once, what was sent has arrived once."""
    common = {}
    for n, run in enumerate(runs):
        try:
            first, second = continuum.result(run, timeout=PATIENCE)
        except TimeoutError:
            tell_what_stands_still()
            raise
        assert (first[:3], second[:3]) == ([6, 3, "one"], [6, 3, "two"])
        common.setdefault(n % KEYS, set()).update((first[3], second[3]))
    assert all(len(results) == 1 for results in common.values()), "a key had two results"
    eventually(lambda: not Run.objects.exclude(state__in=TERMINAL).exists(), PATIENCE)
    assert not Run.objects.exclude(state="completed").exists()
    # One more of each would be a doubled run: two rounds, each with a child.
    assert Run.objects.count() == 4 * len(runs)
    once = list(Effect.objects.filter(key__endswith=":once").values_list("key", flat=True))
    assert len(once) == len(set(once)) == 4 * len(runs) + min(KEYS, len(runs))
    eventually(lambda: not ActivityTask.objects.exists(), PATIENCE)
    assert_sound()


def tell_what_stands_still():
    """Print the rows of what has not ended, for whoever looks for the reason."""
    queries = (
        "SELECT id, workflow, state, owner_id, lease_token, next_wakeup_at, waiting_on::text, error::text "
        "FROM continuum_runs WHERE state NOT IN ('completed', 'failed', 'cancelled')",
        "SELECT run_id, id, kind, name, command_id, payload::text FROM continuum_inbox WHERE consumed_at IS NULL",
        "SELECT run_id, command_id, activity, queue, state, attempt, due_at, owner_id FROM continuum_activity_tasks",
        "SELECT run_id, idempotency_key, result::text FROM continuum_activity_results WHERE kind = 'activity_key'",
        "SELECT id, state, heartbeat_at, session_lock FROM continuum_workers",
        "SELECT pid, application_name, state, wait_event, query FROM pg_stat_activity",
    )
    with connection.cursor() as cursor:
        for query in queries:
            cursor.execute(query)
            print(query, *cursor.fetchall(), sep="\n    ")


def assert_nobody_was_declared_dead(crew):
    for worker in crew:
        assert worker.process.poll() is None
        assert "declared dead" not in worker.output
        assert "coming back as a new worker" not in worker.output
    assert list(Worker.objects.values_list("state", flat=True)) == ["alive"] * len(crew)


def everybody_else_is_led(setting):
    """Have the sessions of all others end, and the next ones begin with another setting."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} {setting}")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.fixture
def own_server(start_postgres, request, monkeypatch):
    """A server of the test's own that keeps what it has acknowledged; the test's connection leads there."""
    server = start_postgres(fsync="off", max_connections=100, shared_buffers="64MB")
    connection.close()
    for name, value in ({"OPTIONS": {}} | server.django_database()).items():
        monkeypatch.setitem(connection.settings_dict, name, value)
    call_command("migrate", run_syncdb=True, verbosity=0)
    request.getfixturevalue("subprocess_environment")["DATABASE_URL"] = url_of(connection.settings_dict)
    yield server
    hints.close_all()
    listening.close_all()
    connection.close()


class TestRestart:
    def test_runs_go_on_and_nobody_is_declared_dead(self, own_server, start_worker):  # noqa: F811
        crew = [start_worker(*SETTINGS), start_worker(*SETTINGS)]
        eventually(lambda: Worker.objects.filter(session_lock=True).count() == 2, PATIENCE)
        runs = []
        for mode in ("fast", "immediate"):
            seen = HistoryEvent.objects.count()
            runs += start_load(12, first=len(runs), words=("one",))  # not all may be done before the restart
            eventually(lambda seen=seen: HistoryEvent.objects.count() > seen + 60, PATIENCE)
            own_server.restart(mode)
            connection.close()
        for run in runs:
            continuum.signal(run, "answer", "two")
        check(runs)
        assert_nobody_was_declared_dead(crew)
        # The locks are theirs again: from here on a death is noticed at once, as before.
        with connection.cursor() as cursor:

            def held():
                cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted")
                return cursor.fetchone() == (2,)

            eventually(held, PATIENCE)


class TestFailover:
    def test_runs_go_on_although_the_address_leads_to_a_standby_for_a_while(self, own_server, start_worker):  # noqa: F811
        crew = [start_worker(*SETTINGS), start_worker(*SETTINGS)]
        eventually(lambda: Worker.objects.filter(session_lock=True).count() == 2, PATIENCE)
        runs = []
        for _ in range(3):
            seen = HistoryEvent.objects.count()
            runs += start_load(8, first=len(runs))
            eventually(lambda seen=seen: HistoryEvent.objects.count() > seen + 40, PATIENCE)
            tried = [worker.output.count("trying again") for worker in crew]
            everybody_else_is_led("SET default_transaction_read_only = on")
            # Each has several connections, which all break; from the second attempt on a standby is what they find.
            eventually(
                lambda tried=tried: all(
                    worker.output.count("trying again") > before + 8 for worker, before in zip(crew, tried, strict=True)
                ),
                PATIENCE,
            )
            everybody_else_is_led("RESET default_transaction_read_only")
        check(runs)
        assert_nobody_was_declared_dead(crew)


class TestTerminatedConnections:
    def test_runs_go_on_when_every_connection_is_ended_again_and_again(self, start_worker):  # noqa: F811
        crew = [start_worker(*SETTINGS), start_worker(*SETTINGS)]
        eventually(lambda: Worker.objects.filter(session_lock=True).count() == 2, PATIENCE)
        runs = []
        ended = 0
        for _ in range(6):
            seen = HistoryEvent.objects.count()
            runs += start_load(5, first=len(runs))
            eventually(lambda seen=seen: HistoryEvent.objects.count() > seen + 50, PATIENCE)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                ended += cursor.fetchone()[0]
        assert ended > 24  # without these there is no progress: journals and claims of both workers
        check(runs)
        assert_nobody_was_declared_dead(crew)


class TestLostAcknowledgements:
    @pytest.mark.parametrize("every", [12, 25])
    def test_what_was_committed_without_an_answer_is_neither_lost_nor_doubled(
        self,
        start_worker,  # noqa: F811
        subprocess_environment,
        every,
    ):
        wire = LossyWire(connections["default"].settings_dict, every=every, purposes=PURPOSES, seed=every)
        try:
            subprocess_environment["DATABASE_URL"] = wire.url
            crew = [start_worker(*SETTINGS), start_worker(*SETTINGS)]
            runs = start_load(12)
            check(runs)
            lost = dict(wire.lost)
            print(f"one answer in {every} lost: {lost}")
            assert lost.keys() == PURPOSES
        finally:
            for worker in crew:
                worker.close()
            wire.close()


class TestStalledConnections:
    def test_runs_go_on_when_nothing_comes_any_more_over_connections_that_stay(
        self,
        start_worker,  # noqa: F811
        subprocess_environment,
    ):
        wire = LossyWire(connections["default"].settings_dict, every=1, purposes=set(), seed=1)
        try:
            subprocess_environment["DATABASE_URL"] = wire.url
            crew = [start_worker(*SETTINGS)]
            runs = start_load(3)
            check(runs)
            # All but Django's own in the threads, of which nobody but the project can say how long they may take.
            stalled = wire.stall((PURPOSES | {"lease", "maintenance", "hints"}) - {"django"})
            assert {"journal", "claims", "lease", "tasks"} <= stalled
            runs += start_load(3, first=len(runs))
            check(runs)
            assert "no answer arrives" in crew[0].output
            assert_nobody_was_declared_dead(crew)
        finally:
            for worker in crew:
                worker.close()
            wire.close()
