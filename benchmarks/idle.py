"""10,000 idle connections: memory and CPU for each, pings and rounds included.

`python -m benchmarks.idle` opens the connections. It measures the server's memory (RSS) before and after, and
its CPU for one ping interval of 20 s. Then it publishes ten messages a second for the same time to a group of
100 of the connections. The p99 of the messages while 10,000 connections are pinged is compared with the
p99 without pings. This project runs with a reaper, so the figures include rounds. `ours-silent` is the same
without pings of any kind. `ours-limited` counts its connections and what they send, as by default, with
limits that are never reached. Each contender keeps its default pings.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import LeftOut, Stage, require_files
from tests.support.programs.servers import DaphneServer
from tests.support.unlimited import UNLIMITED


class UnpingedDaphneServer(DaphneServer):
    """Daphne without pings of its own; of two equal options the last one counts."""

    def command_for(self, application: str) -> list[str]:
        *options, named = super().command_for(application)
        return [*options, "--ping-interval", "86400", "--ping-timeout", "86400", named]


SILENT = {"PING_INTERVAL": 86_400.0, "PROBE_AFTER": 86_400.0, "MAX_SILENCE": 200_000.0}
#: The clients of a benchmark have one address, so the limits of the others are off.
LIMITED = {name: 1_000_000 for name, limit in UNLIMITED.items() if limit is None} | {
    "MAX_BYTES_PER_SECOND": 1_000_000_000
}
EVERY = {
    **CONTENDERS,
    "ours-limited": dataclasses.replace(CONTENDERS["ours"], name="ours-limited", realtime=LIMITED),
    "ours-silent": dataclasses.replace(
        CONTENDERS["ours"], name="ours-silent", realtime=SILENT, server=UnpingedDaphneServer
    ),
}
ALL = (
    "ours",
    "ours-limited",
    "ours-silent",
    "plain",
    "daphne",
    "ours-uvicorn",
    "socket.io",
    "ws",
    "websockets",
)
COLUMNS = (
    Column("kib", "KiB each", 1),
    Column("cpu_s", "CPU s/20 s", 2),
    Column("pings", "pings/20 s"),
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
    Column("reaper_s", "reaper s/20 s", 2),
    Column("connected_in", "connected s", 1),
)
INTERVAL = 20.0
#: Connections in the group that is published to, and messages a second.
FEW, CALM = 100, 10.0


def run(stage: Stage, results: Results, name: str, number: int, options: argparse.Namespace) -> None:
    with stage.set(EVERY[name], reaper=name.startswith("ours"), few=FEW) as running:
        crowd = running.crowd
        # The first connections also load modules, pools and the hub, so do not count them.
        begun = crowd.connect(min(FEW, number // 2))
        before = crowd.memory()["server"]
        opened = crowd.connect(number - begun["opened"], sample=0.0, timeout=120.0)
        if opened["failed"] or begun["failed"]:
            raise SystemExit(f"{name}: {opened['failed']} connections failed: {opened['failures']}")
        # The first ping of a connection comes after half an interval to a whole one.
        crowd.idle(options.seconds)
        after = crowd.memory()["server"]
        idle = crowd.idle(options.seconds)
        calm: dict[str, Any] = {"latency": {"p50": None, "p99": None}, "lost": 0, "lost_connections": 0}
        if name.startswith("ours") or name == "plain":
            calm = crowd.calm(rate=CALM, seconds=options.seconds)
    scale = INTERVAL / options.seconds
    figures = {
        "mib": after / 1024**2,
        "kib": (after - before) / opened["opened"] / 1024,
        "cpu_s": idle["cpu"]["server"] * scale,
        "pings": idle["pings"] * scale,
        "reaper_s": idle["cpu"].get("reaper", 0.0) * scale if name.startswith("ours") else None,
        "redis_s": idle["cpu"].get("redis", 0.0) * scale,
        "p50_ms": calm["latency"]["p50"],
        "p99_ms": calm["latency"]["p99"],
        "connected_in": opened["seconds"],
        "lost": calm["lost"],
        "lost_connections": idle["lost_connections"] + calm["lost_connections"],
    }
    said = f"{figures['kib']:5.1f} KiB each, {figures['cpu_s']:.2f} s of CPU in {INTERVAL:.0f} s"
    results.add(name, number, figures, said)


def goals(results: Results, connections: int) -> list[Goal]:
    loud, silent = (results.median(name, connections, "cpu_s") for name in ("ours", "ours-silent"))
    pings = loud - silent if loud is not None and silent is not None else None
    late = results.ratio("p99_ms", ("ours", connections), ("ours-silent", connections))
    lost = results.worst("lost_connections", of=lambda name: name.startswith("ours"))
    return [
        Goal("KiB of memory per connection", results.median("ours", connections, "kib"), 30, most=True),
        Goal("seconds of CPU for pinging every connection once", pings, 1, most=True),
        Goal("p99 of a calm publish during pings against without", late, 2, most=True),
        Goal("of ours, connections lost", lost, 0, most=True),
    ]


def main() -> None:
    asked = parser(__doc__, EVERY)
    asked.add_argument("--connections", type=int, nargs="+", default=[10_000], metavar="N")
    asked.add_argument("--seconds", type=float, default=INTERVAL, help="of idling, and of calm publishing")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.seconds = 1, [20], 0.5
        options.only = options.only or ["ours"]
    require_files(max(options.connections))
    results = Results("idle", options)
    with Stage() as stage:
        for _ in range(options.repeats):
            for number in options.connections:
                for name in options.only or ALL:
                    try:
                        run(stage, results, name, number, options)
                    except LeftOut as why:
                        results.leave_out(name, str(why))
    found = goals(results, max(options.connections))
    results.show(COLUMNS, "connections", found)
    results.save(found, seconds=options.seconds)


if __name__ == "__main__":
    main()
