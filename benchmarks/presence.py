"""Presence with 1,000,000 open memberships: who is in a group, is a user online, what a join costs.

`python -m benchmarks.presence` fills SQLite and PostgreSQL with open connections, each in one group. Most
groups have one member. Some have 10, 100 or 1,000 users, one has 10,000, and each has a tenth as many
anonymous members. A tenth of all others are anonymous too. The members of a group are scattered over the
tables, as they come in turn.

`read` is `presence()` without its consumer: at most 1,000 users, the number of all, the number of anonymous
connections. `online` is `is_online()`, of users who are and who are not. `open` is one batch of the ledger,
as 100 users connect and join the group of 10,000; `close` is one that closes 200 such connections. These are
written in turn with PRESENCE `("*",)` and `()`. `end` ends the stays of 200 users who were gone.
"""

import argparse
import json
import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Stage

#: Users and the number of such groups, the largest first.
GROUPS = ((10_000, 1), (1_000, 10), (100, 10), (10, 10))
GRACE = 15.0
LIMIT = 1_000
GOAL = 5.0  # milliseconds
JOIN_GOAL = 1.0
COLUMNS = (
    Column("median_ms", "median ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("slowest_ms", "slowest ms", 2),
    Column("calls", "calls"),
)
DATABASES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}


# -- inside a process with the database in its settings --------------------------------------------------


def measure(rows: int, calls: int, batches: int) -> dict[str, list[float]]:
    """Fill the database, and return the seconds of the calls of each kind."""
    import django

    django.setup()
    groups = fill(rows)
    found = {}
    for size in sorted(groups):
        found[f"read {size:,}"] = reads(groups[size], calls)
    found["online"] = online(rows, calls)
    found |= writes(groups[max(groups)][0], batches)
    return found


def fill(rows: int) -> dict[int, list[str]]:
    """Fill the empty tables. Return the names of the groups of each size."""
    from django.db import connection, transaction

    from benchmarks import filling
    from realtime.records import process_rows

    process = process_rows.start_process("specific.presence", "elsewhere", 1)
    postgres = connection.vendor == "postgresql"
    some_uuid = "gen_random_uuid()" if postgres else "lower(hex(randomblob(16)))"
    false = "false" if postgres else "0"
    groups: dict[int, list[str]] = {}
    whens_group, whens_user, bound = "", "", 0
    for size, count in GROUPS:
        if size * count > rows / 2:
            continue
        for number in range(count):
            groups.setdefault(size, []).append(name := f"size{size}.{number}")
            whens_user += f" WHEN m < {bound} THEN 'u' || n" if bound else ""
            bound += size
            whens_user += f" WHEN m < {bound} THEN 'u' || n"
            bound += size // 10
            whens_user += f" WHEN m < {bound} THEN ''"
            whens_group += f" WHEN m < {bound} THEN '{name}'"
    # The number of each row, and one in another order (7919 is a prime).
    numbers = (
        f"SELECT n, (n * 7919 + 13) % {rows} AS m FROM"
        " (WITH RECURSIVE counted(n) AS (SELECT CAST(0 AS bigint)"
        f" UNION ALL SELECT n + 1 FROM counted WHERE n < {rows - 1}) SELECT n FROM counted) AS numbers"
    )
    owner = f"'{process}'" if postgres else f"'{process.hex}'"
    statements = (
        # The path is the group, until the memberships are made from it.
        "INSERT INTO realtime_connection (id, process_id, user_id, path, remote_address, user_agent,"
        " subprotocol, opened_at, last_seen_at, close_reason)"
        f" SELECT {some_uuid}, {owner},"
        f" CASE{whens_user} WHEN m % 10 = 0 THEN '' ELSE 'u' || n END,"
        f" CASE{whens_group} ELSE 'user.' || n END, '192.0.2.1', 'Mozilla/5.0 (X11; Linux x86_64; rv:145.0)',"
        f" 'realtime.v1', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, '' FROM ({numbers}) AS numbered",
        'INSERT INTO realtime_membership (connection_id, process_id, "group", user_id, joined_at,'
        f" connection_closed) SELECT id, process_id, path, user_id, CURRENT_TIMESTAMP, {false}"
        " FROM realtime_connection",
        *(
            'INSERT INTO realtime_presentuser ("group", user_id, since, stamp)'
            f" SELECT {group}, user_id, CURRENT_TIMESTAMP, {some_uuid} FROM realtime_connection"
            " WHERE user_id <> ''"
            for group in ("''", "path")
        ),
    )
    with filling.much_cache(), transaction.atomic(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    if postgres:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
    return groups


def reads(groups: list[str], calls: int) -> list[float]:
    from realtime.records import presence_rows

    def read(number: int) -> None:
        users, total, anonymous = presence_rows.read(groups[number % len(groups)], GRACE, LIMIT)
        assert (len(users), total // 10) == (min(total, LIMIT), anonymous)

    return timed(read, calls)


def online(rows: int, calls: int) -> list[float]:
    from realtime.records import presence_rows

    return timed(lambda number: presence_rows.is_online(f"u{number * 7919 % (2 * rows)}", GRACE), calls)


def writes(group: str, batches: int) -> dict[str, list[float]]:
    """Write batches of opens and joins, and of closes, in turn with presence and without."""
    from django.conf import settings
    from django.test import override_settings

    from realtime.closing import CloseReason
    from realtime.models import Process
    from realtime.records import presence_rows
    from realtime.records.batch import write_batch
    from realtime.records.entries import Closing, Join, Opening
    from realtime.records.write_queue import Kind, Write

    process = Process.objects.get().pk
    texts = ("/ws/", "192.0.2.1", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0)", "realtime.v1")
    found: dict[str, list[float]] = {}

    def write(name: str, batch: list[Write]) -> None:
        began = time.perf_counter()
        written = write_batch(batch)
        found.setdefault(name, []).append(time.perf_counter() - began)
        assert not [result for result in written.results if isinstance(result, BaseException)]

    for number in range(batches + 1):
        for patterns, title in ((("*",), "with"), ((), "without")):
            with override_settings(REALTIME={**settings.REALTIME, "PRESENCE": patterns}):
                ids = []
                for part in range(2):
                    users = [f"new{number}.{part}.{each}" for each in range(100)]
                    opened = [Opening(uuid.uuid4(), process, user, *texts) for user in users]
                    joins = [Join(row.id, process, group, row.user_id if patterns else "") for row in opened]
                    ids += [row.id for row in opened]
                    write(
                        f"open {title}",
                        [Write(Kind.OPEN, (row,), (row.id,)) for row in opened]
                        + [Write(Kind.JOIN, (join,), (join.connection_id,)) for join in joins],
                    )
                closings = [Closing(id_, CloseReason.CLIENT_LOST, None) for id_ in ids]
                write(f"close {title}", [Write(Kind.CLOSE, (row,), (row.id,)) for row in closings])
        while True:
            began = time.perf_counter()
            if not presence_rows.end_stays(0.0):
                break
            found.setdefault("end", []).append(time.perf_counter() - began)
    # Without the first of each, which fill caches.
    return {name: seconds[2 if name.startswith("open") else 1 :] for name, seconds in found.items()}


def timed(call: Callable[[int], object], calls: int) -> list[float]:
    """Return the seconds of calls, each with its number. The first ones fill caches and do not count."""

    def one(number: int) -> float:
        began = time.perf_counter()
        call(number)
        return time.perf_counter() - began

    return [one(number) for number in range(calls + calls // 10 + 1)][calls // 10 + 1 :]


# -- the command -----------------------------------------------------------------------------------------


def run(stage: Stage, results: Results, kind: str, options: argparse.Namespace) -> None:
    found: dict[str, list[float]] = stage.measured(
        CONTENDERS["ours"],
        kind,
        *("benchmarks.presence", "--inside"),
        *("--rows", str(options.rows), "--calls", str(options.calls)),
        *("--batches", str(options.batches)),
    )
    for name, seconds in found.items():
        figures = {
            "median_ms": statistics.median(seconds) * 1e3,
            "p99_ms": sorted(seconds)[int(len(seconds) * 0.99)] * 1e3,
            "slowest_ms": max(seconds) * 1e3,
            "calls": len(seconds),
        }
        results.add(
            kind, name, figures, f"median {figures['median_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
        )


def goals(results: Results) -> Iterator[Goal]:
    for kind, title in DATABASES.items():
        for name in dict.fromkeys(size for _, size in results.runs):
            if name.startswith("read") or name == "online":
                for figure in ("median", "p99"):
                    measured = results.median(kind, name, f"{figure}_ms")
                    yield Goal(f"{title}: ms of {name}, {figure}", measured, GOAL, most=True)
        pair = [results.median(kind, f"open {title}", "median_ms") for title in ("with", "without")]
        more = None if None in pair else (pair[0] - pair[1]) / 100  # type: ignore[operator]
        yield Goal(f"{title}: ms that presence adds to an open with its join", more, JOIN_GOAL, most=True)


def main() -> None:
    asked = parser(__doc__, DATABASES, repeats=1)
    asked.add_argument("--rows", type=int, default=1_000_000, help="open memberships; default: 1,000,000")
    asked.add_argument("--calls", type=int, default=500, help="reads of each kind; default: 500")
    asked.add_argument("--batches", type=int, default=30, help="batches of closes; default: 30")
    asked.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.inside:
        print(json.dumps(measure(options.rows, options.calls, options.batches)))
        return
    if options.quick:
        options.repeats, options.rows, options.calls, options.batches = 1, 2_000, 10, 2
        options.only = ["sqlite"]
    results = Results("presence", options)
    load = os.getloadavg()
    with Stage() as stage:
        for _ in range(options.repeats):
            for kind in DATABASES:
                if not options.only or kind in options.only:
                    run(stage, results, kind, options)
    found = list(goals(results))
    results.show(COLUMNS, "call", found)
    results.save(
        found, rows_filled=options.rows, load_average_before=load, load_average_after=os.getloadavg()
    )


if __name__ == "__main__":
    main()
