"""What keeps a process from being declared lost that lives and was not reached by a round's question."""

from datetime import timedelta

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("realtime", "0003_rounds_and_purge"),)

    operations = (
        migrations.AddField("process", "look_every", models.DurationField(default=timedelta)),
        migrations.AddField("process", "spared_until", models.DateTimeField(null=True)),
        migrations.AddField("process", "heard_at", models.DateTimeField(null=True)),
        migrations.AddField("round", "interval", models.FloatField(default=0.0)),
    )
