"""Clients that recover as the protocol says, light enough for a thousand connections in one process.

Each client keeps `since` for each of its groups, connects again with growing pauses and jitter, joins with
`since`, answers pings of both kinds, and keeps everything that it was shown, for the judge of
`tests.support.assertions.judge`. It publishes with an `id`, and repeats the frame until it has an answer.

A message has the data `[source, number, …]`.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from realtime.history.positions import Position
from tests.support.assertions.judge import Log
from tests.support.clients.following import Following, Given, Shown, given, shown
from tests.support.clients.raw import CLOSE, PING, PONG, TEXT, Frame, frame, upgrade

#: Seconds until the second attempt to connect, and at most; each pause is a random part of it.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
#: Seconds until a join is repeated that was answered by an error.
JOIN_AGAIN = (0.2, 0.6)
#: Seconds that a handshake or the answer to a publish may take.
PATIENCE = 5.0
#: Handshakes under way in one process.
AT_ONCE = 50


class Unanswered(Exception):
    """The connection ended before the answer to a publish, or the answer was an error."""


@lru_cache(maxsize=4096)
def _read(payload: bytes) -> Frame:
    """Read a frame. All members of a group get the same bytes, so most are read once."""
    found: Frame = json.loads(payload)
    if found["type"] == "message" and found.get("offset") is not None:
        source, number, *_ = found["data"]
        found["shown"] = Shown(Position(found["epoch"], found["offset"]), (source, number), time.monotonic())
    return found


class Link(asyncio.Protocol):
    """One connection of the subprotocol `realtime.v1`.

    Args:
        target: The path of the handshake.
        netloc: The host and port.
        take: Called with each frame of the protocol.
    """

    def __init__(self, target: str, netloc: str, take: Callable[[Frame], None]) -> None:
        self.target = target
        self.netloc = netloc
        self.take = take
        self.code = 0
        """The close code of the server; 0 if there was none."""
        self.heard_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        # The exception is read, also if the handshake was given up before it came.
        self.opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
        self.ended: asyncio.Future[None] = loop.create_future()
        self.transport: Any = None
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(upgrade(self.target, self.netloc))

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        data, at = self._rest + data, 0
        if not self.opened.done():
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self.transport.abort()
                return
            self.opened.set_result(None)
        while len(data) - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : start], "big")
            if len(data) < start + length:
                break
            self._take(data[at] & 0x0F, data[start : start + length])
            at = start + length
        self._rest = data[at:]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            received = _read(payload)
            if received["type"] == "ping":
                self.send({"type": "pong", "n": received["n"]})
            else:
                self.take(received)
        elif opcode == PING:
            self.transport.write(frame(payload, PONG))
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big")
            self.transport.write(frame(payload, CLOSE))

    def send(self, text: Frame) -> None:
        self.transport.write(frame(json.dumps(text, separators=(",", ":"))))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed during the handshake"))
        self.ended.set_result(None)


class RecoveringClient:
    """One client over all of its connections.

    Args:
        name: Its name in verdicts.
        servers: The servers as `ws://host:port`; each connection goes to the next one.
        home: The group that it is in by its address. It joins the others by a frame.
        others: More groups.
        chance: The source of its pauses.
        slots: Limits the handshakes under way.
    """

    def __init__(
        self,
        name: str,
        servers: Sequence[str],
        home: str,
        *others: str,
        chance: random.Random | None = None,
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        self.name = name
        self.home = home
        self.groups = {group: Following() for group in (home, *others)}
        self.connects = 0
        self.codes: list[int] = []
        """The close codes of its connections, in order."""
        self.errors: list[Frame] = []
        """Answers to joins that were errors."""
        self.unlike: list[str] = []
        """Sentences about frames that break the protocol."""
        self._awake = asyncio.Event()
        self._awake.set()
        self._servers = itertools.cycle(servers)
        self._chance = chance or random.Random(name)
        self._slots = slots or asyncio.Semaphore(AT_ONCE)
        self._link: Link | None = None
        self._welcomed = False
        self._max_silence = float("inf")
        self._retry_after: float | None = None
        self._failures = 0
        self._refs = itertools.count(1)
        self._joins: dict[int, str] = {}
        self._publishes: dict[int, asyncio.Future[Frame]] = {}
        self._stopped = False
        self._living: asyncio.Task[None] | None = None

    # -- what was seen

    @property
    def log(self) -> Log:
        return {group: each.events for group, each in self.groups.items()}

    @property
    def live(self) -> bool:
        """True if it is connected, and its recovery is complete in all groups."""
        return self._welcomed and all(each.live for each in self.groups.values())

    @property
    def connected(self) -> bool:
        return self._welcomed

    def since(self, group: str | None = None) -> Position | None:
        return self.groups[group or self.home].since

    def shown(self, group: str | None = None) -> list[Shown]:
        return shown(self.groups[group or self.home].events)

    def numbers(self, group: str | None = None) -> list[int]:
        """Return the numbers that it was shown, in order, of all sources."""
        return [each.number[1] for each in self.shown(group)]

    def told(self, group: str | None = None) -> list[Given]:
        """Return how it was told that it may have missed messages."""
        return [each for each in given(self.groups[group or self.home].events) if each.told]

    @property
    def broken(self) -> list[str]:
        """Sentences about frames that break the protocol."""
        return self.unlike + [
            f"{self.name} in {group}: {each}" for group, of in self.groups.items() for each in of.broken
        ]

    # -- life

    def start(self) -> None:
        """Connect, and go on connecting until `stop`."""
        self._stopped = False
        self._living = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Hang up, and stay away. `start` comes back with the same positions."""
        self._stopped = True
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait([self._living])
        self.hang_up()
        self._welcomed = False

    def hang_up(self) -> None:
        """End the connection without a close frame."""
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abort()

    def fall_asleep(self) -> None:
        """Read nothing more and answer nothing, as a phone in a pocket. The connection stays open."""
        assert self._link is not None
        self._awake.clear()
        self._link.transport.pause_reading()

    def wake(self) -> None:
        """Read what the kernel has kept, and go on."""
        assert self._link is not None
        self._awake.set()
        if not self._link.ended.done():
            self._link.heard_at = time.monotonic()
            self._link.transport.resume_reading()

    async def _live(self) -> None:
        while not self._stopped:
            link = await self._connect()
            if link is not None:
                await self._watch(link)
                # The kernel may find that the connection has ended; a client that sleeps does not.
                await self._awake.wait()
                self._end(link)
            await asyncio.sleep(self._pause())

    async def _connect(self) -> Link | None:
        parts = urlsplit(next(self._servers))
        self._retry_after = None
        for each in self.groups.values():
            each.connect()
        async with self._slots:
            # Frames may arrive with the answer to the handshake.
            link = Link(f"/ws/{self.home}/", parts.netloc, lambda received: self._take(link, received))
            self._link = link
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(PATIENCE):
                    await loop.create_connection(lambda: link, str(parts.hostname), int(parts.port or 80))
                    await link.opened
            except (OSError, TimeoutError):
                self._failures += 1
                if link.transport is not None:
                    link.transport.abort()
                return None
        self.connects += 1
        return link

    async def _watch(self, link: Link) -> None:
        """Wait until the connection has ended, and end it if the server is silent for too long."""
        while not link.ended.done():
            await asyncio.wait([link.ended], timeout=1.0)
            silent_for = time.monotonic() - link.heard_at
            if self._awake.is_set() and silent_for > self._max_silence:
                link.transport.abort()

    def _end(self, link: Link) -> None:
        self.codes.append(link.code)
        self._welcomed = False
        self._joins.clear()
        for waiting in self._publishes.values():
            if not waiting.done():
                waiting.set_exception(Unanswered("the connection ended"))
        self._publishes.clear()

    def _pause(self) -> float:
        if self._retry_after is not None:
            return self._retry_after
        return self._chance.uniform(0.02, min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures))

    # -- frames

    def _take(self, link: Link, received: Frame) -> None:
        if link is not self._link:
            return
        if received["type"] == "message":
            # Copied by no client: the object is shared.
            if received["group"] in self.groups:
                self._message(received)
            return
        now = time.monotonic()
        match received["type"]:
            case "welcome":
                self._welcome(link, received, now)
            case "joined" if (group := self._joins.pop(received["ref"], None)) is not None:
                self.groups[group].joined(_position(received), received.get("recovered"), now)
            case "reset":
                position = _position(received)
                if position is None:
                    self.unlike.append(f"{self.name}: {received}")
                else:
                    self.groups[received["group"]].reset(position, now)
            case "published" | "error" if received.get("ref") in self._publishes:
                waiting = self._publishes.pop(received["ref"])
                if not waiting.done():
                    waiting.set_result(received)
            case "error" if (group := self._joins.pop(received.get("ref"), None)) is not None:
                self.errors.append(received)
                delay = self._chance.uniform(*JOIN_AGAIN)
                asyncio.get_running_loop().call_later(delay, self._join, link, group)
            case "goodbye":
                self._retry_after = received.get("retry_after")

    def _message(self, received: Frame) -> None:
        if (seen := received.get("shown")) is None:
            self.unlike.append(f"{self.name}: a message without a position: {str(received)[:200]}")
        else:
            self.groups[received["group"]].message(seen)

    def _welcome(self, link: Link, received: Frame, now: float) -> None:
        self._welcomed, self._failures = True, 0
        self._max_silence = received["max_silence"]
        positions = received.get("positions") or {}
        for group, each in self.groups.items():
            found = positions.get(group)
            if each.welcome(found and Position(found["epoch"], found["offset"]), now):
                self._join(link, group)

    def _join(self, link: Link, group: str) -> None:
        if link is self._link and not link.ended.done():
            ref = next(self._refs)
            self._joins[ref] = group
            link.send({"type": "join", "group": group, "ref": ref, **self.groups[group].ask()})

    async def publish(self, group: str, data: object, id: str) -> Position:
        """Publish once.

        Raises:
            Unanswered: The connection is closed, or ended, or the answer was an error.
        """
        link = self._link
        if link is None or not self._welcomed or link.ended.done():
            raise Unanswered("not connected")
        ref = next(self._refs)
        waiting = self._publishes[ref] = asyncio.get_running_loop().create_future()
        link.send({"type": "publish", "group": group, "data": data, "ref": ref, "id": id})
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await waiting
        except TimeoutError:
            raise Unanswered("no answer in time") from None
        finally:
            self._publishes.pop(ref, None)
        if answer["type"] == "error":
            raise Unanswered(str(answer))
        position = _position(answer)
        assert position is not None, f"published has no position: {answer}"
        return position


def _position(received: Frame) -> Position | None:
    if received.get("epoch") is None or received.get("offset") is None:
        return None
    return Position(received["epoch"], received["offset"])


def many(count: int, servers: Sequence[str], *groups: str, seed: int = 0) -> list[RecoveringClient]:
    """Return clients, spread evenly over the groups and servers; every second one is in two groups."""
    slots = asyncio.Semaphore(AT_ONCE)
    clients = []
    for number in range(count):
        turn = number % len(servers)
        home, other = (groups[(number + step) % len(groups)] for step in (0, 1))
        more = [other] if other != home and (number // len(groups)) % 2 else []
        clients.append(
            RecoveringClient(
                f"client {number}",
                [*servers[turn:], *servers[:turn]],
                home,
                *more,
                chance=random.Random(f"{seed} {number}"),
                slots=slots,
            )
        )
    return clients


@contextlib.asynccontextmanager
async def running(clients: Sequence[RecoveringClient]) -> AsyncIterator[None]:
    """Start all clients, and stop them at the end of the block."""
    for each in clients:
        each.start()
    try:
        yield
    finally:
        await asyncio.gather(*(each.stop() for each in clients))


def logs(clients: Sequence[RecoveringClient]) -> dict[str, Log]:
    """Return the events of each client, for the judge."""
    return {each.name: each.log for each in clients}
