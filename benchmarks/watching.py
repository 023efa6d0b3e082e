"""A load generator with clients that watch who is in their group: more commands for benchmarks.generator.

A client reads the users who left only once for all clients, because all are sent the same bytes.
"""

import asyncio
import json
import time
from functools import lru_cache
from typing import Any

from benchmarks.generator import STAMP, TEXT, Client, Crowd, Group, main

#: Joins under way while clients begin to watch.
AT_ONCE = 50


@lru_cache(maxsize=64)
def _left(payload: bytes) -> tuple[str, ...]:
    return tuple(json.loads(payload).get("left", ()))


class Watching(Client):
    """A client that joins with presence when it is told to, and keeps the names of users who left."""

    __slots__ = ("answered", "left")

    def __init__(self, crowd: "WatchingCrowd", path: str, group: Group | None, sampled: bool) -> None:
        super().__init__(crowd, path, group, sampled=True)
        self.left: list[tuple[str, ...]] = []
        self.answered: asyncio.Future[bytes] | None = None

    def _look_at(self, data: bytes | bytearray, start: int, end: int) -> None:
        if STAMP.search(data, start, end) is None:
            # A frame about presence that is as large as a delivery.
            self.crowd.deliveries -= 1
            self._answer(TEXT, bytes(data[start:end]))
            return
        super()._look_at(data, start, end)
        self.crowd.arrivals.append(time.monotonic())

    def _answer(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT and payload.startswith(b'{"type":"presence"'):
            if names := _left(payload):
                self.left.append(names)
                self.crowd.note_left(len(names))
        elif opcode == TEXT and payload.startswith(b'{"type":"joined"'):
            if self.answered is not None and not self.answered.done():
                self.answered.set_result(payload)
        else:
            super()._answer(opcode, payload)

    async def join(self, group: str, *, presence: bool) -> dict[str, Any]:
        """Join a group, and return the answer. It is read after the time is taken."""
        self.answered = asyncio.get_running_loop().create_future()
        asked = {"presence": True} if presence else {}
        began = time.perf_counter()
        self.write(TEXT, json.dumps({"type": "join", "group": group, "ref": 1, **asked}).encode())
        async with asyncio.timeout(60):
            payload = await self.answered
        return {**json.loads(payload), "ms": (time.perf_counter() - began) * 1e3}


class WatchingCrowd(Crowd):
    """Connections that may watch their group."""

    client_class = Watching

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.left = 0
        self.left_from = self.left_until = 0.0
        self._joining = 0

    def _count_from_zero(self) -> None:
        super()._count_from_zero()
        self.arrivals: list[float] = []

    def note_left(self, names: int) -> None:
        """Note that one client was told of so many users who left."""
        self.left += names
        self.left_until = time.monotonic()
        self.left_from = self.left_from or self.left_until

    async def watch(self) -> dict[str, Any]:
        """Have every client watch its group. Return the smallest and the largest number of users told."""
        slots, group = asyncio.Semaphore(AT_ONCE), self._group_for(0)

        async def one(client: Watching) -> int:
            async with slots:
                return int((await client.join(group.name, presence=True))["presence"]["total"])

        began, before = time.monotonic(), self._cpu()
        totals = await asyncio.gather(*(one(client) for client in self.clients))
        return {
            "seconds": time.monotonic() - began,
            "least": min(totals),
            "most": max(totals),
            "cpu": self._used(before),
        }

    async def calm_until_left(self, rate: float, users: int, timeout: float) -> dict[str, Any]:
        """Publish `rate` texts a second until each client knows that `users` users have left.

        Returns:
            The latency of all texts, and of those that were under way between the time when the first client
            was told and that when the last one was; and what the clients were told.
        """
        self._count_from_zero()
        began = time.monotonic()
        number, wanted = 0, users * len(self.clients)
        while self.left < wanted and time.monotonic() - began < timeout:
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            self.publish()
            number += 1
        await self._drained()
        pairs = list(zip(self.arrivals, self.latencies, strict=True))
        first, last = self.left_from, self.left_until
        burst = sorted(late for at, late in pairs if at >= first and at - late / 1e9 <= last)
        told = [[name for names in client.left for name in names] for client in self.clients]
        return {
            "all": _percentiles(sorted(self.latencies)),
            "during": _percentiles(burst),
            "seconds": last - first,
            "first_after": first - began,
            "frames": max((len(client.left) for client in self.clients), default=0),
            "twice": sum(len(names) - len(set(names)) for names in told),
            "missing": sum(users - len(set(names)) for names in told),
            "lost": self.expected - self.deliveries,
            "lost_connections": self.lost_connections,
        }

    async def join(self, number: int, presence: bool) -> dict[str, Any]:
        """Have the next clients outside of the group join it, one after the other.

        Args:
            number: The number of clients.
            presence: They ask for presence.

        Returns:
            The milliseconds until each had its answer, and the seconds of CPU.
        """
        group = self.options.group.format("bench")
        outside = [each for each in self.clients if each.group is not None and each.group.name != group]
        some = outside[self._joining : self._joining + number]
        self._joining += number
        before = self._cpu()
        answers = [await each.join(group, presence=presence) for each in some]
        return {
            "ms": [answer["ms"] for answer in answers],
            "users": len(answers[-1]["presence"]["users"]) if presence else 0,
            "cpu": self._used(before),
        }


def _percentiles(sorted_ns: list[int]) -> dict[str, float | None]:
    return {
        name: sorted_ns[int(part * (len(sorted_ns) - 1))] / 1e6 if sorted_ns else None
        for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


if __name__ == "__main__":
    main(WatchingCrowd)
