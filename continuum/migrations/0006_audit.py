"""What an audit reads of histories: the few events that say which code a run has been run by."""

from django.db import migrations, models

import continuum.fields


class Migration(migrations.Migration):
    dependencies = [("continuum", "0005_versions")]

    operations = [
        migrations.AddIndex(
            "HistoryEvent",
            continuum.fields.Index(
                fields=["run_id"],
                name="continuum_events_versions_idx",
                condition=models.Q(type__in=["patched", "version_adopted"]),
            ),
        ),
    ]
