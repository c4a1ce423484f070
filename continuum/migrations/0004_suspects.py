"""What finding the run that kills its workers needs: which run a worker has on trial, and the runs that wait for one."""

from django.db import migrations, models

import continuum.fields


class Migration(migrations.Migration):
    dependencies = [("continuum", "0003_children_and_queues")]

    operations = [
        migrations.AddField("Worker", "suspect_id", models.UUIDField(null=True)),
        migrations.AddIndex(
            "Run",
            continuum.fields.Index(
                fields=["-recoveries"],
                name="continuum_runs_suspects_idx",
                condition=models.Q(owner_id__isnull=True, recoveries__gt=0),
            ),
        ),
    ]
