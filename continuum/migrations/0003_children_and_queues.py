"""What children and queues need: how deep a run is nested, lost attempts of a task, and queues limited cluster-wide."""

from django.db import migrations, models

import continuum.fields


class Migration(migrations.Migration):
    dependencies = [("continuum", "0002_namespace_attributes")]

    operations = [
        migrations.AddField("Run", "depth", models.SmallIntegerField(db_default=0, default=0)),
        migrations.AddField("ActivityTask", "recoveries", models.SmallIntegerField(db_default=0, default=0)),
        migrations.CreateModel(
            name="Queue",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("recent", continuum.fields.DurableJSONField(db_default=models.Value("[]"), default=list)),
            ],
            options={
                "db_table": "continuum_queues",
                "constraints": [models.UniqueConstraint(fields=("name",), name="continuum_queues_name_key")],
            },
        ),
    ]
