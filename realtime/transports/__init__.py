"""Which transport a connection gets: the fastest that is safe for the `send` that it was given."""

from typing import Any

from channels.sessions import InstanceSessionWrapper

from realtime.transports import daphne, uvicorn
from realtime.transports.asgi import AsgiTransport, Options, Send, Watcher
from realtime.transports.daphne import DaphneTransport
from realtime.transports.uvicorn import UvicornTransport


def transport_for(
    send: Send,
    options: Options,
    watcher: Watcher,
    *,
    direct: bool,
) -> AsgiTransport:
    """`direct` is the setting DIRECT_WRITES: without it, nothing but ASGI is used."""
    servers = _without_session(send) if direct else None
    if (protocol := daphne.protocol_behind(servers)) is not None:
        return DaphneTransport(send, protocol, options, watcher)
    if (protocol := uvicorn.protocol_behind(servers)) is not None:
        return UvicornTransport(send, protocol, options, watcher)
    return AsgiTransport(send, options, watcher)


def _without_session(send: Any) -> Any:
    """The `send` that Channels' session wrapper passes every WebSocket event on to, unchanged."""
    while getattr(send, "__func__", None) is InstanceSessionWrapper.send:
        send = send.__self__.real_send
    return send
