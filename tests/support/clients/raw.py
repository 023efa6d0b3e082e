"""A WebSocket client that may break every rule: it sends the bytes that a test gives it.

The wire format is RFC 6455 section 5.2.
"""

import asyncio
import base64
import json
import os
import socket
import struct
import time
from typing import Any, Self
from urllib.parse import urlsplit

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10

PATIENCE = 5.0  # seconds that a handshake may take on a busy machine
SMALL_BUFFER = 16 * 1024

Frame = dict[str, Any]


def frame(
    payload: bytes | str, opcode: int = TEXT, *, last: bool = True, masked: bool = True, reserved: int = 0
) -> bytes:
    """Return one frame as a client sends it; `reserved` are the three reserved bits."""
    content = payload.encode() if isinstance(payload, str) else payload
    first, mask = (0x80 if last else 0) | reserved << 4 | opcode, 0x80 if masked else 0
    if len(content) < 126:
        head = struct.pack("!BB", first, mask | len(content))
    elif len(content) < 65536:
        head = struct.pack("!BBH", first, mask | 126, len(content))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(content))
    # A mask of zeros leaves the content as it is.
    return head + (bytes(4) if masked else b"") + content


def upgrade(target: str, netloc: str, subprotocol: str = "realtime.v1", *headers: str) -> bytes:
    """Return the request of a handshake, for clients that only have to be fast.

    Args:
        target: The path of the URL.
        netloc: Its host and port.
        subprotocol: The subprotocol that the client offers; empty for none.
        headers: More lines of the request.
    """
    offer = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {target} HTTP/1.1", f"Host: {netloc}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", *offer, f"Sec-WebSocket-Key: {key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


class RawClient:
    """One connection, which collects everything that the server sends until it closes.

    Args:
        url: The address; its path is the target of the handshake.
        bytes_per_second: The client reads no faster than this.
        large_buffers: The kernel keeps as much for a slow client as for any other program. Otherwise it keeps
            next to nothing.
        answers_pings: The client answers pings of both kinds.
    """

    def __init__(
        self,
        url: str,
        *,
        bytes_per_second: float | None = None,
        large_buffers: bool = False,
        answers_pings: bool = True,
    ) -> None:
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.target = parts.path.encode()
        self.bytes_per_second = bytes_per_second
        self.large_buffers = large_buffers
        self.answers_pings = answers_pings
        self.status = 0
        """The status of the answer to the handshake; 0 if there was none."""
        self.frames: list[Frame] = []
        self.close_code: int | None = None
        self.ended = asyncio.Event()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._reading: asyncio.Task[None] | None = None

    async def open(
        self,
        *headers: tuple[str, bytes | str],
        target: bytes | None = None,
        then: bytes = b"",
        v1: bool = True,
    ) -> Self:
        """Shake hands, with `then` in the same packet, and begin to read if the answer is 101."""
        self._reader, self._writer = await self._connect()
        fields: dict[str, bytes | str] = {
            "Host": f"{self.host}:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)),
            "Sec-WebSocket-Version": "13",
        }
        if v1:
            fields["Sec-WebSocket-Protocol"] = "realtime.v1"
        fields |= dict(headers)
        lines = [b"GET " + (self.target if target is None else target) + b" HTTP/1.1"]
        for name, value in fields.items():
            content = value.encode("latin-1") if isinstance(value, str) else value
            lines += [name.encode() + b": " + content] if content else []
        self._writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + then)
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            self.ended.set()
            return self
        self.status = int(answer.split(b" ", 2)[1])
        if self.status == 101:
            self._reading = asyncio.create_task(self._read())
        else:
            self.ended.set()
        return self

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.bytes_per_second is None:
            return await asyncio.open_connection(self.host, self.port)
        raw = socket.socket()
        if not self.large_buffers:
            # Before it connects: afterwards the kernel has offered the peer more than that. Segments have the
            # size of a real network: for segments of loopback the server's kernel would keep megabytes.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (self.host, self.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=SMALL_BUFFER)
        return _PacedReader(reader, self.bytes_per_second), writer  # type: ignore[return-value]

    async def send(self, *raw: bytes) -> None:
        """Send bytes unchanged. It is no error if the server has hung up meanwhile."""
        try:
            for each in raw:
                self._writer.write(each)
                # Not `wait_for`: on Python 3.11 it may lose a cancellation, and then its caller never ends.
                async with asyncio.timeout(10):
                    await self._writer.drain()
        except (ConnectionError, TimeoutError):
            pass

    async def ask_report(self, count: int, size: int, close: int | None = None) -> None:
        """Ask a `Report` of `tests.support.applications.drop_in` for `count` messages of `size` bytes."""
        await self.send(frame(json.dumps({"count": count, "size": size, "close": close})))

    @property
    def reports(self) -> list[int]:
        """The numbers of the messages of a report that have arrived."""
        return [each["n"] for each in self.frames if each["type"] == "report"]

    async def seen(self, kind: str, *, within: float = 10.0) -> Frame:
        """Return the first frame of this type; wait for it if it has not arrived.

        Raises:
            AssertionError: The connection ended first; the message has all frames.
            TimeoutError: It did not arrive within `within` seconds.
        """
        async with asyncio.timeout(within):
            while True:
                found = next((each for each in self.frames if each["type"] == kind), None)
                if found is not None:
                    return found
                if self.ended.is_set():
                    raise AssertionError(f"no {kind} before the end ({self.close_code}): {self.frames}")
                await asyncio.sleep(0.01)

    async def closes(self, *, within: float = 10.0) -> int | None:
        """Wait for the end; return the close code that the server sent, or None if it sent none."""
        async with asyncio.timeout(within):
            await self.ended.wait()
        return self.close_code

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def hang_up(self) -> None:
        """Hang up without reading the rest."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _read(self) -> None:
        try:
            while True:
                first, length = struct.unpack("!BB", await self._reader.readexactly(2))
                if length == 126:
                    (length,) = struct.unpack("!H", await self._reader.readexactly(2))
                elif length == 127:
                    (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
                payload = await self._reader.readexactly(length)
                if first & 15 == TEXT:
                    self._take(json.loads(payload))
                elif first & 15 == PING and self.answers_pings:
                    self._writer.write(frame(payload, PONG))
                elif first & 15 == CLOSE:
                    self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                    self._writer.write(frame(payload[:2], CLOSE))
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended.set()

    def _take(self, received: Frame) -> None:
        self.frames.append(received)
        if received["type"] == "ping" and self.answers_pings:
            self._writer.write(frame(json.dumps({"type": "pong", "n": received["n"]})))


class _PacedReader:
    """The part of a StreamReader that is used here, at a bounded rate."""

    def __init__(self, reader: asyncio.StreamReader, bytes_per_second: float) -> None:
        self._reader = reader
        self._rate = bytes_per_second
        self._free_at = time.monotonic()

    async def readuntil(self, separator: bytes) -> bytes:
        return await self._reader.readuntil(separator)

    async def readexactly(self, size: int) -> bytes:
        parts = []
        while size:
            # In pieces, so that the rate also holds within a long message.
            parts.append(await self._reader.readexactly(min(size, 4096)))
            size -= len(parts[-1])
            self._free_at = max(self._free_at, time.monotonic()) + len(parts[-1]) / self._rate
            await asyncio.sleep(self._free_at - time.monotonic())
        return b"".join(parts)
