"""A transport on uvicorn that does not wait for ever until a peer has read the rest.

Writes go through ASGI. Two things of uvicorn's protocol are used: its asyncio transport, which has
public methods, and the close frames that were sent and received, as the library behind `--ws` keeps them.
"""

from typing import Any

from realtime.closing import CloseReason
from realtime.transports.asgi import Options, Send, Watcher
from realtime.transports.on_asyncio import OnAsyncio

#: The reason for which uvicorn itself closed a connection, by the code of its close frame.
_REASONS = {
    1002: CloseReason.PROTOCOL_ERROR,
    1007: CloseReason.PROTOCOL_ERROR,
    1009: CloseReason.TOO_LARGE,
    1011: CloseReason.PING_TIMEOUT,
    1012: CloseReason.SERVER_RESTART,
}


#: The modules of uvicorn's protocols for WebSocket.
MODULES = tuple(
    f"uvicorn.protocols.websockets.{name}_impl" for name in ("websockets", "websockets_sansio", "wsproto")
)


class UvicornTransport(OnAsyncio):
    """An `AsgiTransport` that knows the protocol and the asyncio transport of its connection.

    Args:
        send: The ASGI `send` of the connection.
        protocol: uvicorn's protocol of the connection.
        options: The limits of the transport.
        watcher: The owner, told about failures and bytes that wait.
        wrapped: True if `send` is a middleware's, and not that of the protocol.
    """

    __slots__ = ("_protocol",)

    def __init__(
        self,
        send: Send,
        protocol: Any,
        options: Options,
        watcher: Watcher,
        *,
        wrapped: bool = False,
    ) -> None:
        super().__init__(send, protocol.transport, options, watcher, wrapped=wrapped)
        self._protocol = protocol

    @property
    def server_pings(self) -> bool:
        # The options --ws-ping-interval and --ws-ping-timeout; either may be None.
        config = getattr(self._protocol, "config", None)
        return all(getattr(config, name, True) for name in ("ws_ping_interval", "ws_ping_timeout"))

    def _state(self) -> str:
        """Return the name of the state of the WebSocket. Each library has its own class for it."""
        connection = getattr(self._protocol, "conn", self._protocol)
        return str(getattr(getattr(connection, "state", None), "name", ""))

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        # uvicorn reports 1005 both for a broken connection and for a close frame without a code.
        connection: Any = getattr(self._protocol, "conn", None)
        try:
            sent, received = connection.close_sent, connection.close_rcvd
        except AttributeError:
            state = getattr(getattr(connection, "state", None), "name", "")
            return _of_wsproto(state, reported, keepalive=getattr(self._protocol, "close_sent", False))
        if received is not None and (sent is None or sent is received):
            # The library keeps one object for a close frame and its answer.
            return CloseReason.CLIENT_CLOSED
        return CloseReason.CLIENT_LOST if sent is None else _REASONS.get(sent.code)


def _of_wsproto(state: str, reported: int | None, *, keepalive: bool) -> CloseReason | None:
    """Return the reason for the end, by wsproto's state, which is all that wsproto keeps of close frames."""
    match state:
        case "OPEN":
            # If the peer broke the protocol, uvicorn reports the code as if the peer had closed with it.
            return _REASONS.get(reported or 0, CloseReason.CLIENT_LOST)
        case "CLOSED" | "REMOTE_CLOSING":
            return CloseReason.CLIENT_CLOSED
        case "LOCAL_CLOSING" if reported is not None:
            # uvicorn reports the codes of two of its own close frames. Of the others it notes only the one
            # of its keepalive, as `close_sent`.
            unnamed = CloseReason.PING_TIMEOUT if keepalive else CloseReason.PROTOCOL_ERROR
            return _REASONS.get(reported, unnamed)
    return None


def protocol_behind(send: Any) -> Any:
    """Return uvicorn's protocol of the connection if this is its `send`, otherwise None."""
    protocol = getattr(send, "__self__", None)
    return protocol if is_usable(protocol) else None


def is_usable(protocol: Any) -> bool:
    """Return True if this is a protocol of uvicorn with a usable transport.

    The event loop may be asyncio's own or uvloop.
    """
    transport = getattr(protocol, "transport", None) if _is_protocol(protocol) else None
    return hasattr(transport, "abort") and hasattr(transport, "get_write_buffer_size")


def scope_of(protocol: Any) -> dict[str, Any]:
    """Return the values in the scope that uvicorn made for this connection alone; none for other objects."""
    scope = getattr(protocol, "scope", None) if _is_protocol(protocol) else None
    if not isinstance(scope, dict):
        return {}
    return {key: scope.get(key) for key in ("headers", "subprotocols", "extensions", "state", "client")}


def _is_protocol(protocol: Any) -> bool:
    return type(protocol).__module__.startswith("uvicorn.protocols.websockets.")
