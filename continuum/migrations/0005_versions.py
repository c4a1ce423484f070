"""What several versions of the code at work at once need: what each worker has loaded, and which versions a parked run
has been tried with, by which parked runs are found.
"""

from django.db import migrations, models

import continuum.fields


class Migration(migrations.Migration):
    dependencies = [("continuum", "0004_suspects")]

    operations = [
        migrations.AddField("Worker", "workflows", models.JSONField(null=True)),
        migrations.AddField("Run", "tried_versions", models.TextField(db_default="", default="")),
        migrations.AddIndex(
            "Run",
            continuum.fields.Index(
                fields=["workflow", "version", "version_hash", "tried_versions", "id"],
                name="continuum_runs_stuck_idx",
                condition=models.Q(owner_id__isnull=True, state="stuck_unknown_version"),
            ),
        ),
    ]
