"""A program of a site that changes users and sessions, as a view or a worker does.

`python -m tests.support.programs.actor` reads statements of Python from its input, each as one line of JSON,
and prints the seconds that it took to execute them.
"""

import asyncio
import json
import subprocess
import sys
import time
from typing import Any, Self

from tests.support.programs.servers import CHECKOUT
from tests.support.programs.site import Site

_PRELUDE = """
from importlib import import_module
from django.conf import settings
from django.contrib.auth import get_user, login, logout
from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import HttpRequest
from realtime.revoking import disconnect, recheck
from realtime.tickets import ticket

def request_of(session):
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session)
    request.user = get_user(request)
    return request

def logged_in(name):
    user = User.objects.create_user(name)
    request = request_of(None)
    login(request, user)
    request.session.save()
    return [user.pk, request.session.session_key]

def tickets_of(user, number):
    return [ticket(User.objects.get(pk=user) if user else None) for _ in range(number)]
"""


class Actor:
    """The program, as the test sees it."""

    def __init__(self, site: Site) -> None:
        self._log = (site.folder / "actor.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.programs.actor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=CHECKOUT,
            env=site.environment,
            text=True,
        )

    async def do(self, statements: str) -> float:
        """Execute statements; return how long they took, in seconds.

        Raises:
            RuntimeError: They raised an exception.
        """
        seconds = await asyncio.to_thread(self._do, statements)
        if not isinstance(seconds, float):
            raise RuntimeError(seconds)
        return seconds

    async def log_in(self, name: str) -> tuple[int, str]:
        """Create a user of this name who is logged in; return the keys of the user and of the session."""
        key, session = await asyncio.to_thread(self._do, f"result = logged_in({name!r})")
        return key, session

    async def tickets(self, user: int | None, number: int) -> list[str]:
        """Return new tickets of the user with this key; of an anonymous client if it is None."""
        texts: list[str] = await asyncio.to_thread(self._do, f"result = tickets_of({user!r}, {number})")
        return texts

    async def log_out(self, session: str) -> float:
        return await self.do(f"logout(request_of({session!r}))")

    def _do(self, statements: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def main() -> None:
    # Django must be set up before the models are imported.
    import django

    django.setup()
    names: dict[str, Any] = {}
    exec(_PRELUDE, names)  # noqa: S102 - the test sends it
    for line in sys.stdin:
        began = time.monotonic()
        try:
            names["result"] = None
            exec(json.loads(line), names)  # noqa: S102 - the test sends it
            answer: object = names["result"] or time.monotonic() - began
        except Exception as error:
            answer = repr(error)
        print(json.dumps(answer), flush=True)  # noqa: T201 - its product


if __name__ == "__main__":
    main()
