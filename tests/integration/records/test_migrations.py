"""The app's migrations are complete, also in projects with other settings."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection

from realtime.models import Connection, Membership, Process, Round
from tests.support.programs.servers import CHECKOUT

FOREIGN_SETTINGS = """
SECRET_KEY = "foreign"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "people", "realtime"]
AUTH_USER_MODEL = "people.Person"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.PubSubLayer"}}
LANGUAGE_CODE = "zh-hans"
USE_TZ = False
TIME_ZONE = "Asia/Kathmandu"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "foreign.sqlite3"}}
"""

FOREIGN_USER = """
import uuid
from django.contrib.auth.models import AbstractUser
from django.db import models

class Person(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
"""

FOREIGN_ROUNDS = """
import datetime, uuid
import django
django.setup()
from django.db.models.functions import Now
from realtime.models import Connection, Round
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Opening

process = process_rows.start_process("specific.abc", "web-1", 4711)
connection_rows.open_connections([Opening(uuid.uuid4(), process, "7", "/ws/", "192.0.2.1", "", "")])
print(process_rows.claim_round(10.0), process_rows.claim_round(10.0))
Round.objects.update(started_at=Now() - datetime.timedelta(seconds=10))
print(process_rows.claim_round(10.0), process_rows.claim_round(10.0))
process_rows.judge(2, [process], misses_allowed=0)
connection_rows.close_lost_records(process, uuid.uuid4())
print(Connection.objects.get().close_reason, connection_rows.purge_closed(3600.0))
"""


@pytest.mark.django_db
def test_no_migration_is_missing():
    call_command("makemigrations", "realtime", check=True, dry_run=True, stdout=StringIO())


@pytest.mark.django_db(transaction=True)
def test_the_migration_can_be_taken_back():
    call_command("migrate", "realtime", "zero", verbosity=0)
    try:
        assert not [
            table for table in connection.introspection.table_names() if table.startswith("realtime_")
        ]
    finally:
        call_command("migrate", "realtime", verbosity=0)

    assert {model._meta.db_table for model in (Process, Connection, Membership, Round)} <= set(
        connection.introspection.table_names()
    )


@pytest.fixture
def foreign_project(tmp_path: Path):
    """A function that runs Python in the folder of another project and returns the output."""
    people = tmp_path / "people"
    people.mkdir()
    (people / "__init__.py").touch()
    (people / "models.py").write_text(FOREIGN_USER)
    (tmp_path / "foreign_settings.py").write_text(FOREIGN_SETTINGS)
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "foreign_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)]),
    }

    def python(*arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    python("-m", "django", "makemigrations", "people", "--verbosity=0")
    return python


@pytest.mark.acceptance  # a Django of its own
def test_other_settings_need_no_migration_of_this_app(foreign_project):
    assert "realtime" not in foreign_project("-m", "django", "makemigrations", "--check", "--dry-run")


@pytest.mark.acceptance  # a Django of its own
def test_rounds_work_in_a_project_without_time_zones(foreign_project):
    foreign_project("-m", "django", "migrate", "--verbosity=0")

    assert foreign_project("-c", FOREIGN_ROUNDS).splitlines() == ["1 None", "2 None", "server_lost 0"]
