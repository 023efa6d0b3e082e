"""Clients that talk to each other in one group, in a process of their own, and count what they miss.

`python -m tests.support.clients.honest HOST:PORT …` opens the connections, spread over the servers. Each
publishes its numbers, and receives those of all. Each line of standard input begins a phase of this name. At
the end of the input, a line of JSON says how many messages were published and missed, and how late they came
in each phase, and since it began.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from typing import Any

import uvloop

from tests.support.clients.raw import TEXT, frame, upgrade
from tests.support.clients.wire import close_code, taken

GROUP = "public.honest"
#: Seconds that the last messages have to arrive.
PATIENCE = 10.0
_SENT = re.compile(rb'"data":"(\d+)-(\d+)-(\d+)"')
_PING = re.compile(rb'"type":"ping","n":(\d+)')


class Honest(asyncio.Protocol):
    """One client."""

    def __init__(self, number: int, netloc: str, talk: "Talk") -> None:
        self.number = number
        self.netloc = netloc
        self.talk = talk
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: str | None = None
        self.published = 0
        self.seen: set[tuple[int, int]] = set()
        self.refused = 0
        self.rest = b""
        self.is_open = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        headers = [f"Origin: http://{self.netloc}", f"X-Forwarded-For: 203.0.113.{1 + self.number}"]
        transport.write(upgrade(f"/ws/{GROUP}/", self.netloc, "realtime.v1", *headers))

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        if not self.is_open:
            head, ends, data = data.partition(b"\r\n\r\n")
            if not ends:
                self.rest = head
                return
            self.is_open = True
        found, self.rest = taken(data)
        now = time.monotonic_ns()
        for opcode, payload in found:
            if opcode == 8:
                self.lost = self.lost or f"closed with {close_code(payload)}"
            elif opcode == TEXT:
                self._take(payload, now)

    def _take(self, payload: bytes, now: int) -> None:
        if (sent := _SENT.search(payload)) is not None:
            publisher, number, at = map(int, sent.groups())
            self.seen.add((publisher, number))
            self.talk.late.append((at, now - at))
        elif (ping := _PING.search(payload)) is not None:
            self.transport.write(frame(b'{"type":"pong","n":' + ping[1] + b"}"))
        elif b'"error"' in payload:
            self.refused += 1
        elif b'"welcome"' in payload and not self.welcomed.done():
            self.welcomed.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = self.lost or f"lost: {error!r}"
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(self.lost))

    def publish(self) -> None:
        if self.lost:
            return
        data = f'"{self.number}-{self.published}-{time.monotonic_ns()}"'
        self.transport.write(
            frame(f'{{"type":"publish","ref":{self.published},"group":"{GROUP}","data":{data}}}')
        )
        self.published += 1


class Talk:
    """All clients and their phases."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.late: list[tuple[int, int]] = []
        """For each delivery: when it was published, and how late it came, in nanoseconds."""
        self.phases: list[tuple[str, int]] = []

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self.clients = []
        for number in range(self.options.count):
            host, _, port = self.options.server[number % len(self.options.server)].partition(":")
            client = Honest(number, f"{host}:{port}", self)
            await loop.create_connection(lambda client=client: client, host, int(port))
            await client.welcomed
            self.clients.append(client)
        print(json.dumps({"opened": len(self.clients)}), flush=True)  # noqa: T201 - the product of this program
        ends = loop.create_task(self._read_phases())
        while not ends.done():
            for client in self.clients:
                client.publish()
                # Spread over the interval.
                await asyncio.sleep(self.options.every / len(self.clients))
        until = time.monotonic() + PATIENCE
        while self.missed() and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self.report()

    async def _read_phases(self) -> None:
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).decode().strip():
            self.phases.append((line, time.monotonic_ns()))

    def missed(self) -> int:
        return sum(
            client.published - sum((client.number, n) in other.seen for n in range(client.published))
            for client in self.clients
            for other in self.clients
        )

    def report(self) -> dict[str, Any]:
        phases: dict[str, list[float]] = {}
        for at, late in self.late:
            begun = [name for name, began in self.phases if at >= began]
            for name in (*begun[-1:], *(f"since {each}" for each in begun)):
                phases.setdefault(name, []).append(late / 1e6)
        return {
            "published": sum(client.published for client in self.clients),
            "missed": self.missed(),
            "refused": sum(client.refused for client in self.clients),
            "lost": [client.lost for client in self.clients if client.lost],
            "phases": {
                name: {
                    "deliveries": len(late),
                    **{
                        f"p{part}": sorted(late)[int(part / 100 * (len(late) - 1))]
                        for part in (50, 90, 99, 100)
                    },
                }
                for name, late in phases.items()
            },
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", nargs="+", metavar="HOST:PORT")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two messages of a client")
    print(json.dumps(uvloop.run(Talk(parser.parse_args()).run())), flush=True)  # noqa: T201 - the product of this program
