"""Measure floods: 200 connections that send all they can, beside 20 honest clients on two servers.

`python -m benchmarks.floods` starts two servers and a reaper for each kind of flood. The honest clients talk
to each other in one group, half of them through the server that is flooded. Flooders and honest clients are
separate processes. After some calm seconds, 200 connections flood with 1,000 frames a second each:

- `frames`: pongs that answer no ping, the cheapest frame that is no error;
- `pings`, `control`: pings of `realtime.v1`, and of RFC 6455;
- `large`: messages of 60 KB;
- `joins`, `publishes`: joins of ever more groups, and messages to groups of their own;
- `handshakes`: 2,000 handshakes a second from one address, each connection closed immediately.

The limits are those of the defaults. The other flooders come from four addresses, as behind a proxy. The
table says how long it took until a flooder was cut (or an address was refused a handshake). It also says what
the honest clients noticed: the p99 of their deliveries while the flood lasted, and from its beginning on.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Stage
from tests.support.assertions.flooding import LIMITED, Flooded, flooded
from tests.support.clients.flooders import KINDS
from tests.support.pairings import Pairing
from tests.support.programs.databases import Database
from tests.support.programs.site import Site

CONTENDERS = {
    "ours": Pairing("pubsub", "daphne", "sqlite"),
    "ours-uvicorn": Pairing("pubsub", "uvicorn", "sqlite"),
    "ours-core": Pairing("core", "daphne", "sqlite"),
}
COLUMNS = (
    Column("cut_p50_s", "cut p50 s", 2),
    Column("cut_max_s", "cut max s", 2),
    Column("open", "not cut"),
    Column("missed", "missed"),
    Column("calm_p99_ms", "calm p99 ms", 1),
    Column("flood_p99_ms", "flood p99 ms", 1),
    Column("since_p99_ms", "and after", 1),
    Column("before_mb", "MB before", 0),
    Column("most_mb", "MB most", 0),
    Column("after_mb", "MB after", 0),
    Column("refused", "refused"),
    Column("rows_of_refused", "their rows"),
)
HANDSHAKES_PER_SECOND = 2000.0


def run(stage: Stage, results: Results, name: str, kind: str, options: argparse.Namespace) -> None:
    pairing = CONTENDERS[name]
    database = stage.database("tests.support.live", pairing.database)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{kind}-", dir=stage.folder))
    rate = HANDSHAKES_PER_SECOND if kind == "handshakes" else options.rate
    seen = measured(folder, pairing, database, kind, rate, options)
    figures = figures_of(seen)
    cut, p99 = figures["cut_max_s"] or 0.0, figures["flood_p99_ms"]
    said = f"cut within {cut:.2f} s, {seen.missed} missed, p99 {p99:.1f} ms"
    results.add(name, kind, figures, said)


def measured(
    folder: Path, pairing: Pairing, database: Database, kind: str, rate: float, options: argparse.Namespace
) -> Flooded:
    with Site(folder, pairing, database, **LIMITED) as site:
        servers = [site.serve(), site.serve()]
        site.reaper()
        return flooded(
            site,
            servers,
            kind,
            *(("--addresses", "1") if kind == "handshakes" else ()),
            connections=options.connections,
            rate=rate,
            seconds=options.seconds,
            calm=options.calm,
        )


def figures_of(seen: Flooded) -> dict[str, Any]:
    accepted = seen.codes.get("None", 0)
    refused = sum(number for code, number in seen.codes.items() if code not in ("None", "4029", "lost"))
    before, most, after = (size / 1024 / 1024 for size in seen.memory)
    calm, flood = seen.phases["calm"]["p99"], seen.phases["flood"]["p99"]
    since = seen.phases["since flood"]["p99"]
    return {
        "cut_p50_s": statistics.median(seen.cut) if seen.cut else None,
        "cut_max_s": max(seen.cut, default=None),
        "open": seen.open,
        "sent": seen.sent,
        "missed": seen.missed,
        "lost_connections": len(seen.lost) + seen.refused,
        "calm_p99_ms": calm,
        "flood_p50_ms": seen.phases["flood"]["p50"],
        "flood_p99_ms": flood,
        "since_p99_ms": since,
        "ratio": flood / calm,
        "since_ratio": since / calm,
        "before_mb": before,
        "most_mb": most,
        "after_mb": after,
        "refused": refused,
        # Connections that were admitted before the flood had their rows already.
        "rows_of_refused": max(0, seen.rows - accepted),
    }


def goals(results: Results) -> list[Goal]:
    found = []
    for name, kind in results.runs:
        found += [
            Goal(
                f"{name}, {kind}: s until the last flooder was cut",
                results.median(name, kind, "cut_max_s"),
                5,
                True,
            ),
            Goal(
                f"{name}, {kind}: p99 of the honest against calm",
                results.median(name, kind, "ratio"),
                2,
                True,
            ),
        ]
    return [
        *found,
        Goal(
            "messages and connections that the honest lost, rows of refused connections",
            sum(results.worst(each) for each in ("missed", "lost_connections", "rows_of_refused")),
            0,
            True,
        ),
    ]


def main() -> None:
    asked = parser(__doc__, CONTENDERS)
    asked.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked.add_argument("--connections", type=int, default=200, metavar="N")
    asked.add_argument("--rate", type=float, default=1000.0, help="frames per second of each")
    asked.add_argument("--seconds", type=float, default=10.0, help="the longest time of a flood")
    asked.add_argument("--calm", type=float, default=8.0, help="seconds before a flood, and after it")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.kinds, options.calm = 1, 10, ["pings"], 0.5
        options.only = options.only or ["ours"]
    results = Results("floods", options)
    with Stage() as stage:
        for _ in range(options.repeats):
            for kind in options.kinds:
                for name in options.only or ["ours", "ours-uvicorn"]:
                    run(stage, results, name, kind, options)
    found = goals(results)
    results.show(COLUMNS, "flood", found)
    results.save(found, connections=options.connections, rate=options.rate)


if __name__ == "__main__":
    main()
