"""What searches need at millions of runs: indexes in the order runs are listed in, and one of attributes there are."""

from django.db import migrations, models

import continuum.fields

ENDED = ("completed", "failed", "cancelled")


class Migration(migrations.Migration):
    dependencies = [("continuum", "0006_audit")]

    operations = [
        migrations.AlterField(
            "Run", "attributes", continuum.fields.AttributesField(db_default=models.Value("{}"), default=dict)
        ),
        migrations.RemoveIndex("Run", "continuum_runs_attributes_gin_idx"),
        migrations.AddIndex(
            "Run",
            continuum.fields.GinIndex(
                fields=["attributes"],
                opclasses=["jsonb_path_ops"],
                name="continuum_runs_attributes_gin_idx",
                condition=models.Q(("attributes", {}), _negated=True),
            ),
        ),
        # What is not sorted in yet is read through by every search.
        migrations.RunSQL(
            "ALTER INDEX continuum_runs_attributes_gin_idx SET (gin_pending_list_limit = 256)",
            migrations.RunSQL.noop,
        ),
        migrations.AddIndex(
            "Run",
            continuum.fields.Index(
                fields=["namespace", "started_at", "id"],
                name="continuum_runs_started_idx",
                condition=models.Q(("state", "running"), _negated=True),
            ),
        ),
        migrations.AddIndex(
            "Run",
            continuum.fields.Index(
                fields=["namespace", "workflow", "state", "started_at", "id"],
                name="continuum_runs_ended_idx",
                condition=models.Q(("state__in", ENDED)),
            ),
        ),
        migrations.AddIndex(
            "Run",
            continuum.fields.Index(
                fields=["namespace", "completed_at", "id"],
                name="continuum_runs_completed_idx",
                condition=models.Q(("completed_at__isnull", False), ("state__in", ENDED), _connector="OR"),
            ),
        ),
    ]
