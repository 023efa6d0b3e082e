"""History: what it costs to keep the recent messages of a group, and how fast clients recover them.

`python -m benchmarks.history` measures five parts, each with and without history in the same run:

- `publish`: publishes to a group with one client in a server: one at a time, and 64 at a time. The two groups
  and the publishes with an id take turns in one process.
- `deliveries`: one group of 1,000 connections, as in `benchmarks.fanout`.
- `recovery`: 1,000 clients, which each missed 100 messages of 200 bytes, connect at the same time and join
  with the position of the last message that they have. It ends when the last client has its last message.
  `history, memory`: the server has received the messages. `history, redis`: it had no member of the group
  before, as if it had just started. `no history`: the clients connect and join, and miss nothing. The
  difference, divided by the messages, is what a recovered message costs.
- `memory`: bytes for each message in Redis (MEMORY USAGE of the stream), and in the server (its resident
  memory), for messages of 100 bytes, 1 kB and 10 kB.
- `checks`: one comparison of the positions of 10,000 groups with those in Redis, which a server makes several
  times in an interval.

A number in each message checks order and losses.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.fanout import SAMPLE, measure
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Running, Stage, require_files
from tests.support.programs.servers import CHECKOUT, RedisServer

PARTS = ("publish", "deliveries", "recovery", "memory", "checks")
LAYERS = {"pubsub": "ours", "core": "ours-core"}
COLUMNS = {
    "publish": (
        Column("each_us", "each µs", 1),
        Column("publisher_us", "publisher µs", 1),
        Column("redis_us", "Redis µs", 1),
        Column("rate", "publishes/s"),
    ),
    "deliveries": (
        Column("rate", "deliveries/s"),
        Column("server_us", "server µs", 1),
        Column("redis_us", "Redis µs", 1),
        Column("generator_us", "generator µs", 1),
        Column("calm_us", "calm µs", 1),
        Column("p50_ms", "p50 ms", 1),
        Column("p99_ms", "p99 ms", 1),
    ),
    "recovery": (
        Column("seconds", "last s", 2),
        Column("rate", "messages/s"),
        Column("server_ms", "server ms", 2),
        Column("message_us", "message µs", 2),
        Column("redis_ms", "Redis ms", 2),
        Column("reads", "reads"),
    ),
    "memory": (
        Column("redis_bytes", "Redis bytes"),
        Column("server_bytes", "server bytes"),
    ),
    "checks": (
        Column("cpu_ms", "server ms", 1),
        Column("redis_ms", "Redis ms", 1),
        Column("ms", "ms", 1),
    ),
}
#: The groups of the clients of `publish`: benchmarks.generator numbers them.
PLAIN, KEPT = "public.0", "public.1"
#: The cases of `recovery`, each with its contender.
RECOVERIES = {"no history": "ours", "history, memory": "ours-history", "history, redis": "ours-history"}
#: The size of each message in `memory`, and the number of them: 20 MB, and no more than 20,000 messages.
SIZES = {100: 20_000, 1000: 20_000, 10_000: 2000}
#: A client that did not recover after this many seconds failed.
TIMEOUT = 60.0


def keeping(contender: Contender, pattern: str, size: int, **more: object) -> Contender:
    """Return this contender with history in the groups that match the pattern."""
    kept = {"HISTORY": {pattern: {"size": size, "ttl": 300}}, **more}
    return dataclasses.replace(contender, realtime={**contender.realtime, **kept})


def calls(environment: dict[str, str], *arguments: object) -> dict[str, Any]:
    """Run a command of `benchmarks.calls`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.calls", *map(str, arguments)],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"benchmarks.calls {arguments[0]} failed; see above")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def environment(stage: Stage, running: Running) -> dict[str, str]:
    assert running.redis is not None
    assert running.database is not None
    return stage.environment(running.contender, running.redis, running.database)


# -- publish -------------------------------------------------------------------------------------------


def publish(stage: Stage, results: Results, options: argparse.Namespace) -> None:
    for layer, name in LAYERS.items():
        if options.quick and layer != "pubsub":
            continue
        contender = keeping(CONTENDERS[name], KEPT, size=300)
        with stage.set(contender, groups="each") as running:
            running.crowd.connect(2)
            asked = ("publish", PLAIN, KEPT, options.publishes, options.tasks)
            found = calls(environment(stage, running), *asked)
        for tasks, measured in found["tasks"].items():
            for case, took in measured.items():
                each = {figure: value / found["number"] * 1e6 for figure, value in took.items()}
                figures = {
                    "each_us": each["seconds"],
                    "publisher_us": each["cpu"],
                    "redis_us": each["redis"],
                    "rate": 1e6 / each["seconds"],
                }
                said = f"{figures['each_us']:.0f} µs, {figures['rate']:,.0f} publishes/s"
                results.add(case, _publishing(layer, int(tasks)), figures, said)


def _publishing(layer: str, tasks: int) -> str:
    return f"publish, {layer}, {tasks} at a time"


def publish_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    goals = []
    for layer in LAYERS:
        for tasks, title in ((1, "one at a time"), (options.tasks, f"{options.tasks} at a time")):
            at = _publishing(layer, tasks)
            for case, words in (("history", "with history"), ("history, ids", "with an id")):
                ratio = results.ratio("each_us", (case, at), ("no history", at))
                goals.append(
                    Goal(f"{layer}: a publish {words} against without, {title}", ratio, 1.5, most=True)
                )
    return goals


# -- deliveries ----------------------------------------------------------------------------------------


def deliveries(stage: Stage, results: Results, options: argparse.Namespace) -> None:
    size = options.connections
    for case, name in (("no history", "ours"), ("history", "ours-history")):
        with stage.set(CONTENDERS[name]) as running:
            if running.crowd.connect(size, sample=SAMPLE)["failed"]:
                sys.exit(f"{name}: connections failed")
            figures = measure(running, size, options)
        said = f"{figures['rate']:9,.0f} deliveries/s, {figures['server_us']:6.1f} µs each"
        results.add(case, _deliveries(options), figures, said)


def _deliveries(options: argparse.Namespace) -> str:
    return f"deliveries, {options.connections:,} members"


def deliveries_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    one, other = ("history", _deliveries(options)), ("no history", _deliveries(options))
    return [
        Goal("deliveries/s with history against without", results.ratio("rate", one, other), 0.9),
        Goal(
            "CPU per delivery with history against without",
            results.ratio("server_us", one, other),
            1.1,
            most=True,
        ),
    ]


# -- recovery ------------------------------------------------------------------------------------------


def recovery(stage: Stage, results: Results, options: argparse.Namespace) -> None:
    base = 0.0
    for case, name in RECOVERIES.items():
        keeps = name != "ours"
        missed = options.missed if keeps else 0
        with stage.set(CONTENDERS[name]) as running:
            crowd = running.crowd
            # The first connection pays for imports, the first database connection and the hub.
            crowd.connect(1)
            since = None
            if case != "history, memory":
                # No member is left, so the server does not know the messages.
                crowd.close()
            if keeps:
                since = missed_messages(running, missed)
            reads = readings(running)
            back = crowd.recover(options.clients, missed=missed, since=since, timeout=TIMEOUT)
            reads = readings(running) - reads
        if back["failed"]:
            sys.exit(f"{case}: {back['failed']} clients did not recover: {back['failures']}")
        each = {program: used / options.clients * 1e3 for program, used in back["cpu"].items()}
        recovered = missed * options.clients
        base = base if keeps else each["server"]
        figures = {
            "seconds": back["seconds"],
            "rate": recovered / back["seconds"] if recovered else None,
            "server_ms": each["server"],
            "message_us": (each["server"] - base) / missed * 1e3 if missed else None,
            "redis_ms": each["redis"],
            "generator_ms": each["generator"],
            "reads": reads,
            "slowest": back["slowest"],
            "out_of_order": back["out_of_order"],
        }
        said = f"{recovered:,} messages in {back['seconds']:.2f} s, {each['server']:.2f} ms for each client"
        results.add(case, _recovery(options), figures, f"{said}, {reads} reads")


def missed_messages(running: Running, number: int) -> dict[str, Any]:
    """Publish this number of messages, and return the position of the message before them."""
    assert running.redis is not None
    # Some more, so that the position is not that of an empty history.
    running.crowd.calm(rate=1000.0, seconds=(number + 20) / 1000)
    key, deadline = f"asgi:position:{running.contender.group.format('bench')}", time.monotonic() + 30
    with running.redis.client() as client:
        while int(client.hget(key, "offset") or 0) < number + 20:
            if time.monotonic() > deadline:
                sys.exit("the messages to recover were not published")
            time.sleep(0.05)
        return {"epoch": client.hget(key, "epoch"), "offset": 20}


def readings(running: Running) -> int:
    """Return how often the server has read a history in Redis."""
    url = running.servers[0].http("/metrics")
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
        lines = answer.read().decode().splitlines()
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in lines
        if line.startswith("realtime_history_reads_total")
    )


def _recovery(options: argparse.Namespace) -> str:
    return f"recovery, {options.clients:,} clients"


def recovery_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    at = _recovery(options)
    reads = [results.median(case, at, "reads") for case in RECOVERIES]
    return [
        Goal(
            "CPU of a client that recovers against one that only joins",
            results.ratio("server_ms", ("history, memory", at), ("no history", at)),
            2,
            most=True,
        ),
        Goal("readings in Redis for all clients together", max(each or 0 for each in reads), 2, most=True),
    ]


# -- memory --------------------------------------------------------------------------------------------


def memory(stage: Stage, results: Results, options: argparse.Namespace) -> None:
    for size, number in {100: 600}.items() if options.quick else SIZES.items():
        # Memory that the first messages take, such as buffers, is not counted.
        first = number // 10
        contender = keeping(CONTENDERS["ours"], "public.*", number, HISTORY_TAIL_BYTES=2**30)
        with stage.set(contender) as running:
            crowd, group = running.crowd, contender.group.format("bench")
            crowd.connect(1)
            before: dict[str, int] = {}
            for some in (first, number - first):
                before = crowd.memory()
                calls(environment(stage, running), "fill", group, some, size)
                crowd.idle(0.5)
            grown = crowd.memory()["server"] - before["server"]
            assert running.redis is not None
            with running.redis.client() as client:
                key = f"asgi:history:{group}"
                kept, used = client.xlen(key), client.memory_usage(key, samples=0)
        if kept != number:
            sys.exit(f"{kept} messages of {number} are kept")
        figures = {"redis_bytes": used / kept, "server_bytes": grown / (number - first)}
        said = f"{figures['redis_bytes']:,.0f} bytes in Redis, {figures['server_bytes']:,.0f} in the server"
        results.add("history", f"memory, {size:,} bytes", figures, said)


# -- checks --------------------------------------------------------------------------------------------


def checks(stage: Stage, results: Results, options: argparse.Namespace) -> None:
    contender = CONTENDERS["ours-history"]
    database = stage.database(contender.settings, "sqlite")
    with RedisServer(stage.folder) as redis:
        asked = ("check", options.groups, 1 if options.quick else 5)
        found = calls(stage.environment(contender, redis, database), *asked)
    for took in found["checks"]:
        figures = {"cpu_ms": took["cpu"] * 1e3, "redis_ms": took["redis"] * 1e3, "ms": took["seconds"] * 1e3}
        said = f"{figures['cpu_ms']:.1f} ms of CPU, {figures['redis_ms']:.1f} of Redis"
        results.add("history", _checks(options), figures, said)


def _checks(options: argparse.Namespace) -> str:
    return f"checks, {options.groups:,} groups"


def checks_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    cost = results.median("history", _checks(options), "cpu_ms")
    return [Goal(f"ms of CPU to check {options.groups:,} positions", cost, 100, most=True)]


RUN = {
    "publish": publish,
    "deliveries": deliveries,
    "recovery": recovery,
    "memory": memory,
    "checks": checks,
}
GOALS = {
    "publish": publish_goals,
    "deliveries": deliveries_goals,
    "recovery": recovery_goals,
    "checks": checks_goals,
}


def _belongs_to(part: str, size: str) -> bool:
    return size.startswith(part)


def main() -> None:
    asked = parser(__doc__, PARTS)
    asked.add_argument("--publishes", type=int, default=10_000, metavar="N", help="of each kind")
    asked.add_argument("--tasks", type=int, default=64, metavar="N", help="publishes at a time")
    asked.add_argument("--connections", type=int, default=1000, metavar="N", help="of `deliveries`")
    asked.add_argument("--seconds", type=float, default=5.0, help="of saturation in `deliveries`")
    asked.add_argument("--calm-seconds", type=float, default=12.0, help="of calm in `deliveries`")
    asked.add_argument("--clients", type=int, default=1000, metavar="N", help="that recover")
    asked.add_argument("--missed", type=int, default=100, metavar="N", help="messages, by each of them")
    asked.add_argument("--groups", type=int, default=10_000, metavar="N", help="of `checks`")
    options = asked.parse_args()
    options.warm_up, options.unfinished = 1.0, 2
    if options.quick:
        options.repeats, options.warm_up, options.seconds, options.calm_seconds = 1, 0.1, 0.3, 0.3
        options.publishes, options.connections, options.clients, options.groups = 100, 10, 10, 150
    require_files(max(options.connections, options.clients))
    results = Results("history", options)
    parts = [part for part in PARTS if part in (options.only or PARTS)]
    with Stage() as stage:
        for _ in range(options.repeats):
            for part in parts:
                RUN[part](stage, results, options)
    found = [goal for part in parts if part in GOALS for goal in GOALS[part](results, options)]
    broken = sum(results.worst(figure) for figure in ("lost", "out_of_order", "lost_connections"))
    found.append(Goal("messages lost or out of order, connections lost", broken, 0, most=True))
    for part in parts:
        last = found if part == parts[-1] else ()
        results.show(COLUMNS[part], "", last, only=functools.partial(_belongs_to, part))
    results.save(found, publishes=options.publishes, clients=options.clients, missed=options.missed)


if __name__ == "__main__":
    main()
