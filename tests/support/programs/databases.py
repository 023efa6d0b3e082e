"""The database of the servers that a test started, in plain SQL and from outside of Django."""

import contextlib
import functools
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import sql as statements
from psycopg.rows import dict_row

from tests.support.programs.postgres import PostgresServer
from tests.support.programs.servers import CHECKOUT

Row = dict[str, Any]


class Database(Protocol):
    """A migrated database that the servers of one test share."""

    url: str  # as DATABASE_URL takes it

    def query(self, sql: str) -> list[Row]:
        """Run one statement and return its rows."""

    def value(self, sql: str) -> Any:
        """Run one statement and return the only column of its only row."""


class SqliteDatabase:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def query(self, sql: str) -> list[Row]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql)]

    def value(self, sql: str) -> Any:
        return only_value(self.query(sql))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from writing, as an open transaction in a shell does, or a long migration."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                connection.execute("ROLLBACK")


class PostgresDatabase:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, sql: str) -> list[Row]:
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def value(self, sql: str) -> Any:
        return only_value(self.query(sql))


def only_value(rows: list[Row]) -> Any:
    (row,) = rows
    (value,) = row.values()
    return value


class Databases:
    """New migrated databases. One of each kind is migrated, and the others are copies of it.

    The first PostgreSQL database starts a server; `close` stops it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._running = contextlib.ExitStack()

    def new(self, kind: str) -> Database:
        """Return a new database; `kind` is "sqlite" or "postgres"."""
        name = f"site{next(self._numbers)}"
        if kind == "sqlite":
            return SqliteDatabase(shutil.copy(self._sqlite_template, self.folder / f"{name}.sqlite3"))
        server = self._postgres
        with psycopg.connect(server.url, autocommit=True) as connection:
            command = statements.SQL("CREATE DATABASE {} TEMPLATE template_site")
            connection.execute(command.format(statements.Identifier(name)))
        return PostgresDatabase(server.url_of(name))

    @property
    def postgres(self) -> PostgresServer:
        """The server of the PostgreSQL databases. A test that breaks it needs its own `Databases`."""
        return self._postgres

    def close(self) -> None:
        self._running.close()

    @functools.cached_property
    def _sqlite_template(self) -> Path:
        path = self.folder / "template.sqlite3"
        _migrate(f"sqlite:///{path}")
        return path

    @functools.cached_property
    def _postgres(self) -> PostgresServer:
        server = self._running.enter_context(PostgresServer())
        _migrate(server.create_database("template_site"))
        return server


def _migrate(url: str) -> None:
    result = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=CHECKOUT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.support.live", "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
