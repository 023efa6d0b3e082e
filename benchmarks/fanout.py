"""Fan-out: one group of N connections, its latency at a calm rate, and its rate when saturated.

`python -m benchmarks.fanout` runs every contender in turn. Each server gets 100 connections, then 1,000, then
3,000, all in one group. At each size, messages of 200 bytes are published in two ways:

- At a calm rate: latency from the publisher's decision to the client's read, over all clients, and
  microseconds of the server's CPU for each delivery, pings included.
- With two publishes unfinished at any time: deliveries a second, and microseconds of the server's CPU for
  each delivery, without Redis.

Order and losses are checked.

Compare only figures of one run: the figures of the same program differ by 20 to 50 % between a quiet machine
and a busy one. The table has the generator's own CPU for each delivery. If it is about as high as the
server's, the generator was saturated as well, and CPU per delivery is the figure to compare.
"""

import argparse

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import LeftOut, Running, Stage, require_files

ALL = (
    *("plain", "ours", "ours-history", "ours-asgi", "socket.io", "ws", "websockets"),
    *("plain-uvicorn", "ours-uvicorn", "plain-core", "ours-core", "drop-in"),
    *("plain-sync", "drop-in-sync"),
)
COLUMNS = (
    Column("rate", "deliveries/s"),
    Column("server_us", "server µs", 1),
    Column("redis_us", "redis µs", 1),
    Column("generator_us", "generator µs", 1),
    Column("calm_us", "calm µs", 1),
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
)
#: Deliveries a second at a calm rate; the slowest contender manages three times as many.
CALM = 1000.0
#: The share of the connections that read their frames, to check latency, order and losses.
SAMPLE = 0.2


def calm_rate(size: int) -> float:
    """Return messages a second."""
    return min(10.0, CALM / size)


def measure(running: Running, size: int, options: argparse.Namespace) -> dict[str, object]:
    crowd = running.crowd
    calm = crowd.calm(rate=calm_rate(size), seconds=options.calm_seconds)
    full = crowd.saturate(unfinished=options.unfinished, warm_up=options.warm_up, seconds=options.seconds)
    each = {name: used / max(1, full["deliveries"]) * 1e6 for name, used in full["cpu"].items()}
    return {
        "rate": full["deliveries"] / full["seconds"],
        "server_us": each["server"],
        "redis_us": each.get("redis"),
        "message_ms": each["server"] * size / 1e3,
        "generator_us": each["generator"],
        "calm_us": calm["cpu"]["server"] / max(1, calm["deliveries"]) * 1e6,
        "p50_ms": calm["latency"]["p50"],
        "p99_ms": calm["latency"]["p99"],
        "max_ms": calm["latency"]["max"],
        "lost": calm["lost"] + full["lost"],
        "out_of_order": calm["out_of_order"] + full["out_of_order"],
        "lost_connections": full["lost_connections"],
    }


def run(stage: Stage, results: Results, name: str, options: argparse.Namespace) -> None:
    """Measure one server of the contender at all sizes."""
    with stage.set(CONTENDERS[name]) as running:
        opened = 0
        for size in sorted(options.connections):
            answer = running.crowd.connect(size - opened, sample=SAMPLE)
            opened = size
            if answer["failed"]:
                raise SystemExit(f"{name}: {answer['failed']} connections failed: {answer['failures']}")
            figures = measure(running, size, options)
            said = f"{figures['rate']:9,.0f} deliveries/s, {figures['server_us']:6.1f} µs each"
            results.add(name, size, figures, f"{said}, p50 {figures['p50_ms']:.1f} ms")


def goals(results: Results) -> list[Goal]:
    def faster(one: str, other: str, size: int) -> float | None:
        return results.ratio("rate", (one, size), (other, size))

    def cost(other: str, size: int) -> float | None:
        return results.ratio("server_us", ("ours", size), (other, size))

    def calm(other: str) -> float | None:
        return results.ratio("calm_us", ("ours", 1000), (other, 1000))

    own = ("plain", 1000), ("drop-in", 1000)
    history = ("ours-history", 1000), ("ours", 1000)
    late = results.ratio("p50_ms", ("plain", 3000), ("ours", 3000))
    return [
        Goal("deliveries/s against plain Channels, 1,000 connections", faster("ours", "plain", 1000), 20),
        Goal("deliveries/s against plain Channels, 3,000 connections", faster("ours", "plain", 3000), 25),
        Goal("CPU per delivery against Socket.IO, 1,000 connections", cost("socket.io", 1000), 1, most=True),
        Goal(
            "CPU per delivery against websockets, 1,000 connections", cost("websockets", 1000), 1, most=True
        ),
        Goal("CPU per calm delivery against websockets, 1,000", calm("websockets"), 1.2, most=True),
        Goal("CPU per calm delivery against Socket.IO, 1,000", calm("socket.io"), 1.1, most=True),
        Goal("p50 of plain Channels against ours, 3,000 connections, calm", late, 25),
        Goal("deliveries/s with history against without, 1,000", results.ratio("rate", *history), 0.9),
        Goal(
            "CPU per delivery with history against without, 1,000",
            results.ratio("server_us", *history),
            1.1,
            most=True,
        ),
        Goal("AsgiTransport on Daphne against plain Channels, 1,000", faster("ours-asgi", "plain", 1000), 4),
        Goal(
            "on uvicorn against plain Channels there, 1,000",
            faster("ours-uvicorn", "plain-uvicorn", 1000),
            10,
        ),
        Goal("handlers of your own against plain Channels, 1,000", faster("drop-in", "plain", 1000), 10),
        Goal("p50 of plain Channels against them, 1,000, calm", results.ratio("p50_ms", *own), 10),
        Goal("synchronous handlers against plain ones, 1,000", faster("drop-in-sync", "plain-sync", 1000), 2),
        Goal("of ours, frames lost, out of order, connections lost", _broken(results), 0, most=True),
    ]


def _broken(results: Results) -> float:
    def ours(name: str) -> bool:
        return name.startswith(("ours", "drop-in"))

    return sum(results.worst(figure, of=ours) for figure in ("lost", "out_of_order", "lost_connections"))


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--connections", type=int, nargs="+", default=[100, 1000, 3000], metavar="N")
    asked.add_argument("--seconds", type=float, default=5.0, help="of saturation, at each size")
    # Long enough for two rounds of pings that follow writes.
    asked.add_argument("--calm-seconds", type=float, default=12.0, help="of calm, at each size")
    asked.add_argument("--warm-up", type=float, default=1.0, help="seconds before saturation is measured")
    asked.add_argument(
        "--unfinished", type=int, default=2, metavar="N", help="publishes under way; 2 unless given"
    )
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.warm_up = 1, [5, 10], 0.1
        options.seconds = options.calm_seconds = 0.3
    require_files(max(options.connections))
    results = Results("fanout", options)
    with Stage() as stage:
        # Run the contenders in turn, so that a busy minute of the machine does not affect only one.
        for _ in range(options.repeats):
            for name in options.only or (("ours",) if options.quick else ALL):
                try:
                    run(stage, results, name, options)
                except LeftOut as why:
                    results.leave_out(name, str(why))
    found = goals(results)
    results.show(COLUMNS, "connections", found)
    results.save(
        found,
        sample=SAMPLE,
        unfinished=options.unfinished,
        calm_rate={size: calm_rate(size) for size in options.connections},
    )


if __name__ == "__main__":
    main()
