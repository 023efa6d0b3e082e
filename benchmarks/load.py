"""The load generator: opens connections and keeps a fixed number of publishes unfinished.

Prints one JSON line: what was delivered in the measured time, and what the processes named by --watch and
this one used of the CPU meanwhile. It parses no more of a WebSocket frame than its length (RFC 6455 section
5.2), because on one machine every microsecond here is one that the server does not have.
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from typing import Any

import psutil

TEXT_FRAME = 0x81
MASKED = 0x80


class Connection(asyncio.BufferedProtocol):
    """One client: counts frames at least as long as the payload, answers JSON pings, ignores the rest."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.rest = b""
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        options = self.load.options
        offer = f"Sec-WebSocket-Protocol: {options.subprotocol}\r\n" if options.subprotocol else ""
        transport.write(
            f"GET {options.path} HTTP/1.1\r\nHost: {options.host}:{options.port}\r\n"
            f"Origin: http://{options.host}:{options.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\n{offer}"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
        )

    def get_buffer(self, sizehint: int) -> bytearray:
        # One for all connections: it is empty again when `buffer_updated` returns.
        return self.load.buffer

    def buffer_updated(self, size: int) -> None:
        data: bytes | bytearray = self.load.buffer
        if self.rest:
            data = self.rest + data[:size]
            size = len(data)
        if not self.opened.done():
            data = self._shake_hands(bytes(data[:size]))
            size = len(data)
            if not self.opened.done():
                return
        at, smallest = 0, self.load.options.payload
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                if size - at < 4:
                    break
                length, start = data[at + 2] << 8 | data[at + 3], at + 4
            if size - start < length:
                break
            if length >= smallest:
                self.load.deliveries += 1
            elif data.find(b'"ping"', start, start + length) >= 0:
                self._answer(json.loads(bytes(data[start : start + length])))
            at = start + length
        self.rest = bytes(data[at:size]) if at < size else b""
        self.load.publish_more()

    def _shake_hands(self, data: bytes) -> bytes:
        """What follows the handshake; nothing, and all kept for later, while it is incomplete."""
        head, end, frames = data.partition(b"\r\n\r\n")
        if not end:
            self.rest = data
            return b""
        self.rest = b""
        if head.startswith(b"HTTP/1.1 101"):
            self.opened.set_result(None)
        else:
            self.opened.set_exception(ConnectionError(head.decode(errors="replace")))
        return frames

    def _answer(self, ping: dict[str, Any]) -> None:
        pong = json.dumps({"type": "pong", "n": ping["n"]}).encode()
        # Masked with zeros, which leaves the payload as it is.
        self.transport.write(bytes((TEXT_FRAME, MASKED | len(pong), 0, 0, 0, 0)) + pong)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost += 1
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed before the handshake was answered"))


class Load:
    """Everything that one run counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.buffer = bytearray(256 * 1024)
        self.deliveries = 0
        self.published = 0
        self.lost = 0
        self.publisher: subprocess.Popen[bytes] | None = None

    def publish_more(self) -> None:
        """Publish until the wanted number is unfinished; a publish is finished when everybody has it."""
        if self.publisher is None:
            return
        assert self.publisher.stdin is not None  # noqa: S101
        while self.published - self.deliveries // self.options.connections < self.options.unfinished:
            self.published += 1
            self.publisher.stdin.write(b"\n")

    async def run(self) -> dict[str, object]:
        options = self.options
        began = time.monotonic()
        await self._connect()
        connected_in = time.monotonic() - began
        # Not through asyncio: its pipe would write only when the loop has nothing else to do.
        self.publisher = subprocess.Popen(  # noqa: ASYNC220, S603
            [sys.executable, "-m", "benchmarks.publisher", *options.publish, str(options.payload)],
            stdin=subprocess.PIPE,
            bufsize=0,
        )
        try:
            self.publish_more()
            await asyncio.sleep(options.warm_up)
            before, deliveries, began = self._cpu(), self.deliveries, time.monotonic()
            await asyncio.sleep(options.seconds)
            seconds, deliveries = time.monotonic() - began, self.deliveries - deliveries
            used = {name: after - before[name] for name, after in self._cpu().items()}
        finally:
            publisher, self.publisher = self.publisher, None
            publisher.kill()
            publisher.wait()
        return {
            "connected_in": connected_in,
            "seconds": seconds,
            "deliveries": deliveries,
            "lost_connections": self.lost,
            "cpu": used,
        }

    async def _connect(self) -> None:
        loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(50)

        async def one() -> None:
            async with slots:
                _, client = await loop.create_connection(
                    lambda: Connection(self), self.options.host, self.options.port
                )
                await client.opened

        await asyncio.gather(*(one() for _ in range(self.options.connections)))

    def _cpu(self) -> dict[str, float]:
        """Seconds of CPU, user and system, of each watched process with its threads, and of this one."""
        watched = (pair.split("=") for pair in self.options.watch)
        times = {name: psutil.Process(int(pid)).cpu_times() for name, pid in watched}
        times["generator"] = psutil.Process().cpu_times()
        return {name: used.user + used.system for name, used in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--subprotocol", default="")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--unfinished", type=int, default=2, help="publishes in flight at any time")
    parser.add_argument("--payload", type=int, default=200, help="bytes of data in a message")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before the measured time")
    parser.add_argument("--seconds", type=float, default=8.0, help="the measured time")
    parser.add_argument("--publish", nargs=2, metavar=("HOW", "GROUP"), required=True)
    parser.add_argument("--watch", action="append", default=[], metavar="NAME=PID")
    print(json.dumps(asyncio.run(Load(parser.parse_args()).run())))  # noqa: T201 - the product of this program
