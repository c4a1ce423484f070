"""The tables, but for what makes runs searchable."""

from datetime import UTC, datetime

import django.db.models.functions.datetime
from django.core.exceptions import ImproperlyConfigured
from django.db import migrations, models

import continuum.fields
import continuum.ids
from continuum.worker.partitions import ensure_partitions

# Made by hand, as Django knows no partitioned tables.
CREATE_EVENTS = """
CREATE TABLE continuum_events (
    run_id      uuid        NOT NULL,
    seq         integer     NOT NULL,
    type        text        NOT NULL,
    command_id  text,
    name        text,
    data        json        NOT NULL DEFAULT '{}',
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);
CREATE TABLE continuum_events_default PARTITION OF continuum_events DEFAULT;
"""


def require_postgresql(apps, schema_editor):
    connection = schema_editor.connection
    if connection.vendor == "postgresql" and connection.pg_version >= 140000:
        return
    if connection.vendor == "postgresql":
        found = f"PostgreSQL {connection.pg_version // 10000}"
    else:
        found = connection.display_name
    raise ImproperlyConfigured(
        f"Continuum needs PostgreSQL 14 or newer, and the database {connection.alias!r} is {found}. Let "
        'CONTINUUM["DATABASE"] name a PostgreSQL database; to keep the tables of Continuum out of this one, let the '
        "allow_migrate() of a database router return False for the app 'continuum' here."
    )


def create_partitions(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        ensure_partitions(cursor, datetime.now(UTC))


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.RunPython(require_postgresql, migrations.RunPython.noop),
        migrations.RunSQL(
            # Fencing tokens: each is greater than all before it.
            "CREATE SEQUENCE continuum_lease_token_seq",
            "DROP SEQUENCE continuum_lease_token_seq",
        ),
        migrations.CreateModel(
            name="Run",
            fields=[
                (
                    "id",
                    models.UUIDField(default=continuum.ids.uuid7, editable=False, primary_key=True, serialize=False),
                ),
                ("workflow", models.TextField()),
                ("version", models.IntegerField(db_default=1, default=1)),
                ("version_hash", models.TextField(db_default="", default="")),
                (
                    "state",
                    models.TextField(
                        choices=[
                            ("pending", "pending"),
                            ("running", "running"),
                            ("suspended", "suspended"),
                            ("completed", "completed"),
                            ("failed", "failed"),
                            ("cancelled", "cancelled"),
                            ("stuck_unknown_version", "stuck: unknown version"),
                        ],
                        db_default="pending",
                        default="pending",
                    ),
                ),
                ("priority", models.SmallIntegerField(db_default=0, default=0)),
                ("input", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
                ("result", continuum.fields.DurableJSONField(null=True)),
                ("error", continuum.fields.DurableJSONField(null=True)),
                ("progress", continuum.fields.DurableJSONField(null=True)),
                ("waiting_on", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
                ("owner_id", models.BigIntegerField(null=True)),
                ("lease_token", models.BigIntegerField(db_default=0, default=0)),
                ("recoveries", models.SmallIntegerField(db_default=0, default=0)),
                ("started_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("claimed_at", models.DateTimeField(null=True)),
                ("completed_at", models.DateTimeField(null=True)),
                ("next_wakeup_at", models.DateTimeField(null=True)),
                ("deadline_at", models.DateTimeField(null=True)),
                ("retention_until", models.DateTimeField(null=True)),
                ("parent_run_id", models.UUIDField(null=True)),
                ("parent_command_id", models.TextField(null=True)),
                ("correlation_id", models.UUIDField()),
                ("continued_from_run_id", models.UUIDField(null=True)),
                ("continued_to_run_id", models.UUIDField(null=True)),
                ("forked_from_run_id", models.UUIDField(null=True)),
                ("seed", models.UUIDField(null=True)),
                ("idempotency_key", models.TextField(null=True)),
            ],
            options={
                "db_table": "continuum_runs",
                "permissions": (
                    ("signal_run", "Can signal run"),
                    ("cancel_run", "Can cancel run"),
                    ("retry_run", "Can retry run"),
                    ("fork_run", "Can fork run"),
                    ("set_attributes_run", "Can set attributes of run"),
                    ("view_payload", "Can view what runs are given and give back"),
                ),
                "indexes": [
                    continuum.fields.Index(
                        condition=models.Q(("next_wakeup_at__isnull", False), ("owner_id__isnull", True)),
                        fields=["-priority", "next_wakeup_at"],
                        name="continuum_runs_ready_idx",
                    ),
                    continuum.fields.Index(
                        condition=models.Q(("owner_id__isnull", False)),
                        fields=["owner_id"],
                        name="continuum_runs_owner_idx",
                    ),
                    continuum.fields.Index(
                        condition=models.Q(("parent_run_id__isnull", False)),
                        fields=["parent_run_id"],
                        name="continuum_runs_parent_idx",
                    ),
                ],
            },
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(CREATE_EVENTS, "DROP TABLE continuum_events")],
            state_operations=[
                migrations.CreateModel(
                    name="HistoryEvent",
                    fields=[
                        (
                            "pk",
                            models.CompositePrimaryKey(
                                "run_id", "seq", blank=True, editable=False, primary_key=True, serialize=False
                            ),
                        ),
                        ("run_id", models.UUIDField()),
                        ("seq", models.IntegerField()),
                        ("type", models.TextField()),
                        ("command_id", models.TextField(null=True)),
                        ("name", models.TextField(null=True)),
                        ("data", continuum.fields.DurableJSONField(db_default=models.Value("{}"), default=dict)),
                        ("recorded_at", models.DateTimeField()),
                    ],
                    options={
                        "db_table": "continuum_events",
                    },
                ),
            ],
        ),
        migrations.RunPython(create_partitions, migrations.RunPython.noop),
        migrations.CreateModel(
            name="InboxMessage",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "run_id", "id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("run_id", models.UUIDField()),
                ("id", continuum.fields.IdentityField()),
                (
                    "kind",
                    models.TextField(
                        choices=[
                            ("signal", "signal"),
                            ("cancel", "cancel"),
                            ("child", "child"),
                            ("activity", "activity"),
                        ]
                    ),
                ),
                ("name", models.TextField(null=True)),
                ("command_id", models.TextField(null=True)),
                ("payload", continuum.fields.DurableJSONField(null=True)),
                ("delivery_id", models.TextField(null=True)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("consumed_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "continuum_inbox",
                "indexes": [
                    continuum.fields.Index(
                        condition=models.Q(("consumed_at__isnull", True)),
                        fields=["run_id"],
                        name="continuum_inbox_unread_idx",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("delivery_id__isnull", False)),
                        fields=("run_id", "delivery_id"),
                        name="continuum_inbox_delivery_idx",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ActivityTask",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "run_id", "command_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("run_id", models.UUIDField()),
                ("command_id", models.TextField()),
                ("activity", models.TextField()),
                ("queue", models.TextField(db_default="default", default="default")),
                ("priority", models.SmallIntegerField(db_default=0, default=0)),
                ("args", continuum.fields.DurableJSONField()),
                ("options", continuum.fields.DurableJSONField(db_default=models.Value("{}"), default=dict)),
                ("state", models.TextField(db_default="ready", default="ready")),
                ("attempt", models.SmallIntegerField(db_default=0, default=0)),
                ("due_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("owner_id", models.BigIntegerField(null=True)),
                ("lease_token", models.BigIntegerField(db_default=0, default=0)),
                ("heartbeat_at", models.DateTimeField(null=True)),
                ("heartbeat_details", continuum.fields.DurableJSONField(null=True)),
                ("claimed_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "continuum_activity_tasks",
                "indexes": [
                    continuum.fields.Index(
                        condition=models.Q(("state", "ready")),
                        fields=["queue", "-priority", "due_at"],
                        name="continuum_activity_tasks_ready_idx",
                    ),
                    continuum.fields.Index(
                        condition=models.Q(("owner_id__isnull", False)),
                        fields=["owner_id"],
                        name="continuum_activity_tasks_owner_idx",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ActivityResult",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "run_id", "command_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("run_id", models.UUIDField()),
                ("command_id", models.TextField()),
                ("kind", models.TextField(db_default="activity", default="activity")),
                ("name", models.TextField(db_default="", default="")),
                ("idempotency_key", models.TextField(null=True)),
                ("result", continuum.fields.DurableJSONField(null=True)),
                ("attempt", models.SmallIntegerField(db_default=1, default=1)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "continuum_activity_results",
            },
        ),
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("host", models.TextField(db_default="", default="")),
                ("pid", models.IntegerField(db_default=0, default=0)),
                (
                    "state",
                    models.TextField(
                        choices=[("alive", "alive"), ("draining", "draining"), ("dead", "dead")],
                        db_default="alive",
                        default="alive",
                    ),
                ),
                ("queues", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
                ("info", continuum.fields.DurableJSONField(db_default=models.Value("{}"), default=dict)),
                ("session_lock", models.BooleanField(db_default=False, default=False)),
                ("started_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("heartbeat_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("expires_at", models.DateTimeField()),
                ("stopped_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "continuum_workers",
                "indexes": [
                    continuum.fields.Index(
                        condition=models.Q(("state", "dead"), _negated=True),
                        fields=["expires_at"],
                        name="continuum_workers_live_idx",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="WorkflowVersion",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("workflow", models.TextField()),
                ("version", models.IntegerField()),
                ("version_hash", models.TextField()),
                ("location", models.TextField(db_default="", default="")),
                ("patch_sites", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
                ("first_seen_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("last_seen_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "continuum_workflow_versions",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("workflow", "version", "version_hash"), name="continuum_workflow_versions_key"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("workflow", models.TextField()),
                ("spec", models.TextField()),
                ("timezone", models.TextField(db_default="UTC", default="UTC")),
                ("input", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
                ("paused", models.BooleanField(db_default=False, default=False)),
                ("next_run_at", models.DateTimeField(null=True)),
                ("last_run_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "db_table": "continuum_schedules",
                "constraints": [models.UniqueConstraint(fields=("name",), name="continuum_schedules_name_key")],
            },
        ),
    ]
