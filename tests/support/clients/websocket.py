"""WebSocket clients that behave like a page: they answer pings, and keep each frame and its arrival."""

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.assertions.eventually import eventually_async

SUBPROTOCOL = "realtime.v1"
PATIENCE = 10.0  # seconds that an answer may take on a busy machine

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Received:
    """A frame, and its time of arrival in seconds of the monotonic clock."""

    at: float
    frame: Frame


class Client:
    """One connection. A test may change `answers_pings` and `answers_after` at any time.

    There is no compression, no proxy and no keepalive by the client. The library answers RFC 6455 pings.

    Args:
        url: The address.
        plain: The client does not offer `realtime.v1`.
        headers: More headers of the handshake.
        ticket: A ticket that the client presents as a subprotocol.
    """

    def __init__(
        self, url: str, *, plain: bool = False, headers: dict[str, str] | None = None, ticket: str = ""
    ) -> None:
        self.url = url
        self.plain = plain
        self.offered = [*([] if plain else [SUBPROTOCOL]), *([f"realtime.ticket.{ticket}"] if ticket else [])]
        self.headers = headers
        self.answers_pings = True
        self.answers_after = 0.0
        """Seconds between a ping and its pong."""
        self.may_answer = asyncio.Event()
        """While it is cleared, pongs of an `answers_after` wait longer."""
        self.may_answer.set()
        self.received: list[Received] = []
        self.binary: list[bytes] = []
        self.opened_at = 0.0
        self.closed_at: float | None = None
        self.close_code: int | None = None
        self._refs = itertools.count(1)
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()

    # -- life

    async def open(self) -> Self:
        """Shake hands and begin to read.

        Raises:
            websockets.exceptions.InvalidStatus: The server refused the handshake.
        """
        self._socket = await connect(
            self.url,
            subprotocols=self.offered or None,  # type: ignore[arg-type]
            additional_headers=self.headers,
            user_agent_header=None if self.headers and "User-Agent" in self.headers else "tests",
            compression=None,
            ping_interval=None,
            proxy=None,
            open_timeout=30,
            close_timeout=2,
            max_size=None,
            max_queue=None,
        )
        self.opened_at = time.monotonic()
        self._reader = asyncio.create_task(self._read())
        return self

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader

    def abort(self) -> None:
        """End the TCP connection without a close frame; with a RST if something that arrived is unread."""
        assert self._socket is not None
        self._socket.transport.abort()

    def reset(self) -> None:
        """End the TCP connection with a RST and nothing before it."""
        assert self._socket is not None
        raw = self._socket.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def stop_reading(self) -> None:
        """Leave everything that arrives from now on in the kernel; sending goes on."""
        assert self._socket is not None
        self._socket.transport.pause_reading()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _read(self) -> None:
        assert self._socket is not None
        try:
            async for text in self._socket:
                if isinstance(text, bytes):
                    self.binary.append(text)
                    continue
                frame = json.loads(text)
                self._note(frame)
                if frame["type"] == "ping" and self.answers_pings:
                    await self._pong(frame["n"])
        except ConnectionClosed:
            pass
        finally:
            self.closed_at = time.monotonic()
            self.close_code = self._socket.close_code

    def _note(self, frame: Frame) -> None:
        """Keep a frame that arrived."""
        self.received.append(Received(time.monotonic(), frame))

    async def _pong(self, n: int) -> None:
        if not self.answers_after:
            await self.send({"type": "pong", "n": n})
            return

        async def later() -> None:
            await asyncio.sleep(self.answers_after)
            await self.may_answer.wait()
            with contextlib.suppress(ConnectionClosed):
                await self.send({"type": "pong", "n": n})

        answer = asyncio.create_task(later())
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    @property
    def answers_due(self) -> int:
        """The number of pongs that wait for `answers_after` to pass, or for `may_answer`."""
        return len(self._answers)

    # -- what was seen

    @property
    def is_open(self) -> bool:
        return self._socket is not None and self.closed_at is None

    @property
    def subprotocol(self) -> str | None:
        assert self._socket is not None
        return self._socket.subprotocol

    @property
    def frames(self) -> list[Frame]:
        return [each.frame for each in self.received]

    def of_type(self, kind: str) -> list[Frame]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def messages(self) -> list[Frame]:
        return self.of_type("message")

    @property
    def data(self) -> list[Any]:
        """The payloads of the messages, in the order of their arrival."""
        return [frame["data"] for frame in self.messages]

    def arrival(self, matches: Callable[[Frame], bool]) -> float:
        """Return when the first frame that matches arrived. Raises StopIteration if there is none."""
        return next(each.at for each in self.received if matches(each.frame))

    # -- what it says

    async def send(self, frame: object) -> None:
        """Send a frame; a str is sent unchanged."""
        assert self._socket is not None
        await self._socket.send(frame if isinstance(frame, str) else json.dumps(frame))

    async def ask(self, kind: str, **fields: object) -> Frame:
        """Send a command with a new `ref`; return the frame that answers it, which may be an error frame."""
        ref = next(self._refs)
        await self.send({"type": kind, "ref": ref, **fields})
        return await self.seen(lambda frame: frame.get("ref") == ref)

    async def join(self, group: str, **more: object) -> Frame:
        return await self.ask("join", group=group, **more)

    async def leave(self, group: str) -> Frame:
        return await self.ask("leave", group=group)

    async def publish(self, group: str, data: object) -> Frame:
        return await self.ask("publish", group=group, data=data)

    async def seen(self, matches: Callable[[Frame], bool], *, within: float = PATIENCE) -> Frame:
        """Return the first frame that matches; wait for it if it has not arrived.

        Raises:
            NeverHappened: It did not arrive within `within` seconds.
        """

        def matching() -> Frame | None:
            return next((frame for frame in self.frames if matches(frame)), None)

        found = await eventually_async(matching, within=within, every=0.01)
        assert found is not None
        return found

    async def welcomed(self) -> Frame:
        return await self.seen(lambda frame: frame["type"] == "welcome")

    async def closes(self, *, within: float) -> int | None:
        """Wait until the connection has ended, and return the close code that the client saw."""
        await eventually_async(lambda: self.closed_at is not None, within=within, every=0.01)
        return self.close_code


async def connect_many(
    count: int, url: str, *, plain: bool = False, headers: dict[str, str] | None = None, at_once: int = 50
) -> list[Client]:
    """Open `count` clients, with at most `at_once` handshakes under way; if one fails, all are closed."""
    slots = asyncio.Semaphore(at_once)
    clients = [Client(url, plain=plain, headers=headers) for _ in range(count)]

    async def open_one(client: Client) -> None:
        async with slots:
            await client.open()

    try:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(open_one(client))
    except BaseException:
        await close_all(clients)
        raise
    return clients


async def close_all(clients: list[Client]) -> None:
    await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)


@contextlib.asynccontextmanager
async def crowd(count: int, url: str, *, plain: bool = False) -> AsyncIterator[list[Client]]:
    """Open `count` clients, and close them at the end of the block."""
    clients = await connect_many(count, url, plain=plain)
    try:
        yield clients
    finally:
        await close_all(clients)
