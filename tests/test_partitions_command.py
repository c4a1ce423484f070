"""``continuum_partitions``: what it shows, what it makes, and that nobody loses an event or waits long for it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from continuum.ids import smallest_uuid7, uuid7
from continuum.models import HistoryEvent
from continuum.worker.connections import connect
from continuum.worker.maintenance import Maintenance
from continuum.worker.partitions import DEFAULT_PARTITION, ensure_partitions, existing_partitions
from tests.factories import HistoryEventFactory, RunFactory
from tests.roles import role_without_ddl
from tests.test_partitions import partition_of, partitions_dropped  # noqa: F401
from tests.waiting_for import eventually

MAY, JUNE = datetime(2001, 5, 17, tzinfo=UTC), datetime(2001, 6, 2, tzinfo=UTC)


def run_command(*arguments):
    out = StringIO()
    try:
        call_command("continuum_partitions", *map(str, arguments), stdout=out, no_color=True)
    except SystemExit as ended:
        return out.getvalue(), ended.code
    return out.getvalue(), 0


def events_of(moment, number=3):
    """A run of that time, with so many events."""
    run_id = smallest_uuid7(moment)
    for seq in range(1, number + 1):
        HistoryEventFactory(run_id=run_id, seq=seq)
    return run_id


def existing():
    with connection.cursor() as cursor:
        return existing_partitions(cursor)


def waiting_for_locks():
    with connection.cursor() as cursor:
        cursor.execute(
            # Not by pg_stat_activity, which stays in a transaction as it was at the first look.
            "SELECT count(*) FROM pg_locks WHERE NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return cursor.fetchone()[0]


@pytest.fixture
def complete(db):
    with connection.cursor() as cursor:
        ensure_partitions(cursor, datetime.now(UTC))


@pytest.mark.usefixtures("complete")
class TestShowing:
    def test_each_partition_with_its_month_and_what_keeps_it(self):
        run = RunFactory()
        RunFactory()
        RunFactory(ended=True, id=smallest_uuid7(run.started_at - timedelta(minutes=1)))
        told, status = run_command()
        assert status == 0
        line = next(line for line in told.splitlines() if f"{datetime.now(UTC):_y%Ym%m}" in line)
        assert line.split()[1] == f"{datetime.now(UTC):%Y-%m}"
        assert line.split()[-1] == str(run.id)
        assert told.splitlines()[-1] == "No partition is missing, for 3 months ahead."

    def test_few_events_are_counted_where_there_is_no_estimate_yet(self):
        events_of(MAY)
        told = json.loads(run_command("--format", "json")[0])["partitions"]
        assert told[-1]["rows"] == 3
        run_command("--move")
        told = json.loads(run_command("--format", "json")[0])["partitions"]
        assert [told[0]["rows"], told[-1]["rows"]] == [3, 0]

    def test_a_month_whose_runs_have_ended_is_kept_by_none(self):
        RunFactory(ended=True)
        told, _ = run_command("--format", "json")
        assert {each["oldest_live"] for each in json.loads(told)["partitions"]} == {None}

    def test_what_is_missing_and_what_the_default_partition_holds(self):
        events_of(MAY)
        told, status = run_command("--ahead", 4)
        assert status == 0
        assert "continuum_events_y2001m05 is missing: 3 events of it in the default partition." in told
        assert told.count(" is missing") == 2
        assert "--create makes those of this month and the months ahead, --move all of them." in told

    def test_json_has_what_the_text_has(self):
        events_of(MAY)
        told = json.loads(run_command("--format", "json")[0])
        assert set(told) == {"partitions", "missing", "user", "owner", "may_create"}
        assert told["missing"] == [{"name": "continuum_events_y2001m05", "rows": 3}]
        assert set(told["partitions"][0]) == {"name", "since", "until", "rows", "size", "oldest_live"}
        assert told["partitions"][-1]["name"] == DEFAULT_PARTITION
        assert told["partitions"][-1]["since"] is None
        assert told["may_create"] is True

    def test_nothing_is_written(self):
        events_of(MAY)
        before = existing()
        run_command()
        run_command("--create", "--move", "--dry-run", "--ahead", 9)
        run_command("--create", "--move", "--sql", "--ahead", 9)
        assert existing() == before

    def test_ids_of_a_clock_that_was_wrong_are_no_month_that_is_missing(self):
        events_of(datetime(2391, 5, 1, tzinfo=UTC))
        assert "No partition is missing" in run_command()[0]
        assert run_command("--move") == ("There is nothing to make.\n", 0)


@pytest.mark.usefixtures("complete")
class TestMaking:
    def test_create_makes_the_months_ahead_and_leaves_the_past_alone(self):
        events_of(MAY)
        told, status = run_command("--create", "--ahead", 5)
        assert (told.count("made continuum_events_y"), status) == (2, 0)
        assert "y2001" not in told
        assert run_command("--create", "--ahead", 5) == ("There is nothing to make.\n", 0)

    def test_move_takes_each_month_to_its_place_and_loses_nothing(self):
        may, june = events_of(MAY), events_of(JUNE, 2)
        assert run_command("--move") == (
            "made continuum_events_y2001m05, with 3 events from the default partition\n"
            "made continuum_events_y2001m06, with 2 events from the default partition\n",
            0,
        )
        assert [partition_of(may), partition_of(june)] == ["continuum_events_y2001m05", "continuum_events_y2001m06"]
        assert HistoryEvent.objects.filter(run_id=may).count() == 3

    def test_what_would_keep_others_waiting_is_left_until_somebody_says_so(self):
        may, june = events_of(MAY), events_of(JUNE, 2)
        told, status = run_command("--move", "--max-rows", 2)
        assert status == 1
        assert told.splitlines()[0] == (
            "left continuum_events_y2001m05: more than 2 events, with 3 events from the default partition; "
            "--max-rows 3 moves them all the same"
        )
        assert [partition_of(may), partition_of(june)] == [DEFAULT_PARTITION, "continuum_events_y2001m06"]
        assert run_command("--move", "--max-rows", 3)[1] == 0
        assert partition_of(may) == "continuum_events_y2001m05"

    def test_the_bound_holds_for_workers_as_well_and_is_kept_by_the_statement_itself(self):
        month = events_of(MAY)
        with connection.cursor() as cursor:
            assert ensure_partitions(cursor, MAY, 0, most_moved=2) == []
            assert partition_of(month) == DEFAULT_PARTITION
            assert ensure_partitions(cursor, MAY, 0, most_moved=3) == ["continuum_events_y2001m05"]

    def test_dry_run_says_what_would_be_made(self):
        events_of(MAY)
        assert run_command("--move", "--dry-run") == (
            "would make continuum_events_y2001m05, with 3 events from the default partition\n",
            0,
        )

    def test_json_tells_the_steps(self):
        events_of(MAY)
        step = {"name": "continuum_events_y2001m05", "rows": 3, "outcome": "planned", "reason": ""}
        assert json.loads(run_command("--move", "--dry-run", "--format", "json")[0]) == {"steps": [step]}
        assert json.loads(run_command("--move", "--format", "json")[0]) == {"steps": [{**step, "outcome": "made"}]}

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--dry-run"],
            ["--sql"],
            ["--create", "--sql", "--dry-run"],
            ["--create", "--sql", "--format", "json"],
            ["--ahead", "-1"],
            ["--ahead", "500"],
            ["--move", "--max-rows", "0"],
            ["--database", "nowhere"],
        ],
    )
    def test_wrong_usage_is_refused(self, arguments):
        with pytest.raises(CommandError):
            run_command(*arguments)


@pytest.mark.usefixtures("complete")
class TestARoleThatMakesNoTables:
    def test_is_told_who_may_and_how(self):
        events_of(MAY)
        with role_without_ddl() as role:
            told, status = run_command()
            assert status == 0
            assert f"The role {role} may not make partitions" in " ".join(told.split())
            with pytest.raises(CommandError, match="give its owner what --create --sql prints") as refused:
                run_command("--move")
        assert refused.value.returncode == 1
        assert "continuum_events_y2001m05" not in existing()

    def test_is_left_in_peace_where_nothing_is_missing(self):
        with role_without_ddl():
            assert run_command("--create") == ("There is nothing to make.\n", 0)
            assert "may not" not in run_command()[0]

    def test_what_sql_prints_is_for_those_who_may(self):
        run_id = events_of(MAY)
        with role_without_ddl():
            statements, _ = run_command("--move", "--sql")
        with connection.cursor() as cursor:
            cursor.execute(statements)
        assert partition_of(run_id) == "continuum_events_y2001m05"
        with role_without_ddl():
            HistoryEventFactory(run_id=run_id, seq=9)  # rights on the history are rights on its partitions

    def test_what_somebody_else_makes_belongs_to_the_owner_of_the_history(self):
        before = existing()
        with connection.cursor() as cursor:
            cursor.execute("CREATE ROLE landlord_of_tests")
            cursor.execute("GRANT CREATE, USAGE ON SCHEMA public TO landlord_of_tests")
            cursor.execute("ALTER TABLE continuum_events OWNER TO landlord_of_tests")
            run_command("--create", "--ahead", 4)
            cursor.execute("SELECT tableowner FROM pg_tables WHERE tablename = ANY(%s)", [list(existing() - before)])
            assert cursor.fetchall() == [("landlord_of_tests",)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("partitions_dropped")
class TestBesideOthers:
    def test_somebody_at_work_on_the_history_puts_it_off(self):
        run_id = events_of(MAY)
        held, release = threading.Event(), threading.Event()

        def hold():
            try:
                with transaction.atomic():
                    HistoryEventFactory(run_id=run_id, seq=9)
                    held.set()
                    release.wait(60)
            finally:
                connections.close_all()

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            assert held.wait(30)
            told, status = run_command("--move")
        finally:
            release.set()
            holder.join(60)
        assert (told.splitlines()[0][:80], status) == (
            "left continuum_events_y2001m05: the history was in use just then, with 3 events ",
            1,
        )
        assert run_command("--move")[1] == 0
        assert HistoryEvent.objects.filter(run_id=run_id).count() == 4
        HistoryEvent.objects.filter(run_id=run_id).delete()

    def test_a_history_that_grows_meanwhile_stays_whole(self):
        run_id, done, failures = events_of(MAY), threading.Event(), []

        def write():
            seq = 3
            try:
                while not done.is_set():
                    seq += 1
                    HistoryEventFactory(run_id=run_id, seq=seq)
                    seen = HistoryEvent.objects.filter(run_id=run_id).count()
                    if seen != seq:
                        failures.append((seq, seen))
            except Exception as error:
                failures.append(error)
            finally:
                connections.close_all()
                written.append(seq)

        written = []
        writer = threading.Thread(target=write)
        writer.start()
        try:
            while run_command("--move", "--max-rows", 1_000_000)[1]:
                pass
        finally:
            done.set()
            writer.join(60)
        assert failures == []
        assert partition_of(run_id) == "continuum_events_y2001m05"
        assert HistoryEvent.objects.filter(run_id=run_id).count() == written[0]
        HistoryEvent.objects.filter(run_id=run_id).delete()

    @pytest.mark.parametrize("act", ["read", "write"])
    def test_a_statement_that_waits_for_the_move_knows_of_it(self, act):
        """One planned before would look for the history, or put an event, where it was."""
        run_id, said = events_of(MAY), []

        def read_or_write():
            try:
                if act == "write":
                    HistoryEventFactory(run_id=run_id, seq=4)
                said.append(HistoryEvent.objects.filter(run_id=run_id).count())
            except Exception as error:
                said.append(error)
            finally:
                connections.close_all()

        other = threading.Thread(target=read_or_write)
        with transaction.atomic():
            assert run_command("--move")[1] == 0
            other.start()
            eventually(lambda: waiting_for_locks() == 1)
        other.join(60)
        assert said == [4 if act == "write" else 3]
        HistoryEvent.objects.filter(run_id=run_id).delete()

    def test_a_worker_that_may_not_says_who_may(self, caplog):
        class Forbidden(Maintenance):
            async def make_partitions(self, connection):
                await connection.execute(f"SET ROLE {role}")
                return await super().make_partitions(connection)

        async def perform():
            async with await connect("default", application_name="test") as own:
                duty = next(each for each in maintenance._duties if each.name.startswith("making partitions"))
                await maintenance._perform(duty, own)

        with connection.cursor() as cursor:
            month = datetime.now(UTC).strftime("continuum_events_y%Ym%m")
            cursor.execute(f"ALTER TABLE {month} RENAME TO continuum_events_aside")
        try:
            with role_without_ddl() as role, caplog.at_level(logging.WARNING, "continuum.worker"):
                maintenance = Forbidden(lambda: None, worker_id=0)
                asyncio.run(perform())
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER TABLE continuum_events_aside RENAME TO {month}")
        assert "somebody who may make tables can make them: manage.py continuum_partitions --create" in caplog.text
        assert caplog.text.count("WARNING") == 1


def test_looking_at_an_empty_default_partition_reads_no_event(db):
    HistoryEventFactory(run_id=uuid7())
    assert "default partition" not in run_command()[0].splitlines()[-1]
