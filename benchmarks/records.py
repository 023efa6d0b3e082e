"""The database at 1,000,000 open records: a round that finds no lost process, and the sweep of a lost one.

`python -m benchmarks.records` fills a database with open connections of 10 processes, each connection in its
own group. Rounds are the reaper's own, from the claim to the end of a sweep that finds nothing, with
processes that answer immediately. Then three of the processes are declared lost, one after another, and
swept: 100,000 records to close and 100,000 groups to leave, in batches. The longest batch is a figure of its
own. `touch` is the time to write that 10,000 connections of a process are alive. A process does this once a
minute for its own connections.
"""

import argparse
import statistics
import sys
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Stage

PROCESSES = 10
COLUMNS = (
    Column("round_ms", "round ms", 1),
    Column("slowest_round_ms", "slowest ms", 1),
    Column("sweep_s", "sweep s", 1),
    Column("batch_ms", "longest ms", 1),
    Column("batches", "batches"),
    Column("touch_s", "touch s", 2),
    Column("filled_in", "filled in s", 1),
)
CASES = (("pubsub", "sqlite"), ("pubsub", "postgres"), ("core", "sqlite"))


def run(
    stage: Stage, results: Results, layer: str, kind: str, rows: int, options: argparse.Namespace
) -> None:
    contender = CONTENDERS["ours" if layer == "pubsub" else "ours-core"]
    arguments = (rows, PROCESSES, options.repeats, max(3, options.repeats))
    found: dict[str, Any] = stage.measured(contender, kind, "benchmarks.rounds", *map(str, arguments))
    for swept in found["sweeps"]:
        held = rows // PROCESSES
        if (swept["reaped"], swept["discarded"]) != (held, held):
            sys.exit(f"a sweep of {held} records left something behind: {swept}")
        figures = {
            "round_ms": statistics.median(found["rounds"]) * 1e3,
            "slowest_round_ms": max(found["rounds"]) * 1e3,
            "sweep_s": swept["seconds"],
            "batch_ms": max(swept["longest"].values()) * 1e3,
            "batches": swept["batches"],
            "touch_s": found["touched"],
            "filled_in": found["filled_in"],
            **{f"{name}_ms": seconds * 1e3 for name, seconds in swept["longest"].items()},
            **{f"{name}_s": seconds for name, seconds in swept["total"].items()},
        }
        said = f"round {figures['round_ms']:.1f} ms, sweep {swept['seconds']:.1f} s"
        results.add(f"{layer} {kind}", rows, figures, f"{said}, longest batch {figures['batch_ms']:.0f} ms")


def goals(results: Results, rows: int) -> list[Goal]:
    found = []
    for kind, title in (("sqlite", "SQLite"), ("postgres", "PostgreSQL")):
        case = (f"pubsub {kind}", rows)
        found += [
            Goal(
                f"{title}: ms of a round that finds no lost process",
                results.median(*case, "round_ms"),
                50,
                most=True,
            ),
            Goal(
                f"{title}: s to sweep {rows // PROCESSES:,}", results.median(*case, "sweep_s"), 10, most=True
            ),
            Goal(f"{title}: ms of the longest batch", results.median(*case, "batch_ms"), 200, most=True),
        ]
    return found


def main() -> None:
    asked = parser(__doc__, ("pubsub", "core"))
    asked.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    asked.add_argument("--database", choices=("sqlite", "postgres"), help="only this one")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.rows, options.database = 1, [100], "sqlite"
        options.only = ["pubsub"]
    results = Results("records", options)
    with Stage() as stage:
        for rows in options.rows:
            for layer, kind in CASES:
                if options.database in (None, kind) and (not options.only or layer in options.only):
                    run(stage, results, layer, kind, rows, options)
    found = goals(results, max(options.rows))
    results.show(COLUMNS, "open rows", found)
    results.save(found, processes=PROCESSES)


if __name__ == "__main__":
    main()
