"""The tutorial, followed to the letter: its files are written, its commands are typed, its outputs are seen.

A titled block belongs to the file or to the terminal of its title. A shell block without a title is a
step that ends. Only the port and the address of Redis differ from the page, so that tests can run side by
side.
"""

import contextlib
import functools
import http.cookiejar
import os
import re
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually
from tests.support.programs.servers import CHECKOUT, STARTUP, RedisServer, free_port
from tests.support.programs.wheels import FOREIGN_ENVIRONMENT, run, write_constraints

pytestmark = pytest.mark.acceptance

PAGE = CHECKOUT / "docs" / "tutorial" / "sleeping-phone.md"
_BLOCK = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE
)

BOUND = 5.0 + 3.0 + 2.0  # seconds: PING_INTERVAL, PONG_TIMEOUT and CLOSE_TIMEOUT, as the page says
SLACK = 2.0  # seconds for a busy machine, on top of the bound


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str


class Terminal:
    """A shell to type into, and the output of the shell and its programs."""

    def __init__(self, log: Path, *, cwd: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._read = 0
        with log.open("wb") as output:
            # A session of its own, so that all its programs can be ended together.
            self.shell = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )

    def type(self, text: str) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write(text.encode())
        self.shell.stdin.flush()

    def wait_for(self, lines: str, *, within: float) -> None:
        """Wait until the lines are printed, in this order, after all lines of earlier calls."""
        for line in lines.splitlines():
            self._read = eventually(functools.partial(self._end_of, line), within=within)

    def _end_of(self, line: str) -> int:
        """The position in the log after the first new line like this; "…" stands for anything."""
        printed = self.log.read_text()
        found = re.compile(re.escape(line).replace("…", ".*")).search(printed, self._read)
        assert found is not None, printed
        return found.end()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()
        assert self.shell.stdin is not None
        self.shell.stdin.close()


class Reader:
    """Follows the page in a folder, with terminals of the names that the page uses."""

    def __init__(self, folder: Path, environment: dict[str, str], replaced: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.replaced = replaced
        self.terminals: dict[str, Terminal] = {}
        #: Seconds from the step before each output until the output was seen.
        self.waited: dict[str, float] = {}

    def follow(self, blocks: list[Block]) -> None:
        for block in blocks:
            text = block.text
            for old, new in self.replaced.items():
                text = text.replace(old, new)
            match block.language, block.title:
                case "python", str(name):
                    self._write(name, text)
                case "sh", None:
                    run("bash", "-e", "-c", text, cwd=self.folder, **self.environment)
                case "sh", str(terminal):
                    self._terminal(terminal).type(text)
                case "text", str(terminal):
                    started = time.monotonic()
                    self._terminal(terminal).wait_for(text, within=STARTUP)
                    self.waited[block.text.strip()] = time.monotonic() - started
                case "mermaid", None:
                    pass
                case _:
                    raise AssertionError(f"no rule for the block {block}")

    def _write(self, name: str, text: str) -> None:
        name, at_the_end, _ = name.partition(" (at the end)")
        path = self.folder / name
        path.write_text(path.read_text() + "\n" + text if at_the_end else text)

    def _terminal(self, name: str) -> Terminal:
        if name not in self.terminals:
            log = self.folder.with_name(f"{name}.log")
            environment = {**FOREIGN_ENVIRONMENT, **self.environment}
            self.terminals[name] = Terminal(log, cwd=self.folder, environment=environment)
        return self.terminals[name]

    def close(self) -> None:
        for terminal in self.terminals.values():
            terminal.close()


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return [Block(**found.groupdict()) for found in _BLOCK.finditer(PAGE.read_text())]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def reader(
    blocks: list[Block], port: int, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """A reader that has followed the page to its end."""
    folder = tmp_path_factory.mktemp("tutorial")
    with RedisServer(folder) as redis:
        environment = {
            # pip takes this project from its wheel, and the rest in the versions with which the tests run.
            "PIP_FIND_LINKS": str(wheel.parent),
            "PIP_CONSTRAINT": str(write_constraints(folder)),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # As on a terminal, each line is seen when it is printed.
            "PYTHONUNBUFFERED": "1",
        }
        replaced = {
            "redis://localhost:6379/0": redis.url,
            "127.0.0.1:8000": f"127.0.0.1:{port}",
            "manage.py runserver": f"manage.py runserver {port}",
        }
        (folder / "empty").mkdir()
        reader = Reader(folder / "empty", environment, replaced)
        try:
            reader.follow(blocks)
            yield reader
        finally:
            reader.close()


def test_every_output_of_the_page_is_seen(reader: Reader, blocks: list[Block]) -> None:
    assert len(reader.waited) == len({block.text for block in blocks if block.language == "text"})


def test_the_sleeping_phone_is_removed_within_the_bound(reader: Reader) -> None:
    assert reader.waited['{"text": "Ben left (4008)"}'] <= BOUND + SLACK


def test_the_admin_shows_the_reason(reader: Reader, blocks: list[Block], port: int) -> None:
    (start,) = [block.text for block in blocks if "createsuperuser" in block.text]
    password = re.search(r"DJANGO_SUPERUSER_PASSWORD=(\S+)", start)
    assert password is not None
    page = _admin_page(f"http://127.0.0.1:{port}/admin/realtime/connection/", "admin", password[1])

    assert "/ws/Anna/" in page
    assert "/ws/Ben/" in page
    assert "ping_timeout" in page


def _admin_page(url: str, user: str, password: str) -> str:
    """Log in, and return the page."""
    cookies = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    with opener.open(url, timeout=10) as answer:
        login = answer.url
    (token,) = [cookie.value for cookie in cookies if cookie.name == "csrftoken"]
    form = {"username": user, "password": password, "csrfmiddlewaretoken": token or ""}
    with opener.open(login, urllib.parse.urlencode(form).encode(), timeout=10) as answer:
        assert answer.url == url
        return str(answer.read().decode())
