"""Rights that end: from a logout to the closed connection, a bulk deactivation, and the price of looking.

`python -m benchmarks.revocation` starts two server processes with 500 logged-in clients. First it logs one
user after another out, from a process that has no connection, and measures from the call of `logout()` to the
close that the client sees. Then it deactivates 500 users in one transaction. Last it measures in a process of
its own what reading costs for 10,000 logged-in connections that are idle: the wall clock and the CPU of one
reading of all users and sessions, and the queries.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import require, require_files
from tests.support.clients.websocket import Client, close_all
from tests.support.pairings import Pairing
from tests.support.programs.actor import Actor
from tests.support.programs.databases import Databases
from tests.support.programs.servers import CHECKOUT
from tests.support.programs.site import Site

LAYERS = {"ours": "pubsub", "ours-core": "core"}
COLUMNS = (
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
    Column("worst_ms", "worst ms", 1),
    Column("call_ms", "call p50 ms", 1),
)
CHECKS = (
    Column("wall_ms", "wall ms", 0),
    Column("cpu_ms", "CPU ms", 0),
    Column("lag_ms", "worst lag ms", 1),
    Column("queries", "queries"),
)

#: Makes users with sessions, and prints the keys of both.
_USERS = """
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.utils import timezone
import datetime, json
made = User.objects.bulk_create([User(username="u%d" % n, password="x") for n in range({count})])
rows, store = [], SessionStore()
for user in User.objects.filter(username__startswith="u").order_by("pk"):
    data = {{
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
        HASH_SESSION_KEY: user.get_session_auth_hash(),
    }}
    end = timezone.now() + datetime.timedelta(days=1)
    key = store._get_new_session_key()
    rows.append(Session(session_key=key, session_data=store.encode(data), expire_date=end))
Session.objects.bulk_create(rows)
open({path!r}, "w").write(json.dumps([row.session_key for row in rows]))
"""
_DEACTIVATE = """
with transaction.atomic():
    for user in User.objects.filter(username__startswith="u"):
        user.is_active = False
        user.save(update_fields=["is_active"])
"""


async def measure(site: Site, connections: int, how: str) -> dict[str, Any]:
    """Return the times from the end of a right to the close, in milliseconds."""
    servers = [site.serve(), site.serve()]
    with Actor(site) as actor:
        path = site.folder / "sessions.json"
        await actor.do(_USERS.format(count=connections, path=str(path)))
        sessions = json.loads(await asyncio.to_thread(path.read_text))
        clients = [
            Client(servers[number % 2].websocket("/ws/"), headers={"Cookie": f"sessionid={session}"})
            for number, session in enumerate(sessions)
        ]
        try:
            for first in range(0, connections, 50):
                await asyncio.gather(*(client.open() for client in clients[first : first + 50]))
            await asyncio.gather(*(client.welcomed() for client in clients))
            # The first check of the last connections is over.
            await asyncio.sleep(1.0)
            began, calls = [0.0] * connections, [0.0]
            if how == "logout":
                for number, session in enumerate(sessions):
                    began[number] = time.monotonic()
                    calls.append(await actor.log_out(session))
            else:
                began = [time.monotonic()] * connections
                calls.append(await actor.do(_DEACTIVATE))
            await asyncio.gather(*(client.closes(within=30) for client in clients))
            took = sorted(
                ((client.closed_at or 0.0) - at) * 1e3 for client, at in zip(clients, began, strict=True)
            )
            wrong = sum(client.close_code != (4501 if how == "logout" else 4503) for client in clients)
        finally:
            await close_all(clients)
    return {
        "p50_ms": statistics.median(took),
        "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))],
        "worst_ms": took[-1],
        "call_ms": statistics.median(calls[1:]) * 1e3,
        "wrong": wrong,
    }


def check(site: Site, connections: int) -> dict[str, Any]:
    """Return the costs of one reading of everything, in a process with this number of connections."""
    program = [sys.executable, "-m", "benchmarks.checking", str(connections)]
    ran = subprocess.run(
        program, cwd=CHECKOUT, env=site.environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def run(folder: Path, databases: Databases, results: Results, options: argparse.Namespace) -> None:
    for name in options.only or LAYERS:
        for how in ("logout", "deactivation"):
            number = next(_numbers)
            (folder / str(number)).mkdir()
            pairing = Pairing(LAYERS[name], "daphne", options.database)
            with Site(folder / str(number), pairing, databases.new(options.database)) as site:
                figures = asyncio.run(measure(site, options.connections, how))
            said = f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms"
            results.add(name, f"{options.connections} {how}", figures, said)
    number = next(_numbers)
    (folder / str(number)).mkdir()
    with Site(
        folder / str(number), Pairing("pubsub", "daphne", options.database), databases.new(options.database)
    ) as site:
        figures = check(site, options.idle)
    said = f"{figures['wall_ms']:.0f} ms, {figures['cpu_ms']:.0f} ms of CPU, {figures['queries']} queries"
    results.add("ours", f"{options.idle} idle", figures, said)


_numbers = iter(range(1_000_000))


def main() -> None:
    asked = parser(__doc__, LAYERS)
    asked.add_argument("--connections", type=int, default=500, metavar="N")
    asked.add_argument("--idle", type=int, default=10_000, metavar="N")
    asked.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.idle = 1, 4, 50
        options.only = options.only or ["ours"]
    require()
    require_files(options.connections)
    results = Results("revocation", options)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        contextlib.closing(Databases(Path(folder))) as databases,
    ):
        for _ in range(options.repeats):
            run(Path(folder), databases, results, options)
    logout = f"{options.connections} logout"
    goals = [
        Goal(f"p99 ms from logout to closed, {name}", results.median(name, logout, "p99_ms"), 1000, most=True)
        for name in LAYERS
    ]
    goals.append(Goal("wrong close codes", results.worst("wrong", of=lambda _: True), 0, most=True))
    results.show(COLUMNS, "connections", goals, only=lambda size: not str(size).endswith("idle"))
    results.show(CHECKS, "connections", only=lambda size: str(size).endswith("idle"))
    results.save(goals, database=options.database)


if __name__ == "__main__":
    main()
