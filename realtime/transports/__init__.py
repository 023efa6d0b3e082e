"""Write to clients: choose the transport of a connection.

Two questions are kept apart: which way messages take (always the `send` that the application was given), and
what is known of the connection (from the server's protocol, wherever it is found).

Private: docs/reference.md lists the public names.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from channels.sessions import InstanceSessionWrapper

from realtime.transports import daphne, finding, hypercorn, uvicorn
from realtime.transports.asgi import AsgiTransport, Options, Send, Watcher
from realtime.transports.daphne import DaphneTransport, WrappedDaphneTransport
from realtime.transports.hypercorn import HypercornTransport
from realtime.transports.uvicorn import UvicornTransport
from realtime.wire.frames import SUBPROTOCOL

logger = logging.getLogger("realtime.transports")

#: The reasons for which the protocol of a connection is not used, with the remedy.
_REMEDIES = {
    "the setting DIRECT_WRITES is False": "Set it to True.",
    "Daphne itself ends TLS": "Let a proxy in front of Daphne end TLS.",
    "this version of the server, or its HTTP/2, is not known": "Use what this package is tested with.",
    "a middleware hides the server's connection": "Leave the scope's headers or client as they are.",
    "granian sends no pings and hides the pongs": "Use Daphne, uvicorn or hypercorn.",
    "this server is not known": "Use Daphne, uvicorn or hypercorn.",
}
_SETTING, _TLS, _VERSION, _MIDDLEWARE, _GRANIAN, _SERVER = _REMEDIES
#: The module of granian that is loaded in each of its processes.
_GRANIANS = "granian._granian"

_warned: set[str] = set()


def transport_for(
    send: Send,
    options: Options,
    watcher: Watcher,
    *,
    scope: Mapping[str, Any],
    direct: bool,
) -> AsgiTransport:
    """Return the transport of a new connection.

    Args:
        send: The ASGI `send` of the connection.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
        scope: The ASGI scope of the connection.
        direct: The setting DIRECT_WRITES. If False, only ASGI is used.
    """
    protocol = None
    if direct:
        server = _without_session(send)
        if (protocol := daphne.protocol_behind(server)) is not None:
            return DaphneTransport(send, protocol, options, watcher)
        if (protocol := uvicorn.protocol_behind(server)) is not None:
            return UvicornTransport(send, protocol, options, watcher)
        if (protocol := hypercorn.stream_behind(server)) is not None:
            return HypercornTransport(send, protocol, options, watcher)
        protocol = finding.protocol_of(scope, send)
        if daphne.is_usable(protocol):
            return WrappedDaphneTransport(send, protocol, options, watcher)
        if uvicorn.is_usable(protocol):
            return UvicornTransport(send, protocol, options, watcher, wrapped=True)
        if hypercorn.is_usable(protocol):
            return HypercornTransport(send, protocol, options, watcher, wrapped=True)
    # A client that offers `realtime.v1` is pinged by frames, on any server. Every server sets the version of
    # ASGI, and Channels' test client does not.
    if "asgi" in scope and SUBPROTOCOL not in scope.get("subprotocols", ()):
        _warn_once(_reason(protocol, direct=direct), send)
    return AsgiTransport(send, options, watcher)


def _without_session(send: Any) -> Any:
    """Return the `send` to which Channels' session wrapper passes every WebSocket event unchanged."""
    while getattr(send, "__func__", None) is InstanceSessionWrapper.send:
        send = send.__self__.real_send
    return send


# -- connections that cannot be pinged -------------------------------------------------------------


def _reason(protocol: Any, *, direct: bool) -> str:
    """Return the reason for which nothing is known of a connection.

    Args:
        protocol: The protocol that was found and is not usable; None if none was found.
        direct: The setting DIRECT_WRITES.
    """
    if not direct:
        return _SETTING
    if protocol is not None:
        return _TLS if daphne.uses_tls(protocol) else _VERSION
    reactor = sys.modules.get("twisted.internet.reactor")
    known = (*uvicorn.MODULES, hypercorn.MODULE)
    if getattr(reactor, "running", False) or any(name in sys.modules for name in known):
        return _MIDDLEWARE
    return _GRANIAN if _GRANIANS in sys.modules else _SERVER


def _warn_once(reason: str, send: Any) -> None:
    """Log once in a process, for each reason, that clients without `realtime.v1` cannot be pinged."""
    if reason in _warned:
        return
    _warned.add(reason)
    logger.warning(
        "Clients without the subprotocol %s cannot be pinged, because %s. If such a client vanishes, this "
        "process does not find out: the connection stays, unless the server finds it or "
        "UNPINGED_IDLE_TIMEOUT ends it. %s See docs/howto/servers.md. (send: %s.%s)",
        SUBPROTOCOL,
        reason,
        _REMEDIES[reason],
        getattr(send, "__module__", ""),
        getattr(send, "__qualname__", type(send).__qualname__),
    )
