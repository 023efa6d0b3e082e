"""Tests of the README's commands as a person runs them: in a copy of this checkout with its own .venv."""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Self

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.support.assertions.eventually import eventually
from tests.support.programs.servers import CHECKOUT, RedisServer, free_port

pytestmark = pytest.mark.acceptance

LOCAL_ONLY = (".git", ".venv", "var", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".coverage*")
#: Seconds that CONTRIBUTING and the README promise.
STOPS_WITHIN = 5.0


def environment(**extra: str) -> dict[str, str]:
    """The environment of a new terminal, without the project's variables and without those of the tests."""
    ours = ("DJANGO", "COV", "PYTEST", "REALTIME", "MAKE", "MFLAGS", "VIRTUAL_ENV", "REQUIRE_ALL")
    read = (
        "DATABASE_URL",
        "REDIS_URL",
        "CHANNEL_LAYER_BACKEND",
        "SECRET_KEY",
        "DEBUG",
        "ALLOWED_HOSTS",
        "PORT",
    )
    return {
        key: value for key, value in os.environ.items() if key not in read and not key.startswith(ours)
    } | extra


def plain_commands() -> list[str]:
    """The README's commands for people without make."""
    block = re.search(r"```sh\n(python3 -m venv.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert block is not None, "the README has no block of plain commands"
    return [line.partition(" #")[0].strip() for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this checkout, set up by the README's plain commands except the last, which starts it."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    shutil.copytree(CHECKOUT, folder, ignore=shutil.ignore_patterns(*LOCAL_ONLY))
    for command in plain_commands()[:-1]:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if "No matching distribution" in done.stderr:
            pytest.skip(f"no package index for {command!r}")
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    yield folder
    shutil.rmtree(redis_folder(folder), ignore_errors=True)


@functools.cache
def redis_folder(checkout: Path) -> str:
    """The working folder of the Redis that a checkout starts for itself."""
    code = "from project import private_redis; print(private_redis.socket_path().parent, end='')"
    python = [checkout / ".venv/bin/python", "-c", code]
    return subprocess.run(
        python, cwd=checkout, env=environment(), capture_output=True, text=True, check=True
    ).stdout


class Terminal:
    """One command in its own session. Each process that it starts is marked, so that the test finds it."""

    def __init__(self, command: str, folder: Path, **extra: str) -> None:
        self.mark = uuid.uuid4().hex
        self.port = int(extra.setdefault("PORT", str(free_port())))
        self.folder = folder
        self.redis_folder = redis_folder(folder)
        self.before = set(psutil.pids())
        self.log = folder.parent / f"{self.mark}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=folder,
                env=environment(TERMINAL_MARK=self.mark, **extra),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, *, within: float = 60.0) -> None:
        def seen() -> bool:
            over = self.process.poll() is not None
            if text in self.output:
                return True
            if over:
                raise RuntimeError(f"ended without saying {text!r}:\n{self.output}")
            return False

        eventually(seen, within=within)

    def wait_until_it_serves(self) -> Self:
        self.wait_for("Listening on TCP address")
        return self

    def ctrl_c(self) -> None:
        """Send SIGINT to every process of the foreground group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def exit_code(self, *, within: float = STOPS_WITHIN) -> int:
        return self.process.wait(within)

    def processes(self) -> list[psutil.Process]:
        """Every living process that the command started, directly or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and (
                    self._marked(process) or self._redis(process)
                ):
                    found.append(process)
        return found

    def _marked(self, process: psutil.Process) -> bool:
        return process.environ().get("TERMINAL_MARK") == self.mark

    def _redis(self, process: psutil.Process) -> bool:
        # Redis writes its title over its environment. So it is found by its folder and its later start.
        return process.pid not in self.before and process.cwd() == self.redis_folder

    def programs(self) -> set[str]:
        """The names of the Procfile's programs that run."""
        words = {"daphne": "project.asgi", "reaper": "reap_connections", "redis": self.redis_folder}
        lines = [" ".join(process.cmdline()) for process in self.processes()]
        return {name for name, word in words.items() if any(word in line for line in lines)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


def browser() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))


@pytest.fixture(scope="class")
def running(checkout: Path) -> Iterator[Terminal]:
    with Terminal("make run", checkout) as terminal:
        yield terminal.wait_until_it_serves()


def connect_to(url: str) -> ClientConnection:
    """Connect as a page of the site itself does."""
    return connect(url, origin=Origin(url.replace("ws", "http", 1).partition("/ws/")[0]))


class TestRunning:
    """One `make run`, seen from outside."""

    def test_make_run_starts_everything_and_says_where(self, running: Terminal) -> None:
        assert f"Page:  http://127.0.0.1:{running.port}/" in running.output
        assert f"Admin: http://127.0.0.1:{running.port}/admin/" in running.output
        eventually(lambda: running.programs() == {"daphne", "reaper", "redis"}, within=10)

    def test_the_page_has_its_static_files(self, running: Terminal) -> None:
        site = f"http://127.0.0.1:{running.port}/"
        with browser().open(site) as page:
            html = page.read().decode()
        files = re.findall(r'(?:src|href)="(/static/[^"]+)"', html)
        assert files
        for file in files:
            with browser().open(urllib.parse.urljoin(site, file)) as answer:
                assert answer.status == 200

    @pytest.mark.parametrize("path", ["metrics", "health/live", "health/ready"])
    def test_the_paths_for_monitoring_answer(self, running: Terminal, path: str) -> None:
        with browser().open(f"http://127.0.0.1:{running.port}/{path}") as answer:
            assert answer.status == 200

    def test_a_client_of_ten_lines_gets_what_the_command_publishes(
        self, checkout: Path, running: Terminal
    ) -> None:
        with connect_to(f"ws://127.0.0.1:{running.port}/ws/public.lobby/") as client:
            subprocess.run(
                [".venv/bin/python", "manage.py", "publish", "public.lobby", '{"hello": 1}'],
                cwd=checkout,
                env=environment(),
                check=True,
            )

            assert '"data":{"hello":1}' in client.recv(timeout=10)

    def test_a_page_of_another_site_cannot_open_a_websocket(self, running: Terminal) -> None:
        address = f"ws://127.0.0.1:{running.port}/ws/public.lobby/"
        with connect(address, origin=Origin(f"http://127.0.0.1:{running.port}")) as client:
            client.ping()

        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(address, origin=Origin("http://evil.example")),
        ):
            pass

    def test_a_second_start_is_refused_and_the_first_goes_on(self, checkout: Path, running: Terminal) -> None:
        with Terminal("make run", checkout) as second:
            assert second.exit_code(within=60) != 0
            assert "A private Redis of this checkout runs already" in second.output
            assert "Traceback" not in second.output
        with connect_to(f"ws://127.0.0.1:{running.port}/ws/public.lobby/") as client:
            client.ping()


def test_the_last_plain_command_serves_and_stops_at_ctrl_c(checkout: Path) -> None:
    with Terminal(plain_commands()[-1], checkout) as terminal:
        terminal.wait_until_it_serves()
        with browser().open(f"http://127.0.0.1:{terminal.port}/") as page:
            assert page.status == 200

        terminal.ctrl_c()

        assert terminal.exit_code() == 0
        assert terminal.processes() == []


def test_the_first_start_makes_an_admin_and_prints_its_password(checkout: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    with Terminal("make run", checkout, DATABASE_URL=database) as first:
        first.wait_until_it_serves()
        password = re.search(r"user admin, password (\S+)", first.output)
        assert password is not None
        login = f"http://127.0.0.1:{first.port}/admin/login/"
        person = browser()
        with person.open(login) as form:
            token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.read().decode())
        assert token is not None
        fields = {
            "username": "admin",
            "password": password[1],
            "csrfmiddlewaretoken": token[1],
            "next": "/admin/",
        }
        with person.open(login, urllib.parse.urlencode(fields).encode()) as admin:
            assert "Log out" in admin.read().decode()
        first.ctrl_c()
        first.exit_code()

    with Terminal("make run", checkout, DATABASE_URL=database) as second:
        second.wait_until_it_serves()
        assert "password" not in second.output


def test_without_debug_it_only_says_how_to_make_a_user(checkout: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    with Terminal("make run", checkout, DATABASE_URL=database, DEBUG="0", SECRET_KEY="x" * 50) as terminal:
        terminal.wait_until_it_serves()
        assert "python manage.py createsuperuser" in terminal.output
        assert "password" not in terminal.output


@pytest.mark.parametrize("stop", ["ctrl-c", "sigterm to make", "closed terminal"])
def test_a_stop_ends_every_process_and_leaves_nothing_open(checkout: Path, stop: str) -> None:
    with Terminal("make run", checkout) as terminal:
        terminal.wait_until_it_serves()
        with contextlib.ExitStack() as stack:
            url = f"ws://127.0.0.1:{terminal.port}/ws/public.lobby/"
            clients = [stack.enter_context(connect_to(url)) for _ in range(20)]
            assert left_open(checkout) == (20, 20)
            started = time.monotonic()
            if stop == "ctrl-c":
                terminal.ctrl_c()
            elif stop == "sigterm to make":
                terminal.process.terminate()
            else:
                os.killpg(terminal.process.pid, signal.SIGHUP)

            terminal.exit_code()
            eventually(lambda: terminal.processes() == [], within=STOPS_WITHIN)

            assert time.monotonic() - started < STOPS_WITHIN
            assert left_open(checkout) == (0, 0)
            for client in clients:
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=1)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4000
        assert "Traceback" not in terminal.output


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.2])
def test_ctrl_c_during_the_start_leaves_no_process(checkout: Path, after: float) -> None:
    with Terminal("make run", checkout) as terminal:
        terminal.wait_for("Stop:  Ctrl-C")
        time.sleep(after)

        terminal.ctrl_c()

        terminal.exit_code()
        eventually(lambda: terminal.processes() == [], within=STOPS_WITHIN)


def test_if_redis_is_killed_the_others_end(checkout: Path) -> None:
    with Terminal(".venv/bin/python -m project.start", checkout) as terminal:
        terminal.wait_until_it_serves()
        (redis,) = [process for process in terminal.processes() if process.cwd() == terminal.redis_folder]

        redis.kill()

        assert terminal.exit_code(within=2 * STOPS_WITHIN) != 0
        assert terminal.processes() == []


def left_open(checkout: Path) -> tuple[int, int]:
    """Return the numbers of open records and of memberships that are not left."""
    with contextlib.closing(sqlite3.connect(checkout / "var" / "db.sqlite3")) as database:
        records = "select count(*) from realtime_connection where closed_at is null"
        memberships = "select count(*) from realtime_membership where left_at is null"
        return database.execute(records).fetchone()[0], database.execute(memberships).fetchone()[0]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_killed_server_starts_again_and_its_rows_are_closed(checkout: Path) -> None:
    with Terminal("make run", checkout) as terminal:
        port = terminal.wait_until_it_serves().port
        page = f"ws://127.0.0.1:{port}/ws/public.lobby/"
        with connect_to(page) as client:
            assert left_open(checkout) != (0, 0)
            (daphne,) = [process for process in terminal.processes() if "daphne" in process.cmdline()]
            daphne.kill()
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=10)

        terminal.wait_for("killed; starting again")
        # At most two rounds and the wait for an answer, at the default settings.
        eventually(lambda: left_open(checkout) == (0, 0), within=40)
        # The reaper does not wait for the new server, so that one may still be starting.
        eventually(lambda: listens(port), within=30)
        with connect_to(page):
            assert terminal.programs() == {"daphne", "reaper", "redis"}


def test_if_the_port_is_in_use_nothing_starts(checkout: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with Terminal("make run", checkout, PORT=port) as terminal:
            assert terminal.exit_code(within=60) != 0
            assert f"Port {port} is in use" in terminal.output
            assert "Traceback" not in terminal.output
            assert "Page:" not in terminal.output


def test_with_redis_url_there_is_no_private_redis(checkout: Path, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis, Terminal("make run", checkout, REDIS_URL=redis.url) as terminal:
        terminal.wait_until_it_serves()
        eventually(lambda: terminal.programs() == {"daphne", "reaper"}, within=10)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("REDIS_URL", "redis://127.0.0.1:1/0", "The Redis of REDIS_URL does not answer"),
        ("DATABASE_URL", "postgres://127.0.0.1:1/none", "The database does not answer"),
        (
            "CHANNEL_LAYER_BACKEND",
            "memory",
            "CHANNEL_LAYER_BACKEND is 'memory'; set it to one of: pubsub, core.",
        ),
        ("PORT", "99999", "PORT is '99999'; set it to a number from 1 to 65535."),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(
    checkout: Path, variable: str, value: str, sentence: str
) -> None:
    done = subprocess.run(
        [".venv/bin/python", "-m", "project.start"],
        cwd=checkout,
        env=environment(**{variable: value}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
