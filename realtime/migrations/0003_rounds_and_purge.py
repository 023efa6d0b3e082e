# ruff: noqa: RUF012 - Django reads these lists from the class

from django.db import migrations, models

from realtime.migrations import LABEL


class Migration(migrations.Migration):
    dependencies = [(LABEL, "0002_admin_indexes")]

    operations = [
        migrations.AddField(
            model_name="round",
            name="finished",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddIndex(
            model_name="membership",
            index=models.Index(
                condition=models.Q(("left_at__isnull", False)),
                fields=["left_at"],
                name="realtime_membership_left",
            ),
        ),
    ]
