"""Statements of application code are prepared, and nobody can tell but by the time they take."""

import signal
import threading
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest
from django.db import DataError, OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.test.utils import CaptureQueriesContext

import continuum
from continuum import statements
from continuum.models import InboxMessage, Run
from continuum.search import queries
from continuum.search.habits import Habits
from tests.conftest import url_of
from tests.waiting_for import eventually

pytestmark = pytest.mark.django_db(transaction=True)

OFTEN = 6


@continuum.workflow(name="tests.statements.flow")
async def flow(value): ...


@pytest.fixture(autouse=True)
def fresh_connection():
    connection.close()
    yield
    connection.close()


@pytest.fixture
def statement(monkeypatch):
    """Return a function that carries out a text as one of the statements."""
    monkeypatch.setattr(statements, "load", lambda name: name)
    return lambda text, **parameters: statements.first_row("default", text, parameters)


def prepared():
    """Return the texts of what is prepared in the session; not of hints, which go along now and then."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        return [text for (text,) in cursor.fetchall() if "pg_notify" not in text]


def start_often():
    runs = [continuum.start(flow, number) for number in range(OFTEN)]
    assert [run.input for run in Run.objects.filter(pk__in=[run.pk for run in runs]).order_by("id")] == [
        [number] for number in range(OFTEN)
    ]
    return runs


def test_what_comes_again_is_prepared_once():
    start_often()
    assert len(prepared()) == 1
    assert "INSERT INTO continuum_runs" in prepared()[0]
    start_often()
    assert len(prepared()) == 1


def test_what_comes_once_or_twice_is_not():
    for number in range(2):
        continuum.start(flow, number)
    assert prepared() == []


def test_a_new_connection_begins_anew():
    start_often()
    connection.close()
    continuum.start(flow, 1)
    assert prepared() == []


def test_each_statement_is_prepared_for_itself():
    (run, *_) = start_often()
    for number in range(OFTEN):
        continuum.signal(run, "go", number)
        with pytest.raises(TimeoutError):
            continuum.result(run, timeout=0)
        continuum.start(flow, number, idempotency_key=str(number))
    assert len(prepared()) == 4
    assert InboxMessage.objects.filter(run_id=run.pk).count() == OFTEN


def test_options_that_were_not_given_before_are_heeded():
    start_often()
    run = continuum.start(flow, 1, priority=-300, timeout=100_000_000.0, attributes={"a": ["ü%s"]}, namespace="n%s")
    assert Run.objects.get(pk=run.pk).attributes == {"a": ["ü%s"]}
    for field in Run._meta.concrete_fields:
        assert getattr(run, field.attname) == getattr(Run.objects.get(pk=run.pk), field.attname)


def test_in_a_transaction_nothing_is_prepared_and_all_of_it_is_undone_together():
    with transaction.atomic():
        for number in range(OFTEN):
            continuum.start(flow, number)
        assert prepared() == []
        transaction.set_rollback(True)
    assert not Run.objects.exists()


def test_in_a_transaction_begun_by_hand_nothing_is_prepared():
    start_often()
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
        cursor.execute("BEGIN")
        start_often()
        cursor.execute("ROLLBACK")
    assert Run.objects.count() == OFTEN
    assert prepared() == []


def test_a_transaction_after_the_statement_was_prepared_is_joined_as_well():
    start_often()
    with transaction.atomic():
        continuum.start(flow, "undone")
        transaction.set_rollback(True)
    assert Run.objects.count() == OFTEN


@pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_a_statement_the_session_has_forgotten_is_carried_out_all_the_same(forget):
    start_often()
    with connection.cursor() as cursor:
        cursor.execute(forget)
    start_often()
    assert Run.objects.count() == 2 * OFTEN
    assert prepared() == []


def test_a_result_that_looks_otherwise_since_it_was_prepared_is_no_error(statement):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE things AS SELECT 1 AS one")
        for _ in range(OFTEN):
            assert statement("SELECT * FROM things") == (1,)
        assert len(prepared()) == 1
        cursor.execute("ALTER TABLE things ADD COLUMN two integer DEFAULT 2")
    assert statement("SELECT * FROM things") == (1, 2)


def test_behind_what_is_said_to_be_a_pooler_nothing_is_prepared(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    start_often()
    assert prepared() == []


@pytest.mark.parametrize(("threshold", "count"), [(None, 0), (2, 1)])
def test_the_project_may_say_whether_statements_are_prepared(monkeypatch, threshold, count):
    monkeypatch.setattr(statements, "_is_own", lambda session: threshold is None)
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "prepare_threshold", threshold)
    start_often()
    assert len(prepared()) == count


def test_in_a_session_of_somebody_elses_nothing_is_prepared(monkeypatch):
    """As behind a pooler that the project does not mention."""
    continuum.start(flow, 1)
    real = type(connection.connection.info).backend_pid
    monkeypatch.setattr(
        type(connection.connection.info), "backend_pid", property(lambda info: real.__get__(info) ^ 0x100000)
    )
    start_often()
    assert prepared() == []


def test_under_manual_transaction_management_nothing_is_prepared():
    transaction.set_autocommit(False)
    try:
        for number in range(OFTEN):
            continuum.start(flow, number)
        assert prepared() == []
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert not Run.objects.exists()


def test_statements_of_others_are_prepared_no_more_than_before():
    start_often()
    assert connection.connection.prepare_threshold is None
    for number in range(OFTEN):
        Run.objects.filter(lease_token=number).exists()
    assert len(prepared()) == 1


def test_those_who_watch_the_connection_see_the_statement():
    start_often()
    seen = []

    def watch(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(watch), CaptureQueriesContext(connection) as captured:
        continuum.start(flow, 1)
    assert len(seen) == len(captured) == 1
    assert "INSERT INTO continuum_runs" in seen[0]
    assert "tests.statements.flow" in captured[0]["sql"]


def test_a_cursor_of_somebody_elses_is_left_alone(monkeypatch):
    class Traced(CursorWrapper):
        pass

    start_often()
    real = connection.cursor
    monkeypatch.setattr(connection, "cursor", lambda: Traced(real().cursor, connection))
    with CaptureQueriesContext(connection):
        continuum.start(flow, 1)
    assert Run.objects.count() == OFTEN + 1


def test_errors_are_djangos_before_and_after(statement):
    for _ in range(OFTEN):
        with pytest.raises(DataError):
            statement("SELECT 1 / %(number)s::int", number="0")
    assert statement("SELECT 1 / %(number)s::int", number="1") == (1,)


@pytest.mark.parametrize("uses", range(4))
def test_a_connection_that_was_cut_is_djangos_error_whatever_was_to_be_asked_first(uses):
    for number in range(uses):
        continuum.start(flow, number)
    if not uses:
        connection.ensure_connection()
    with psycopg.connect(url_of(connection.settings_dict), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.connection.info.backend_pid])
    with pytest.raises(OperationalError):
        continuum.start(flow, "lost")
    connection.close()
    continuum.start(flow, "kept")
    assert Run.objects.count() == uses + 1


class TestSearches:
    """Statements that are put together anew each time."""

    @pytest.fixture(autouse=True)
    def no_habits(self, monkeypatch):
        """Look in order each time, however quickly it was gathered before, here or in another test."""
        monkeypatch.setattr(queries, "HABITS", Habits(quick=-1.0))

    def search(self, value=1, **options):
        where = [("eq", ["attributes", "value"], value), ("gte", "started_at", datetime(2024, 1, 1, tzinfo=UTC))]
        return [run.input for run in continuum.query(where=where, **options).entries]

    def test_that_come_again_are_prepared_for_all_values(self):
        for number in range(OFTEN):
            continuum.start(flow, number, attributes={"value": number})
        connection.close()
        for _ in range(3):
            for number in range(OFTEN):
                assert self.search(number) == [[number]]
        looked_for = [text for text in prepared() if "@>" in text]
        assert looked_for
        assert all("'default'" in text for text in looked_for)
        assert connection.connection.prepare_threshold is None

    def test_for_attributes_that_are_rare_get_one_plan_for_all_values(self, monkeypatch):
        monkeypatch.setattr(queries, "HABITS", Habits(quick=60.0))
        for number in range(OFTEN):
            continuum.start(flow, number, attributes={"value": number})
        for _ in range(5):
            for number in range(OFTEN):
                (run,) = continuum.query(where=[("eq", ["attributes", "value"], number)]).entries
                assert run.input == [number]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT generic_plans > custom_plans FROM pg_prepared_statements "
                "WHERE position('attributes @> (SELECT' IN statement) > 0"
            )
            assert cursor.fetchall() == [(True,)]

    def test_of_another_namespace_are_others(self):
        for _ in range(OFTEN):
            self.search()
        before = len(prepared())
        for _ in range(OFTEN):
            assert self.search(namespace="other") == []
        assert len(prepared()) > before

    @pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD ALL"])
    def test_that_the_session_has_forgotten_are_carried_out_all_the_same(self, forget):
        continuum.start(flow, 1, attributes={"value": 1})
        for _ in range(OFTEN):
            self.search()
        with connection.cursor() as cursor:
            cursor.execute(forget)
        assert self.search() == self.search() == [[1]]

    def test_in_a_transaction_are_not_prepared(self):
        for _ in range(OFTEN):
            with transaction.atomic():
                self.search()
        assert prepared() == []

    def test_behind_what_is_said_to_be_a_pooler_are_not_prepared(self, monkeypatch):
        monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
        for _ in range(OFTEN):
            self.search()
        assert prepared() == []

    def test_of_every_kind_are_kept_to_a_number(self):
        for number in range(120):
            for _ in range(3):
                continuum.query(where=[("eq", ["attributes", f"{number}"], {}), ("eq", "state", "failed")])
        assert 0 < len(prepared()) <= 101


class TestValues:
    """What a prepared statement takes and returns is what it would be as text."""

    STATEMENT = """
        SELECT %(words)s::text, %(number)s::int, %(large)s::bigint, %(id)s::uuid, %(moment)s::timestamptz,
            %(words)s::text || '%%', %(number)s::int > 0, %(nothing)s::text
    """
    OTHERS = """, '{"a": 1}'::json, 1.50::numeric"""
    GIVEN = {
        "words": "ü %s $1 %% \\ '",
        "number": -7,
        "large": 2**60,
        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "nothing": None,
    }
    MOMENTS = (
        datetime(2026, 3, 29, 1, 30, 0, 120000, tzinfo=UTC),
        datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
        datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
    )

    @pytest.mark.parametrize("zone", [None, "Europe/Berlin", "Asia/Kolkata"])
    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("more", ["", OTHERS])
    def test_of_all_types(self, statement, monkeypatch, moment, zone, more):
        monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", zone)
        for name in ("timezone", "timezone_name"):
            connection.__dict__.pop(name, None)
        rows = [statement(self.STATEMENT + more, **self.GIVEN, moment=moment) for _ in range(OFTEN)]
        assert len(prepared()) == 1
        assert rows[-1] == rows[0]
        assert [type(value) for value in rows[-1]] == [type(value) for value in rows[0]]
        assert rows[-1][4] == moment
        assert str(rows[-1][4]) == str(rows[0][4])

    def test_moments_in_a_style_that_psycopg_refuses_are_refused_alike(self, statement):
        with connection.cursor() as cursor:
            cursor.execute("SET datestyle TO 'German'")
        errors = []
        for _ in range(OFTEN):
            with pytest.raises(NotImplementedError) as refused:
                statement("SELECT %(moment)s::timestamptz", moment=self.MOMENTS[0])
            errors.append(str(refused.value))
        assert len(prepared()) == 1
        assert len(set(errors)) == 1

    def test_in_another_encoding(self, statement, monkeypatch):
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "prepare_threshold", 2)
        with connection.cursor() as cursor:
            cursor.execute("SET client_encoding TO 'LATIN1'")
        assert [statement("SELECT %(words)s::text", words="ü") for _ in range(OFTEN)] == [("ü",)] * OFTEN

    @pytest.mark.parametrize("text", ["a\0b", "\ud800"])
    def test_that_cannot_be_stored_are_refused_alike(self, statement, text):
        errors = []
        for given in ("a", "a", "a", text):
            try:
                statement("SELECT %(words)s::text", words=given)
            except Exception as error:
                errors.append(error)
        with connection.cursor() as cursor, pytest.raises(type(errors[0])) as plainly:
            cursor.execute("SELECT %s::text", [text])
        assert [str(error) for error in errors] == [str(plainly.value)]

    def test_of_types_that_are_psycopgs_affair(self, statement):
        for _ in range(OFTEN):
            assert statement("SELECT %(list)s::int[]", list=[1, 2]) == ([1, 2],)

    def test_of_a_row_that_is_not_there(self, statement):
        assert [statement("SELECT 1 WHERE %(yes)s::int > 1", yes=1) for _ in range(OFTEN)] == [None] * OFTEN


def test_who_interrupts_a_statement_finds_the_connection_usable(statement):
    """As Ctrl-C does, which psycopg has the server told of."""
    statements_before = [statement("SELECT pg_sleep(%(seconds)s::float8)::text", seconds="0") for _ in range(OFTEN)]
    assert statements_before == [("",)] * OFTEN
    address, pid = url_of(connection.settings_dict), connection.connection.info.backend_pid

    def interrupt():
        asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        with psycopg.connect(address, autocommit=True) as other:
            eventually(lambda: other.execute(asleep, [pid]).fetchone(), 25)
        signal.raise_signal(signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        statement("SELECT pg_sleep(%(seconds)s::float8)::text", seconds="30")
    watcher.join()
    assert statement("SELECT %(number)s::int", number=1) == (1,)
