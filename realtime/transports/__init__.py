"""Write to clients: choose the fastest transport that is safe for a connection's `send`.

Private: docs/reference.md lists the public names.
"""

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
    """Return the transport of a new connection.

    Args:
        send: The ASGI `send` of the connection.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
        direct: The setting DIRECT_WRITES. If False, only ASGI is used.
    """
    servers = _without_session(send) if direct else None
    if (protocol := daphne.protocol_behind(servers)) is not None:
        return DaphneTransport(send, protocol, options, watcher)
    if (protocol := uvicorn.protocol_behind(servers)) is not None:
        return UvicornTransport(send, protocol, options, watcher)
    return AsgiTransport(send, options, watcher)


def _without_session(send: Any) -> Any:
    """Return the `send` to which Channels' session wrapper passes every WebSocket event unchanged."""
    while getattr(send, "__func__", None) is InstanceSessionWrapper.send:
        send = send.__self__.real_send
    return send
