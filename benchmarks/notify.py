"""A user's notifications: 10,000 groups of one connection each, published from async and from sync code.

`python -m benchmarks.notify` opens the connections and publishes to one group after another in a random
order. First it publishes at a calm rate and measures latency. Then it keeps 32 publishes unfinished at any
time and measures the rate from the call to the client. The publisher is a separate process with 8 calls under
way: tasks in async code, threads in sync code. Plain Channels publishes as its documentation says:
`await group_send`, and `async_to_sync(group_send)`.
"""

import argparse
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Running, Stage, require_files

ALL = ("plain", "ours", "plain-core", "ours-core")
COLUMNS = (
    Column("rate", "delivered/s"),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("server_us", "server µs"),
    Column("publisher_us", "publisher µs"),
    Column("redis_us", "redis µs"),
    Column("connected_in", "connected s", 1),
)
#: Messages a second at a calm rate, to all groups together.
CALM = 100.0
UNFINISHED = 32
TASKS = 8


def run(stage: Stage, results: Results, name: str, number: int, options: argparse.Namespace) -> None:
    contender = CONTENDERS[name]
    with stage.set(contender, publish_tasks=TASKS, groups="each") as running:
        opened = running.crowd.connect(number)
        if opened["failed"]:
            raise SystemExit(f"{name}: {opened['failed']} connections failed: {opened['failures']}")
        for caller in options.callers:
            running.crowd.publish_by(contender.publish + ("-sync" if caller == "sync" else ""))
            figures = {**measure(running, options), "connected_in": opened["seconds"]}
            said = f"{figures['rate']:7,.0f} delivered/s, p50 {figures['p50_ms']:.2f} ms"
            results.add(name, f"{number} {caller}", figures, said)


def measure(running: Running, options: argparse.Namespace) -> dict[str, Any]:
    # The first calls open connections to Redis, as the first ones of an application do.
    running.crowd.calm(rate=50, seconds=0.2)
    calm = running.crowd.calm(rate=CALM, seconds=options.seconds)
    full = running.crowd.saturate(unfinished=UNFINISHED, warm_up=options.warm_up, seconds=options.seconds)
    each = {who: used / max(1, full["deliveries"]) * 1e6 for who, used in full["cpu"].items()}
    return {
        "rate": full["deliveries"] / full["seconds"],
        "p50_ms": calm["latency"]["p50"],
        "p99_ms": calm["latency"]["p99"],
        **{f"{who}_us": used for who, used in each.items()},
        "lost": calm["lost"] + full["lost"],
        "lost_connections": full["lost_connections"],
    }


def goals(results: Results, connections: int) -> list[Goal]:
    found = []
    for caller in ("async", "sync"):
        size = f"{connections} {caller}"
        found += [
            Goal(
                f"delivered/s against plain Channels (pub/sub), {caller}",
                results.ratio("rate", ("ours", size), ("plain", size)),
                3,
            ),
            Goal(
                f"p50 against plain Channels (pub/sub), {caller}",
                results.ratio("p50_ms", ("ours", size), ("plain", size)),
                0.5,
                most=True,
            ),
        ]
    broken = sum(
        results.worst(figure, of=lambda name: name.startswith("ours"))
        for figure in ("lost", "lost_connections")
    )
    return [*found, Goal("of ours, messages and connections lost", broken, 0, most=True)]


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--connections", type=int, nargs="+", default=[10_000], metavar="N")
    asked.add_argument("--seconds", type=float, default=4.0, help="of calm, and of saturation")
    asked.add_argument("--warm-up", type=float, default=1.0, help="seconds before saturation is measured")
    asked.add_argument("--callers", nargs="+", choices=("async", "sync"), default=["async", "sync"])
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.seconds, options.warm_up = 1, [10], 0.3, 0.1
        options.callers, options.only = ["sync"], options.only or ["ours"]
    require_files(max(options.connections))
    results = Results("notify", options)
    with Stage() as stage:
        for _ in range(options.repeats):
            for number in options.connections:
                for name in options.only or ALL:
                    run(stage, results, name, number, options)
    found = goals(results, max(options.connections))
    results.show(COLUMNS, "groups", found)
    results.save(found, calm_rate=CALM, unfinished=UNFINISHED, tasks=TASKS)


if __name__ == "__main__":
    main()
