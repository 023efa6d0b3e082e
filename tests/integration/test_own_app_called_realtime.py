"""A project that has an application of its own called `realtime`: what it is told, and what works."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs.servers import CHECKOUT

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "site_.settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""

SETTINGS = """
SECRET_KEY = "x"
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages",
    "django.contrib.sessions", {apps}
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {{
        "context_processors": [
            "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]
    }},
}}]
ROOT_URLCONF = "site_.urls"
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}}}
CHANNEL_LAYERS = {{"default": {{"BACKEND": "realtime.layers.PubSubLayer"}}}}
SILENCED_SYSTEM_CHECKS = ["realtime.W001"]
"""

URLS = """
from django.contrib import admin
from django.urls import path
urlpatterns = [path("admin/", admin.site.urls)]
"""

OTHER_LABEL = """
from realtime.apps import RealtimeConfig

class LivenessConfig(RealtimeConfig):
    label = "liveness"
"""

MODELS = """
from django.db import models

class Connection(models.Model):
    what = models.TextField()
"""

LOOK = """
import uuid
import django
django.setup()
from django.contrib.auth import get_user_model
from django.test import Client
from realtime.closing import CloseReason
from realtime.models import Connection
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Join, Opening

process = process_rows.start_process("specific.abc", "web-1", 4711)
opening = Opening(uuid.uuid4(), process, "7", "/ws/", "192.0.2.1", "", "")
connection_rows.open_connections([opening])
connection_rows.open_memberships([Join(opening.id, process, "g")])
user = get_user_model().objects.create_superuser("root", "", "x")
assert user.has_perm("liveness.disconnect_connection")
client = Client()
client.force_login(user)
listed = client.get("/admin/liveness/connection/")
assert b"rt-chip" in listed.content and b"Disconnect selected" in listed.content, listed.content.decode()
assert b"web-1" in client.get(f"/admin/liveness/connection/{opening.id}/change/").content
assert client.get(f"/admin/liveness/process/{process}/change/").status_code == 200
print(Connection._meta.db_table)
"""


class Project:
    """A project in a folder. Its programs run in that folder, as `manage.py` does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("manage.py", MANAGE)
        self.write("site_/__init__.py", "")
        self.write("site_/urls.py", URLS)
        self.write("site_/apps.py", OTHER_LABEL)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def install(self, *apps: str) -> None:
        self.write("site_/settings.py", SETTINGS.format(apps=", ".join(map(repr, apps))))

    def run(self, *arguments: str) -> str:
        """Run Python, with this package installed behind the project's own folder; return its output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={"PYTHONPATH": f".:{CHECKOUT}", "DJANGO_SETTINGS_MODULE": "site_.settings"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    def manage(self, *arguments: str) -> str:
        return self.run("manage.py", *arguments)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


CONFIG = """
from django.apps import AppConfig

class Theirs(AppConfig):
    name = "parts.realtime"
"""


@pytest.mark.parametrize(
    "apps",
    [
        ["realtime", "parts.realtime"],
        ["parts.realtime", "realtime"],
        ["realtime", "parts.realtime.apps.Theirs"],
        ["realtime.apps.RealtimeConfig", "parts.realtime"],
    ],
)
def test_two_apps_with_one_label_are_both_named(project: Project, apps: list[str]) -> None:
    project.write("parts/realtime/__init__.py", "")
    project.write("parts/realtime/apps.py", CONFIG)
    project.install(*apps)
    told = project.manage("check")
    assert "realtime (this package, django-channels-realtime) and parts.realtime" in told
    assert 'label = "liveness"' in told
    assert "move-an-existing-project.md" in told


@pytest.mark.acceptance
@pytest.mark.parametrize("ours_first", [True, False])
def test_this_app_works_under_another_label(project: Project, *, ours_first: bool) -> None:
    project.write("parts/realtime/__init__.py", "")
    project.write("parts/realtime/models.py", MODELS)
    apps = ["site_.apps.LivenessConfig", "parts.realtime"]
    project.install(*(apps if ours_first else apps[::-1]))
    assert "no issues" in project.manage("check")
    assert "parts/realtime/migrations/0001_initial.py" in project.manage("makemigrations", "realtime")
    assert "Applying liveness.0001_initial... OK" in project.manage("migrate")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    assert project.run("-c", LOOK) == "liveness_connection\n"


def test_a_package_of_the_project_hides_this_one(project: Project) -> None:
    project.write("realtime/__init__.py", "")
    project.write("realtime/consumers.py", "")
    project.install("realtime")
    told = project.run("-c", "from realtime.consumers import RealtimeConsumer")
    assert "cannot import name 'RealtimeConsumer' from 'realtime.consumers'" in told
    assert str(project.folder) in told
    # The question of the how-to, before this package is installed.
    assert project.run("-c", "import realtime; print(realtime.__file__)").startswith(str(project.folder))


RENAMED = """
from django.apps import AppConfig

class Chat(AppConfig):
    name = "chat"
    label = "realtime"
"""


@pytest.mark.acceptance
def test_a_renamed_package_keeps_its_label_and_its_tables(project: Project) -> None:
    project.write("realtime/__init__.py", "")
    project.write("realtime/models.py", MODELS)
    project.install("realtime")
    project.write("site_/settings.py", SETTINGS.format(apps='"realtime"').replace("CHANNEL_LAYERS", "X"))
    project.manage("makemigrations", "realtime")
    assert "Applying realtime.0001_initial... OK" in project.manage("migrate")

    (project.folder / "realtime").rename(project.folder / "chat")
    project.write("chat/apps.py", RENAMED)
    project.install("chat", "site_.apps.LivenessConfig")
    assert "no issues" in project.manage("check")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    assert "Applying realtime" not in project.manage("migrate")
    assert project.run("-c", LOOK) == "liveness_connection\n"
