"""Clients that send as fast as they are told, in a process of their own.

`python -m tests.support.clients.flooders HOST PORT KIND` opens connections, and prints a line of JSON.
When it has read a line, all of them flood. It prints another line when each was refused or cut, or the time
is over. The clients come from several addresses, which they write into X-Forwarded-For as a proxy would.
"""

import argparse
import asyncio
import json
import time
from functools import cache
from typing import Any

import uvloop

from tests.support.clients.raw import PING, frame, upgrade
from tests.support.clients.wire import close_code, taken

#: Seconds between two writes of one flooder.
TICK = 0.01
#: A flooder whose socket takes nothing more writes no more than this ahead.
AHEAD = 256 * 1024
LARGE = 60 * 1024


def frames_of(kind: str, flooder: int, first: int, count: int) -> bytes:
    """Return the next frames of a flooder.

    Args:
        kind: The kind of the flood.
        flooder: The number of the flooder.
        first: The frames that it has sent before.
        count: The number of frames.
    """
    group = f"public.flood.{flooder}"
    match kind:
        case "frames":
            # The cheapest frame that is no error: a pong that nothing awaits.
            return frame('{"type":"pong","n":9}') * count
        case "pings":
            return frame('{"type":"ping","n":9}') * count
        case "control":
            return frame(b"9", PING) * count
        case "large":
            return large_frame(group) * count
        case "joins":
            numbers = range(first, first + count)
            return b"".join(frame(f'{{"type":"join","ref":{n},"group":"{group}.{n}"}}') for n in numbers)
        case "publishes":
            numbers = range(first, first + count)
            return b"".join(
                frame(f'{{"type":"publish","ref":{n},"group":"{group}","data":{n}}}') for n in numbers
            )
    raise ValueError(kind)


@cache
def large_frame(group: str) -> bytes:
    filler = "x" * LARGE
    return frame(f'{{"type":"publish","ref":1,"group":"{group}","data":"{filler}"}}')


class Flooder(asyncio.Protocol):
    """One connection, and what became of it. Times are those of `time.monotonic`."""

    def __init__(self, number: int, netloc: str, options: argparse.Namespace) -> None:
        self.number = number
        self.options = options
        self.netloc = netloc
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.began: float | None = None
        self.told: float | None = None
        self.cut: float | None = None
        self.code: int | str | None = None
        self.sent = 0
        self.rest = b""
        self.transport: Any = None

    @property
    def address(self) -> str:
        return f"198.51.100.{1 + self.number % self.options.addresses}"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        protocol = "" if self.options.plain else "realtime.v1"
        headers = [f"Origin: http://{self.netloc}", f"X-Forwarded-For: {self.address}"]
        transport.write(upgrade("/ws/", self.netloc, protocol, *headers))

    def data_received(self, data: bytes) -> None:
        data, self.rest = self.rest + data, b""
        if not self.opened.done():
            head, ends, data = data.partition(b"\r\n\r\n")
            if not ends:
                self.rest = head
                return
            upgraded = head.startswith(b"HTTP/1.1 101")
            self.opened.set_result(upgraded)
            if not upgraded:
                self._is_cut(int(head.split(b" ", 2)[1]))
                self.transport.abort()
                return
        found, self.rest = taken(data)
        for opcode, payload in found:
            if opcode == 8:
                self._is_cut(close_code(payload))
                self.transport.close()
            elif self.told is None and b'"rate_limited"' in payload:
                self.told = time.monotonic()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_result(False)
        self._is_cut("lost")

    def _is_cut(self, code: int | str) -> None:
        if self.cut is None:
            self.cut, self.code = time.monotonic(), code

    def flood(self, count: int) -> None:
        """Send frames, unless the connection has ended or its socket takes nothing more."""
        if self.cut is not None or self.transport.is_closing():
            return
        if self.began is None:
            self.began = time.monotonic()
            if self.options.deaf:
                self.transport.pause_reading()
        if self.transport.get_write_buffer_size() < AHEAD:
            if self.options.kind == "large":
                count = min(count, AHEAD // LARGE)
            self.transport.write(frames_of(self.options.kind, self.number, self.sent, count))
            self.sent += count


async def flood(options: argparse.Namespace) -> dict[str, Any]:
    """Open the connections, flood, and return what became of them."""
    loop, netloc = asyncio.get_running_loop(), f"{options.host}:{options.port}"
    flooders = [Flooder(number, netloc, options) for number in range(options.connections)]
    began = time.monotonic()
    for first in range(0, len(flooders), 20):
        some = flooders[first : first + 20]
        await asyncio.gather(
            *(loop.create_connection(lambda each=each: each, options.host, options.port) for each in some)  # type: ignore[misc]
        )
        await asyncio.gather(*(each.opened for each in some))
    print(json.dumps({"opened": sum(each.cut is None for each in flooders)}), flush=True)  # noqa: T201 - the product of this program
    # The test says when.
    await asyncio.to_thread(input)
    began = time.monotonic()
    written = 0
    while time.monotonic() - began < options.seconds and any(each.cut is None for each in flooders):
        due = int((time.monotonic() - began) * options.rate) + 1
        if due > written:
            for each in flooders:
                each.flood(min(due - written, 1 + int(options.rate)))
            written = due
        await asyncio.sleep(TICK)
    return report(flooders, began)


def report(flooders: list[Flooder], began: float) -> dict[str, Any]:
    cut = sorted(each.cut - each.began for each in flooders if each.cut and each.began)
    told = sorted(each.told - each.began for each in flooders if each.told and each.began)
    codes: dict[str, int] = {}
    for each in flooders:
        codes[str(each.code)] = codes.get(str(each.code), 0) + 1
    return {
        "began": began,
        "ended": max([each.cut for each in flooders if each.cut], default=time.monotonic()),
        "open": sum(each.cut is None for each in flooders),
        "codes": codes,
        "told": len(told),
        "cut": cut,
        "sent": sum(each.sent for each in flooders),
    }


async def handshakes(options: argparse.Namespace) -> dict[str, Any]:
    """Have each flooder connect again and again, and count the answers."""
    print(json.dumps({"opened": options.connections}), flush=True)  # noqa: T201 - the product of this program
    await asyncio.to_thread(input)
    loop, netloc = asyncio.get_running_loop(), f"{options.host}:{options.port}"
    began, codes, refused_after = time.monotonic(), dict[str, int](), list[float]()

    async def again(number: int) -> None:
        first_refusal = None
        tries = 0
        while (now := time.monotonic()) - began < options.seconds:
            await asyncio.sleep(max(0.0, began + tries * options.connections / options.rate - now))
            tries += 1
            each = Flooder(number, netloc, options)
            try:
                async with asyncio.timeout(10):
                    await loop.create_connection(lambda each=each: each, options.host, options.port)
                    await each.opened
            except (OSError, TimeoutError) as error:
                each.code = type(error).__name__
            if each.code is not None and first_refusal is None:
                first_refusal = time.monotonic() - began
                refused_after.append(first_refusal)
            codes[str(each.code)] = codes.get(str(each.code), 0) + 1
            if each.transport is not None:
                each.transport.abort()

    await asyncio.gather(*(again(number) for number in range(options.connections)))
    return {
        "began": began,
        "ended": time.monotonic(),
        "open": 0,
        "codes": codes,
        "told": 0,
        "cut": sorted(refused_after),
        "sent": sum(codes.values()),
    }


KINDS = ("frames", "pings", "control", "large", "joins", "publishes", "handshakes")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1000.0, help="frames per second of each connection")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--addresses", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="offer no subprotocol")
    parser.add_argument("--deaf", action="store_true", help="read nothing")
    options = parser.parse_args()
    flooding = handshakes if options.kind == "handshakes" else flood
    print(json.dumps(uvloop.run(flooding(options))), flush=True)  # noqa: T201 - the product of this program
