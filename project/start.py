"""`python -m project.start`: all programs on one machine, until Ctrl-C, SIGTERM or a closed terminal.

It first checks the port, Redis and the database. If one of them would stop it, it says in one sentence what
to do. Then it runs the programs of the Procfile. At the end it stops them in order, within five seconds.
"""

import asyncio
import contextlib
import errno
import os
import re
import secrets
import socket
import sys
from pathlib import Path

import django
import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections
from django.db.migrations.executor import MigrationExecutor

from project import private_redis, programs
from project.private_redis import CannotStart


def main() -> int:
    """Check what would stop the programs, run them, and return the exit code: 2 if a check fails."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    try:
        django.setup()
        check_port(settings.PORT)
        check_redis()
        check_database()
    except (CannotStart, ImproperlyConfigured) as error:
        print(error, file=sys.stderr)
        return 2
    site = f"http://127.0.0.1:{settings.PORT}/"
    print(f"Page:  {site}\nAdmin: {site}admin/  {how_to_log_in()}\nStop:  Ctrl-C", flush=True)
    return run_procfile()


def check_port(port: int) -> None:
    """Raise CannotStart if the web server could not listen on the port."""
    with socket.socket() as probe:
        # As Daphne does, so that closing connections of the last run do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise CannotStart(
                f"Port {port} {reason}: stop what uses it, or choose another, like `PORT=8765 make run`."
            ) from error


def check_redis() -> None:
    """Raise CannotStart if the Redis of the settings does not answer, or the private one could not start."""
    if settings.PRIVATE_REDIS:
        private_redis.server_program()
        os.close(private_redis.claim())
        return
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=3, socket_timeout=3) as client:
            client.ping()
    except redis.RedisError as error:
        raise CannotStart(
            f"The Redis of REDIS_URL does not answer ({error}): "
            "start it, or leave REDIS_URL out for a private one."
        ) from error


def check_database() -> None:
    """Raise CannotStart if the database does not answer or lacks migrations."""
    try:
        executor = MigrationExecutor(connections[DEFAULT_DB_ALIAS])
    except OperationalError as error:
        raise CannotStart(f"The database does not answer: {str(error).strip()}") from error
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise CannotStart("The database lacks tables or columns: run `python manage.py migrate` first.")


def how_to_log_in() -> str:
    """Return the hint beside the admin's address. With DEBUG, the first start creates a superuser."""
    users = get_user_model()
    if users.objects.filter(is_superuser=True, is_active=True).exists():
        return ""
    if not settings.DEBUG or users.objects.filter(username="admin").exists():
        return "(for a user: python manage.py createsuperuser)"
    password = secrets.token_urlsafe(12)
    users.objects.create_superuser("admin", password=password)
    return f"user admin, password {password} (shown once; another: python manage.py changepassword admin)"


def run_procfile() -> int:
    """Run the Procfile's programs until one ends or a signal arrives, and return the exit code."""
    connections.close_all()
    os.chdir(settings.BASE_DIR)
    commands = dict(re.findall(r"^(\w+): *(.+)$", Path("Procfile").read_text(), re.MULTILINE))
    if not settings.PRIVATE_REDIS:
        del commands["redis"]
    # The programs use this `python`, even if the virtual environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ["PORT"] = str(settings.PORT)
    return asyncio.run(programs.run(commands))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
