from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("continuum", "0007_search")]

    operations = [
        migrations.CreateModel(
            name="Dashboard",
            fields=[],
            options={
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
                "default_permissions": (),
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("continuum.run",),
        ),
    ]
