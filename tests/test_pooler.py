"""Workers and clients behind PgBouncer in transaction mode: no LISTEN, no session or lock of one's own."""

from __future__ import annotations

import psycopg
import pytest
from django.db import connection, connections, transaction

import continuum
from continuum.models import ActivityTask, Run, Worker
from tests.app import attempt_workflows, everything_workflows as flows, family_workflows, workflows
from tests.app.models import Effect
from tests.poolers import PgBouncer, pgbouncer_binary
from tests.test_cluster import assert_sound, effects_of, start_worker  # noqa: F401
from tests.waiting_for import eventually

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.cluster,
    pytest.mark.skipif(
        pgbouncer_binary() is None, reason="there is no pgbouncer (Debian: apt-get install pgbouncer) to stand behind"
    ),
]

SETTINGS = ("--settings", "tests.settings_pooled")


@pytest.fixture
def pooler(database_url):
    pooler = PgBouncer(connections["default"].settings_dict)
    yield pooler
    pooler.close()


@pytest.fixture
def client_is_pooled(pooler, monkeypatch):
    """The test's own connection goes through the pooler as well."""
    settings = connection.settings_dict
    connection.close()
    for name in ("HOST", "PORT", "OPTIONS"):
        monkeypatch.setitem(settings, name, pooler.database[name])
    monkeypatch.setitem(settings, "DISABLE_SERVER_SIDE_CURSORS", True)
    yield
    continuum.hints.close_all()
    continuum.listening.close_all()
    connection.close()


@pytest.fixture
def pooled_environment(pooler, subprocess_environment):
    """Worker processes of this test go through the pooler."""
    subprocess_environment["DATABASE_URL"] = pooler.url
    return subprocess_environment


@pytest.fixture
def direct(pooled_environment, database_url):
    """They hear notifications over a connection of their own."""
    pooled_environment["DIRECT_URL"] = database_url


def all_there_is_twice(key):
    run = continuum.start(flows.all_there_is, key)
    for word in ("one", "two"):
        continuum.signal(run, "answer", word)
    return run


def check_all(runs):
    for run in runs:
        log = continuum.result(run, timeout=60)
        assert [said["answer"] for said in log[::2]] == ["one", "two"]
        assert {said["undone"] for said in log[::2]} == {"failed"}
        assert [said["sums"] for said in log[::2]] == [[3, 6]] * 2
    once = list(Effect.objects.filter(key__contains=":once:").values_list("key", flat=True))
    assert len(once) == len(set(once)) == 8 * len(runs)  # paid, queued, reserved and released, in two rounds
    assert_sound()


@pytest.mark.usefixtures("client_is_pooled")
@pytest.mark.parametrize("declared", ["1", "0"])
def test_everything_works_by_polling_and_the_log_says_why(start_worker, pooled_environment, pooler, declared):  # noqa: F811
    pooled_environment["POOLER_DECLARED"] = declared
    crew = [start_worker(*SETTINGS), start_worker(*SETTINGS)]
    runs = [all_there_is_twice(f"r{n}") for n in range(6)]
    cancelled = continuum.start(workflows.cleans_up, "c")
    keyed = [continuum.start(attempt_workflows.pays, "k", str(pooler.log)) for _ in range(3)]
    chain = continuum.start(family_workflows.goes_on, 5)
    eventually(lambda: continuum.get_run(cancelled).waiting_on, 60)
    continuum.cancel(cancelled)
    check_all(runs)
    assert continuum.wait_run(cancelled, timeout=60).state == "cancelled"
    assert len({continuum.result(run, timeout=60) for run in keyed}) == 1
    assert continuum.result(chain, timeout=60) is not None
    assert effects_of("c:") == ["c:cleaned"]
    eventually(lambda: not ActivityTask.objects.exists())
    for worker in crew:
        eventually(lambda worker=worker: "does not deliver notifications (a transaction pooler?)" in worker.output, 10)
        assert worker.output.count("polling until that changes") == 1
        assert ("is behind a connection pooler" in worker.output) == (declared == "0")
        assert "Traceback" not in worker.output
    assert not Worker.objects.filter(session_lock=True).exists()


@pytest.mark.usefixtures("client_is_pooled")
@pytest.mark.parametrize("declared", [True, False])
def test_a_client_prepares_nothing_in_the_sessions_of_the_pooler(monkeypatch, declared):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", declared)
    runs = [continuum.start(workflows.cleans_up, str(number)) for number in range(6)]
    for run in runs:
        continuum.cancel(run)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        assert cursor.fetchone() == (0,)


@pytest.mark.usefixtures("client_is_pooled")
def test_nothing_of_a_workers_stays_in_the_sessions_of_the_pooler(start_worker, pooled_environment, database_url):  # noqa: F811
    worker = start_worker(*SETTINGS)
    check_all([all_there_is_twice("r")])
    eventually(lambda: "polling until that changes" in worker.output)
    pids = set()
    with connection.cursor() as cursor:
        # Whichever session each transaction gets: none is configured, none holds a lock, none listens or prepares.
        for _ in range(60):
            with transaction.atomic():
                cursor.execute(
                    "SELECT pg_backend_pid(), current_setting('idle_in_transaction_session_timeout'), "
                    "current_setting('enable_seqscan'), current_setting('plan_cache_mode'), "
                    "current_setting('synchronous_commit') = (SELECT boot FROM (SELECT reset_val AS boot "
                    "FROM pg_settings WHERE name = 'synchronous_commit') AS s), "
                    "(SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_prepared_statements)"
                )
                pid, *rest = cursor.fetchone()
                assert rest == ["0", "on", "auto", True, 0, 0]
                pids.add(pid)
    with psycopg.connect(database_url, autocommit=True) as watcher:
        locks = watcher.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert pids
    assert locks == (0,)


@pytest.mark.usefixtures("client_is_pooled")
def test_waiting_leaves_no_listen_behind(start_worker, pooled_environment):  # noqa: F811
    start_worker(*SETTINGS)
    assert continuum.result(continuum.start(workflows.echo, 7), timeout=60) == 7
    slow = continuum.start(workflows.naps, 1.5)
    assert continuum.result(slow, timeout=60) == "late"
    with connection.cursor() as cursor:
        for _ in range(40):
            cursor.execute("SELECT count(*) FROM pg_listening_channels()")
            assert cursor.fetchone() == (0,)


@pytest.mark.usefixtures("direct")
def test_with_a_direct_alias_news_comes_at_once_and_so_does_the_take_over(start_worker, tmp_path):  # noqa: F811
    gate = tmp_path / "gate"
    first = start_worker(*SETTINGS)
    run = continuum.start(workflows.holds, "k", str(gate))
    eventually(lambda: "k:held" in effects_of("k"), 60)
    second = start_worker(*SETTINGS)
    for worker in (first, second):
        eventually(lambda worker=worker: "news arrives by notification on 'direct'" in worker.output, 60)
    eventually(lambda: Worker.objects.filter(session_lock=True).count() == 2, 60)
    first.kill()
    eventually(lambda: effects_of("k").count("k:held") == 2, 60)
    gate.touch()
    assert continuum.result(run, timeout=60) == "k:held"
    # It was the lock that told: the dead worker's lease goes on.
    dead = Worker.objects.get(state="dead")
    assert dead.stopped_at < dead.expires_at
    assert_sound()


def test_without_one_the_end_of_the_lease_hands_the_runs_over(start_worker, pooled_environment, tmp_path):  # noqa: F811
    pooled_environment["LEASE_TTL"] = "2"
    gate = tmp_path / "gate"
    first = start_worker(*SETTINGS)
    run = continuum.start(workflows.holds, "k", str(gate))
    eventually(lambda: "k:held" in effects_of("k"), 60)
    start_worker(*SETTINGS)
    first.kill()
    gate.touch()
    assert continuum.result(run, timeout=60) == "k:held"
    # With so short a lease a machine with other work may have ended one of theirs before.
    dead = Worker.objects.filter(pid=first.process.pid).latest("id")
    assert dead.state == "dead"
    assert dead.stopped_at >= dead.expires_at
    assert not Run.objects.filter(owner_id=dead.id).exists()
    assert_sound()
