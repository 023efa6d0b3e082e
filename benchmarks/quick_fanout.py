"""How many deliveries a second one server process makes, against the chat of the Channels tutorial.

`python -m benchmarks.quick_fanout` runs, in turn, each on Daphne with the same flags and a pub/sub layer:

- tutorial: the tutorial's consumer on Channels and channels_redis as they are,
- drop-in: the same consumer on `RealtimeConsumer`, its events sent to the group as before,
- group: `GroupConsumer` and `apublish`, to clients of `realtime.v1` that answer pings,

and prints a table and one JSON line. Only ratios within one run mean something: the same program moves by 20
to 50 % between a quiet machine and a busy one.
"""

# ruff: noqa: T201
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import Databases
from tests.support.pairings import Pairing
from tests.support.servers import CHECKOUT, DaphneServer
from tests.support.site import Site


@dataclass(frozen=True, slots=True)
class Side:
    """One of the servers that are compared; `publish` is how and to which group."""

    name: str
    application: str
    settings: str
    path: str
    publish: tuple[str, str]
    subprotocol: str = ""


SIDES = (
    Side(
        "tutorial",
        application="benchmarks.plain.asgi:application",
        settings="benchmarks.plain.settings",
        path="/ws/chat/bench/",
        publish=("channels", "chat_bench"),
    ),
    Side(
        "drop-in",
        application="benchmarks.dropin.asgi:application",
        settings="tests.support.live",
        path="/ws/chat/bench/",
        publish=("channels", "chat_bench"),
    ),
    Side(
        "group",
        application="project.asgi:application",
        settings="tests.support.live",
        path="/ws/public.bench/",
        publish=("realtime", "public.bench"),
        subprotocol="realtime.v1",
    ),
)


@dataclass(frozen=True, slots=True)
class Result:
    """Deliveries a second; microseconds of CPU that the server, Redis and the generator used for each."""

    deliveries: float
    server: float
    redis: float
    generator: float
    lost_connections: int
    connected_in: float


def measure(side: Side, databases: Databases, folder: Path, options: argparse.Namespace) -> Result:
    """One run: a fresh database, Redis and server."""
    with Site(folder, Pairing("pubsub", "daphne", "sqlite"), databases.new("sqlite"), debug=False) as site:
        environment = {**site.environment, "DJANGO_SETTINGS_MODULE": side.settings}
        log = folder / f"{side.name}.log"
        with DaphneServer(log=log, environment=environment, application=side.application) as server:
            try:
                return _load(side, server, site.redis.pid, environment, options)
            finally:
                # A thousand orderly goodbyes would take longer than the measurement.
                server.kill()


def _load(
    side: Side,
    server: DaphneServer,
    redis_pid: int,
    environment: Mapping[str, str],
    options: argparse.Namespace,
) -> Result:
    command = [
        *(sys.executable, "-m", "benchmarks.load", server.interface, str(server.port), side.path),
        *("--connections", str(options.connections), "--seconds", str(options.seconds)),
        *("--publish", *side.publish, f"--subprotocol={side.subprotocol}"),
        *("--watch", f"server={server.pid}", "--watch", f"redis={redis_pid}"),
    ]
    done = subprocess.run(  # noqa: S603 - this interpreter and our own module
        command, env=dict(environment), cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True
    )
    run = json.loads(done.stdout)
    each = {name: seconds / max(1, run["deliveries"]) * 1e6 for name, seconds in run["cpu"].items()}
    rate = run["deliveries"] / run["seconds"]
    return Result(rate, **each, lost_connections=run["lost_connections"], connected_in=run["connected_in"])


def median(results: list[Result], figure: str) -> float:
    return statistics.median(getattr(result, figure) for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    results: dict[str, list[Result]] = {side.name: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder:
        databases = Databases(Path(folder))
        for _ in range(options.repeats):
            # In turn, so that a busy minute of the machine does not fall on one side only.
            for side in SIDES:
                result = measure(side, databases, Path(folder), options)
                results[side.name].append(result)
                print(f"{side.name:10} {result.deliveries:9.0f} deliveries/s", file=sys.stderr)

    base = results[SIDES[0].name]
    print(f"\n{options.connections} connections in one group, medians of {options.repeats} runs\n")
    print(" " * 12 + "deliveries/s      x  server us      x  redis us  generator us")
    table = {}
    for name, runs in results.items():
        rate, cost = median(runs, "deliveries"), median(runs, "server")
        faster, cheaper = rate / median(base, "deliveries"), median(base, "server") / cost
        redis, generator = median(runs, "redis"), median(runs, "generator")
        print(
            f"{name:10} {rate:13.0f} {faster:6.1f} {cost:10.1f} {cheaper:6.1f} {redis:9.1f} {generator:13.1f}"
        )
        table[name] = {
            "deliveries_per_second": round(rate),
            "times_as_fast": round(faster, 2),
            "server_cpu_us": round(cost, 1),
            "times_as_cheap": round(cheaper, 2),
            "redis_cpu_us": round(redis, 1),
            "generator_cpu_us": round(generator, 1),
            "connected_in_s": round(median(runs, "connected_in"), 2),
            "lost_connections": sum(result.lost_connections for result in runs),
            "runs": [round(result.deliveries) for result in runs],
        }
    print("\n" + json.dumps({"connections": options.connections, "seconds": options.seconds, "sides": table}))


if __name__ == "__main__":
    main()
