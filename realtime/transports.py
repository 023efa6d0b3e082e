"""Which transport a connection gets: the fastest that is safe for the `send` that it was given."""

from typing import Any

from channels.sessions import InstanceSessionWrapper

from realtime import daphne_transport, uvicorn_transport
from realtime.daphne_transport import DaphneTransport, OnPong
from realtime.transport import AsgiTransport, OnFailure, Send
from realtime.uvicorn_transport import UvicornTransport


def transport_for(
    send: Send,
    *,
    direct: bool,
    max_unsent: int,
    send_timeout: float,
    on_failure: OnFailure,
    on_pong: OnPong,
) -> AsgiTransport:
    """`direct` is the setting DIRECT_WRITES: without it, nothing but ASGI is used."""
    servers = _without_session(send) if direct else None
    if (protocol := daphne_transport.protocol_behind(servers)) is not None:
        return DaphneTransport(
            send,
            protocol,
            max_unsent=max_unsent,
            send_timeout=send_timeout,
            on_failure=on_failure,
            on_pong=on_pong,
        )
    if (protocol := uvicorn_transport.protocol_behind(servers)) is not None:
        return UvicornTransport(
            send, protocol, max_unsent=max_unsent, send_timeout=send_timeout, on_failure=on_failure
        )
    return AsgiTransport(send, max_unsent=max_unsent, send_timeout=send_timeout, on_failure=on_failure)


def _without_session(send: Any) -> Any:
    """The `send` that Channels' session wrapper passes every WebSocket event on to, unchanged."""
    while getattr(send, "__func__", None) is InstanceSessionWrapper.send:
        send = send.__self__.real_send
    return send
