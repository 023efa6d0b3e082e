"""Connecting: accepted connections a second, each with its record committed, and a storm.

`python -m benchmarks.connect` opens 2,000 connections, 50 at a time, to each contender on each database. A
connection counts when its handshake is answered. In this project that is after the COMMIT of its record and
membership, and the benchmark counts the rows to check it. Then it closes all connections with a close
handshake, and checks the rows again.

The storm opens 3,000 connections at the same time and gives each of them 30 s.
"""

import argparse
import time

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import LeftOut, Running, Stage, require_files

#: Contender and database.
STEADY = (
    *(("plain", "sqlite"), ("plain-recording", "sqlite"), ("ours", "sqlite")),
    *(("plain-recording", "postgres"), ("ours", "postgres")),
    *(
        ("plain-uvicorn", "sqlite"),
        ("ours-uvicorn", "sqlite"),
        ("ours-core", "sqlite"),
        ("drop-in", "sqlite"),
    ),
)
STORM = (
    *(("plain-default", "sqlite"), ("plain", "sqlite"), ("ours", "sqlite"), ("ours", "postgres")),
    *(("plain-uvicorn", "sqlite"), ("ours-uvicorn", "sqlite")),
)
COLUMNS = (
    Column("rate", "connects/s"),
    Column("cpu_ms", "server ms", 2),
    Column("database_ms", "database ms", 2),
    Column("redis_ms", "redis ms", 2),
    Column("failed", "failed"),
    Column("slowest", "slowest s", 2),
    Column("closed_rate", "closes/s"),
    Column("close_ms", "close ms", 2),
)
#: The table of a contender that keeps records.
TABLES = {"tests.support.live": "realtime_connection", "benchmarks.plain.settings": "plain_visit"}
STORM_TIMEOUT = 30.0


def records(running: Running) -> bool:
    return running.contender.name.startswith(("ours", "drop-in", "plain-recording"))


def open_rows(running: Running) -> int:
    assert running.database is not None
    table = TABLES[running.contender.settings]
    return int(running.database.value(f"SELECT count(*) FROM {table} WHERE closed_at IS NULL"))


def measure(running: Running, number: int, at_once: int, timeout: float) -> dict[str, object]:
    """Open `number` connections and close them again."""
    # The first connection pays for imports, the first database connection and the hub.
    running.crowd.connect(1)
    into = running.crowd.connect(number, at_once=at_once, timeout=timeout, sample=0.0)
    opened = max(1, into["opened"])
    each = {name: used / opened * 1e3 for name, used in into["cpu"].items()}
    if records(running) and open_rows(running) < into["opened"]:
        raise SystemExit(f"{running.contender.name}: not every accepted connection has its record")
    began = time.monotonic()
    out = running.crowd.close()
    if records(running):
        while open_rows(running) and time.monotonic() - began < 60:
            time.sleep(0.05)
    return {
        "rate": into["opened"] / into["seconds"],
        "opened": into["opened"],
        "seconds": into["seconds"],
        "failed": into["failed"],
        "slowest": into["slowest"],
        "cpu_ms": each["server"],
        "database_ms": each.get("database"),
        "redis_ms": each.get("redis"),
        "generator_ms": each["generator"],
        "closed_rate": opened / (time.monotonic() - began),
        "close_ms": out["cpu"]["server"] / opened * 1e3,
        "left_open": open_rows(running) if records(running) else None,
    }


def run(
    stage: Stage, results: Results, case: tuple[str, str], number: int, options: argparse.Namespace
) -> None:
    """Measure `number` connections of a contender on a database; 0 is the storm."""
    name, database = case
    with stage.set(CONTENDERS[name], database=database) as running:
        if number:
            size = f"{number} {database}"
            figures = measure(running, number, options.at_once, 60.0)
        else:
            size = f"storm {database}"
            figures = measure(running, options.storm, options.storm, STORM_TIMEOUT)
    said = f"{figures['rate']:7,.0f} connects/s, {figures['failed']} failed, {figures['cpu_ms']:.2f} ms each"
    results.add(name, size, figures, said)


def goals(results: Results, number: int) -> list[Goal]:
    def faster(database: str, other: str, its: str) -> float | None:
        return results.ratio("rate", ("ours", f"{number} {database}"), (other, f"{number} {its}"))

    def failed(database: str) -> float | None:
        return results.median("ours", f"storm {database}", "failed")

    storm = results.ratio("rate", ("ours", "storm sqlite"), ("plain-default", "storm sqlite"))
    found = []
    for database, title in (("sqlite", "SQLite"), ("postgres", "PostgreSQL")):
        found += [
            Goal(
                f"{title}: against plain Channels that records nothing",
                faster(database, "plain", "sqlite"),
                1.5,
            ),
            Goal(
                f"{title}: against plain Channels that writes per connect and disconnect",
                faster(database, "plain-recording", database),
                2.5,
            ),
            Goal(f"{title}: failed in the storm", failed(database), 0, most=True),
        ]
    left = results.worst("left_open", of=lambda name: name.startswith(("ours", "drop-in")))
    return [
        *found,
        Goal(
            "SQLite: a consumer of your own against plain Channels",
            results.ratio("rate", ("drop-in", f"{number} sqlite"), ("plain", f"{number} sqlite")),
            1.5,
        ),
        Goal("storm against `daphne -b -p`", storm, 10),
        Goal("records left open after all were closed", left, 0, most=True),
    ]


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--connections", type=int, nargs="+", default=[2000], metavar="N")
    asked.add_argument("--at-once", type=int, default=50, metavar="N", help="handshakes under way")
    asked.add_argument(
        "--storm", type=int, default=3000, metavar="N", help="connections of the storm; 0: no storm"
    )
    asked.add_argument("--database", choices=("sqlite", "postgres"), help="only this one")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.storm, options.database = 1, [20], 20, "sqlite"
        options.only = options.only or ["ours"]
    require_files(max(*options.connections, options.storm))
    cases = [(number, case) for number in options.connections for case in STEADY]
    cases += [(0, case) for case in STORM if options.storm]
    results = Results("connect", options)
    with Stage() as stage:
        for _ in range(options.repeats):
            for number, case in cases:
                if options.only and case[0] not in options.only:
                    continue
                if options.database and case[1] != options.database:
                    continue
                try:
                    run(stage, results, case, number, options)
                except LeftOut as why:
                    results.leave_out(case[0], str(why))
    found = goals(results, max(options.connections))
    results.show(COLUMNS, "", found)
    results.save(found, connections=options.connections, at_once=options.at_once, storm=options.storm)


if __name__ == "__main__":
    main()
