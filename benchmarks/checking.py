"""The costs of one reading of everything that the connections of a process rely on, as one line of JSON.

`python -m benchmarks.checking N` makes N users with a session each, and as many connections of the hub.
"""

# ruff: noqa: E402 - Django must be set up before models are imported
import asyncio
import json
import sys
import time
from datetime import timedelta
from typing import Any

import django

django.setup()

# isort: split

from django.contrib.auth.models import Group, Permission, User
from django.contrib.sessions.models import Session
from django.db import connection as database
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from realtime.fleet.database import OwnThread
from realtime.hub.connection import Connection
from realtime.hub.rights import Rights
from realtime.rights.authorization import Authorization

TIMES = 5


def make(number: int) -> list[Connection]:
    """Return connections of users who are in a group of Django each."""
    User.objects.bulk_create([User(username=f"u{each}", password="x" * 80) for each in range(number)])
    end = timezone.now() + timedelta(days=1)
    sessions = [
        Session(session_key=f"{each:032}", session_data="", expire_date=end) for each in range(number)
    ]
    Session.objects.bulk_create(sessions)
    group = Group.objects.create(name="staff")
    group.permissions.set(Permission.objects.all()[:40])
    users = list(User.objects.order_by("pk"))
    through: Any = User.groups.through
    through.objects.bulk_create([through(user_id=user.pk, group_id=group.pk) for user in users])
    made = []
    for user, session in zip(users, sessions, strict=True):
        each = Connection({"user": user}, lambda _: None)
        each.authorization = Authorization(user_id=str(user.pk), session=session.session_key)
        made.append(each)
    return made


class Owner:
    """Takes what rights decide; nothing is expected."""

    def evict(self, *_: object) -> None:
        raise AssertionError("evicted")

    async def recheck(self, *_: object, **__: object) -> bool:
        return True

    def ask_for_refresh(self, *_: object) -> None:
        raise AssertionError("asked for a refresh")


async def measure(connections: list[Connection]) -> dict[str, float]:
    thread = OwnThread("realtime-rights")
    rights = Rights(thread, {}, Owner(), interval=10)
    for each in connections:
        rights.added(each)
    await rights._check_all()
    lag, queries, going_on = 0.0, 0, True
    execute = CursorWrapper.execute

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal queries
        queries += 1
        return execute(self, *arguments)

    async def watch() -> None:
        nonlocal lag
        while going_on:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            lag = max(lag, time.perf_counter() - began - 0.001)

    CursorWrapper.execute = counted  # type: ignore[method-assign]
    watching = asyncio.create_task(watch())
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(TIMES):
        await rights._check_all()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    going_on = False
    await watching
    thread.shut()
    return {
        "wall_ms": wall / TIMES * 1e3,
        "cpu_ms": cpu / TIMES * 1e3,
        "lag_ms": lag * 1e3,
        "queries": queries / TIMES,
    }


if __name__ == "__main__":
    made = make(int(sys.argv[1]))
    database.close()
    print(json.dumps(asyncio.run(measure(made))))
