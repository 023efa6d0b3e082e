"""A whole installation for one test: a database, a Redis, any number of servers and reapers, `manage.py`."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.faults.relay import RedisBehindAddress
from tests.support.pairings import Pairing
from tests.support.programs.databases import Database
from tests.support.programs.sentinel import RedisWithSentinel
from tests.support.programs.servers import (
    CHECKOUT,
    DaphneServer,
    GranianServer,
    HypercornServer,
    Publisher,
    ReaperProcess,
    RedisServer,
    Runserver,
    SeveralRedis,
    UvicornServer,
    WebServer,
)

SERVERS: dict[str, Callable[..., WebServer]] = {
    "daphne": DaphneServer,
    "uvicorn": UvicornServer,
    "granian": GranianServer,
    "hypercorn": HypercornServer,
}


class Site:
    """All programs of one test. They stop at the end of its block.

    Args:
        folder: The folder of the logs.
        pairing: The layer, the server and the database.
        database: The database of all programs.
        debug: The setting DEBUG, with which clients may publish without a login.
        redis: A Redis of the test; by default, one on a unix socket.
        layer_config: More options of the channel layer.
        realtime: Settings of REALTIME.
    """

    def __init__(
        self,
        folder: Path,
        pairing: Pairing,
        database: Database,
        *,
        debug: bool = True,
        redis: RedisServer | SeveralRedis | RedisWithSentinel | RedisBehindAddress | None = None,
        layer_config: Mapping[str, object] | None = None,
        **realtime: object,
    ) -> None:
        self.folder = folder
        self.pairing = pairing
        self.database = database
        self.redis: Any = redis or RedisServer(folder)
        self.layer_config = dict(layer_config or {})
        alone = self.redis.hosts == [self.redis.url]
        self._numbers = itertools.count(1)
        self._running = contextlib.ExitStack()
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.support.live",
            "DATABASE_URL": database.url,
            "REDIS_URL": self.redis.url,
            # A program that a test starts with a URL of its own has that one.
            **({} if alone else {"REDIS_HOSTS_JSON": json.dumps(self.redis.hosts)}),
            "CHANNEL_LAYER_BACKEND": pairing.layer,
            "LAYER_CONFIG_JSON": json.dumps(self.layer_config),
            "REALTIME_JSON": json.dumps(realtime),
            "DEBUG": str(debug),
        }

    def __enter__(self) -> Self:
        self._running.enter_context(self.redis)
        return self

    def __exit__(self, *exception: object) -> None:
        self._running.close()

    def serve(
        self,
        *,
        interface: str = "127.0.0.1",
        application: str = "project.asgi:application",
        **environment: str,
    ) -> WebServer:
        """Start one more server process, ready for connections; `environment` is added to the site's."""
        program = SERVERS[self.pairing.server]
        environment = {**self.environment, "ALLOWED_HOSTS": f"localhost,127.0.0.1,{interface}", **environment}
        return self._running.enter_context(
            program(
                log=self._log(self.pairing.server),
                environment=environment,
                interface=interface,
                application=application,
            )
        )

    def runserver(self, *options: str, **environment: str) -> Runserver:
        """Start a development server; `environment` is added to the site's."""
        return self._running.enter_context(
            Runserver(*options, log=self._log("runserver"), environment={**self.environment, **environment})
        )

    def look_remote(self) -> None:
        """Make the running servers look as if they ran on another machine, where pids mean nothing."""
        self.database.query("UPDATE realtime_process SET pid_namespace = 'another machine'")

    def reaper(self, *options: str, **environment: str) -> ReaperProcess:
        """Start one more reaper; `environment` is added to the site's."""
        return self._running.enter_context(
            ReaperProcess(*options, log=self._log("reaper"), environment={**self.environment, **environment})
        )

    def publisher(self, group: str) -> Publisher:
        """Start a process that publishes the lines that its `send` is given to `group`."""
        return self._running.enter_context(
            Publisher(group, log=self._log("publisher"), environment=self.environment)
        )

    def manage(
        self, *arguments: str, stdin: str = "", timeout: float = 60.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `manage.py` to its end, with any exit code; its output is captured as text."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=CHECKOUT,
            env={**self.environment, **environment},
            check=False,
        )

    async def amanage(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Do as `manage`, while the clients of the test go on answering pings."""
        return await asyncio.to_thread(self.manage, *arguments, **options)  # type: ignore[arg-type]

    def open_connections(self, server: WebServer) -> int:
        """Return the number of open records of this server process."""
        return self._count(
            server,
            "SELECT p.pid, count(*) AS number FROM realtime_connection c"
            " JOIN realtime_process p ON p.id = c.process_id WHERE c.closed_at IS NULL GROUP BY p.pid",
        )

    def open_memberships(self, server: WebServer) -> int:
        """Return the number of memberships of this server process on the to-do list (`left_at` is null)."""
        return self._count(
            server,
            "SELECT p.pid, count(*) AS number FROM realtime_membership m"
            " JOIN realtime_process p ON p.id = m.process_id WHERE m.left_at IS NULL GROUP BY p.pid",
        )

    def close_reason(self, connection: str) -> str:
        """Return the close reason of the connection with this id; empty while its record is open."""
        rows = self.database.query("SELECT id, close_reason FROM realtime_connection")
        # SQLite keeps an id without its dashes.
        reasons = {str(row["id"]).replace("-", ""): str(row["close_reason"]) for row in rows}
        return reasons[connection.replace("-", "")]

    def close_reasons(self) -> dict[str, int]:
        """Count the closed records by reason."""
        rows = self.database.query(
            "SELECT close_reason, count(*) AS number FROM realtime_connection"
            " WHERE closed_at IS NOT NULL GROUP BY close_reason"
        )
        return {row["close_reason"]: row["number"] for row in rows}

    def _count(self, server: WebServer, by_pid: str) -> int:
        return {row["pid"]: row["number"] for row in self.database.query(by_pid)}.get(server.serving_pid, 0)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}.log"
