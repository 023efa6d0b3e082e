"""A transport on hypercorn that sends pings, sees pongs, and does not wait for ever for a peer.

hypercorn can send pings, but it waits for no pong. Behind its ASGI `send` is the stream of the WebSocket, and
behind that the writer of its TCP connection. Messages go through ASGI. Three things beyond it are used: the
writer's asyncio transport, which has public methods; wsproto's connection, which reports pongs that hypercorn
skips; and the event that says that hypercorn stops.

Only WebSockets over HTTP/1.1 on asyncio or uvloop are known. With HTTP/2, HTTP/3 or trio, and with other
versions of hypercorn, a connection gets an `AsgiTransport`.

Private: docs/reference.md lists the public names.
"""

from collections.abc import Callable, Iterator
from typing import Any

from realtime.closing import CloseReason
from realtime.process import drain
from realtime.transports.asgi import Options, Ping, Send, Watcher
from realtime.transports.on_asyncio import OnAsyncio
from realtime.wire import rfc6455

#: The module of hypercorn's streams of WebSockets.
MODULE = "hypercorn.protocol.ws_stream"


class HypercornTransport(OnAsyncio):
    """An `AsgiTransport` that knows the stream and the asyncio transport of its connection.

    Args:
        send: The ASGI `send` of the connection.
        stream: hypercorn's stream of the connection.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
        wrapped: True if `send` is a middleware's, and not that of the stream.
    """

    __slots__ = ("_sees_pongs", "_stream")

    def __init__(
        self, send: Send, stream: Any, options: Options, watcher: Watcher, *, wrapped: bool = False
    ) -> None:
        writer = stream.send.__self__.send.__self__.writer
        super().__init__(send, writer.transport, options, watcher, wrapped=wrapped)
        self._stream = stream
        self._sees_pongs = False
        if not wrapped:
            # hypercorn's own `send` suspends only while the client does not read.
            self._prompt = True
        # hypercorn closes with 1011 three seconds after this event. The drain comes first.
        drain.begin_after(stream.context.terminated.wait)

    @property
    def can_ping(self) -> bool:
        return self._sees_pongs

    def _opened(self) -> None:
        connection: Any = self._stream.connection
        events = getattr(connection, "events", None)
        if callable(events) and hasattr(connection, "__dict__"):
            connection.events = _Events(events, self._ponged)
            self._sees_pongs = True

    def ping(self, ping: Ping) -> None:
        """Send a ping of either kind. A ping of RFC 6455 may stand between any two frames."""
        if ping.event is not None:
            self.write(ping.event, ping.size)
        elif self._sees_pongs and not self._asyncio.is_closing():
            # hypercorn hands each frame to the transport as a whole.
            self._asyncio.write(ping.wire)

    def abandon(self) -> None:
        """Drop everything that waits, and let hypercorn read its events itself."""
        super().abandon()
        if self._sees_pongs:
            # It refers to this transport, which refers to the stream.
            vars(self._stream.connection).pop("events", None)

    def _state(self) -> str:
        """Return the name of the state of wsproto's connection; empty before the handshake."""
        connection = getattr(self._stream, "connection", None)
        return str(getattr(getattr(connection, "state", None), "name", ""))

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        # hypercorn reports 1006 for a close frame of the client, too.
        match self._state():
            case "OPEN":
                return CloseReason.CLIENT_LOST
            case "CLOSED" | "REMOTE_CLOSING":
                return CloseReason.CLIENT_CLOSED
            case "LOCAL_CLOSING" if reported is not None:
                # hypercorn itself closes only for a message above its own limit.
                return CloseReason.TOO_LARGE
        return None

    def _ponged(self, payload: bytes) -> None:
        if rfc6455.is_number(payload):
            self._watcher.ponged(int(payload), v1=False)


class _Events:
    """wsproto's method `events`, which also reports pongs."""

    __slots__ = ("_events", "_ponged")

    def __init__(self, events: Callable[[], Iterator[Any]], ponged: Callable[[bytes], None]) -> None:
        self._events = events
        self._ponged = ponged

    def __call__(self) -> Iterator[Any]:
        for event in self._events():
            if type(event).__name__ == "Pong":
                self._ponged(bytes(event.payload))
            yield event


def stream_behind(send: Any) -> Any:
    """Return hypercorn's stream of the connection if this is its `send`, otherwise None."""
    stream = getattr(send, "__self__", None)
    return stream if is_usable(stream) else None


def is_usable(stream: Any) -> bool:
    """Return True if this is a stream of hypercorn, and everything that is used here is as known."""
    if not _is_stream(stream):
        return False
    try:
        http = stream.send.__self__
        server = http.send.__self__
        transport = server.writer.transport
        return (
            _is(http, "hypercorn.protocol.h11", "H11Protocol")
            and _is(server, "hypercorn.asyncio.tcp_server", "TCPServer")
            and callable(stream.context.terminated.wait)
            and all(map(callable, (transport.write, transport.abort, transport.get_write_buffer_size)))
        )
    except AttributeError:
        return False


def scope_of(stream: Any) -> dict[str, Any]:
    """Return the values in the scope that hypercorn made for this connection alone; none for others."""
    scope = getattr(stream, "scope", None) if _is_stream(stream) else None
    if not isinstance(scope, dict):
        return {}
    return {key: scope.get(key) for key in ("headers", "subprotocols", "extensions", "state", "client")}


def _is_stream(candidate: Any) -> bool:
    return _is(candidate, MODULE, "WSStream")


def _is(candidate: Any, module: str, name: str) -> bool:
    kind = type(candidate)
    return kind.__module__ == module and kind.__name__ == name
