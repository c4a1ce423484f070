"""The tables as they are in the database, and the models over them."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from django.core import serializers
from django.core.exceptions import FieldError
from django.db import IntegrityError, connection, transaction
from django.db.models import F

from continuum.exceptions import DurableValueError
from continuum.ids import derived, uuid7
from continuum.models import (
    ActivityResult,
    ActivityTask,
    HistoryEvent,
    InboxMessage,
    Queue,
    Run,
    Schedule,
    Worker,
    WorkflowVersion,
)
from tests.factories import RunFactory

pytestmark = pytest.mark.django_db

SOON = datetime.now(UTC) + timedelta(minutes=1)


def rows(sql, *params):
    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
        return cursor.fetchall()


make_run = RunFactory


def record(run_id, *seqs, **fields):
    values = {"type": "activity_completed", "recorded_at": SOON} | fields
    HistoryEvent.objects.bulk_create(HistoryEvent(run_id=run_id, seq=seq, **values) for seq in seqs)


class TestTables:
    COLUMNS = {
        "continuum_runs": """
            id uuid! workflow text! version integer! version_hash text! state text! priority smallint! input json!
            result json error json progress json waiting_on json! owner_id bigint lease_token bigint!
            recoveries smallint! started_at timestamptz! claimed_at timestamptz completed_at timestamptz
            next_wakeup_at timestamptz deadline_at timestamptz retention_until timestamptz parent_run_id uuid
            parent_command_id text correlation_id uuid! continued_from_run_id uuid continued_to_run_id uuid
            forked_from_run_id uuid seed uuid idempotency_key text namespace text! attributes jsonb!
            depth smallint! tried_versions text!""",
        "continuum_events": """
            run_id uuid! seq integer! type text! command_id text name text data json! recorded_at timestamptz!""",
        "continuum_inbox": """
            run_id uuid! id bigint! kind text! name text command_id text payload json delivery_id text
            created_at timestamptz! consumed_at timestamptz""",
        "continuum_activity_tasks": """
            run_id uuid! command_id text! activity text! queue text! priority smallint! args json! options json!
            state text! attempt smallint! due_at timestamptz! owner_id bigint lease_token bigint!
            heartbeat_at timestamptz heartbeat_details json claimed_at timestamptz created_at timestamptz!
            recoveries smallint!""",
        "continuum_queues": "id bigint! name text! recent json!",
        "continuum_activity_results": """
            run_id uuid! command_id text! kind text! name text! idempotency_key text result json attempt smallint!
            created_at timestamptz!""",
        "continuum_workers": """
            id bigint! name text! host text! pid integer! state text! queues json! info json! session_lock boolean!
            started_at timestamptz! heartbeat_at timestamptz! expires_at timestamptz! stopped_at timestamptz
            suspect_id uuid workflows jsonb trial_token bigint""",
        "continuum_workflow_versions": """
            id bigint! workflow text! version integer! version_hash text! location text! patch_sites json!
            first_seen_at timestamptz! last_seen_at timestamptz!""",
        "continuum_schedules": """
            id bigint! name text! workflow text! spec text! timezone text! input json! paused boolean!
            next_run_at timestamptz last_run_at timestamptz created_at timestamptz!""",
    }

    @pytest.mark.parametrize("table", COLUMNS)
    def test_has_its_columns(self, table):
        found = rows(
            "SELECT attname, format_type(atttypid, NULL), attnotnull FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            table,
        )
        listed = []
        for name, type_, not_null in found:
            type_ = type_.replace("timestamp with time zone", "timestamptz")
            listed += [name, type_ + "!" if not_null else type_]
        assert listed == self.COLUMNS[table].split()

    @pytest.mark.parametrize(
        ("table", "key"),
        [
            ("continuum_runs", "id"),
            ("continuum_events", "run_id, seq"),
            ("continuum_inbox", "run_id, id"),
            ("continuum_activity_tasks", "run_id, command_id"),
            ("continuum_activity_results", "run_id, command_id"),
            ("continuum_queues", "id"),
            ("continuum_workers", "id"),
            ("continuum_workflow_versions", "id"),
            ("continuum_schedules", "id"),
        ],
    )
    def test_has_its_primary_key_and_no_foreign_keys(self, table, key):
        found = rows(
            "SELECT contype::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = %s::regclass AND contype IN ('p', 'f')",
            table,
        )
        assert found == [("p", f"PRIMARY KEY ({key})")]

    INDEXES = {
        "continuum_runs_ready_idx": "continuum_runs USING btree (priority DESC, next_wakeup_at)"
        " WHERE ((next_wakeup_at IS NOT NULL) AND (owner_id IS NULL))",
        "continuum_runs_owner_idx": "continuum_runs USING btree (owner_id) WHERE (owner_id IS NOT NULL)",
        "continuum_runs_parent_idx": "continuum_runs USING btree (parent_run_id) WHERE (parent_run_id IS NOT NULL)",
        "continuum_runs_suspects_idx": "continuum_runs USING btree (recoveries DESC)"
        " WHERE ((owner_id IS NULL) AND (recoveries > 0))",
        "continuum_runs_stuck_idx": "continuum_runs USING btree (workflow, version, version_hash, tried_versions, id)"
        " WHERE ((owner_id IS NULL) AND (state = 'stuck_unknown_version'::text))",
        "continuum_runs_namespace_state_idx": "continuum_runs USING btree (namespace, state)",
        "continuum_runs_attributes_gin_idx": "continuum_runs USING gin (attributes jsonb_path_ops)"
        " WITH (gin_pending_list_limit='256') WHERE (NOT (attributes = '{}'::jsonb))",
        "continuum_runs_started_idx": "continuum_runs USING btree (namespace, started_at, id)"
        " WHERE (NOT (state = 'running'::text))",
        "continuum_runs_ended_idx": "continuum_runs USING btree (namespace, workflow, state, started_at, id)"
        " WHERE (state = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text]))",
        "continuum_runs_completed_idx": "continuum_runs USING btree (namespace, completed_at, id)"
        " WHERE ((completed_at IS NOT NULL) OR"
        " (state = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text])))",
        "continuum_events_versions_idx": "continuum_events USING btree (run_id)"
        " WHERE (type = ANY (ARRAY['patched'::text, 'version_adopted'::text]))",
        "continuum_inbox_delivery_idx": "UNIQUE continuum_inbox USING btree (run_id, delivery_id)"
        " WHERE (delivery_id IS NOT NULL)",
        "continuum_inbox_unread_idx": "continuum_inbox USING btree (run_id) WHERE (consumed_at IS NULL)",
        "continuum_activity_tasks_ready_idx": "continuum_activity_tasks USING btree (queue, priority DESC, due_at)"
        " WHERE (state = 'ready'::text)",
        "continuum_activity_tasks_owner_idx": "continuum_activity_tasks USING btree (owner_id)"
        " WHERE (owner_id IS NOT NULL)",
        "continuum_workers_live_idx": "continuum_workers USING btree (expires_at) WHERE (NOT (state = 'dead'::text))",
        "continuum_workflow_versions_key": "UNIQUE continuum_workflow_versions USING btree"
        " (workflow, version, version_hash)",
        "continuum_queues_name_key": "UNIQUE continuum_queues USING btree (name)",
        "continuum_schedules_name_key": "UNIQUE continuum_schedules USING btree (name)",
    }

    def test_there_are_these_indexes_and_no_others(self):
        found = {}
        for name, definition in rows(
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename LIKE 'continuum%' AND indexname NOT LIKE '%_pkey' "
            "AND indexname::regclass NOT IN (SELECT inhrelid FROM pg_inherits)"  # partitions have what their table has
        ):
            unique, rest = definition.split(" INDEX ")
            text = rest.removeprefix(f"{name} ON ").removeprefix("ONLY ").removeprefix("public.")
            found[name] = f"UNIQUE {text}" if unique.endswith("UNIQUE") else text
        assert found == self.INDEXES

    @pytest.mark.parametrize(
        ("index", "query"),
        [
            (
                "continuum_runs_ready_idx",
                "SELECT id FROM continuum_runs WHERE owner_id IS NULL AND next_wakeup_at <= now() "
                "ORDER BY priority DESC, next_wakeup_at LIMIT 10",
            ),
            ("continuum_runs_owner_idx", "SELECT id FROM continuum_runs WHERE owner_id = 7"),
            (
                "continuum_runs_attributes_gin_idx",
                """SELECT id FROM continuum_runs WHERE attributes @> '{"a": 1}' AND attributes <> '{}'""",
            ),
            ("continuum_inbox_unread_idx", "SELECT DISTINCT run_id FROM continuum_inbox WHERE consumed_at IS NULL"),
            (
                "continuum_workers_live_idx",
                "SELECT id FROM continuum_workers WHERE state <> 'dead' AND expires_at < now()",
            ),
        ],
    )
    def test_the_statements_that_need_an_index_use_it(self, index, query):
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {query}")
            assert index in "\n".join(line for (line,) in cursor.fetchall())

    @pytest.mark.parametrize(
        ("table", "required", "given"),
        [
            (
                "continuum_runs",
                {"id": uuid7(), "workflow": "f", "correlation_id": uuid7()},
                "version=1 version_hash= state=pending priority=0 input=[] waiting_on=[] lease_token=0 recoveries=0 "
                "namespace=default attributes={} owner_id=None next_wakeup_at=None",
            ),
            ("continuum_events", {"run_id": uuid7(), "seq": 1, "type": "adopted", "recorded_at": SOON}, "data={}"),
            ("continuum_inbox", {"run_id": uuid7(), "kind": "cancel"}, "payload=None consumed_at=None"),
            (
                "continuum_activity_tasks",
                {"run_id": uuid7(), "command_id": "0:1", "activity": "a", "args": "[]"},
                "queue=default priority=0 options={} state=ready attempt=0 lease_token=0",
            ),
            ("continuum_queues", {"name": "q"}, "recent=[]"),
            ("continuum_activity_results", {"run_id": uuid7(), "command_id": "0:1"}, "kind=activity name= attempt=1"),
            (
                "continuum_workers",
                {"name": "w", "expires_at": SOON},
                "host= pid=0 state=alive queues=[] info={} session_lock=False",
            ),
            (
                "continuum_workflow_versions",
                {"workflow": "f", "version": 1, "version_hash": "h"},
                "location= patch_sites=[]",
            ),
            (
                "continuum_schedules",
                {"name": "s", "workflow": "f", "spec": "@daily"},
                "timezone=UTC input=[] paused=False",
            ),
        ],
    )
    def test_a_statement_with_the_required_columns_alone_inserts_a_row(self, table, required, given):
        names, marks = ", ".join(required), ", ".join(["%s"] * len(required))
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING *", list(required.values()))
            row = dict(zip((column.name for column in cursor.description), cursor.fetchone(), strict=True))
        defaults = dict(pair.split("=") for pair in given.split())
        assert {name: str(row[name]) for name in defaults} == defaults
        assert all(row[name] is not None for name in row if name in ("created_at", "started_at", "first_seen_at"))

    def test_numbers_come_from_identity_columns_that_also_take_given_ones(self):
        (first,), (second,) = (
            rows("INSERT INTO continuum_workers (name, expires_at) VALUES ('w', now()) RETURNING id")[0]
            for _ in range(2)
        )
        assert second == first + 1
        identity = rows(
            "SELECT attrelid::regclass::text FROM pg_attribute WHERE attidentity = 'd' AND attname = 'id' "
            "AND attrelid::regclass::text LIKE 'continuum%' ORDER BY 1"
        )
        tables = ("inbox", "queues", "schedules", "workers", "workflow_versions")
        assert identity == [(f"continuum_{table}",) for table in tables]

    def test_a_page_of_runs_has_room_for_their_next_versions(self):
        [[options]] = rows("SELECT reloptions FROM pg_class WHERE oid = 'continuum_runs'::regclass")
        assert options == ["fillfactor=50"]

    def test_lease_tokens_only_grow(self):
        tokens = [rows("SELECT nextval('continuum_lease_token_seq')")[0][0] for _ in range(3)]
        assert tokens == sorted(set(tokens))


class TestRun:
    def test_a_new_one_has_a_time_ordered_id_and_correlates_with_itself(self):
        first, second = make_run(), make_run()
        assert first.id < second.id
        assert first.id.version == 7
        assert first.correlation_id == first.id
        assert make_run(correlation_id=first.id).correlation_id == first.id

    def test_what_was_not_given_is_there_without_another_query(self, django_assert_num_queries):
        run = make_run()
        with django_assert_num_queries(0):
            assert (run.state, run.version, run.namespace, run.attributes, run.input) == (
                "pending",
                1,
                "default",
                {},
                [],
            )
            assert run.started_at.tzinfo is not None

    def test_knows_whether_it_has_ended(self):
        ended = {state for state in Run.State if Run(state=state).is_terminal}
        assert ended == {"completed", "failed", "cancelled"}

    def test_says_what_it_is(self):
        run = Run(workflow="shop.order")
        assert str(run) == f"shop.order {run.id}"

    def test_active_and_terminal_runs_are_told_apart(self):
        runs = {state: make_run(state=state) for state in Run.State}
        assert set(Run.objects.terminal()) == {runs["completed"], runs["failed"], runs["cancelled"]}
        assert set(Run.objects.active()) == set(runs.values()) - set(Run.objects.terminal())

    def test_namespaces_keep_runs_apart(self):
        make_run()
        ours = make_run(namespace="billing")
        assert list(Run.objects.in_namespace("billing").active()) == [ours]

    def test_attributes_match_with_their_json_type_and_nested_ones_in_part(self):
        run = make_run(attributes={"plan": "pro", "seats": 3, "address": {"city": "Oslo", "zip": "0150"}})
        found = Run.objects.with_attributes
        assert found(plan="pro", seats=3).get() == run
        assert found(address={"city": "Oslo"}).get() == run
        assert not found(seats="3").exists()
        assert not found(plan="pro", seats=4).exists()


class TestHistory:
    def test_comes_in_order_with_decoded_data(self):
        run = make_run()
        record(run.id, 2, 1, command_id="0:1", name="charge", data={"amount": Decimal("9.50")})
        record(uuid7(), 1)
        first, second = run.history()
        assert (first.seq, second.seq) == (1, 2)
        assert (first.type, first.command_id, first.name) == ("activity_completed", "0:1", "charge")
        assert first.data == {"amount": Decimal("9.50")}
        assert first.recorded_at == SOON
        with pytest.raises(AttributeError):
            first.seq = 9

    def test_is_read_page_by_page(self, django_assert_num_queries):
        run = make_run()
        record(run.id, *range(1, 1202))
        with django_assert_num_queries(3):
            assert [event.seq for event in run.history()] == list(range(1, 1202))
        events = run.history()
        with django_assert_num_queries(1):
            assert next(events).seq == 1


class TestDurableJSONField:
    VALUES = [
        [],
        {},
        "text",
        "1",
        "null",
        0,
        -0.0,
        1e100,
        True,
        {"z": 1, "a": [None]},
        Decimal("1.10"),
        datetime(2026, 3, 29, 1, 30, 0, 577600, tzinfo=UTC),
        {1: (2,)},
    ]

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_gives_back_what_it_was_given(self, value):
        run = make_run(result=value)
        Run.objects.filter(id=run.id).update(progress=value)
        run = Run.objects.get(id=run.id)
        for found in (run.result, run.progress, Run.objects.values_list("result", flat=True).get()):
            assert (found, type(found), str(found)) == (value, type(value), str(value))

    def test_keeps_the_exact_text(self):
        run_id = uuid7()
        text = '{"b": 1e5, "a": -0.0, "n": 1.50}'
        rows(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, result) VALUES (%s, 'f', %s, %s) RETURNING 1",
            run_id,
            run_id,
            text,
        )
        assert rows("SELECT result::text FROM continuum_runs WHERE id = %s", run_id) == [(text,)]
        found = Run.objects.get(id=run_id).result
        assert list(found) == ["b", "a", "n"]
        assert str(found["a"]) == "-0.0"

    def test_none_is_null(self):
        run = make_run(result=None)
        assert Run.objects.get(id=run.id).result is None
        assert Run.objects.filter(result__isnull=True).exists()
        assert rows("SELECT result IS NULL FROM continuum_runs") == [(True,)]

    def test_rows_made_in_bulk_and_rows_read_in_raw_sql_decode_alike(self):
        Run.objects.bulk_create(
            [Run(workflow="f", correlation_id=uuid7(), input=[SOON, number]) for number in range(3)]
        )
        raw = Run.objects.raw("SELECT * FROM continuum_runs ORDER BY id")
        assert [run.input for run in raw] == [run.input for run in Run.objects.order_by("id")]
        assert raw[2].input == [SOON, 2]

    def test_expressions_copy_the_column(self):
        run = make_run(result={"a": Decimal(1)})
        Run.objects.update(progress=F("result"))
        run.refresh_from_db()
        assert run.progress == {"a": Decimal(1)}

    def test_what_is_not_durable_is_refused_with_its_path(self):
        with pytest.raises(DurableValueError, match=r"input\[0\]\.fn: function is not durable"):
            make_run(input=[{"fn": lambda: None}])

    def test_text_that_cannot_be_read_names_its_column(self):
        run_id = uuid7()
        rows(
            "INSERT INTO continuum_runs (id, workflow, correlation_id, result) VALUES (%s, 'f', %s, %s) RETURNING 1",
            run_id,
            run_id,
            '{"~datetime": "yesterday"}',
        )
        with pytest.raises(ValueError, match=r"continuum_runs\.result holds no durable value.*yesterday"):
            Run.objects.get(id=run_id)
        assert Run.objects.defer("result").get(id=run_id).workflow == "f"

    def test_payloads_are_not_searched(self):
        for lookup in ("result", "result__contains", "result__key"):
            with pytest.raises(FieldError):
                Run.objects.filter(**{lookup: 1}).exists()

    def test_survives_dumpdata_and_loaddata(self):
        run = make_run(result={"at": SOON, "text": "1"}, input=["x"])
        text = serializers.serialize("json", [run])
        assert json.loads(text)[0]["fields"]["input"] == ["x"]
        Run.objects.all().delete()
        for restored in serializers.deserialize("json", text):
            restored.save()
        assert Run.objects.get(id=run.id).result == {"at": SOON, "text": "1"}

    def test_cleaning_leaves_values_as_they_are_and_refuses_what_is_not_durable(self):
        field = Run._meta.get_field("result")
        assert field.clean({"~datetime": "text"}, None) == {"~datetime": "text"}
        with pytest.raises(DurableValueError):
            field.clean(object(), None)


class TestInbox:
    def test_numbers_are_given_by_the_database(self):
        run_id = uuid7()
        first = InboxMessage.objects.create(run_id=run_id, kind="signal", name="approved", payload={"by": "me"})
        second = InboxMessage(run_id=run_id, kind="cancel")
        second.save()
        assert isinstance(first.id, int)
        assert second.id > first.id
        assert InboxMessage.objects.get(pk=(run_id, first.id)).payload == {"by": "me"}

    def test_many_are_inserted_at_once(self):
        run_id = uuid7()
        made = InboxMessage.objects.bulk_create(InboxMessage(run_id=run_id, kind="signal") for _ in range(3))
        numbers = [message.id for message in made]
        assert numbers == sorted(set(numbers))
        assert set(InboxMessage.objects.values_list("id", flat=True)) == set(numbers)

    def test_a_saved_message_is_updated_in_place(self):
        message = InboxMessage.objects.create(run_id=uuid7(), kind="signal", delivery_id="d")
        message.consumed_at = SOON
        message.save()
        assert InboxMessage.objects.get().consumed_at == SOON

    def test_a_delivery_is_taken_once_a_run_and_messages_without_one_any_number_of_times(self):
        run_id = uuid7()
        for of, delivery in ((run_id, "d"), (uuid7(), "d"), (run_id, None), (run_id, None)):
            InboxMessage.objects.create(run_id=of, kind="signal", delivery_id=delivery)
        with pytest.raises(IntegrityError), transaction.atomic():
            InboxMessage.objects.create(run_id=run_id, kind="signal", delivery_id="d")


class TestOtherModels:
    def test_a_start_key_is_taken_once(self):
        key = derived("start", "default", "shop.order", "o-1")
        ActivityResult.objects.create(run_id=key, command_id="start", kind="start_key", result=str(uuid7()))
        with pytest.raises(IntegrityError), transaction.atomic():
            ActivityResult.objects.create(run_id=key, command_id="start", kind="start_key", result=str(uuid7()))

    def test_each_is_created_and_read_back_through_its_model(self):
        run_id = uuid4()
        ActivityTask.objects.create(run_id=run_id, command_id="0:1", activity="shop.charge", args=[1])
        Worker.objects.create(name="web-1", expires_at=SOON, queues=["default"])
        WorkflowVersion.objects.create(workflow="shop.order", version=2, version_hash="h")
        Schedule.objects.create(name="nightly", workflow="shop.report", spec="0 3 * * *")
        assert ActivityTask.objects.get(pk=(run_id, "0:1")).state == ActivityTask.State.READY
        assert Worker.objects.get().queues == ["default"]
        Queue.objects.create(name="mail")
        said = [str(model.objects.get()) for model in (ActivityTask, Worker, WorkflowVersion, Schedule, Queue)]
        assert said == ["shop.charge 0:1", "web-1", "shop.order v2", "nightly", "mail"]
