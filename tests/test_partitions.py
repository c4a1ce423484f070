"""Month partitions of the history table."""

import threading
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from django.db import connection, connections, transaction

from continuum.ids import derived, smallest_uuid7, uuid7, uuid7_time_us
from continuum.models import HistoryEvent
from continuum.worker.partitions import DEFAULT_PARTITION, ensure_partitions, existing_partitions, partition_name

# No migration makes these: far ahead, and not the same as any test's beside it.
FAR = datetime(2091, 11, 20, tzinfo=UTC)


def insert_event(run_id, seq=1):
    """Record an event and return the name of the partition that it went to."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO continuum_events (run_id, seq, type, recorded_at) VALUES (%s, %s, 'adopted', now()) "
            "RETURNING tableoid::regclass::text",
            [run_id, seq],
        )
        return cursor.fetchone()[0]


def partition_of_its_month(run_id):
    made = datetime.fromtimestamp(uuid7_time_us(run_id) / 1e6, UTC)
    return partition_name(made.year, made.month)


def partition_of(run_id):
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM continuum_events WHERE run_id = %s", [run_id])
        return cursor.fetchone()[0]


def plan(sql, *params):
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}", params)
        return "\n".join(line for (line,) in cursor.fetchall())


@pytest.fixture
def partitions_dropped(transactional_db):
    """Take away the partitions that a test made outside of a transaction."""
    with connection.cursor() as cursor:
        before = existing_partitions(cursor)
    yield
    with connection.cursor() as cursor:
        for name in existing_partitions(cursor) - before:
            cursor.execute(f"DROP TABLE {name}")


class TestWhereHistoriesGo:
    def test_a_new_run_goes_to_the_partition_of_its_month(self, db):
        run_id = uuid7()
        assert insert_event(run_id) == partition_of_its_month(run_id)

    def test_the_edges_of_a_month_are_exact(self, db):
        with connection.cursor() as cursor:
            ensure_partitions(cursor, FAR, months_ahead=1)
        first = smallest_uuid7(datetime(2091, 12, 1, tzinfo=UTC))
        assert insert_event(first) == "continuum_events_y2091m12"
        assert insert_event(UUID(int=first.int - 1)) == "continuum_events_y2091m11"

    @pytest.mark.parametrize("run_id", [smallest_uuid7(FAR), derived("not", "a", "time")])
    def test_what_has_no_partition_goes_to_the_default_one(self, db, run_id):
        assert insert_event(run_id) == DEFAULT_PARTITION

    def test_looking_up_a_run_reads_its_partition_alone(self, db):
        run_id = uuid7()
        text = plan("SELECT * FROM continuum_events WHERE run_id = %s ORDER BY seq", run_id)
        with connection.cursor() as cursor:
            read = {name for name in existing_partitions(cursor) if name in text}
        assert read == {partition_of_its_month(run_id)}

    def test_the_primary_key_holds_within_every_partition(self, db):
        with connection.cursor() as cursor:
            ensure_partitions(cursor, FAR, months_ahead=0)
            cursor.execute(
                "SELECT relname, (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p') "
                "FROM pg_class c JOIN pg_inherits ON inhrelid = c.oid WHERE inhparent = 'continuum_events'::regclass"
            )
            keys = dict(cursor.fetchall())
        assert set(keys.values()) == {1}
        assert "continuum_events_y2091m11" in keys


class TestEnsurePartitions:
    def test_makes_the_current_month_and_those_ahead_and_says_which(self, db):
        with connection.cursor() as cursor:
            assert ensure_partitions(cursor, FAR, months_ahead=2) == [
                "continuum_events_y2091m11",
                "continuum_events_y2091m12",
                "continuum_events_y2092m01",
            ]

    def test_has_nothing_to_do_a_second_time(self, db, django_assert_num_queries):
        with connection.cursor() as cursor:
            ensure_partitions(cursor, FAR)
        with django_assert_num_queries(1), connection.cursor() as cursor:
            assert ensure_partitions(cursor, FAR) == []

    def test_makes_only_what_is_missing(self, db):
        with connection.cursor() as cursor:
            ensure_partitions(cursor, FAR, months_ahead=0)
            assert ensure_partitions(cursor, FAR, months_ahead=1) == ["continuum_events_y2091m12"]

    def test_months_are_those_of_utc(self, db):
        moment = datetime(2091, 12, 1, 3, tzinfo=timezone(timedelta(hours=5)))
        with connection.cursor() as cursor:
            assert ensure_partitions(cursor, moment, months_ahead=0) == ["continuum_events_y2091m11"]

    def test_moves_the_rows_of_the_month_out_of_the_default_partition(self, db):
        theirs, later = smallest_uuid7(FAR), smallest_uuid7(FAR + timedelta(days=30))
        for seq in (1, 2, 3):
            insert_event(theirs, seq)
        insert_event(later)
        with connection.cursor() as cursor:
            ensure_partitions(cursor, FAR, months_ahead=0)
        assert partition_of(theirs) == "continuum_events_y2091m11"
        assert partition_of(later) == DEFAULT_PARTITION
        assert list(HistoryEvent.objects.filter(run_id=theirs).order_by("seq").values_list("seq", flat=True)) == [
            1,
            2,
            3,
        ]

    def test_the_connections_own_lock_timeout_is_put_back(self, db):
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '7s'")
            ensure_partitions(cursor, FAR, months_ahead=0)
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("7s",)

    def test_a_naive_time_is_refused(self, db):
        with connection.cursor() as cursor, pytest.raises(ValueError, match="aware datetime"):
            ensure_partitions(cursor, datetime(2091, 11, 1))

    @pytest.mark.usefixtures("partitions_dropped")
    def test_many_at_once_make_each_partition_once(self):
        barrier, made, failures = threading.Barrier(6), [], []

        def ensure():
            try:
                with connection.cursor() as cursor:
                    barrier.wait(30)
                    made.extend(ensure_partitions(cursor, FAR))
            except Exception as error:
                failures.append(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=ensure) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        # Where one took long to make a month, the others may have let each other wait for too long for the next.
        with connection.cursor() as cursor:
            made.extend(ensure_partitions(cursor, FAR))
        assert set(made) == {f"continuum_events_y{month}" for month in ("2091m11", "2091m12", "2092m01", "2092m02")}

    @pytest.mark.usefixtures("partitions_dropped")
    def test_a_long_transaction_on_the_default_partition_puts_it_off_and_fails_nothing(self):
        held, release = threading.Event(), threading.Event()

        def hold():
            try:
                with transaction.atomic():
                    insert_event(derived("held"))
                    held.set()
                    release.wait(60)
            finally:
                connections.close_all()

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(30)
        try:
            with connection.cursor() as cursor:
                assert ensure_partitions(cursor, FAR, months_ahead=0) == []
                cursor.execute("SHOW lock_timeout")
                assert cursor.fetchone() == ("0",)
        finally:
            release.set()
            holder.join(60)
        with connection.cursor() as cursor:
            assert ensure_partitions(cursor, FAR, months_ahead=0) == ["continuum_events_y2091m11"]

    @pytest.mark.usefixtures("partitions_dropped")
    def test_writers_and_readers_of_other_months_are_not_in_its_way(self):
        with transaction.atomic():
            insert_event(uuid7())
            made = []

            def ensure():
                try:
                    with connection.cursor() as cursor:
                        made.extend(ensure_partitions(cursor, FAR, months_ahead=0))
                finally:
                    connections.close_all()

            thread = threading.Thread(target=ensure)
            thread.start()
            thread.join(60)
        assert made == ["continuum_events_y2091m11"]
