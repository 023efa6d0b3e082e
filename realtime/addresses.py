"""The addresses of clients: the one behind a proxy, and the network that counts as one client.

A proxy appends the address that it was called from to the header X-Forwarded-For. A client may send this
header itself, so only what trusted proxies have appended is believed.

Private: docs/reference.md lists the public names.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Stands for a Unix socket in TRUSTED_PROXIES.
UNIX = "unix"
#: Stands for TRUSTED_PROXIES in OPERATORS.
PROXIES = "proxies"
#: The most addresses that are read from a header X-Forwarded-For.
MAX_FORWARDED = 20


def problem(network: str, words: Iterable[str]) -> str | None:
    """Return the reason for which a text is no address or network; None if it is one.

    Args:
        network: An entry of a setting.
        words: Words that the setting knows besides.
    """
    if network in words:
        return None
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        return str(error)
    return None


def address(text: str) -> Address | None:
    """Read an address, with or without a port; None if the text is none.

    A server that listens on IPv6 alone reports IPv4 clients by mapped addresses. These are unwrapped.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped: ipaddress.IPv4Address | None = getattr(found, "ipv4_mapped", None)
    return mapped or found


def matches(text: str, networks: Sequence[str]) -> bool:
    """Return True if an address is in one of the networks. An empty text is that of a Unix socket."""
    found = address(text)
    if found is None:
        return not text and UNIX in networks
    return any(found in network for network in _networks(tuple(networks)))


def client(peer: str, forwarded: str, trusted: Sequence[str]) -> str:
    """Return the address of a client.

    Args:
        peer: The address at the other end of the socket; empty for a Unix socket.
        forwarded: The header X-Forwarded-For; several are joined with commas.
        trusted: TRUSTED_PROXIES.

    Returns:
        The last address that a trusted proxy has appended and that is no trusted proxy itself. The peer, if
        it is no trusted proxy, or if no address was appended.
    """
    if not matches(peer, trusted):
        return peer
    return named_client(forwarded, trusted) or peer


def named_client(forwarded: str, trusted: Sequence[str]) -> str | None:
    """Return the address of the client that trusted proxies have named; None if they have named none.

    Args:
        forwarded: The header X-Forwarded-For of a trusted proxy.
        trusted: TRUSTED_PROXIES.
    """
    found = None
    for text in reversed(forwarded.split(",")[-MAX_FORWARDED:]):
        named = address(text)
        if named is None:
            # Whatever stands before this was not appended by a proxy that works.
            break
        found = str(named)
        if not matches(found, trusted):
            break
    return found


def network(text: str, ipv4: int, ipv6: int) -> str:
    """Return the first address of the network of an address; empty if the text is no address.

    Args:
        text: An address.
        ipv4: The bits of the network of an IPv4 address.
        ipv6: The bits of the network of an IPv6 address.
    """
    whole = address(text)
    if whole is None:
        return ""
    bits = ipv4 if isinstance(whole, ipaddress.IPv4Address) else ipv6
    return str(ipaddress.ip_network((int(whole) if whole.version == 4 else whole, bits), strict=False)[0])


def reduced(text: str, details: str) -> str:
    """Return as much of an address as CLIENT_DETAILS allows to keep.

    Args:
        text: An address, or what was returned for one before.
        details: The setting: "full", "network" or "none".
    """
    if details == "full":
        return text
    return network(text, 24, 48) if details == "network" else ""


@lru_cache(maxsize=100)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(each) for each in texts if each not in (UNIX, PROXIES))
