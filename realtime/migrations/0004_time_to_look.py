"""Columns that keep a living process from being declared lost when a round's question did not reach it."""

from datetime import timedelta

from django.db import migrations, models

from realtime.migrations import LABEL


class Migration(migrations.Migration):
    dependencies = ((LABEL, "0003_rounds_and_purge"),)

    operations = (
        migrations.AddField("process", "look_every", models.DurationField(default=timedelta)),
        migrations.AddField("process", "spared_until", models.DateTimeField(null=True)),
        migrations.AddField("process", "heard_at", models.DateTimeField(null=True)),
        migrations.AddField("round", "interval", models.FloatField(default=0.0)),
    )
