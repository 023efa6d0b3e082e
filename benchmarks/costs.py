"""Counts of Redis commands and database statements for connections, groups, messages, pings and rounds.

`python -m benchmarks.costs` counts the commands of Redis (INFO commandstats, which includes calls by scripts)
and the statements of PostgreSQL (from its log). Meanwhile one process accepts connections, publishes, idles
for a ping interval with a reaper beside it, and closes the connections. The counts do not depend on the load
of the machine. docs/scaling.md uses them.
"""

import argparse
import collections
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.results import Column, Results, parser
from benchmarks.stage import Running, Stage, require_files

COLUMNS = (
    Column("redis", "Redis commands", 2),
    Column("transactions", "transactions", 3),
    Column("statements", "statements", 3),
)
STATEMENT = re.compile(r"(?:statement|execute [^:]*): (BEGIN|COMMIT|INSERT|UPDATE|SELECT|DELETE)\b")
IDLE = 20.0
MESSAGES = 200
#: If no statement comes for this many seconds, an action is over.
QUIET = 2.0


class Counter:
    """Counter of the Redis commands and PostgreSQL statements of one running site."""

    def __init__(self, stage: Stage, running: Running) -> None:
        assert stage.postgres is not None
        assert running.redis is not None
        self.log = stage.postgres.log
        self.redis = running.redis

    @contextmanager
    def count(self) -> Iterator[dict[str, Any]]:
        """Yield a dict and fill it at the end of the block: commands of Redis, statements of the database."""
        found: dict[str, Any] = {}
        commands, at = self._commands(), self.log.stat().st_size
        yield found
        found["commands"] = {
            name: number
            for name, calls in self._commands().items()
            if (number := calls - commands.get(name, 0))
        }
        with self.log.open("rb") as log:
            log.seek(at)
            found["statements"] = collections.Counter(STATEMENT.findall(log.read().decode(errors="replace")))

    def _commands(self) -> dict[str, int]:
        with self.redis.client() as client:
            stats = client.info("commandstats")
        ours = ("info", "client", "hello")  # the commands of this connection itself
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        return {name: number for name, number in calls.items() if not name.startswith(ours)}


def until_quiet(count: Callable[[], object]) -> None:
    """Wait until `count` does not change any more, for at most thirty seconds."""
    deadline, last, since = time.monotonic() + 30, count(), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < QUIET:
        time.sleep(0.1)
        if (now := count()) != last:
            last, since = now, time.monotonic()


def run(stage: Stage, results: Results, layer: str, groups: str, options: argparse.Namespace) -> None:
    contender = CONTENDERS["ours" if layer == "pubsub" else "ours-core"]
    number = options.connections
    title = f"{layer}, {'one group' if groups == 'one' else 'a group each'}"
    with stage.set(contender, database="postgres", groups=groups, reaper=True) as running:
        counter, crowd = Counter(stage, running), running.crowd
        crowd.connect(1)
        crowd.calm(rate=10, seconds=0.2)

        def measure(what: str, per: int, act: Callable[[], object]) -> None:
            with counter.count() as found:
                act()
                until_quiet(lambda: counter.log.stat().st_size)
            statements = found["statements"]
            figures = {
                "redis": sum(found["commands"].values()) / per,
                "transactions": statements["COMMIT"] / per,
                "statements": sum(
                    each for name, each in statements.items() if name not in ("BEGIN", "COMMIT")
                )
                / per,
                **{f"redis_{name}": each / per for name, each in found["commands"].items()},
                **{f"sql_{name.lower()}": each / per for name, each in statements.items()},
            }
            said = f"{figures['redis']:.2f} Redis commands, {figures['statements']:.3f} statements"
            results.add(what, title, figures, said)

        measure("connect", number, lambda: crowd.connect(number))
        measure("message", MESSAGES, lambda: crowd.calm(rate=100, seconds=MESSAGES / 100))
        idle = 1.0 if options.quick else IDLE
        measure(f"{idle:.0f} s of idling", 1, lambda: crowd.idle(idle))
        measure("disconnect", number, crowd.close)


def main() -> None:
    asked = parser(__doc__, ("pubsub", "core"), repeats=1)
    asked.add_argument("--connections", type=int, default=1000, metavar="N")
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.connections, options.only = 1, 20, ["pubsub"]
    require_files(options.connections)
    results = Results("costs", options)
    with Stage("log_statement=all") as stage:
        for _ in range(options.repeats):
            for layer in options.only or ("pubsub", "core"):
                for groups in ("one", "each"):
                    run(stage, results, layer, groups, options)
    results.show(COLUMNS, "")
    results.save(connections=options.connections)


if __name__ == "__main__":
    main()
