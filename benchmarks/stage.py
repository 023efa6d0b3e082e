"""One run: a fresh Redis, database and server, all watched. All of them end with the block, always."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.contenders import Contender, node_is_ready
from benchmarks.crowd import Crowd
from project.private_redis import CannotStart, server_program
from tests.support.programs.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.programs.postgres import PostgresServer
from tests.support.programs.servers import CHECKOUT, Program, ReaperProcess, RedisServer, WebServer, free_port


def require() -> None:
    """Exit with a sentence if this machine has no Redis. Raise the limit of open files."""
    try:
        server_program()
    except CannotStart as error:
        sys.exit(str(error))
    # As with Ctrl-C, so that all started programs are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    # A server and a generator hold a descriptor for each connection. Their children inherit the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def require_files(connections: int) -> None:
    """Exit with a sentence if one process cannot open this number of connections."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < connections + 200:
        sys.exit(
            f"{connections} connections need a higher limit of open files than {limit}: `ulimit -Hn` as root"
        )


class Postgres(PostgresServer):
    """PostgreSQL as in production: commits reach the disk, and there is memory for a million rows."""

    def __init__(self, *options: str) -> None:
        super().__init__()
        # The last of two equal options counts.
        for option in ("fsync=on", "shared_buffers=512MB", "max_wal_size=4GB", *options):
            self.command += ["-c", option]


class HAProxy(Program):
    """HAProxy with benchmarks/haproxy.cfg in front of servers."""

    def __init__(self, servers: Sequence[WebServer], *, folder: Path) -> None:
        self.port = free_port()
        config = folder / "haproxy.cfg"
        lines = [f"    server daphne{number} {each.address}" for number, each in enumerate(servers, start=1)]
        config.write_text("\n".join([(CHECKOUT / "benchmarks" / "haproxy.cfg").read_text(), *lines, ""]))
        super().__init__(
            ["haproxy", "-db", "-f", config],
            log=folder / "haproxy.log",
            environment={**os.environ, "PORT": str(self.port)},
        )

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@dataclass(slots=True)
class Running:
    """The programs of one measurement."""

    contender: Contender
    servers: list[WebServer]
    crowd: Crowd
    database: Database | None
    redis: RedisServer | None
    crowd_for: Callable[[WebServer, str], Crowd]
    """Starts one more crowd, for another server than the first, with another path for its clients."""


class Stage:
    """A context manager for measurements. It migrates databases once and then copies them."""

    def __init__(self, *postgres_options: str) -> None:
        self._postgres_options = postgres_options
        self._ends = contextlib.ExitStack()
        self._templates: dict[tuple[str, str], Path | str] = {}
        self._number = 0
        self.postgres: Postgres | None = None

    def __enter__(self) -> "Stage":
        require()
        self.folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.close()

    @contextlib.contextmanager
    def set(
        self,
        contender: Contender,
        *,
        database: str = "sqlite",
        reaper: bool = False,
        publish_tasks: int = 1,
        groups: str = "one",
        few: int = 0,
        processes: int = 1,
        proxied: bool = False,
        generator: str = "benchmarks.generator",
    ) -> Iterator[Running]:
        """Start the contender's server, or several behind a proxy, and a crowd for it."""
        if contender.node and (why := node_is_ready()):
            raise LeftOut(why)
        self._number += 1
        folder = self.folder / str(self._number)
        folder.mkdir()
        with contextlib.ExitStack() as ends:
            environment, watched = dict(os.environ), list[tuple[str, Program]]()
            made, redis = None, None
            if contender.is_django:
                redis = ends.enter_context(RedisServer(folder))
                made = self.database(contender.settings, database)
                watched.append(("redis", redis))
                environment |= self.environment(contender, redis, made)
                if database == "postgres" and self.postgres is not None:
                    watched.append(("database", self.postgres))
            servers = []
            for number in range(processes):
                server = contender.server(
                    log=folder / f"server{number}.log",
                    environment=environment,
                    application=contender.application,
                )
                # SIGKILL, because thousands of goodbyes would take longer than the measurement.
                ends.callback(server.kill)
                servers.append(server.start())
                watched.append(("server", server))
            port = servers[0].port
            if proxied:
                proxy = ends.enter_context(HAProxy(servers, folder=folder))
                watched.append(("proxy", proxy))
                port = proxy.port
            if reaper:
                reaping = ReaperProcess(log=folder / "reaper.log", environment=environment)
                watched.append(("reaper", ends.enter_context(reaping)))
            options: list[object] = [
                *("--group", contender.group),
                *("--groups", groups, "--few", few, "--publish-path", contender.publish_path),
                *("--publish", contender.publish, "--publish-tasks", publish_tasks),
                *("--subprotocol", contender.subprotocol),
                *(("--engine-io",) if contender.engine_io else ()),
                *(part for name, program in watched for part in ("--watch", f"{name}={program.pid}")),
            ]

            def crowd_for(server: WebServer, path: str, port: int = 0) -> Crowd:
                address = (server.interface, port or server.port, path)
                return ends.enter_context(
                    Crowd(*address, *options, environment=environment, module=generator)
                )

            crowd = crowd_for(servers[0], contender.path, port)
            yield Running(contender, servers, crowd, made, redis, crowd_for)

    def environment(self, contender: Contender, redis: RedisServer, database: Database) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": contender.settings,
            "SECRET_KEY": "benchmark",
            "DEBUG": "False",
            "DATABASE_URL": database.url,
            "REDIS_URL": redis.url,
            "CHANNEL_LAYER_BACKEND": contender.layer,
            "REALTIME_JSON": json.dumps(dict(contender.realtime)),
        }

    def measured(self, contender: Contender, kind: str, *command: str) -> Any:
        """Run a program that measures in a process of its own, with a new database and an own Redis.

        Args:
            contender: Names the settings.
            kind: "sqlite" or "postgres".
            *command: The module and its arguments.

        Returns:
            The JSON that the program has printed. If it failed, this process exits.
        """
        database = self.database(contender.settings, kind)
        with RedisServer(self.folder) as redis:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=CHECKOUT,
                env={**os.environ, **self.environment(contender, redis, database)},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{command[0]} failed; see above")
        return json.loads(done.stdout)

    # -- databases ---------------------------------------------------------------------------------

    def database(self, settings: str, kind: str) -> Database:
        """Return a fresh migrated database for these settings; `kind` is "sqlite" or "postgres"."""
        self._number += 1
        name = f"run{self._number}"
        if kind == "sqlite":
            path = self.folder / f"{name}.sqlite3"
            path.write_bytes(self._sqlite_template(settings).read_bytes())
            return SqliteDatabase(path)
        template = self._postgres_template(settings)
        assert self.postgres is not None
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(command.format(sql.Identifier(name), sql.Identifier(template)))
        return PostgresDatabase(self.postgres.url_of(name))

    def _sqlite_template(self, settings: str) -> Path:
        key = (settings, "sqlite")
        if key not in self._templates:
            path = self.folder / f"migrated{len(self._templates)}.sqlite3"
            _migrate(settings, f"sqlite:///{path}")
            self._templates[key] = path
        return Path(self._templates[key])

    def _postgres_template(self, settings: str) -> str:
        if self.postgres is None:
            self.postgres = self._ends.enter_context(Postgres(*self._postgres_options))
        key = (settings, "postgres")
        if key not in self._templates:
            name = f"migrated{len(self._templates)}"
            _migrate(settings, self.postgres.create_database(name))
            self._templates[key] = name
        return str(self._templates[key])


class LeftOut(Exception):
    """A contender cannot run on this machine; the message says why."""


def _migrate(settings: str, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--run-syncdb", "--verbosity", "0"],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": settings,
            "DATABASE_URL": url,
            "REDIS_URL": "unix:///nowhere",
            "SECRET_KEY": "benchmark",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the database could not be made:\n{done.stderr}")
