"""Calls that one process makes to its channel layer: the inner part of `python -m benchmarks.history`.

Each command prints one line of JSON:

- `publish PLAIN KEPT NUMBER TASKS` publishes to a group without history and to one with history, in turn:
  NUMBER messages each, one at a time and TASKS at a time.
- `fill GROUP NUMBER SIZE` publishes NUMBER messages of SIZE bytes to a group.
- `check GROUPS CHECKS` compares the positions of GROUPS groups with those in Redis, CHECKS times, as a server
  does several times in an interval.

"user and system" seconds of Redis are its own figures (INFO cpu), which are exact to the microsecond.
"""

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django
import redis
from channels.layers import get_channel_layer
from django.conf import settings

django.setup()

from realtime import apublish, conf  # noqa: E402
from realtime.hub.recovery import Recovery  # noqa: E402
from realtime.layers import groups  # noqa: E402

#: Bytes of a published text, as in the other benchmarks.
PAYLOAD = 200
#: The cases take turns this many times, so that a busy moment does not affect only one of them.
TURNS = 10
#: Calls under way while something is prepared.
SEVERAL = 50

#: Messages that may wait in a channel.
ENOUGH = 1_000_000

Call = Callable[[], Awaitable[object]]


class Meter:
    """The time and the CPU that something takes, in seconds: its own process and Redis."""

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(settings.REDIS_URL)

    def _now(self) -> tuple[float, float, float]:
        used = self._redis.info("cpu")
        return time.perf_counter(), time.process_time(), used["used_cpu_user"] + used["used_cpu_sys"]

    @contextmanager
    def measure(self, into: dict[str, float]) -> Iterator[None]:
        """Add what the block takes to these figures."""
        began = self._now()
        yield
        for name, before, now in zip(("seconds", "cpu", "redis"), began, self._now(), strict=True):
            into[name] = into.get(name, 0.0) + now - before


async def at_a_time(tasks: int, number: int, call: Call) -> None:
    """Make `number` calls, `tasks` at a time."""
    left = iter(range(number))

    async def some() -> None:
        for _ in left:
            await call()

    await asyncio.gather(*(some() for _ in range(tasks)))


async def publish(options: argparse.Namespace) -> dict[str, Any]:
    text, numbers, meter = "x" * PAYLOAD, itertools.count(), Meter()
    if hasattr(layer := get_channel_layer(), "capacity"):
        # Of the core layer. These publishes are faster than the server receives, and would be dropped.
        layer.capacity = ENOUGH
    calls: dict[str, Call] = {
        "no history": lambda: apublish(options.plain, text),
        "history": lambda: apublish(options.kept, text),
        "history, ids": lambda: apublish(options.kept, text, id=str(next(numbers))),
    }
    found: dict[str, Any] = {}
    for tasks in (1, options.tasks):
        measured: dict[str, dict[str, float]] = {name: {} for name in calls}
        for call in calls.values():
            await at_a_time(tasks, options.number // TURNS, call)
        for _ in range(TURNS):
            for name, call in calls.items():
                with meter.measure(measured[name]):
                    await at_a_time(tasks, options.number // TURNS, call)
        found[str(tasks)] = measured
    return {"number": options.number // TURNS * TURNS, "tasks": found}


async def fill(options: argparse.Namespace) -> dict[str, Any]:
    text = "x" * options.size
    await at_a_time(1, options.number, lambda: apublish(options.group, text))
    return {}


async def check(options: argparse.Namespace) -> dict[str, Any]:
    names = [f"public.{number}" for number in range(options.groups)]
    address = await groups.new_channel()
    # The checks need no connections, so neither fan-out to them nor their ends.
    nothing: Any = None
    recovery = Recovery(
        address,
        dict.fromkeys(names, nothing),
        nothing,
        drained=nothing,
        evict=nothing,
        interval=conf.get().ROUND_INTERVAL,
        max_size=conf.get().HISTORY_TAIL_BYTES,
    )
    left = iter(names)

    async def follow() -> None:
        """Follow a group with one message, as after the join of its first member in this process."""
        group = next(left)
        await apublish(group, "x" * PAYLOAD)
        recovery.joined_layer(group)
        await recovery.resume(nothing, group, None, lambda _: None)

    await at_a_time(SEVERAL, options.groups, follow)
    meter, checks = Meter(), list[dict[str, float]]()
    for _ in range(options.checks + 1):
        figures: dict[str, float] = {}
        with meter.measure(figures):
            await recovery._check()
        checks.append(figures)
    # Leave out the first check, which sends the script.
    return {"checks": checks[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command, texts, numbers in (
        (publish, ("plain", "kept"), ("number", "tasks")),
        (fill, ("group",), ("number", "size")),
        (check, (), ("groups", "checks")),
    ):
        one = commands.add_parser(command.__name__)
        one.set_defaults(command=command)
        for name in texts:
            one.add_argument(name)
        for name in numbers:
            one.add_argument(name, type=int)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(options.command(options))))


if __name__ == "__main__":
    main()
