"""The migrations, there and back, with rows in the tables."""

from datetime import UTC, datetime
from importlib import import_module
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import ConnectionHandler

from continuum.ids import uuid7
from continuum.models import Run
from continuum.worker.partitions import existing_partitions, partition_name
from tests.pages import ROOT, blocks

FIRST, NEWEST = [("continuum", "0001_initial")], [("continuum", "0010_room_on_pages")]
NOTHING = [("continuum", None)]


def migrate(target, database=connection):
    MigrationExecutor(database).migrate(target)


def tables():
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relname LIKE 'continuum%'")
        return {name for (name,) in cursor.fetchall()}


def columns_of_runs():
    with connection.cursor() as cursor:
        cursor.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'continuum_runs'")
        return {name for (name,) in cursor.fetchall()}


@pytest.fixture
def migrated_back(transactional_db):
    """Leave the database at the newest migration, whatever the test does."""
    yield
    migrate(NEWEST)


@pytest.fixture
def sqlite(django_db_blocker, tmp_path, monkeypatch):
    engine = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "db.sqlite3"}
    # Known to Django, which notes in a database by its alias what was migrated there.
    monkeypatch.setitem(connections.databases, "sqlite", ConnectionHandler({"default": engine}).databases["default"])
    with django_db_blocker.unblock():  # a database of the test's own
        yield connections["sqlite"]
        connections["sqlite"].close()
        del connections["sqlite"]


def test_models_and_migrations_agree(db):
    call_command("makemigrations", "continuum", check=True, dry_run=True, stdout=StringIO())


@pytest.mark.usefixtures("migrated_back")
class TestLaterMigrations:
    def test_back_fills_the_rows_that_were_there_and_goes_back_and_forth(self):
        migrate(FIRST)
        run_id = uuid7()
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO continuum_runs (id, workflow, correlation_id, input) VALUES (%s, 'f', %s, '[1e5]')",
                [run_id, run_id],
            )
        migrate(NEWEST)
        run = Run.objects.get(id=run_id)
        assert (run.namespace, run.attributes) == ("default", {})
        assert run in Run.objects.in_namespace("default").with_attributes()

        Run.objects.filter(id=run_id).update(namespace="billing", attributes={"plan": "pro"})
        migrate(FIRST)
        assert not {"namespace", "attributes"} & columns_of_runs()
        assert not any("namespace" in name or "attributes" in name for name in tables())

        migrate(NEWEST)
        run = Run.objects.get(id=run_id)
        assert (run.namespace, run.attributes, run.input) == ("default", {}, [100000.0])

    def test_the_first_migration_alone_takes_new_runs(self):
        migrate(FIRST)
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO continuum_runs (id, workflow, correlation_id) VALUES (%s, 'f', %s) "
                "RETURNING state, input::text",
                [uuid7(), uuid7()],
            )
            assert cursor.fetchone() == ("pending", "[]")


@pytest.mark.usefixtures("migrated_back")
class TestUpgradingByHand:
    """What docs/upgrading.md has people type in who cannot wait for the migrations."""

    def shape(self):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity "
                "FROM information_schema.columns WHERE table_name LIKE 'continuum%' ORDER BY 1, 2"
            )
            columns = cursor.fetchall()
            cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'continuum%' ORDER BY 1")
            return columns, cursor.fetchall()

    def test_leads_to_the_tables_that_the_migrations_make(self):
        migrate(FIRST)
        migrate(NEWEST)
        made = self.shape()
        migrate(FIRST)
        run_id = uuid7()
        insert = "INSERT INTO continuum_runs (id, workflow, correlation_id) VALUES (%s, 'f', %s)"
        with connection.cursor() as cursor:
            cursor.execute(insert, [run_id, run_id])
            for block in blocks(ROOT / "docs" / "upgrading.md", "sql"):
                for statement in block.text.split(";\n"):
                    if statement.strip():
                        cursor.execute(statement)
            cursor.execute("RESET lock_timeout")
        call_command("migrate", "continuum", NEWEST[0][1], fake=True, verbosity=0)
        assert self.shape() == made
        assert not MigrationExecutor(connection).migration_plan(NEWEST)
        run = Run.objects.get(id=run_id)
        assert (run.namespace, run.attributes, run.depth) == ("default", {}, 0)

    def test_the_page_names_every_migration_and_the_newest_to_fake(self):
        text = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
        names = [path.stem for path in (ROOT / "continuum" / "migrations").glob("0*.py")]
        assert [name for name in names if name not in text] == []
        assert f"--fake continuum {NEWEST[0][1]}" in text

    def test_what_is_written_without_the_new_columns_is_taken(self):
        """Migrate first, then roll: every column that came later is filled in by itself."""
        migrate(FIRST)
        before = {column[:2] for column in self.shape()[0]}
        migrate(NEWEST)
        later = [column for column in self.shape()[0] if column[:2] not in before]
        later = [column for column in later if column[0] in {table for table, _ in before}]
        assert len(later) >= 5
        assert [column for column in later if column[3] == "NO" and column[4] is None] == []


@pytest.mark.usefixtures("migrated_back")
class TestFirstMigration:
    def test_leaves_nothing_behind_when_reversed(self):
        migrate(NOTHING)
        assert tables() == set()

    def test_makes_the_partitions_of_this_month_and_the_three_that_follow(self):
        migrate(NOTHING)
        migrate(FIRST)
        now = datetime.now(UTC)
        months = [divmod(now.year * 12 + now.month - 1 + ahead, 12) for ahead in range(4)]
        with connection.cursor() as cursor:
            assert existing_partitions(cursor) == {
                "continuum_events_default",
                *(partition_name(year, month + 1) for year, month in months),
            }


class TestOtherDatabases:
    def test_another_vendor_is_refused_with_a_sentence(self, sqlite):
        with pytest.raises(ImproperlyConfigured, match=r"needs PostgreSQL 14 or newer.*is SQLite.*database router"):
            migrate(FIRST, sqlite)
        assert "continuum_runs" not in sqlite.introspection.table_names()

    def test_an_old_server_is_refused_with_a_sentence(self):
        old = SimpleNamespace(connection=SimpleNamespace(vendor="postgresql", alias="archive", pg_version=130014))
        with pytest.raises(ImproperlyConfigured, match="'archive' is PostgreSQL 13"):
            import_module("continuum.migrations.0001_initial").require_postgresql(None, old)

    def test_a_router_keeps_the_tables_out_of_a_database(self, sqlite, settings):
        settings.DATABASE_ROUTERS = [SimpleNamespace(allow_migrate=lambda db, app_label, **hints: False)]
        migrate(NEWEST, sqlite)
        assert sqlite.introspection.table_names() == ["django_migrations"]
