"""``continuum_worker``: a real worker inside a test."""

import threading

import pytest
from django.contrib.auth.models import Group
from django.db import connection

import continuum
from continuum import Retry, activity, sleep, wait_signal, workflow
from continuum.conf import settings as continuum_settings
from continuum.worker.node import Node
from tests.waiting_for import eventually


@activity(name="inside.add", retry=Retry(max_attempts=3, base=0.01))
def add(name: str) -> int:
    return Group.objects.create(name=name).pk


@activity(name="inside.count")
async def count() -> int:
    return await Group.objects.acount()


@activity(name="inside.limit")
def limit() -> int:
    return continuum_settings.MAX_VALUE_BYTES


@workflow(name="inside.adds")
async def adds(name: str) -> list:
    await add(name)
    return [await count(), await limit()]


@workflow(name="inside.waits")
async def waits() -> str:
    return await wait_signal("go")


def sessions():
    """How many sessions there are on the test's database beside its own."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND application_name NOT LIKE 'continuum hints%%'"
        )
        return cursor.fetchone()[0]


def test_it_works_off_what_there_is_with_the_settings_of_the_test(transactional_db, continuum_worker, settings):
    settings.CONTINUUM = {"MAX_VALUE_BYTES": 12_345}
    run = continuum.start(adds, "us")
    continuum_worker.run_until_idle()
    assert continuum.result(run, timeout=0) == [1, 12_345]
    assert Group.objects.get().name == "us"


def test_it_comes_to_rest_where_only_a_signal_helps(transactional_db, continuum_worker):
    run = continuum.start(waits)
    continuum_worker.run_until_idle()
    assert continuum.get_run(run).waiting_on[0]["name"] == "go"
    continuum.signal(run, "go", "on")
    continuum_worker.run_until_idle()
    assert continuum.result(run, timeout=0) == "on"


def test_it_can_work_in_the_background(transactional_db, continuum_worker):
    with_one = continuum_worker.start()
    assert with_one.running
    assert continuum.result(continuum.start(adds, "us"), timeout=30)[0] == 1
    with pytest.raises(RuntimeError, match="works in the background already"):
        continuum_worker.run_until_idle()
    continuum_worker.stop()
    assert not continuum_worker.running
    continuum_worker.stop()


@pytest.mark.django_db(transaction=True)
def test_a_mark_will_do_as_well(continuum_worker):
    run = continuum.start(adds, "us")
    continuum_worker.run_until_idle()
    assert continuum.get_run(run).state == "completed"


@pytest.fixture
def nothing_left(transactional_db):
    """Look for threads and sessions when all fixtures that come after this one have ended."""
    before = set(threading.enumerate())
    yield
    continuum.hints.close_all()
    continuum.listening.close_all()
    left = {thread for thread in threading.enumerate() if thread not in before and "continuum" in thread.name}
    assert left == set()
    assert eventually(lambda: sessions() == 0)


def test_nothing_is_left_by_a_worker_that_is_not_stopped(nothing_left, continuum_worker):
    """Not a thread and not a session, however the test ends."""
    continuum_worker.start()
    continuum.result(continuum.start(adds, "us"), timeout=30)


def test_what_breaks_a_worker_reaches_the_test(transactional_db, continuum_worker, settings, monkeypatch):
    settings.CONTINUUM = {"WORKFLOW_MODULES": ["no.such.module"]}
    with pytest.raises(Exception, match=r"no\.such\.module"):
        continuum_worker.run_until_idle()
    assert not continuum_worker.running


def test_it_is_given_up_when_it_takes_too_long(transactional_db, continuum_worker, monkeypatch):
    release, stop = threading.Event(), Node.stop

    def give_up(node):
        release.set()
        stop(node)

    @activity(name="inside.blocks")
    def blocks() -> None:
        release.wait(30)

    @workflow(name="inside.is_blocked")
    async def is_blocked() -> None:
        await blocks()

    continuum.start(is_blocked)
    monkeypatch.setattr(Node, "stop", give_up)
    with pytest.raises(TimeoutError, match=r"has not come to rest after 0\.1 seconds"):
        continuum_worker.run_until_idle(timeout=0.1)
    assert release.is_set()


class TestWithoutATransactionalTest:
    def test_a_test_in_a_transaction_is_told_what_it_needs(self, db, continuum_worker):
        with pytest.raises(pytest.fail.Exception, match=r"transactional_db.*is in a transaction"):
            continuum_worker.run_until_idle()

    def test_so_is_one_without_a_database(self, continuum_worker):
        with pytest.raises(pytest.fail.Exception, match=r"transactional_db.*Database access not allowed"):
            continuum_worker.start()
        assert not continuum_worker.running


@workflow(name="inside.sleeps")
async def sleeps() -> None:
    await sleep(3600)


def test_a_timer_is_not_waited_for(transactional_db, continuum_worker):
    run = continuum.start(sleeps)
    continuum_worker.run_until_idle()
    assert continuum.get_run(run).state == "suspended"


@pytest.mark.django_db(transaction=True)
def test_tables_that_were_made_without_migrations_are_told_of(continuum_worker):
    with connection.cursor() as cursor:
        cursor.execute("ALTER SEQUENCE continuum_lease_token_seq RENAME TO elsewhere")
    try:
        with pytest.raises(pytest.fail.Exception, match="without --nomigrations"):
            continuum_worker.run_until_idle()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER SEQUENCE elsewhere RENAME TO continuum_lease_token_seq")
