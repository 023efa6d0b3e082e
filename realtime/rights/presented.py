"""The ticket that a client presents in its handshake: find it, and take it out of the scope.

A ticket is a secret until it is used. Servers, middlewares and consumers log queries and headers, so it stays
in none of them.

Private: docs/reference.md lists the public names.
"""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_plus

#: The query parameter with a ticket.
PARAMETER = "ticket"
#: The beginning of the subprotocol that is a ticket.
SUBPROTOCOL = "realtime.ticket."

_KEY = "realtime.ticket"


class Presented:
    """The tickets of one handshake. Their text is in no representation of it."""

    __slots__ = ("texts",)

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts


def is_there(scope: MutableMapping[str, Any]) -> bool:
    """Return True if the client of a handshake presents a ticket, valid or not."""
    return bool(_find(scope).texts)


def take(scope: MutableMapping[str, Any]) -> list[str]:
    """Return the tickets that the client of a handshake presents, and remove them from the scope.

    Args:
        scope: The ASGI scope. It is changed in place, because uvicorn logs the query of the scope that it
            made.
    """
    found = _find(scope)
    scope.pop(_KEY, None)
    return found.texts


def _find(scope: MutableMapping[str, Any]) -> Presented:
    found: Presented | None = scope.get(_KEY)
    if found is None:
        found = Presented([*_of_query(scope), *_of_subprotocols(scope)])
        if found.texts:
            scope[_KEY] = found
    return found


def _of_query(scope: MutableMapping[str, Any]) -> list[str]:
    query: bytes = scope.get("query_string", b"")
    if PARAMETER.encode() not in query and b"%" not in query:
        return []
    texts, rest = [], []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        # Not parse_qsl: it takes five times as long, and a query may have thousands of parts.
        if name == PARAMETER.encode() or (b"%" in name and _decoded(name) == PARAMETER):
            texts.append(_decoded(value))
        else:
            rest.append(part)
    if texts:
        scope["query_string"] = b"&".join(rest)
    return texts


def _of_subprotocols(scope: MutableMapping[str, Any]) -> list[str]:
    offered = scope.get("subprotocols") or ()
    texts = [each.removeprefix(SUBPROTOCOL) for each in offered if each.startswith(SUBPROTOCOL)]
    if texts:
        rest = [each for each in offered if not each.startswith(SUBPROTOCOL)]
        scope["subprotocols"] = rest
        scope["headers"] = [
            (name, ", ".join(rest).encode("latin-1", "replace"))
            if name == b"sec-websocket-protocol"
            else (name, value)
            for name, value in scope.get("headers", ())
        ]
    return texts


def _decoded(text: bytes) -> str:
    return unquote_plus(text.decode("latin-1"))
