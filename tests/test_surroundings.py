"""What does not suit is told, once, with what to do; and what suits is not."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from django.urls import reverse

from continuum import checks, health, surroundings
from continuum.health import Status
from continuum.worker.partitions import existing_months
from tests.factories import RunFactory, WorkerFactory
from tests.poolers import PgBouncer, pgbouncer_binary
from tests.roles import role_without_ddl
from tests.test_admin import Page
from tests.test_checks import only_the_projects_workflows  # noqa: F401

DURABILITY = ["fsync", "synchronous_commit", "full_page_writes"]
CARELESS = ["continuum.W020", "continuum.W021", "continuum.W022"]


def ids(found):
    return [each.id for each in found]


@pytest.fixture
def database(monkeypatch):
    """Set keys of the default database's settings: ``database(AUTOCOMMIT=False)``."""

    def change(**keys):
        for key, value in keys.items():
            monkeypatch.setitem(connection.settings_dict, key, value)

    return change


@pytest.fixture
def other_alias(monkeypatch):
    """Add a second alias of the same server, with other keys: ``other_alias(NAME="postgres")``."""

    def add(**keys):
        monkeypatch.setitem(connections.settings, "other", connection.settings_dict | keys)

    yield add
    if hasattr(connections._connections, "other"):
        connections["other"].close()
        del connections["other"]


@pytest.fixture
def server(monkeypatch):
    """Have the server answer otherwise than it does: ``server(fsync="off")``."""
    real = surroundings.load

    def say(standby=False, skew=0.0, **settings):
        pairs = ", ".join(f"'{name}', '{value}'" for name, value in settings.items())
        changed = f"""
            SELECT (s::jsonb || jsonb_build_object({pairs}))::text, standby OR {standby}, now + ({skew}), who, forbidden
            FROM ({real("surroundings").strip()}) AS said (s, standby, now, who, forbidden)
        """
        monkeypatch.setattr(surroundings, "load", lambda name: changed if name == "surroundings" else real(name))

    return say


# Settings


def test_the_projects_settings_suit():
    assert surroundings.project_misfits() == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"DEADLOCK_TIMEOUT": 16}, ["continuum.W010"]),
        ({"DEADLOCK_TIMEOUT": 15}, []),
        ({"CONCURRENCY": 500, "LIVE_RUNS": 499}, ["continuum.W011"]),
        ({"CONCURRENCY": 500, "LIVE_RUNS": 500}, []),
        ({"QUEUES": {"mail": {"concurrency": 5, "cluster_concurrency": 4}}}, ["continuum.W012"]),
        ({"QUEUES": {"mail": {"concurrency": 4, "cluster_concurrency": 4}, "a": {"concurrency": 9}}}, []),
        ({"POLL_INTERVAL": 60}, []),  # E002 says so
        ({"DATABASE": "nowhere"}, []),  # E003 says so
    ],
)
def test_settings_that_contradict_each_other(settings, expected):
    with override_settings(CONTINUUM=settings):
        assert ids(surroundings.project_misfits()) == expected


def test_autocommit_off(database):
    database(AUTOCOMMIT=False)
    assert ids(surroundings.project_misfits()) == ["continuum.W014"]


def test_a_pooler_without_a_way_around_it(database, other_alias):
    database(DISABLE_SERVER_SIDE_CURSORS=True)
    (found,) = surroundings.project_misfits()
    assert found.id == "continuum.W016"
    assert 'CONTINUUM["LISTEN_DATABASE"]' in found.hint
    other_alias(DISABLE_SERVER_SIDE_CURSORS=False)
    with override_settings(CONTINUUM={"LISTEN_DATABASE": "other"}):
        assert surroundings.project_misfits() == []


def test_a_way_around_the_pooler_that_leads_through_it(other_alias):
    other_alias(DISABLE_SERVER_SIDE_CURSORS=True)
    with override_settings(CONTINUUM={"LISTEN_DATABASE": "other"}):
        assert ids(surroundings.project_misfits()) == ["continuum.W017"]


@pytest.mark.parametrize(
    ("pool", "told"),
    [(True, True), ({"min_size": 2}, True), ({"max_size": 15}, True), ({"max_size": 16}, False), ({}, False)],
)
def test_a_pool_too_small_for_the_threads(pool, told, database):
    database(OPTIONS={"pool": pool})
    assert ids(surroundings.project_misfits()) == (["continuum.W018"] if told else [])


def test_routers_that_keep_the_tables_from_being_made():
    router = SimpleNamespace(allow_migrate=lambda db, app_label, **hints: False)
    with override_settings(DATABASE_ROUTERS=[router]):
        assert ids(surroundings.project_misfits()) == ["continuum.E009"]


def test_routers_that_send_the_models_elsewhere(other_alias):
    other_alias()
    with override_settings(CONTINUUM={"DATABASE": "other"}):
        assert ids(surroundings.project_misfits()) == ["continuum.W015"]
        router = SimpleNamespace(
            db_for_read=lambda model, **hints: "other", db_for_write=lambda model, **hints: "other"
        )
        with override_settings(DATABASE_ROUTERS=[router]):
            assert surroundings.project_misfits() == []


def test_tables_made_without_migrations():
    with override_settings(MIGRATION_MODULES={"continuum": None}):
        (found,) = surroundings.project_misfits()
        assert (found.id, found.serious) == ("continuum.W028", False)


def test_manage_py_check_tells_them():
    with override_settings(CONTINUUM={"DEADLOCK_TIMEOUT": 60}):
        (message,) = checks.check_project()
        assert (message.id, message.is_serious()) == ("continuum.W010", False)
        told = StringIO()
        call_command("check", stderr=told, stdout=told)
    assert "(continuum.W010) CONTINUUM[" in told.getvalue()
    assert "HINT: Make LEASE_TTL longer" in told.getvalue()


# The database


@pytest.mark.django_db
class TestDatabase:
    def test_this_one_suits(self):
        assert surroundings.database_misfits("default") == []

    @pytest.mark.parametrize(("name", "expected"), list(zip(DURABILITY, CARELESS, strict=True)))
    def test_durability_that_is_less_than_promised(self, name, expected, server, settings):
        settings.SILENCED_SYSTEM_CHECKS = []
        server(**{"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"} | {name: "off"})
        (found,) = surroundings.database_misfits("default")
        assert (found.id, found.message.partition(" is off")[0]) == (expected, name)

    def test_the_servers_own_answer_is_read(self, settings):
        settings.SILENCED_SYSTEM_CHECKS = []
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT name FROM pg_settings WHERE name = ANY(%s) AND setting = 'off'",
                [["fsync", "synchronous_commit", "full_page_writes"]],
            )
            off = {name for (name,) in cursor.fetchall()}
        assert {each.message.partition(" is off")[0] for each in surroundings.database_misfits("default")} == off

    @pytest.mark.parametrize("level", ["serializable", "repeatable read"])
    def test_transactions_that_fail_beside_others(self, level, server):
        server(default_transaction_isolation=level)
        (found,) = surroundings.database_misfits("default")
        assert found.id == "continuum.W023"
        assert level in found.message

    def test_isolation_that_the_project_asks_for(self, database):
        from psycopg import IsolationLevel

        database(OPTIONS={"isolation_level": IsolationLevel.SERIALIZABLE})
        assert ids(surroundings.database_misfits("default")) == ["continuum.W023"]
        database(OPTIONS={"isolation_level": IsolationLevel.READ_COMMITTED})
        assert surroundings.database_misfits("default") == []

    @pytest.mark.parametrize(
        ("name", "milliseconds", "told"),
        [
            ("statement_timeout", 1_000, True),
            ("statement_timeout", 30_000, False),
            ("idle_in_transaction_session_timeout", 1_000, True),
            ("idle_in_transaction_session_timeout", 60_000, False),
            ("transaction_timeout", 1_000, True),
            ("idle_session_timeout", 60_000, True),
        ],
    )
    def test_timeouts_that_cut_workers_off(self, name, milliseconds, told, server):
        server(**{name: milliseconds})
        found = surroundings.database_misfits("default")
        assert ids(found) == (["continuum.W024"] if told else [])
        assert all(f"{name} is {milliseconds:,} ms" in each.message for each in found)

    def test_a_statement_timeout_of_the_moment_is_not_the_roles(self):
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = 1000")
            assert surroundings.database_misfits("default") == []

    @pytest.mark.parametrize(("skew", "words"), [(60, "behind"), (-60, "ahead of"), (1, None), (-1, None)])
    def test_clocks_that_differ(self, skew, words, server):
        server(skew=skew)
        found = surroundings.database_misfits("default")
        assert ids(found) == (["continuum.W026"] if words else [])
        assert all(words in each.message for each in found)

    def test_a_standby_and_a_database_that_is_read_only(self, server):
        server(standby=True, fsync="off")
        assert ids(surroundings.database_misfits("default")) == ["continuum.E011"]
        server(default_transaction_read_only="on")
        assert ids(surroundings.database_misfits("default")) == ["continuum.E011"]

    def test_a_role_without_rights(self):
        with role_without_ddl(using_tables=False) as role:
            (found,) = surroundings.database_misfits("default")
        assert (found.id, found.serious) == ("continuum.E010", True)
        assert found.message.startswith(f"The role {role} of database 'default' may not read and write continuum_")
        with role_without_ddl():
            assert surroundings.database_misfits("default") == []

    def test_tables_that_are_not_there_yet_are_nobodys_to_forbid(self):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE continuum_runs RENAME TO elsewhere")
        assert surroundings.database_misfits("default") == []


@pytest.mark.django_db
class TestCheckWithADatabase:
    def test_this_one_suits(self):
        assert checks.check_servers(databases=["default"]) == []

    def test_tells_what_does_not(self, server):
        server(default_transaction_isolation="serializable")
        (message,) = checks.check_servers(databases=["default"])
        assert (message.id, message.is_serious()) == ("continuum.W023", False)
        assert message.hint

    @pytest.mark.parametrize("same", [True, False])
    def test_a_listening_alias_must_lead_to_the_same_database(self, subprocess_environment, same):
        url = subprocess_environment["DATABASE_URL"]
        name = connection.settings_dict["NAME"]
        environment = subprocess_environment | {"DIRECT_URL": url if same else url.replace(f"/{name}?", "/postgres?")}
        command = [sys.executable, "-m", "django", "check", "--settings", "tests.settings_pooled"]
        done = subprocess.run(
            [*command, "--database", "default", "--database", "direct"], env=environment, capture_output=True, text=True
        )
        assert ("continuum.E012" in done.stderr) is not same, done.stderr
        assert done.returncode == (0 if same else 1)

    def test_partitions_that_nobody_will_make(self):
        with connection.cursor() as cursor:
            last = existing_months(cursor)[-1]
            for month in existing_months(cursor):
                if month.until == last.since or month == last:
                    cursor.execute(f"DROP TABLE {month.name}")
            for month in existing_months(cursor)[-1:]:
                cursor.execute(f"DROP TABLE {month.name}")
        assert checks.check_servers(databases=["default"]) == []  # a worker makes them
        with role_without_ddl() as role:
            (message,) = checks.check_servers(databases=["default"])
        assert message.id == "continuum.W027"
        assert role in message.msg

    def test_a_database_that_is_not_migrated_is_left_to_migrate(self):
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE continuum_events CASCADE")
            cursor.execute("DROP TABLE continuum_runs CASCADE")
        assert checks.check_servers(databases=["default"]) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(pgbouncer_binary() is None, reason="there is no pgbouncer to stand behind")
def test_a_pooler_that_nobody_has_told_of(monkeypatch):
    pooler = PgBouncer(connection.settings_dict)
    connection.close()
    try:
        for name in ("HOST", "PORT", "OPTIONS"):
            monkeypatch.setitem(connection.settings_dict, name, pooler.database[name])
        (message,) = checks.check_servers(databases=["default"])
    finally:
        connection.close()
        pooler.close()
    assert message.id == "continuum.W025"


# Health and the dashboard


def configuration():
    return [each for each in health.examine().checks if each.name == "configuration"]


@pytest.mark.django_db
class TestHealth:
    def test_says_that_all_suits(self):
        (found,) = configuration()
        assert (found.status, found.message) == (Status.OK, "settings and database suit")

    def test_tells_each_misfit_with_what_to_do(self, server):
        server(default_transaction_isolation="serializable", statement_timeout=100)
        found = configuration()
        assert [each.status for each in found] == [Status.WARNING] * 2
        assert [each.message[-16:] for each in found] == ["(continuum.W023)", "(continuum.W024)"]
        assert all(each.hint for each in found)

    def test_what_keeps_it_from_working_is_critical(self, server):
        server(standby=True)
        (found,) = configuration()
        assert found.status is Status.CRITICAL

    def test_what_the_project_has_silenced_is_not_told(self, server, settings):
        settings.SILENCED_SYSTEM_CHECKS = [*CARELESS, "continuum.W023"]
        server(default_transaction_isolation="serializable")
        (found,) = configuration()
        assert found.status is Status.OK

    def test_a_migration_that_is_not_applied(self):
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE app = 'continuum' AND name = '0007_search'")
        found = next(each for each in health.examine().checks if each.name == "migrations")
        assert (found.status, found.message) == (Status.CRITICAL, "1 migration not applied: 0007_search")
        assert found.hint.startswith("manage.py migrate continuum;")

    @pytest.mark.parametrize("state", ["pending", "stuck_unknown_version"])
    def test_a_workflow_that_nobody_has_registered(self, state):
        from datetime import UTC, datetime, timedelta

        name = "stuck" if state.startswith("stuck") else "overdue"
        WorkerFactory(workflows={"shop.invoices": {"abc": 1}})
        due = datetime.now(UTC) - timedelta(minutes=10)
        RunFactory(workflow="shop.orders", state=state, next_wakeup_at=due)
        RunFactory(workflow="shop.invoices", state=state, next_wakeup_at=due)
        found = next(each for each in health.examine().checks if each.name == name)
        assert found.status is Status.CRITICAL
        assert found.message.endswith("; no worker at work has shop.orders")
        assert "INSTALLED_APPS" in found.hint
        WorkerFactory(workflows={"shop.orders": {"abc": 1}})
        found = next(each for each in health.examine().checks if each.name == name)
        assert (found.status, "no worker" in found.message) == (Status.WARNING, False)

    def test_workers_that_hear_nothing_though_they_should(self, other_alias):
        from datetime import UTC, datetime, timedelta

        other_alias()
        worker = WorkerFactory(started_at=datetime.now(UTC) - timedelta(minutes=5))
        with override_settings(CONTINUUM={"LISTEN_DATABASE": "other"}):
            found = next(each for each in health.examine().checks if each.name == "workers")
            assert found.message == "1 worker at work, of which 1 hears no notifications"
            worker.session_lock = True
            worker.save()
            found = next(each for each in health.examine().checks if each.name == "workers")
        assert found.status is Status.OK

    def test_who_may_not_make_partitions_is_told_who_may(self):
        with connection.cursor() as cursor:
            for month in existing_months(cursor):
                cursor.execute(f"DROP TABLE {month.name}")
        with role_without_ddl() as role:
            with connection.cursor() as cursor:
                cursor.execute(f"RESET ROLE; GRANT SELECT ON django_migrations TO {role}; SET ROLE {role}")
            found = next(each for each in health.examine().checks if each.name == "partitions")
        assert found.status is Status.CRITICAL
        assert found.hint.startswith(f"{role} may not make them: as ")

    def test_a_role_without_rights_gets_a_sentence(self):
        with role_without_ddl(using_tables=False), pytest.raises(CommandError, match="check --database"):
            call_command("continuum_health", stdout=StringIO())

    def test_json_has_them(self, server):
        server(statement_timeout=100)
        out = StringIO()
        call_command("continuum_health", "--format", "json", stdout=out)
        assert json.loads(out.getvalue())["checks"][0]["name"] == "configuration"


class TestDashboard:
    def test_shows_a_misfit_as_a_line_with_what_to_do(self, admin_client, server):
        server(statement_timeout=100)
        text = str(Page(admin_client.get(reverse("admin:continuum_dashboard_changelist")).content.decode()))
        assert "statement_timeout is 100 ms" in text
        assert "SET statement_timeout = 0" in text

    @pytest.mark.parametrize("name", ["continuum_dashboard_changelist", "continuum_dashboard_fragment"])
    def test_says_that_the_tables_are_not_there(self, admin_client, name):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE continuum_workers RENAME TO elsewhere")
        response = admin_client.get(reverse(f"admin:{name}"))
        assert response.status_code == 200
        assert "manage.py migrate continuum" in str(Page(response.content.decode()))
