"""The code of `docs/howto/connect-with-tickets.md`, run as it stands there, against a real server."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.applications.tutorial import blocks
from tests.support.assertions.eventually import eventually
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.servers import Program, WebServer

pytestmark = pytest.mark.acceptance

PAGE = "connect-with-tickets.md"
GROUP = "public.news"

_python = {block.partition("\n")[0].removeprefix("# "): block for block in blocks(PAGE, "python")}

#: The project of the page: its views and paths, and logins with SimpleJWT.
_SITE = """
from django.conf import settings

settings.ROOT_URLCONF = "api.urls"
settings.SIMPLE_JWT = {"SIGNING_KEY": "a key of at least thirty-two bytes"}
from project.asgi import application  # noqa: F401
"""
_TOKEN = """
from django.conf import settings
settings.SIMPLE_JWT = {"SIGNING_KEY": "a key of at least thirty-two bytes"}
from datetime import timedelta
from django.contrib.auth.models import User
from rest_framework_simplejwt.tokens import AccessToken
token = AccessToken.for_user(User.objects.get_or_create(username="ada")[0])
token.set_exp(lifetime=timedelta(seconds=%s))
print(token)
"""


class App(Program):
    """The client of the page."""

    def frames(self, kind: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
        return [frame for frame in map(json.loads, lines) if frame["type"] == kind]


@pytest.fixture
def served(start_site: StartSite, tmp_path: Path) -> tuple[Any, WebServer]:
    """The site of the page, and its server. A client without an Origin needs a ticket."""
    site = start_site(Pairing("pubsub", "daphne", "sqlite"), ALLOW_MISSING_ORIGIN=False, REFRESH_BEFORE=30.0)
    package = tmp_path / "api"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "views.py").write_text(_python["api/views.py"])
    (package / "urls.py").write_text(_python["api/urls.py"])
    (tmp_path / "page_site.py").write_text(_SITE)
    return site, site.serve(application="page_site:application", PYTHONPATH=str(tmp_path))


async def app(served: tuple[Any, WebServer], folder: Path, lifetime: float) -> App:
    site, server = served
    made = await site.amanage("shell", "-c", _TOKEN % lifetime)
    assert made.returncode == 0, made.stderr
    program = folder / "app.py"
    program.write_text(_python["app.py"])
    tickets = server.websocket("/api/ticket").replace("ws", "http", 1)
    token = made.stdout.strip().splitlines()[-1]
    return App(
        [sys.executable, program, tickets, server.websocket("/ws/"), GROUP, token], log=folder / "app.log"
    )


async def test_the_client_of_the_page_connects_and_refreshes(
    served: tuple[Any, WebServer], tmp_path: Path
) -> None:
    server = served[1]
    # Shorter than REFRESH_BEFORE, so that the server asks for a refresh immediately.
    with await app(served, tmp_path, 20) as client:
        eventually(lambda: bool(client.frames("joined")), within=20)
        eventually(lambda: bool(client.frames("refreshed")), within=20)
        (refreshed, *_) = client.frames("refreshed")
        assert 0 < refreshed["expires_in"] <= 20
    assert "eyJ" not in server.log_text()


async def test_a_token_that_is_over_gets_no_ticket(served: tuple[Any, WebServer], tmp_path: Path) -> None:
    with await app(served, tmp_path, -10) as client:
        eventually(lambda: not client.is_alive, within=20)
        assert "401" in client.log_text()
        assert not client.frames("welcome")


@pytest.mark.parametrize("name", [None, "asgi.py", "settings.py"])
def test_the_other_blocks_are_python(name: str | None) -> None:
    chosen = [block for first, block in _python.items() if name in (None, first)]
    for block in chosen:
        compile(block, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
