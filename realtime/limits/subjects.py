"""Find out for whom a connection counts: its client's network, and its user.

Private: docs/reference.md lists the public names.
"""

import logging
from typing import Any

from realtime import addresses, conf

logger = logging.getLogger("realtime.limits")

#: The bits of a network that counts as one client. A household or a host has a whole IPv6 network of 64 bits.
IPV4_BITS, IPV6_BITS = 32, 64

_warned: set[str] = set()


def address_of(scope: dict[str, Any]) -> str:
    """Return the address of the client of a handshake; empty if the server does not know it."""
    trusted = conf.get().TRUSTED_PROXIES
    return addresses.client(_peer(scope), _forwarded(scope) if trusted else "", trusted)


def network_of(scope: dict[str, Any], address: str | None = None) -> str:
    """Return the network for which a handshake counts; empty if no limit by address applies to it.

    Clients behind a proxy that is not in TRUSTED_PROXIES all have the address of the proxy. They would share
    one limit, so there is none. The same holds if a trusted proxy names no client.

    Args:
        scope: The ASGI scope.
        address: What `address_of` returned for it; None asks again.
    """
    settings = conf.get()
    if address is None:
        address = address_of(scope)
    if not address or addresses.matches(address, settings.TRUSTED_PROXIES):
        return ""
    if _is_undeclared_proxy(scope, address):
        _warn_once(address)
        return ""
    network = addresses.network(address, IPV4_BITS, IPV6_BITS)
    # One object for both, as most addresses are IPv4.
    return address if network == address else network


def of_user(user_id: str) -> str:
    """Return the subject of the limit of a user. A network itself is the subject of its anonymous clients."""
    return f"u:{user_id}"


def of_users_at(network: str) -> str:
    """Return the subject of the limit of all users at a network."""
    return f"n:{network}"


def _is_undeclared_proxy(scope: dict[str, Any], address: str) -> bool:
    """Return True if the peer seems to be a proxy: a host of a private network that names another client."""
    peer = _peer(scope)
    if peer != address or scope["client"][1] == 0 or not (found := addresses.address(peer)):
        # Servers that read the header themselves report the client that it names, with the port 0.
        return False
    return not found.is_global and bool(_forwarded(scope))


def _warn_once(peer: str) -> None:
    if not _warned:
        _warned.add(peer)
        logger.warning(
            "The limits by address are off for clients behind %s: it seems to be a proxy, and it is not in "
            'REALTIME["TRUSTED_PROXIES"]. Add it there, so that each of its clients has limits of its own. '
            "If it is none, let it not send the header X-Forwarded-For",
            addresses.reduced(peer, conf.get().CLIENT_DETAILS) or "one peer",
        )


def _peer(scope: dict[str, Any]) -> str:
    """Return the address at the other end of the socket; empty for a Unix socket."""
    peer = scope.get("client")
    return str(peer[0] or "") if peer else ""


def _forwarded(scope: dict[str, Any]) -> str:
    headers = scope.get("headers", ())
    return ",".join(value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for")
