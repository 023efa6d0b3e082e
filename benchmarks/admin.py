"""Times of the admin's pages with a million rows in the table of connections.

`python -m benchmarks.admin` loads SQLite and PostgreSQL with processes, connections, memberships and users.
It requests every kind of page through Django's test client, as a superuser, in one process. It prints a
table of medians and slowest runs, with the number of queries, and writes `results/admin.json`.

The data has one of three shapes. `mixed` is a site in use: four of ten connections are open. In `closed`, all
except the 50 oldest are closed. In `open`, all except the 50 oldest are open. In the last two, a page that
reads rows until it has found enough of the rare kind reads a million.
"""

import argparse
import hashlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROWS = 1_000_000
PROCESSES = 200
USERS = 50_000
SHAPES = ("mixed", "closed", "open")
GOAL = 300.0  # milliseconds
RESULTS = Path(__file__).parent / "results" / "admin.json"
ROOT = Path(__file__).parent.parent

AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/18.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/142.0.0.0 Mobile Safari/537.36",
    "Python/3.11 websockets/17.4",
)


@dataclass(frozen=True, slots=True)
class Timing:
    """One kind of page, in milliseconds. `cpu` is of this process, which includes SQLite, not PostgreSQL."""

    database: str
    shape: str
    page: str
    median: float
    slowest: float
    cpu: float
    queries: int


# -- rows --------------------------------------------------------------------------------------------


def key(kind: str, number: int) -> str:
    """Return the primary key of row `number` as 32 hexadecimal digits, the same in every database."""
    return hashlib.md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()


def load(rows: int, shape: str) -> None:
    """Fill the empty tables. Row 1 is the newest; the last row is a week older."""
    from django.contrib.auth import get_user_model
    from django.db import connection, transaction

    postgres = connection.vendor == "postgresql"
    connection.ensure_connection()
    if not postgres:
        connection.connection.create_function("row_key", 2, key, deterministic=True)
        with connection.cursor() as cursor:
            # Only for the load: with SQLite's own 2 MB, indexes of random keys are written again and again.
            cursor.execute("PRAGMA cache_size = -1500000")

    def row_key(kind: str, number: str) -> str:
        return f"md5('{kind}' || ({number}))::uuid" if postgres else f"row_key('{kind}', {number})"

    def ago(seconds: str) -> str:
        if postgres:
            return f"now() - ({seconds}) * interval '1 second'"
        return f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || round({seconds}, 3) || ' seconds')"

    def one_of(*texts: str) -> str:
        whens = " ".join(f"WHEN {position} THEN '{text}'" for position, text in enumerate(texts))
        return f"CASE (n * 7919) % {len(texts)} {whens} END"

    user_model = get_user_model()
    if not user_model.objects.exists():
        user_model.objects.create_superuser("admin", "", "admin")
        user_model.objects.bulk_create(
            [user_model(username=f"user{number}") for number in range(USERS)], batch_size=5000
        )
    is_open = {"mixed": "n % 5 < 2", "closed": f"n > {rows - 50}", "open": f"n <= {rows - 50}"}[shape]
    # Of 200 processes, 20 stopped by plan and 20 were lost. The 160 that run hold the open connections,
    # together with one that was lost and is not swept yet.
    holder = f"CASE WHEN {is_open} THEN CASE WHEN n % 997 = 0 THEN 199 ELSE n % 160 END ELSE n % 200 END"
    age = f"n * {7 * 86400.0 / rows}"
    true, false = ("true", "false") if postgres else ("1", "0")
    rare_reason = "CASE WHEN n % 100003 = 7 THEN 'kicked' ELSE"
    reason = one_of(*["client_closed"] * 6, "client_lost", "client_lost", "ping_timeout", "server_restart")
    statements = [
        f"""
        INSERT INTO realtime_process (id, channel_name, host, pid, pid_namespace, pid_began, started_at,
            last_round, missed, connections, loop_lag, answered_at, stopped_at, lost)
        SELECT {row_key("process", "n")}, 'specific.' || n, 'web-' || (n % 20), 1000 + n, '', 0,
            {ago("n * 600")}, 4711, CASE WHEN n % 80 = 0 THEN 1 ELSE 0 END, 2500, 0.0017, {ago("n % 10")},
            CASE WHEN n < 160 THEN NULL ELSE {ago("n")} END, CASE WHEN n < 180 THEN {false} ELSE {true} END
        FROM ({numbers(0, PROCESSES - 1)}) AS numbers
        """,
        f"""
        INSERT INTO realtime_connection (id, process_id, user_id, path, remote_address, user_agent,
            subprotocol, opened_at, last_seen_at, closed_at, close_reason, close_code, closed_by)
        SELECT {row_key("connection", "n")}, {row_key("process", holder)},
            CASE WHEN n % 10 < 3 THEN '' ELSE CAST(1 + (n * 31) % {USERS} AS text) END,
            CASE WHEN n % 50 = 0 THEN '/ws/room.' || (n % 1000) || '/' ELSE '/ws/' END,
            CASE WHEN n % 5 = 1 THEN '203.0.113.7'
                ELSE '10.' || (n % 200) || '.' || (n / 200 % 200) || '.' || (n / 40000 % 200) END,
            {one_of(*AGENTS)}, 'realtime.v1', {ago(age)},
            CASE WHEN {is_open} THEN {ago("n % 60")} ELSE {ago(f"({age}) * 0.9")} END,
            CASE WHEN {is_open} THEN NULL ELSE {ago(f"({age}) * 0.9")} END,
            CASE WHEN {is_open} THEN '' ELSE {rare_reason} {reason} END END,
            CASE WHEN {is_open} THEN NULL ELSE 1000 END, NULL
        FROM ({numbers(1, rows)}) AS numbers
        """,
        *(
            f"""
            INSERT INTO realtime_membership (connection_id, process_id, "group", joined_at, left_at,
                connection_closed)
            SELECT {row_key("connection", "n")}, {row_key("process", holder)}, {group}, {ago(age)},
                CASE WHEN {is_open} THEN NULL ELSE {ago(f"({age}) * 0.9")} END,
                CASE WHEN {is_open} THEN {false} ELSE {true} END
            FROM ({numbers(1, rows)}) AS numbers WHERE {which}
            """
            for group, which in (
                ("'public.lobby'", "true"),
                ("'room.' || (n % 100000)", is_open),
            )
        ),
        # One connection that joins and leaves all day.
        f"""
        INSERT INTO realtime_membership (connection_id, process_id, "group", joined_at, left_at,
            connection_closed)
        SELECT {row_key("connection", str(rows))}, {row_key("process", "0")}, 'page.' || n, {ago("n")},
            {ago("n - 0.5")}, {false}
        FROM ({numbers(1, 10_000)}) AS numbers
        """,
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    if postgres:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
    connection.close()


def numbers(first: int, last: int) -> str:
    return (
        f"WITH RECURSIVE counted(n) AS (SELECT CAST({first} AS bigint)"
        f" UNION ALL SELECT n + 1 FROM counted WHERE n < {last}) SELECT n FROM counted"
    )


# -- pages -------------------------------------------------------------------------------------------


def pages(rows: int, shape: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield every kind of page: its name, and a function that requests it with a logged-in client."""
    from django.urls import reverse
    from django.utils import timezone

    connections = reverse("admin:realtime_connection_changelist")
    processes = reverse("admin:realtime_process_changelist")
    today = timezone.now().date()
    day = {"opened_at__year": today.year, "opened_at__month": today.month, "opened_at__day": today.day}
    middle = key("connection", rows // 2)

    def of(path: str, **query: Any) -> Callable[[Any], Any]:
        return lambda client: client.get(path, query)

    yield "connections", of(connections)
    yield "… the 100th page", of(connections, p=100)
    for state in ("open", "suspect", "closed"):
        yield f"… {state}", of(connections, state=state)
    yield "… closed for a frequent reason", of(connections, reason="client_closed")
    yield "… closed for a rare reason", of(connections, reason="kicked")
    yield "… of a process", of(connections, process=key("process", 5))
    yield "… of a process, open", of(connections, process=key("process", 5), state="open")
    yield "… in a large group", of(connections, group="public.lobby")
    yield "… in a small group", of(connections, group="room.6")
    yield "… in a small group, open", of(connections, group="room.6", state="open")
    yield "… of a year", of(connections, opened_at__year=today.year)
    yield "… of a month", of(connections, opened_at__year=today.year, opened_at__month=today.month)
    yield "… of a day", of(connections, **day)
    yield "… of a day, open", of(connections, **day, state="open")
    yield "… of a day, closed", of(connections, **day, state="closed")
    yield "… searched by id", of(connections, q=middle)
    yield "… searched by a user's key", of(connections, q="4712")
    yield "… searched by a user's name", of(connections, q="user4711")
    yield "… searched by a user's name, open", of(connections, q="user4711", state="open")
    yield "… searched by an address of few", of(connections, q="10.3.3.3")
    yield "… searched by an address of 200,000", of(connections, q="203.0.113.7")
    yield "… searched by a frequent path", of(connections, q="/ws/")
    yield "… searched by an unknown path", of(connections, q="/nowhere/")
    yield "… searched without a result", of(connections, q="nobody")
    yield "a connection", of(reverse("admin:realtime_connection_change", args=[middle]))
    yield (
        "a connection of 10,000 memberships",
        of(reverse("admin:realtime_connection_change", args=[key("connection", rows)])),
    )
    first = 1 if shape == "open" else rows - 49
    selected = [key("connection", number) for number in range(first, first + 50)]
    action = {"action": "disconnect_selected", "_selected_action": selected}
    yield "disconnect 50, to be confirmed", lambda client: client.post(connections, action)
    yield "disconnect 50", lambda client: client.post(connections, {**action, "confirmed": "yes"})
    all_open = {**action, "select_across": "1"}
    yield (
        "disconnect 5,000, to be confirmed",
        lambda client: client.post(f"{connections}?state=open", all_open),
    )
    yield "processes", of(processes)
    for state in ("running", "silent", "stopped", "lost"):
        yield f"… {state}", of(processes, state=state)
    yield "a process", of(reverse("admin:realtime_process_change", args=[key("process", 5)]))


def measure(database: str, rows: int, shape: str, runs: int) -> list[Timing]:
    """Time every page. The first request fills caches and is not counted."""
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(HTTP_HOST="localhost")
    client.force_login(get_user_model().objects.get(username="admin"))
    timings = []
    # Requests to processes go to Redis, which this benchmark does not measure.
    with mock.patch("realtime.publishing.disconnect", return_value={}):
        for name, ask in pages(rows, shape):
            with CaptureQueriesContext(connection) as captured:
                response = ask(client)
                queries = len(captured)
            if response.status_code != 200 and not (name == "disconnect 50" and response.status_code == 302):
                raise RuntimeError(f"{name}: {response.status_code}")
            times, cpu = [], []
            for _ in range(runs):
                start, start_cpu = time.perf_counter(), time.process_time()
                ask(client)
                times.append((time.perf_counter() - start) * 1000)
                cpu.append((time.process_time() - start_cpu) * 1000)
            median, median_cpu = statistics.median(times), statistics.median(cpu)
            timings.append(Timing(database, shape, name, median, max(times), median_cpu, queries))
    return timings


def untamed() -> dict[str, float]:
    """Return milliseconds of queries that the lists avoid: Django's own count and date hierarchy."""
    from django.db.models import Max, Min

    from realtime.models import Connection

    rows = Connection.objects.all()
    found = {}
    for name, ask in {
        "COUNT(*) of the table": rows.count,
        "Django's date hierarchy: MIN and MAX": lambda: rows.aggregate(Min("opened_at"), Max("opened_at")),
        "Django's date hierarchy: DISTINCT days": lambda: list(rows.datetimes("opened_at", "day")),
    }.items():
        start = time.perf_counter()
        ask()
        found[name] = (time.perf_counter() - start) * 1000
    return found


# -- runs --------------------------------------------------------------------------------------------


def child(database: str, rows: int, shape: str, runs: int) -> None:
    """Load, measure and print JSON, in a separate process with the database in its settings."""
    import django

    django.setup()
    from django.core.management import call_command

    from realtime.models import Connection

    call_command("migrate", verbosity=0)
    if not Connection.objects.exists():
        load(rows, shape)
    timings = [asdict(timing) for timing in measure(database, rows, shape, runs)]
    print(json.dumps({"timings": timings, "untamed": untamed()}))


def run_child(url: str, database: str, arguments: argparse.Namespace, shape: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.admin", "--child", database, "--shape", shape]
    command += ["--rows", str(arguments.rows), "--runs", str(arguments.runs)]
    environment = {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "0"}
    environment |= {"SECRET_KEY": "benchmark", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(timings: list[Timing]) -> str:
    """Median and slowest run of each page, one column for each database and shape."""
    columns = list(dict.fromkeys((timing.database, timing.shape) for timing in timings))
    by_page: dict[str, dict[tuple[str, str], Timing]] = {}
    section = ""
    for timing in timings:
        # The rows that begin with an ellipsis belong to the last one that does not.
        section = section if timing.page.startswith("…") else timing.page
        name = f"{section}: {timing.page}" if timing.page.startswith("…") else timing.page
        by_page.setdefault(name, {})[timing.database, timing.shape] = timing
    head = [
        "page: median ms (slowest, CPU)",
        *(f"{database}, {shape}" for database, shape in columns),
        "queries",
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, found in by_page.items():
        cells = [
            f"{each.median:.0f} ({each.slowest:.0f}, {each.cpu:.0f})"
            for each in map(found.get, columns)
            if each
        ]
        lines.append([name, *cells, str(max(timing.queries for timing in found.values()))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--runs", type=int, default=7, help="of each page (default: 7)")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="(default: all three)")
    parser.add_argument("--child", metavar="DATABASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = arguments.shape or list(SHAPES)
    if arguments.child:
        child(arguments.child, arguments.rows, shapes[0], arguments.runs)
        return
    from tests.support.programs.postgres import PostgresServer

    results: list[dict[str, Any]] = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run_child(f"sqlite:///{folder}/db.sqlite3", "SQLite", arguments, shape))
        write(results, arguments)
        with PostgresServer() as postgres:
            results.append(run_child(postgres.url, "PostgreSQL", arguments, shape))
        # After each, because a table of this size takes minutes to load.
        write(results, arguments)
    timings = timings_of(results)
    print(table(timings))
    slow = [timing for timing in timings if timing.median > GOAL]
    print(f"\n{arguments.rows:,} connections; {len(slow)} of {len(timings)} medians above {GOAL:.0f} ms")


def timings_of(results: list[dict[str, Any]]) -> list[Timing]:
    return [Timing(**timing) for found in results for timing in found["timings"]]


def write(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    report = {
        "rows": arguments.rows,
        "runs": arguments.runs,
        "goal_ms": GOAL,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg(),
        "sqlite": sqlite3.sqlite_version,
        "untamed_ms": {
            f"{found['timings'][0]['database']}, {found['timings'][0]['shape']}": found["untamed"]
            for found in results
        },
        "timings": [asdict(timing) for timing in timings_of(results)],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
