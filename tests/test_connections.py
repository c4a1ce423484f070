"""The worker's own connections: built from Django's settings, outside Django's connection handling."""

import asyncio

import psycopg
import pytest
from django.db import connections

from continuum.worker.connections import Backoff, connect, connect_sync, connection_parameters

pytestmark = pytest.mark.django_db


def options(monkeypatch, **given):
    """Give the default alias other OPTIONS for one test."""
    settings = connections["default"].settings_dict
    monkeypatch.setitem(settings, "OPTIONS", settings["OPTIONS"] | given)


def session(name, **arguments):
    """Open a connection and return a server setting as its session sees it."""

    async def ask():
        async with await connect("default", application_name="test", **arguments) as connection:
            return (await (await connection.execute("SELECT current_setting(%s)", [name])).fetchone())[0]

    return asyncio.run(ask())


def test_it_reaches_the_database_of_the_alias():
    async def database():
        async with await connect("default", application_name="test") as connection:
            return (await (await connection.execute("SELECT current_database()")).fetchone())[0]

    assert asyncio.run(database()) == connections["default"].settings_dict["NAME"]


def test_it_commits_each_statement():
    async def autocommit():
        async with await connect("default", application_name="test") as connection:
            return connection.autocommit

    assert asyncio.run(autocommit())


def test_django_only_options_are_dropped_and_libpq_options_kept(monkeypatch):
    options(
        monkeypatch,
        pool={"min_size": 1},
        isolation_level=psycopg.IsolationLevel.SERIALIZABLE,
        server_side_binding=True,
        prepare_threshold=3,
        sslmode="prefer",
        keepalives_idle=99,
    )
    parameters = connection_parameters("default")
    assert not {"pool", "isolation_level", "server_side_binding", "prepare_threshold", "context"} & parameters.keys()
    assert not {"cursor_factory", "assume_role"} & parameters.keys()
    assert (parameters["sslmode"], parameters["keepalives_idle"]) == ("prefer", 99)


def test_a_peer_that_is_gone_is_noticed_unless_the_project_says_otherwise():
    assert connection_parameters("default")["tcp_user_timeout"] > 0
    assert connection_parameters("default")["keepalives"] == 1


def test_a_database_that_is_read_only_is_not_worked_on(monkeypatch):
    """A standby may lack the end of a history, which would be taken for all there is."""
    options(monkeypatch, options="-c default_transaction_read_only=on")
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        asyncio.run(connect("default", application_name="test"))


def test_the_application_name_shows_in_the_server_even_if_the_project_names_one(monkeypatch):
    options(monkeypatch, application_name="the project")
    assert session("application_name") == "test"


def test_a_transaction_nobody_ends_is_ended_by_the_server():
    assert session("idle_in_transaction_session_timeout") == "1min"


def test_the_default_isolation_of_the_database_does_not_apply(monkeypatch):
    options(monkeypatch, options="-c default_transaction_isolation=serializable")
    assert session("transaction_isolation") == "read committed"


def test_times_come_in_utc(monkeypatch):
    options(monkeypatch, options="-c timezone=Europe/Berlin")
    assert session("TimeZone") == "UTC"


def test_a_role_of_the_alias_is_assumed(monkeypatch):
    options(monkeypatch, assume_role="pg_monitor")
    assert session("role") == "pg_monitor"


def test_further_session_settings_can_be_given():
    assert session("synchronous_commit", session={"synchronous_commit": "off"}) == "off"


@pytest.mark.parametrize(
    ("given", "pooled", "prepare", "threshold"),
    [
        ({}, False, True, 2),
        ({}, False, False, None),
        ({}, True, True, None),
        ({"prepare_threshold": 5}, True, True, 5),
        ({"prepare_threshold": None}, False, True, None),
    ],
)
def test_statements_are_prepared_where_the_connection_bears_it(monkeypatch, given, pooled, prepare, threshold):
    options(monkeypatch, **given)
    monkeypatch.setitem(connections["default"].settings_dict, "DISABLE_SERVER_SIDE_CURSORS", pooled)

    async def ask():
        async with await connect("default", application_name="test", prepare=prepare) as connection:
            return connection.prepare_threshold

    assert asyncio.run(ask()) == threshold


def test_behind_a_pooler_sessions_of_others_keep_their_settings(monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    assert session("idle_in_transaction_session_timeout") == "0"


def test_a_json_column_cast_to_text_keeps_every_character():
    async def ask():
        async with await connect("default", application_name="test") as connection:
            cursor = await connection.execute("""SELECT '{"b":1e5, "a":-0.0}'::json::text""")
            return (await cursor.fetchone())[0]

    assert asyncio.run(ask()) == '{"b":1e5, "a":-0.0}'


def test_a_server_that_cannot_be_reached_is_an_error_of_psycopg(monkeypatch):
    options(monkeypatch, host="127.0.0.1", port="1")
    monkeypatch.setitem(connections["default"].settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connections["default"].settings_dict, "PORT", "1")
    with pytest.raises(psycopg.OperationalError):
        asyncio.run(connect("default", application_name="test"))


def test_a_thread_gets_the_same_kind_of_connection():
    with connect_sync("default", application_name="test") as connection:
        row = connection.execute("SELECT current_database(), current_setting('TimeZone')").fetchone()
    assert row == (connections["default"].settings_dict["NAME"], "UTC")


def test_backoff_grows_to_its_cap_with_jitter_and_begins_anew():
    backoff = Backoff(base=0.1, cap=1.0)
    pauses = [backoff.next() for _ in range(50)]
    for pause, full in zip(pauses, [0.1, 0.2, 0.4, 0.8, *[1.0] * 46], strict=True):
        assert full / 2 <= pause <= full
    assert len(set(pauses[4:])) > 1
    backoff.reset()
    assert backoff.next() <= 0.1
