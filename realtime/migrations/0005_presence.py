"""Presence: the user of each membership, the users in groups and online, the watches of processes."""

from typing import Any

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import OuterRef, Q, Subquery

from realtime.migrations import LABEL


def name_users(apps: Any, schema_editor: Any) -> None:
    """Give the open memberships the users of their connections."""
    memberships = apps.get_model(LABEL, "Membership").objects.using(schema_editor.connection.alias)
    records = apps.get_model(LABEL, "Connection").objects.using(schema_editor.connection.alias)
    users = records.filter(pk=OuterRef("connection")).values("user_id")
    memberships.filter(left_at__isnull=True).update(user_id=Subquery(users))


class Migration(migrations.Migration):
    dependencies = ((LABEL, "0004_time_to_look"),)

    operations = (
        migrations.AddField(
            "connection", "client_id", models.CharField(blank=True, db_default="", default="", max_length=64)
        ),
        migrations.AddField(
            "membership", "user_id", models.CharField(blank=True, db_default="", default="", max_length=255)
        ),
        migrations.RunPython(name_users, migrations.RunPython.noop, elidable=True),
        migrations.AddIndex(
            "connection",
            models.Index(
                condition=Q(("closed_at__isnull", True)),
                fields=["user_id", "client_id"],
                name="realtime_connection_client",
            ),
        ),
        migrations.AddIndex(
            "membership",
            models.Index(
                condition=Q(("connection_closed", False), ("left_at__isnull", True)),
                fields=["group", "user_id", "left_at", "connection_closed"],
                name="realtime_membership_present",
            ),
        ),
        migrations.CreateModel(
            "PresentUser",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("group", models.CharField(blank=True, max_length=100)),
                ("user_id", models.CharField(max_length=255)),
                ("since", models.DateTimeField()),
                ("gone_at", models.DateTimeField(null=True)),
                ("dormant_since", models.DateTimeField(null=True)),
                ("dormant_by", models.UUIDField(null=True)),
                ("left_at", models.DateTimeField(null=True)),
                ("stamp", models.UUIDField()),
            ],
            options={"verbose_name": "user online", "verbose_name_plural": "users online"},
        ),
        migrations.AddConstraint(
            "presentuser",
            models.UniqueConstraint(fields=("user_id", "group"), name="realtime_present_user_once"),
        ),
        migrations.AddIndex(
            "presentuser",
            models.Index(
                fields=["group", "id", "user_id", "gone_at", "left_at"], name="realtime_present_user_group"
            ),
        ),
        migrations.AddIndex(
            "presentuser",
            models.Index(
                condition=Q(("gone_at__isnull", False), ("left_at__isnull", True)),
                fields=["gone_at"],
                name="realtime_present_user_gone",
            ),
        ),
        migrations.AddIndex(
            "presentuser",
            models.Index(
                condition=Q(("left_at__isnull", False)),
                fields=["group", "left_at"],
                name="realtime_present_user_left",
            ),
        ),
        migrations.AddIndex(
            "presentuser",
            models.Index(
                condition=Q(("group", ""), ("left_at__isnull", True)),
                fields=["group", "id"],
                name="realtime_present_user_online",
            ),
        ),
        migrations.CreateModel(
            "PresenceWatch",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("group", models.CharField(max_length=100)),
                (
                    "process",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="watches",
                        to=f"{LABEL}.process",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            "presencewatch",
            models.UniqueConstraint(fields=("process", "group"), name="realtime_presence_watch_once"),
        ),
        migrations.AddIndex(
            "presencewatch",
            models.Index(fields=["group", "process"], name="realtime_presence_watch_group"),
        ),
    )
