# ruff: noqa: RUF012 - Django reads these lists from the class

import django.db.models.deletion
from django.db import migrations, models

from realtime.migrations import LABEL


class Migration(migrations.Migration):
    dependencies = [(LABEL, "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="connection",
            options={"permissions": (("disconnect_connection", "Can disconnect connection"),)},
        ),
        migrations.RemoveIndex(model_name="connection", name="realtime_connection_open"),
        # An index that begins with the same column and is ordered replaces the foreign key's own index.
        migrations.AlterField(
            model_name="connection",
            name="process",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="records",
                to=f"{LABEL}.process",
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(fields=["process", "opened_at"], name="realtime_connection_process"),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", True)),
                fields=["opened_at"],
                name="realtime_connection_newest",
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", False)),
                fields=["close_reason", "opened_at"],
                name="realtime_connection_reason",
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(fields=["user_id", "opened_at"], name="realtime_connection_user"),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", True)),
                fields=["process", "opened_at"],
                name="realtime_connection_open",
            ),
        ),
    ]
