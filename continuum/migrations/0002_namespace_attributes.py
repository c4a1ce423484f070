"""Namespaces and attributes: what runs are searched by.

Both columns come with defaults of the database, which fill in the rows that are there already without rewriting them.
"""

from django.db import migrations, models

import continuum.fields


class Migration(migrations.Migration):
    dependencies = [("continuum", "0001_initial")]

    operations = [
        migrations.AddField("Run", "namespace", models.TextField(db_default="default", default="default")),
        migrations.AddField("Run", "attributes", models.JSONField(db_default=models.Value("{}"), default=dict)),
        migrations.AddIndex(
            "Run", continuum.fields.Index(fields=["namespace", "state"], name="continuum_runs_namespace_state_idx")
        ),
        migrations.AddIndex(
            "Run",
            continuum.fields.GinIndex(
                fields=["attributes"], opclasses=["jsonb_path_ops"], name="continuum_runs_attributes_gin_idx"
            ),
        ),
    ]
