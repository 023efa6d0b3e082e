"""The distributions: built from a copy of the sources, and installed into another project."""

import email.message
import email.parser
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import realtime
from tests.support.clients.websocket import Client
from tests.support.programs.servers import CHECKOUT, RedisServer, WebServer
from tests.support.programs.wheels import FOREIGN_ENVIRONMENT, run, write_constraints

pytestmark = pytest.mark.acceptance

PROJECT = {
    "people/__init__.py": "",
    "people/models.py": """
import uuid

from django.contrib.auth.models import AbstractUser
from django.db import models


class Person(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
""",
    "foreign/asgi.py": """
import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "foreign.settings")
http = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from realtime.routing import websocket_urlpatterns

application = ProtocolTypeRouter(
    {"http": http, "websocket": AuthMiddlewareStack(URLRouter(websocket_urlpatterns))}
)
""",
}

#: Added to the settings that `startproject` writes.
SETTINGS = """
INSTALLED_APPS = ["daphne", *INSTALLED_APPS, "people", "realtime"]
ASGI_APPLICATION = "foreign.asgi.application"
AUTH_USER_MODEL = "people.Person"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
LANGUAGE_CODE = "zh-hans"
DATABASES["default"]["OPTIONS"] = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
CHANNEL_LAYERS = {
    "default": {"BACKEND": "realtime.layers.PubSubLayer", "CONFIG": {"hosts": [os.environ["REDIS_URL"]]}}
}
"""


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode())


# -- the content of the distributions


def test_the_wheel_has_the_whole_package_and_no_other_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    package = CHECKOUT / "realtime"
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert {
        "realtime/py.typed",
        "realtime/static/realtime/realtime.js",
        "realtime/migrations/0001_initial.py",
        "realtime/management/commands/reap_connections.py",
    } <= names


def test_the_metadata_says_what_it_is_and_what_it_needs(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "django-channels-realtime"
    assert metadata["Version"] == realtime.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (CHECKOUT / "README.md").read_text().strip() in metadata.get_payload()
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Provides-Extra") == ["daphne"]
    needed = {re.split(r"[<>=~! ;]", line)[0] for line in metadata.get_all("Requires-Dist", [])}
    assert needed == {
        *("django", "channels", "channels-redis", "redis", "msgspec", "prometheus-client", "daphne")
    }


def test_the_classifiers_and_the_readme_name_the_same_pythons(metadata: email.message.Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(classifiers))
    readme = re.search(r"Tested on Python ([\d., and]+?)[:;.]\s", (CHECKOUT / "README.md").read_text())
    assert readme is not None
    assert re.findall(r"3\.\d+", readme[1]) == declared
    assert {"Framework :: Django :: 5.2", "Typing :: Typed"} <= set(classifiers)


def test_the_source_distribution_builds_and_has_the_license(
    built: Path, metadata: email.message.Message
) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
        member = sources.extractfile(f"{archive.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert member is not None
        described = email.parser.Parser().parsestr(member.read().decode())
    assert {"LICENSE", "README.md", "pyproject.toml", "realtime/static/realtime/realtime.js"} <= names
    assert described["Version"] == metadata["Version"]
    assert described["License-Expression"] == metadata["License-Expression"]


# -- the wheel in another project


class Foreign:
    """Another project, with the wheel installed in its own environment."""

    def __init__(self, folder: Path, wheel: Path, redis: RedisServer) -> None:
        self.folder = folder / "project"
        self.bin = folder / "venv" / "bin"
        self.environment = {"REDIS_URL": redis.url, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        run(sys.executable, "-m", "venv", "--without-pip", self.bin.parent, cwd=folder)
        constraints = write_constraints(folder)
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "-c", constraints, f"{wheel}[daphne]", cwd=folder)
        self.folder.mkdir()
        run(self.bin / "django-admin", "startproject", "foreign", ".", cwd=self.folder)
        for name, text in PROJECT.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        settings = self.folder / "foreign/settings.py"
        settings.write_text("import os\n" + settings.read_text() + SETTINGS)

    def manage(self, *arguments: str) -> str:
        return run(self.bin / "python", "manage.py", *arguments, cwd=self.folder, **self.environment)

    def daphne(self) -> WebServer:
        return ForeignDaphne(self)


class ForeignDaphne(WebServer):
    """The Daphne that was installed with the wheel, without our options."""

    def __init__(self, project: Foreign) -> None:
        self.program = project.bin / "daphne"
        super().__init__(
            log=project.folder / "daphne.log",
            environment={**FOREIGN_ENVIRONMENT, **project.environment},
            application="foreign.asgi:application",
        )
        self.cwd = project.folder

    def command_for(self, application: str) -> list[str]:
        return [str(self.program), "-b", self.interface, "-p", str(self.port), application]


async def test_another_project_installs_it_and_serves_connections(wheel: Path, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis:
        foreign = Foreign(tmp_path, wheel, redis)
        where = foreign.manage("shell", "--verbosity", "0", "-c", "import realtime; print(realtime.__file__)")
        assert where.strip().startswith(str(foreign.bin.parent)), where
        foreign.manage("makemigrations", "people")
        assert "No changes detected" in foreign.manage("makemigrations", "--check", "--dry-run")
        assert "no issues" in foreign.manage("check", "--fail-level", "WARNING")
        foreign.manage("migrate", "--verbosity", "0")
        with foreign.daphne() as server:
            async with Client(server.websocket("/ws/public.lobby/")) as client:
                assert (await client.welcomed())["groups"] == ["public.lobby"]
                foreign.manage("publish", "public.lobby", '{"hello": 1}')
                await client.seen(lambda frame: frame.get("data") == {"hello": 1})
                assert (await client.publish("public.lobby", 2))["type"] == "published"
                await client.seen(lambda frame: frame.get("data") == 2)
