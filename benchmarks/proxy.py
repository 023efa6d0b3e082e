"""Several daphne processes behind HAProxy, to check the costs in docs/scaling.md for larger installations.

`python -m benchmarks.proxy` runs 1, 2 and 4 processes behind HAProxy, and one without it, each with 2,000
connections in one group. Every process receives a message once. So the cost of a message in Redis grows with
the processes and not with the connections, and the servers' cost per delivery stays the same.
"""

import argparse
import shutil
import sys

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Stage, require_files

COLUMNS = (
    Column("connect_rate", "connects/s"),
    Column("connect_ms", "server ms", 2),
    Column("rate", "deliveries/s"),
    Column("server_us", "server µs", 1),
    Column("proxy_us", "proxy µs", 1),
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
)
CALM = 2.0


def run(stage: Stage, results: Results, processes: int, proxied: bool, options: argparse.Namespace) -> None:
    with stage.set(CONTENDERS["ours"], processes=processes, proxied=proxied, reaper=True) as running:
        crowd = running.crowd
        crowd.connect(processes)
        opened = crowd.connect(options.connections - processes, at_once=50, sample=0.2)
        if opened["failed"]:
            raise SystemExit(f"{opened['failed']} connections failed: {opened['failures']}")
        calm = crowd.calm(rate=CALM, seconds=options.seconds)
        full = crowd.saturate(unfinished=2, warm_up=options.warm_up, seconds=options.seconds)
    each = {name: used / max(1, full["deliveries"]) * 1e6 for name, used in full["cpu"].items()}
    figures = {
        "connect_rate": opened["opened"] / opened["seconds"],
        "connect_ms": opened["cpu"]["server"] / opened["opened"] * 1e3,
        "rate": full["deliveries"] / full["seconds"],
        "server_us": each["server"],
        "proxy_us": each.get("proxy"),
        "redis_message_us": each["redis"] * options.connections,
        "generator_us": each["generator"],
        "p50_ms": calm["latency"]["p50"],
        "p99_ms": calm["latency"]["p99"],
        "lost": calm["lost"] + full["lost"],
        "out_of_order": calm["out_of_order"] + full["out_of_order"],
        "lost_connections": full["lost_connections"],
    }
    said = f"{figures['rate']:9,.0f} deliveries/s, {figures['server_us']:.1f} µs each"
    results.add("HAProxy" if proxied else "direct", processes, figures, said)


def goals(results: Results) -> list[Goal]:
    dearer = results.ratio("server_us", ("HAProxy", 4), ("HAProxy", 1))
    broken = sum(results.worst(figure) for figure in ("lost", "out_of_order", "lost_connections"))
    return [
        Goal("CPU per delivery of 4 processes against 1", dearer, 1.25, most=True),
        Goal("frames lost, out of order, connections lost", broken, 0, most=True),
    ]


def main() -> None:
    asked = parser(__doc__, ("ours",))
    asked.add_argument("--connections", type=int, default=2000, metavar="N")
    asked.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    asked.add_argument("--seconds", type=float, default=5.0, help="of calm, and of saturation")
    asked.add_argument("--warm-up", type=float, default=1.0, help="seconds before saturation is measured")
    options = asked.parse_args()
    if shutil.which("haproxy") is None:
        sys.exit("HAProxy is not on PATH: install it (apt-get install haproxy)")
    if options.quick:
        options.repeats, options.connections, options.processes = 1, 20, [2]
        options.seconds, options.warm_up = 0.5, 0.1
    require_files(2 * options.connections)
    results = Results("proxy", options)
    with Stage() as stage:
        for _ in range(options.repeats):
            if not options.quick:
                run(stage, results, 1, False, options)
            for processes in options.processes:
                run(stage, results, processes, True, options)
    found = goals(results)
    results.show(COLUMNS, "processes", found)
    results.save(found, connections=options.connections)


if __name__ == "__main__":
    main()
