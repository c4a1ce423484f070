"""What trying suspects in groups needs: from which fencing token on a worker's suspects are on trial."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("continuum", "0008_dashboard")]

    operations = [migrations.AddField("Worker", "trial_token", models.BigIntegerField(null=True))]
