"""A whole installation for one test: a database, a Redis, any number of servers and reapers, `manage.py`."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.support.pairings import Pairing
from tests.support.programs.databases import Database
from tests.support.programs.servers import (
    CHECKOUT,
    DaphneServer,
    Publisher,
    ReaperProcess,
    RedisServer,
    Runserver,
    UvicornServer,
    WebServer,
)

SERVERS: dict[str, Callable[..., WebServer]] = {"daphne": DaphneServer, "uvicorn": UvicornServer}


class Site:
    """Everything that runs for one test. A context manager: what it started ends with it.

    `realtime` are settings of REALTIME, under their own names; `debug` is DEBUG, with which clients may
    publish without a login; `redis` is one that is not on a unix socket.
    """

    def __init__(
        self,
        folder: Path,
        pairing: Pairing,
        database: Database,
        *,
        debug: bool = True,
        redis: RedisServer | None = None,
        **realtime: object,
    ) -> None:
        self.folder = folder
        self.pairing = pairing
        self.database = database
        self.redis = redis or RedisServer(folder)
        self._numbers = itertools.count(1)
        self._running = contextlib.ExitStack()
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.support.live",
            "DATABASE_URL": database.url,
            "REDIS_URL": self.redis.url,
            "CHANNEL_LAYER_BACKEND": pairing.layer,
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
        """One more server process, ready for connections; `environment` goes on top of the site's."""
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
        """A development server; `environment` goes on top of the site's."""
        return self._running.enter_context(
            Runserver(*options, log=self._log("runserver"), environment={**self.environment, **environment})
        )

    def look_remote(self) -> None:
        """Have the servers that run look as if they ran on another machine, whose pids say nothing here."""
        self.database.query("UPDATE realtime_process SET pid_namespace = 'another machine'")

    def reaper(self, *options: str, **environment: str) -> ReaperProcess:
        """One more reaper, started; `environment` goes on top of the site's."""
        return self._running.enter_context(
            ReaperProcess(*options, log=self._log("reaper"), environment={**self.environment, **environment})
        )

    def publisher(self, group: str) -> Publisher:
        """A process that publishes to `group` what its `send` is given, line by line."""
        return self._running.enter_context(
            Publisher(group, log=self._log("publisher"), environment=self.environment)
        )

    def manage(
        self, *arguments: str, stdin: str = "", timeout: float = 60.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `manage.py` to its end, whatever its exit code; output is captured as text."""
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
        """`manage` while the clients of the test go on answering pings."""
        return await asyncio.to_thread(self.manage, *arguments, **options)  # type: ignore[arg-type]

    def open_connections(self, server: WebServer) -> int:
        """How many open records this server process has."""
        return self._count(
            server,
            "SELECT p.pid, count(*) AS number FROM realtime_connection c"
            " JOIN realtime_process p ON p.id = c.process_id WHERE c.closed_at IS NULL GROUP BY p.pid",
        )

    def open_memberships(self, server: WebServer) -> int:
        """How many memberships of this server process are on the to-do list (`left_at` is null)."""
        return self._count(
            server,
            "SELECT p.pid, count(*) AS number FROM realtime_membership m"
            " JOIN realtime_process p ON p.id = m.process_id WHERE m.left_at IS NULL GROUP BY p.pid",
        )

    def close_reason(self, connection: str) -> str:
        """Why the connection with this id ended; empty while its record is open."""
        rows = self.database.query("SELECT id, close_reason FROM realtime_connection")
        # SQLite keeps an id without its dashes.
        reasons = {str(row["id"]).replace("-", ""): str(row["close_reason"]) for row in rows}
        return reasons[connection.replace("-", "")]

    def close_reasons(self) -> dict[str, int]:
        """How many records were closed with which reason."""
        rows = self.database.query(
            "SELECT close_reason, count(*) AS number FROM realtime_connection"
            " WHERE closed_at IS NOT NULL GROUP BY close_reason"
        )
        return {row["close_reason"]: row["number"] for row in rows}

    def _count(self, server: WebServer, by_pid: str) -> int:
        return {row["pid"]: row["number"] for row in self.database.query(by_pid)}.get(server.pid, 0)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}.log"
