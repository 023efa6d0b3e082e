"""Real programs for tests: a private Redis, ASGI servers, the reaper. Each stops at the end of its block."""

import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import redis

from project import private_redis
from tests.support.assertions.eventually import eventually

CHECKOUT = Path(__file__).resolve().parents[3]
STARTUP = 30.0  # seconds that a program may take until it is ready, on a busy machine
FAREWELL = 10.0  # seconds that a program may take to end after SIGTERM, before it is killed


def free_port() -> int:
    """Return a TCP port that nothing uses, below the range of the kernel's outgoing ports.

    A client could get a port of that range between this check and the server's own bind.

    Raises:
        RuntimeError: There is no free port.
    """
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free TCP port between 20000 and 32000")


class Program:
    """One process that a test starts. The test waits until it is ready, and stops it at the end."""

    cwd = CHECKOUT
    stdin = subprocess.DEVNULL

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.environment = dict(os.environ if environment is None else environment)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=self.stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                env=self.environment,
            )
        try:
            eventually(self._ready_or_dead, within=STARTUP)
        except BaseException:
            self.kill()
            raise
        return self

    def is_ready(self) -> bool:
        """True if it does its work already. `start` asks this repeatedly."""
        return True

    def _ready_or_dead(self) -> bool:
        if not self.is_alive:
            raise RuntimeError(
                f"{self.command} ended immediately with {self.process.returncode}:\n{self.log_text()[-4000:]}"  # type: ignore[union-attr]
            )
        return self.is_ready()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def kill(self) -> None:
        """Send SIGKILL: no exit hook runs, and no close frame is sent."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def freeze(self) -> None:
        """Send SIGSTOP: it runs no more and keeps its resources; the kernel still takes packets for it."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT: it goes on, and does not know that it was stopped."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM; does not wait (see `exit_code`)."""
        self._signal(signal.SIGTERM)

    def exit_code(self, *, within: float) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs after `within` seconds.
        """
        assert self.process is not None, "not started"
        return self.process.wait(within)

    def stop(self) -> None:
        """Send SIGTERM and wait; after `FAREWELL` seconds, send SIGKILL."""
        self.terminate()
        # A process that is stopped takes no SIGTERM.
        self.thaw()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(FAREWELL)
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            self.process.send_signal(number)  # type: ignore[union-attr]

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def redis_program(kind: str) -> str:
    """Return the path of a server program: for "valkey" that of Valkey, for "redis" the one of `make run`."""
    return private_redis.server_program(*([["valkey-server"]] if kind == "valkey" else []))


class RedisServer(Program):
    """A private Redis (or Valkey) without persistence.

    Args:
        folder: The folder of its log.
        tcp: It listens on a TCP port. Otherwise it listens on a unix socket.
        interface: The address that it listens on.
        prefix: Words before its command line, to start it in a network namespace.
        program: The path of the server program; by default, the one that `make run` would start.
        options: More words of its command line.
        password: The password of its default user.
        name: The name of its log, without the suffix.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tcp: bool = False,
        interface: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        program: str | None = None,
        options: Sequence[str] = (),
        password: str = "",
        name: str = "redis",
    ) -> None:
        self.interface = interface
        self.password = password
        self.port = free_port() if tcp else 0
        # Not under pytest's folder: the kernel refuses a socket path of 108 bytes and more.
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "redis.sock"
        address = (
            ["--bind", interface, "--protected-mode", "no"]
            if tcp
            else ["--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        )
        super().__init__(
            [
                *prefix,
                program or private_redis.server_program(),
                *("--port", str(self.port), *address),
                *("--save", "", "--appendonly", "no", "--dir", str(self.folder)),
                *(("--requirepass", password) if password else ()),
                *options,
            ],
            log=folder / f"{name}.log",
        )

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return (
            f"redis://{login}{self.interface}:{self.port}/0" if self.port else f"unix://{login}{self.socket}"
        )

    @property
    def hosts(self) -> list[Any]:
        """The value of `hosts` in CHANNEL_LAYERS."""
        return [self.url]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def is_ready(self) -> bool:
        if not self.port and not self._accepts():
            return False
        with self.client() as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def _accepts(self) -> bool:
        """Return True if the unix socket takes connections. Before 5.1, redis-py leaks a refused one."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def restart(self) -> None:
        """Stop and start at the same address. It is empty then, unless an option has it keep its data."""
        self.stop()
        self.start()

    def forget(self) -> None:
        """Delete what it has kept on disk, so that it is empty when it starts."""
        for each in ("appendonlydir", "dump.rdb"):
            if (kept := self.folder / each).is_dir():
                shutil.rmtree(kept)
            else:
                kept.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)


#: Options of a Redis that keeps each write on disk before it answers.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class SeveralRedis:
    """Two Redis over which the pub/sub layer spreads its groups. They stop at the end of the block."""

    def __init__(self, folder: Path) -> None:
        self.members = [RedisServer(folder, name=f"redis-{number}") for number in range(2)]

    @property
    def url(self) -> str:
        return self.members[0].url

    @property
    def hosts(self) -> list[Any]:
        """The value of `hosts` in CHANNEL_LAYERS."""
        return [each.url for each in self.members]

    def __enter__(self) -> Self:
        for each in self.members:
            each.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        for each in self.members:
            each.__exit__(None, None, None)


class WebServer(Program):
    """An ASGI server that serves `application` at the address `interface`."""

    def __init__(
        self,
        *,
        log: Path,
        environment: Mapping[str, str],
        interface: str = "127.0.0.1",
        application: str = "project.asgi:application",
    ) -> None:
        self.interface = interface
        self.port = free_port()
        super().__init__(self.command_for(application), log=log, environment=environment)

    def command_for(self, application: str) -> list[str]:
        """Return the command that serves this ASGI application at `interface` and `port`."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        return f"{self.interface}:{self.port}"

    @property
    def serving_pid(self) -> int:
        """The pid of the process that holds the connections."""
        return self.pid

    def http(self, path: str = "/") -> str:
        return f"http://{self.address}{path}"

    def websocket(self, path: str = "/ws/") -> str:
        return f"ws://{self.address}{path}"

    def sockets(self) -> int:
        """Return the number of its TCP connections; a PostgreSQL or Redis on a unix socket does not count."""
        held = psutil.Process(self.serving_pid).net_connections("tcp")
        return sum(each.status not in (psutil.CONN_LISTEN, psutil.CONN_NONE) for each in held)

    def is_ready(self) -> bool:
        try:
            socket.create_connection((self.interface, self.port), timeout=1).close()
        except OSError:
            return False
        return True


class DaphneServer(WebServer):
    """Daphne with the flags of the Procfile."""

    def command_for(self, application: str) -> list[str]:
        return [
            str(Path(sys.executable).with_name("daphne")),
            *("-e", f"tcp:port={self.port}:interface={self.interface}:backlog=4096"),
            *_flags_of_the_procfile(),
            application,
        ]


def _flags_of_the_procfile() -> list[str]:
    """Return the words between the endpoint and the application in the Procfile's line for Daphne."""
    lines = (CHECKOUT / "Procfile").read_text().splitlines()
    (web,) = [line for line in lines if line.startswith("web:")]
    words = shlex.split(web)
    return words[words.index("-e") + 2 : -1]


class UvicornServer(WebServer):
    """uvicorn with one worker and the options of docs/howto/servers.md; `options` override them."""

    def __init__(self, *options: str, **more: Any) -> None:
        self.options = options
        super().__init__(**more)

    def command_for(self, application: str) -> list[str]:
        return [
            str(Path(sys.executable).with_name("uvicorn")),
            application,
            *_options_in_the_howto("uvicorn"),
            # Otherwise uvicorn would take uvloop, which the benchmarks install.
            *("--loop", "asyncio"),
            *("--host", self.interface, "--port", str(self.port)),
            *self.options,
        ]


def _options_in_the_howto(server: str) -> list[str]:
    """Return the options after the application in the command of that page for this server."""
    lines = (CHECKOUT / "docs/howto/servers.md").read_text().splitlines()
    (command,) = [line for line in lines if line.startswith(f"{server} project.")]
    return shlex.split(command)[2:]


class GranianServer(WebServer):
    """granian with one worker and the options of docs/howto/servers.md; `options` override them."""

    def __init__(self, *options: str, **more: Any) -> None:
        self.options = options
        super().__init__(**more)

    def command_for(self, application: str) -> list[str]:
        return [
            str(Path(sys.executable).with_name("granian")),
            application,
            *_options_in_the_howto("granian"),
            *("--host", self.interface, "--port", str(self.port)),
            *self.options,
        ]

    @property
    def serving_pid(self) -> int:
        """The pid of the worker: granian's own process serves nothing."""
        return _workers(self)[0].pid

    def kill(self) -> None:
        """Kill the worker too: it would serve on."""
        workers = _workers(self)
        super().kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def _workers(server: WebServer) -> list[psutil.Process]:
    """Return the worker processes of this server; none if it has ended."""
    if not server.is_alive:
        return []
    children = psutil.Process(server.pid).children()
    return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]


class HypercornServer(WebServer):
    """hypercorn in one process with the options of docs/howto/servers.md; `options` override them."""

    def __init__(self, *options: str, **more: Any) -> None:
        self.options = options
        super().__init__(**more)

    def command_for(self, application: str) -> list[str]:
        return [
            str(Path(sys.executable).with_name("hypercorn")),
            application,
            # A second --bind would add an address.
            *(
                self.address if each == "127.0.0.1:8000" else each
                for each in _options_in_the_howto("hypercorn")
            ),
            *self.options,
        ]


class Runserver(WebServer):
    """`manage.py runserver` with the given options: Daphne under Django's autoreload."""

    def __init__(self, *options: str, log: Path, environment: Mapping[str, str]) -> None:
        self.options = options
        super().__init__(log=log, environment=environment)

    def command_for(self, application: str) -> list[str]:
        return [sys.executable, "manage.py", "runserver", self.address, *self.options]


class ReaperProcess(Program):
    """`manage.py reap_connections` with the given options."""

    def __init__(self, *options: str, log: Path, environment: Mapping[str, str]) -> None:
        super().__init__(
            [sys.executable, "manage.py", "reap_connections", *options], log=log, environment=environment
        )

    def wait_for_a_round(self) -> None:
        """Wait until it has reported its first round."""
        eventually(lambda: self._ready_or_dead() and self.log_text().strip(), within=STARTUP)


class Publisher:
    """`manage.py publish GROUP`, which reads one JSON value per line of its standard input."""

    def __init__(self, group: str, *, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "publish", group],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
                env=dict(environment),
                text=True,
            )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self, *, within: float = 10.0) -> int:
        """End its input and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(within)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
