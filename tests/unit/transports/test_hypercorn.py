"""The transport for hypercorn: pings and pongs, the reason for an end, and the drain before its shutdown."""

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from wsproto.connection import ConnectionState
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong

from realtime.closing import CloseReason
from realtime.process import drain
from realtime.transports import hypercorn, transport_for
from realtime.transports.asgi import AsgiTransport, Options, ping_for
from realtime.transports.hypercorn import HypercornTransport
from realtime.wire import rfc6455
from tests.support.doubles.watching import Watching

OPTIONS = Options(max_unsent=1000, send_timeout=1.0)
HEADERS = [(b"host", b"example.com")]


class Transport:
    """A stand-in for asyncio's transport."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Writer:
    def __init__(self) -> None:
        self.transport = Transport()


class TCPServer:
    """A stand-in for the class of hypercorn with this name, as the two below."""

    def __init__(self) -> None:
        self.writer = Writer()

    async def protocol_send(self, event: object) -> None: ...


class H11Protocol:
    def __init__(self) -> None:
        self.send = TCPServer().protocol_send

    async def stream_send(self, event: object) -> None: ...


class H2Protocol(H11Protocol):
    """The protocol of HTTP/2."""


class WSStream:
    def __init__(self, http: H11Protocol | None = None) -> None:
        self.send = (http or H11Protocol()).stream_send
        self.context = Context()
        self.connection: Any = None
        self.scope = {"type": "websocket", "headers": HEADERS}

    async def app_send(self, event: Any) -> None:
        if event["type"] == "websocket.accept":
            self.connection = Connection()


class Context:
    def __init__(self) -> None:
        self.terminated = asyncio.Event()


class Connection:
    """A stand-in for wsproto's connection."""

    def __init__(self) -> None:
        self.state: Enum = ConnectionState.OPEN
        self.waiting: list[object] = []

    def events(self) -> Iterator[object]:
        while self.waiting:
            yield self.waiting.pop(0)


TCPServer.__module__ = "hypercorn.asyncio.tcp_server"
H11Protocol.__module__ = "hypercorn.protocol.h11"
H2Protocol.__module__ = "hypercorn.protocol.h2"
WSStream.__module__ = hypercorn.MODULE


@pytest.fixture
def watcher() -> Watching:
    return Watching()


async def opened(stream: WSStream, watcher: Watching, send: Any = None) -> AsgiTransport:
    transport = transport_for(
        send or stream.app_send, OPTIONS, watcher, scope=dict(stream.scope), direct=True
    )
    await transport.accept({"type": "websocket.accept"})
    return transport


def written(stream: WSStream) -> list[bytes]:
    return stream.send.__self__.send.__self__.writer.transport.written  # type: ignore[attr-defined, no-any-return]


async def test_a_ping_is_written_as_a_frame_of_its_own(watcher: Watching) -> None:
    stream = WSStream()
    transport = await opened(stream, watcher)
    assert isinstance(transport, HypercornTransport)
    assert transport.can_ping
    transport.ping(ping_for(7, False))
    assert written(stream) == [rfc6455.frame(rfc6455.PING, b"7")]


async def test_pongs_are_seen_and_hypercorn_gets_every_event(watcher: Watching) -> None:
    stream = WSStream()
    await opened(stream, watcher)
    arriving = [Pong(payload=b"7"), WsprotoPing(payload=b"8"), Pong(payload=b"theirs")]
    stream.connection.waiting = list(arriving)
    assert list(stream.connection.events()) == arriving
    assert watcher.pongs == [7]


async def test_after_the_end_hypercorn_reads_its_events_itself(watcher: Watching) -> None:
    stream = WSStream()
    transport = await opened(stream, watcher)
    transport.abandon()
    assert "events" not in vars(stream.connection)
    stream.connection.waiting = [Pong(payload=b"7")]
    assert len(list(stream.connection.events())) == 1
    assert watcher.pongs == []


async def test_a_middleware_does_not_hide_the_stream(watcher: Watching) -> None:
    stream = WSStream()

    async def wrapped(event: Any) -> None:
        await stream.app_send(event)

    transport = await opened(stream, watcher, wrapped)
    assert isinstance(transport, HypercornTransport)
    transport.ping(ping_for(7, False))
    assert written(stream) == [rfc6455.frame(rfc6455.PING, b"7")]


async def test_with_http_2_nothing_is_known_of_the_connection(watcher: Watching) -> None:
    transport = await opened(WSStream(H2Protocol()), watcher)
    assert type(transport) is AsgiTransport
    assert not transport.can_ping
    assert not transport.server_pings


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ConnectionState.OPEN, CloseReason.CLIENT_LOST),
        (ConnectionState.REMOTE_CLOSING, CloseReason.CLIENT_CLOSED),
        (ConnectionState.CLOSED, CloseReason.CLIENT_CLOSED),
        (ConnectionState.LOCAL_CLOSING, CloseReason.TOO_LARGE),
    ],
)
async def test_the_state_tells_which_side_ended_it(
    state: ConnectionState, reason: CloseReason, watcher: Watching
) -> None:
    stream = WSStream()
    transport = await opened(stream, watcher)
    stream.connection.state = state
    # hypercorn reports every end that it did not cause with this code.
    assert transport.ended_by({"type": "websocket.disconnect", "code": 1006}) is reason


async def test_the_drain_begins_when_hypercorn_says_that_it_stops(watcher: Watching) -> None:
    begun = asyncio.Event()

    async def recorded() -> None: ...

    def begin() -> Any:
        begun.set()
        return recorded()

    stream = WSStream()
    await opened(stream, watcher)
    drain.prepare(begin)
    await asyncio.sleep(0)
    assert not begun.is_set()
    stream.context.terminated.set()
    async with asyncio.timeout(5):
        await begun.wait()
        await drain.finish()
