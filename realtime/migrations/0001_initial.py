# ruff: noqa: RUF012 - Django reads these lists from the class

import uuid

import django.db.models.deletion
from django.db import migrations, models

from realtime.migrations import LABEL


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Process",
            fields=[
                (
                    "id",
                    models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False),
                ),
                ("channel_name", models.CharField(max_length=200)),
                ("host", models.CharField(max_length=255)),
                ("pid", models.PositiveIntegerField()),
                ("pid_namespace", models.CharField(default="", max_length=100)),
                ("pid_began", models.BigIntegerField(default=0)),
                ("started_at", models.DateTimeField()),
                ("last_round", models.BigIntegerField(default=0)),
                ("missed", models.PositiveSmallIntegerField(default=0)),
                ("connections", models.PositiveIntegerField(default=0)),
                ("loop_lag", models.FloatField(default=0.0)),
                ("answered_at", models.DateTimeField(null=True)),
                ("stopped_at", models.DateTimeField(null=True)),
                ("lost", models.BooleanField(default=False)),
            ],
            options={
                "verbose_name_plural": "processes",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("lost", False), ("stopped_at__isnull", False), _connector="OR"),
                        name="realtime_lost_is_stopped",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Connection",
            fields=[
                (
                    "id",
                    models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False),
                ),
                ("user_id", models.CharField(blank=True, default="", max_length=255)),
                ("path", models.CharField(max_length=512)),
                ("remote_address", models.CharField(max_length=64)),
                ("user_agent", models.CharField(max_length=512)),
                ("subprotocol", models.CharField(max_length=100)),
                ("opened_at", models.DateTimeField()),
                ("last_seen_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
                ("close_reason", models.CharField(default="", max_length=32)),
                ("close_code", models.PositiveSmallIntegerField(null=True)),
                ("closed_by", models.UUIDField(null=True)),
                (
                    "process",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="records",
                        to=f"{LABEL}.process",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Round",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(
                        default=1, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.BigIntegerField(default=0)),
                ("started_at", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="realtime_round_is_one_row")
                ],
            },
        ),
        migrations.CreateModel(
            name="Membership",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("group", models.CharField(max_length=100)),
                ("joined_at", models.DateTimeField()),
                ("left_at", models.DateTimeField(null=True)),
                ("connection_closed", models.BooleanField(default=False)),
                (
                    "connection",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="memberships",
                        to=f"{LABEL}.connection",
                    ),
                ),
                (
                    "process",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="memberships",
                        to=f"{LABEL}.process",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("left_at__isnull", True)),
                        fields=["process", "group"],
                        name="realtime_membership_to_leave",
                    ),
                    models.Index(
                        condition=models.Q(("connection_closed", True), ("left_at__isnull", True)),
                        fields=["id"],
                        name="realtime_membership_leftover",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("left_at__isnull", True)),
                        fields=("connection", "group"),
                        name="realtime_membership_once",
                    )
                ],
            },
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", True)),
                fields=["process"],
                name="realtime_connection_open",
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(
                condition=models.Q(("closed_at__isnull", False)),
                fields=["closed_at"],
                name="realtime_connection_closed",
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(fields=["opened_at"], name="realtime_connection_opened"),
        ),
        migrations.AddConstraint(
            model_name="connection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("close_reason", ""), ("closed_at__isnull", True)),
                    models.Q(
                        models.Q(("closed_at__isnull", False)), models.Q(("close_reason", ""), _negated=True)
                    ),
                    _connector="OR",
                ),
                name="realtime_closed_with_reason",
            ),
        ),
    ]
