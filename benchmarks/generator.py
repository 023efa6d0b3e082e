"""The load generator: a crowd of WebSocket clients in one process, controlled by lines of JSON.

`python -m benchmarks.generator OPTIONS` reads one command per line of standard input and answers each with
one line of standard output; `benchmarks.crowd` is the other end. It is one raw asyncio protocol on uvloop. It
parses only the needed parts of a frame (RFC 6455 section 5.2), because on one machine the server loses every
microsecond that the generator uses. It reports its own CPU, so that you can see which of the two was
saturated.

A published text is `seq=` and a number, ` at=` and the time of its publishing (CLOCK_MONOTONIC, nanoseconds),
and filler. Every delivery is counted. A sample of connections also reads the number, to find frames that are
lost or out of order.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import uvloop

from tests.support.clients.raw import upgrade

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
FINAL, MASKED = 0x80, 0x80
STAMP = re.compile(rb"seq=(\d{10}) at=(\d{20}) ")
#: Local ports of one source address; beyond them, the next address of 127.0.0.0/8 is used.
PORTS_PER_ADDRESS = 20_000
#: If no delivery comes for this many seconds, the missing ones count as lost.
PATIENCE = 15.0


class Group:
    """One group: the number of published messages and the number of clients."""

    __slots__ = ("members", "name", "published", "room")

    def __init__(self, room: str, name: str) -> None:
        self.room = room
        self.name = name
        self.members = 0
        self.published = 0


class Client(asyncio.BufferedProtocol):
    """One connection. If it publishes, its `group` is None."""

    __slots__ = ("crowd", "group", "last", "opened", "path", "rest", "sampled", "transport")

    def __init__(self, crowd: "Crowd", path: str, group: Group | None, sampled: bool) -> None:
        self.crowd = crowd
        self.path = path
        self.group = group
        self.sampled = sampled
        self.last = group.published if group is not None else 0
        self.rest = b""
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        options = self.crowd.options
        netloc = f"{options.host}:{options.port}"
        transport.write(upgrade(self.path, netloc, options.subprotocol or "", f"Origin: http://{netloc}"))

    def get_buffer(self, sizehint: int) -> bytearray:
        # All connections share one buffer, which is empty again when `buffer_updated` returns.
        return self.crowd.buffer

    def buffer_updated(self, size: int) -> None:
        crowd = self.crowd
        data: bytes | bytearray = crowd.buffer
        if size == crowd.frame_size and not self.rest and not self.sampled and data.startswith(crowd.header):
            # Nearly every read brings exactly one delivery of the usual size.
            crowd.deliveries += 1
            if crowd.unfinished:
                crowd.publish_more()
            return
        if self.rest:
            data = self.rest + data[:size]
            size = len(data)
            self.rest = b""
        at = 0
        if not self.opened.done() and data.startswith(b"HTTP/"):
            at = data.find(b"\r\n\r\n", 0, size) + 4
            if at < 4:
                self.rest = bytes(data[:size])
                return
            self._shake_hands(bytes(data[:at]))
        smallest = crowd.options.payload
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if size < start:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            if size - start < length:
                break
            if length >= smallest:
                crowd.deliveries += 1
                crowd.frame_size, crowd.header = start + length - at, bytes(data[at:start])
                if self.sampled:
                    self._look_at(data, start, start + length)
            else:
                self._answer(data[at] & 0x0F, bytes(data[start : start + length]))
            at = start + length
        if at < size:
            self.rest = bytes(data[at:size])
        if crowd.unfinished:
            crowd.publish_more()

    def _shake_hands(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 101"):
            self.opened.set_exception(ConnectionError(head.partition(b"\r\n")[0].decode(errors="replace")))
            self.transport.abort()
        elif not self.crowd.options.engine_io:
            self.opened.set_result(None)

    def _look_at(self, data: bytes | bytearray, start: int, end: int) -> None:
        """Read the number and the time of a delivery, to check its order and its latency."""
        stamp = STAMP.search(data, start, end)
        if stamp is None:
            self.crowd.foreign += 1
            return
        number = int(stamp[1])
        if number != self.last + 1:
            self.crowd.out_of_order += 1
        self.last = number
        self.crowd.latencies.append(time.monotonic_ns() - int(stamp[2]))

    def _answer(self, opcode: int, payload: bytes) -> None:
        """Answer frames that are not deliveries: pings of every kind, the handshake of Engine.IO."""
        if opcode == PING:
            self.write(PONG, payload)
            self.crowd.pings += 1
        elif opcode == CLOSE:
            self.write(CLOSE, payload)
        elif self.crowd.options.engine_io:
            # engine.io-protocol v4: 0 open, 2 ping, 3 pong, 4 message; socket.io-protocol v5: 40 connect.
            if payload.startswith(b"0"):
                self.write(TEXT, b"40")
            elif payload.startswith(b"40"):
                self.opened.set_result(None)
            elif payload == b"2":
                self.write(TEXT, b"3")
                self.crowd.pings += 1
        elif b'"ping"' in payload:
            self.write(TEXT, b'{"type":"pong","n":%d}' % json.loads(payload)["n"])
            self.crowd.pings += 1

    def write(self, opcode: int, payload: bytes) -> None:
        # Mask with zeros, which leaves the payload unchanged.
        size = len(payload)
        length = bytes((MASKED | size,)) if size < 126 else bytes((MASKED | 126, size >> 8, size & 0xFF))
        self.transport.write(bytes((FINAL | opcode,)) + length + b"\0\0\0\0" + payload)

    def connection_lost(self, error: Exception | None) -> None:
        self.crowd.ended(self)
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed during the handshake"))


class Returning(Client):
    """A client that comes back: it joins its group with the position of the last message that it has.

    Args:
        crowd: The crowd.
        path: The path of its connection.
        group: Its group.
        missed: The number of messages that it missed.
        since: The position of the last message that it has; None to join without one.
    """

    __slots__ = ("complete", "joined", "since")

    def __init__(
        self, crowd: "Crowd", path: str, group: Group, missed: int, since: dict[str, Any] | None
    ) -> None:
        super().__init__(crowd, path, group, sampled=True)
        self.last -= missed
        self.since = since
        self.joined = False
        self.complete = asyncio.get_running_loop().create_future()

    def _look_at(self, data: bytes | bytearray, start: int, end: int) -> None:
        stamp = STAMP.search(data, start, end)
        if stamp is None:
            # A frame about the connection that is as large as a delivery.
            self._answer(TEXT, bytes(data[start:end]))
            return
        number = int(stamp[1])
        # A message of which only the number is missing has passed the client.
        self.crowd.out_of_order += number != self.last + 1
        self.last = number
        self._complete_if_whole()

    def _answer(self, opcode: int, payload: bytes) -> None:
        assert self.group is not None
        if opcode == TEXT and b'"type":"welcome"' in payload:
            since = {"since": self.since} if self.since else {}
            join = {"type": "join", "group": self.group.name, "ref": 1, **since}
            self.write(TEXT, json.dumps(join).encode())
        elif opcode == TEXT and b'"type":"joined"' in payload:
            self.joined = True
            if self.since and not json.loads(payload).get("recovered"):
                self._fail(ConnectionError("the recovery was refused"))
            self._complete_if_whole()
        else:
            super()._answer(opcode, payload)

    def _complete_if_whole(self) -> None:
        assert self.group is not None
        if self.joined and self.last == self.group.published and not self.complete.done():
            self.complete.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.complete.done():
            self.complete.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._fail(error or ConnectionError("closed before it had everything"))


class Publisher:
    """The publisher of texts: a process with a channel layer, or one more connection."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client | None = None

    async def start(self) -> None:
        options = self.crowd.options
        if options.publish_path:
            loop = asyncio.get_running_loop()
            client = Client(self.crowd, options.publish_path, None, sampled=False)
            await loop.create_connection(lambda: client, options.host, options.port)
            await client.opened
            self.client = client
            return
        # Not through asyncio, because its pipe would write only when the loop is idle.
        command = [sys.executable, "-m", "benchmarks.publisher", options.publish, str(options.publish_tasks)]
        self.process = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError(f"the publisher ended with {self.process.wait()}")

    def send(self, group: str, text: str) -> None:
        if self.client is not None:
            whole = f'42["publish","{text}"]' if self.crowd.options.engine_io else text
            self.client.write(TEXT, whole.encode())
        else:
            assert self.process is not None
            assert self.process.stdin is not None
            self.process.stdin.write(f"{group}\t{text}\n".encode())

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Crowd:
    """All connections and counters of one run."""

    client_class = Client

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.buffer = bytearray(256 * 1024)
        self.frame_size, self.header = 0, b""
        """Frame size and header of the last delivery."""
        self.clients: dict[Client, None] = {}
        self.groups: dict[str, Group] = {}
        self.publisher = Publisher(self)
        self.lost_connections = 0
        self.closing = False
        self.unfinished = 0
        self.pings = 0
        self.published = 0
        self.expected = 0
        self._next: Iterator[Group] = iter(())
        self._count_from_zero()

    def _count_from_zero(self) -> None:
        self.deliveries = 0
        self.foreign = 0
        self.out_of_order = 0
        self.latencies: list[int] = []
        self.published = 0
        self.expected = 0

    def ended(self, client: Client) -> None:
        if self.clients.pop(client, self) is None:
            self.lost_connections += not self.closing
            if client.group is not None:
                client.group.members -= 1

    # -- publishing --------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish one text to the next group in turn."""
        group = next(self._next)
        group.published += 1
        self.published += 1
        self.expected += group.members
        stamp = f"seq={group.published:010d} at={time.monotonic_ns():020d} "
        self.publisher.send(group.name, stamp.ljust(self.options.payload, "x"))

    def publish_more(self) -> None:
        """Publish until the requested number is unfinished. A publish ends when every member has it."""
        members = max(1, self.expected // max(1, self.published))
        while self.published - self.deliveries // members < self.unfinished:
            self.publish()

    # -- commands ----------------------------------------------------------------------------------

    async def publish_by(self, how: str) -> dict[str, Any]:
        """Publish in this way from now on; only for publishers that are processes."""
        self.publisher.stop()
        self.options.publish = how
        self.publisher = Publisher(self)
        await self.publisher.start()
        return {}

    async def connect(
        self, number: int, at_once: int = 50, timeout: float = 60.0, sample: float = 1.0
    ) -> dict[str, Any]:
        """Open `number` more connections, `at_once` at a time.

        Args:
            number: Connections to open.
            at_once: Handshakes under way at any time.
            timeout: Seconds for each connection.
            sample: The share of the connections that read the numbers in their frames.

        Returns:
            The number of opened and failed connections, and the seconds until the last was open.
        """
        loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(at_once)
        options, failures, waits = self.options, list[str](), list[float]()
        first = len(self.clients)
        every = round(1 / sample) if sample else 0

        async def one(position: int) -> None:
            async with slots:
                asked = time.monotonic()
                group = self._group_for(position)
                client = self.client_class(
                    self,
                    options.path.format(group.room, position),
                    group,
                    sampled=bool(every) and position % every == 0,
                )
                try:
                    async with asyncio.timeout(timeout):
                        host = self._source(position)
                        await loop.create_connection(
                            lambda: client, options.host, options.port, local_addr=host
                        )
                        await client.opened
                except (OSError, TimeoutError) as error:
                    failures.append(f"{type(error).__name__}: {error}")
                    if hasattr(client, "transport"):
                        client.transport.abort()
                    return
                self.clients[client] = None
                group.members += 1
                waits.append(time.monotonic() - asked)

        before, began = self._cpu(), time.monotonic()
        await asyncio.gather(*(one(first + position) for position in range(number)))
        seconds = time.monotonic() - began
        return {
            "opened": len(waits),
            "failed": len(failures),
            "failures": sorted(set(failures))[:3],
            "seconds": seconds,
            "slowest": max(waits, default=0.0),
            "cpu": self._used(before),
        }

    async def recover(
        self, number: int, missed: int, since: dict[str, Any] | None, timeout: float
    ) -> dict[str, Any]:
        """Have clients come back at the same time, to the group of the first connection.

        Args:
            number: The clients.
            missed: The messages that each of them missed: the latest of the group.
            since: The position before these messages; None to join without one.
            timeout: Seconds for each client to have everything.

        Returns:
            The number of clients that failed, and the seconds until the last had everything.
        """
        loop, group, options = asyncio.get_running_loop(), self._group_for(0), self.options
        failures, waits = list[str](), list[float]()
        self._count_from_zero()

        async def one() -> None:
            client = Returning(self, options.path.format(group.room), group, missed, since)
            try:
                async with asyncio.timeout(timeout):
                    await loop.create_connection(lambda: client, options.host, options.port)
                    await client.opened
                    await client.complete
            except (OSError, TimeoutError) as error:
                failures.append(f"{type(error).__name__}: {error}")
                return
            waits.append(time.monotonic() - began)
            self.clients[client] = None
            group.members += 1

        before, began = self._cpu(), time.monotonic()
        await asyncio.gather(*(one() for _ in range(number)))
        return {
            "failed": len(failures),
            "failures": sorted(set(failures))[:3],
            "seconds": time.monotonic() - began,
            "slowest": max(waits, default=0.0),
            "out_of_order": self.out_of_order,
            "cpu": self._used(before),
        }

    def _group_for(self, position: int) -> Group:
        """Return the group of a connection: one for all, one for each, or one for the first few."""
        if self.options.groups == "each":
            room = str(position)
        else:
            room = "rest" if self.options.few and position >= self.options.few else "bench"
        group = self.groups.get(room)
        if group is None:
            group = self.groups[room] = Group(room, self.options.group.format(room))
            published_to = [each for each in self.groups.values() if each.room != "rest"]
            self._next = itertools.cycle(random.sample(published_to, len(published_to)))
        return group

    def _source(self, position: int) -> tuple[str, int] | None:
        number = position // PORTS_PER_ADDRESS
        return (f"127.0.0.{2 + number}", 0) if number else None

    async def calm(self, rate: float, seconds: float) -> dict[str, Any]:
        """Publish `rate` texts a second, without waiting for deliveries. Then wait for the missing ones."""
        self._count_from_zero()
        before, began = self._cpu(), time.monotonic()
        for number in range(max(1, round(rate * seconds))):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            self.publish()
        await self._drained()
        return self._counted(time.monotonic() - began, before)

    async def saturate(self, unfinished: int, warm_up: float, seconds: float) -> dict[str, Any]:
        """Keep `unfinished` publishes under way. The figures cover `seconds` after `warm_up`."""
        self._count_from_zero()
        self.unfinished = unfinished
        self.publish_more()
        await asyncio.sleep(warm_up)
        before, deliveries, began = self._cpu(), self.deliveries, time.monotonic()
        await asyncio.sleep(seconds)
        measured = self.deliveries - deliveries
        took, used = time.monotonic() - began, self._used(before)
        self.unfinished = 0
        await self._drained()
        return {**self._counted(took, before), "deliveries": measured, "cpu": used}

    async def _drained(self) -> None:
        seen, since = self.deliveries, time.monotonic()
        while self.deliveries < self.expected:
            await asyncio.sleep(0.01)
            if self.deliveries != seen:
                seen, since = self.deliveries, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                return

    def _counted(self, seconds: float, before: dict[str, float]) -> dict[str, Any]:
        late = sorted(self.latencies)
        return {
            "seconds": seconds,
            "published": self.published,
            "deliveries": self.deliveries,
            "lost": self.expected - self.deliveries,
            "out_of_order": self.out_of_order,
            "foreign": self.foreign,
            "lost_connections": self.lost_connections,
            "latency": {
                name: late[int(part * (len(late) - 1))] / 1e6 if late else None
                for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            },
            "cpu": self._used(before),
        }

    async def idle(self, seconds: float) -> dict[str, Any]:
        """Answer pings, and do nothing more, for `seconds`."""
        before, pings = self._cpu(), self.pings
        await asyncio.sleep(seconds)
        return {
            "cpu": self._used(before),
            "pings": self.pings - pings,
            "lost_connections": self.lost_connections,
            "open": len(self.clients),
        }

    async def close(self, timeout: float = 60.0) -> dict[str, Any]:
        """Close every connection with a handshake (RFC 6455 section 7.1.2); measure the time of the last."""
        self.closing = True
        before, began = self._cpu(), time.monotonic()
        for client in self.clients:
            client.write(CLOSE, b"\x03\xe8")
        while self.clients and time.monotonic() - began < timeout:
            await asyncio.sleep(0.005)
        left = len(self.clients)
        for client in list(self.clients):
            client.transport.abort()
        return {"seconds": time.monotonic() - began, "left": left, "cpu": self._used(before)}

    async def memory(self) -> dict[str, Any]:
        """Return the resident bytes of each watched process with its children."""
        return {
            name: sum(process.memory_info().rss for process in family)
            for name, family in self._watched().items()
        }

    # -- CPU ---------------------------------------------------------------------------------------

    def _watched(self) -> dict[str, list[psutil.Process]]:
        families = {"generator": [psutil.Process()]}
        if self.publisher.process is not None:
            families["publisher"] = [psutil.Process(self.publisher.process.pid)]
        for pair in self.options.watch:
            name, pid = pair.split("=")
            # A measurement may kill a server.
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                families.setdefault(name, []).extend((process, *process.children(recursive=True)))
        return families

    def _cpu(self) -> dict[str, float]:
        """Return the seconds of CPU, user and system, of each watched process with threads and children."""
        return {name: sum(map(seconds_of, family)) for name, family in self._watched().items()}

    def _used(self, before: dict[str, float]) -> dict[str, float]:
        return {name: used - before.get(name, 0.0) for name, used in self._cpu().items()}


def seconds_of(process: psutil.Process) -> float:
    """Return seconds of CPU of a process and of its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        # The times of a parent include a child that ended a moment ago.
        return 0.0
    own = times.user + times.system
    return own if process.pid == os.getpid() else own + times.children_user + times.children_system


async def obey(options: argparse.Namespace, crowd_class: type[Crowd]) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    crowd = crowd_class(options)
    try:
        if options.publish or options.publish_path:
            await crowd.publisher.start()
        while line := await lines.readline():
            command = json.loads(line)
            answer = await getattr(crowd, command.pop("do"))(**command)
            print(json.dumps(answer), flush=True)
    finally:
        crowd.publisher.stop()


def main(crowd_class: type[Crowd] = Crowd) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="path of a connection: {0} is its room, {1} its number")
    parser.add_argument("--subprotocol", default="")
    parser.add_argument("--engine-io", action="store_true", help="speak Socket.IO 4")
    parser.add_argument("--groups", choices=("one", "each"), default="one")
    parser.add_argument("--few", type=int, default=0, help="connections in the group that is published to")
    parser.add_argument("--group", default="{}", help="name of a room's group, with {} for the room")
    parser.add_argument("--payload", type=int, default=200, help="bytes of a published text")
    parser.add_argument("--publish", default="", help="a name that benchmarks.publisher knows, or socket")
    parser.add_argument("--publish-path", default="", help="publish through a connection to this path")
    parser.add_argument("--publish-tasks", type=int, default=1)
    parser.add_argument("--watch", action="append", default=[], metavar="NAME=PID")
    uvloop.run(obey(parser.parse_args(), crowd_class))


if __name__ == "__main__":
    main()
