"""The middlewares in front of a consumer: the pages that may connect, tickets, and the user of a connection.

Channels' middlewares also work with this package. While a connection is open, those here leave no frame and
no second scope. For a client without a session cookie, `AuthMiddlewareStack` saves 3.8 KiB of memory for each
connection and about 0.1 ms of CPU for each connect. `OriginCheck` saves 0.6 KiB
(`python -m benchmarks.middlewares`).
"""

import io
import logging
import re
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from channels.auth import AuthMiddlewareStack as FullAuthMiddlewareStack
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import parse_cookie
from django.utils.functional import SimpleLazyObject
from django.utils.http import is_same_domain

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import BadTicket, LayerUnavailable
from realtime.limits import handshakes, refusals
from realtime.limits.subjects import address_of
from realtime.rights import presented, tickets
from realtime.rights.authorization import NEEDS_TICKET, SCOPE_KEY
from realtime.serving import lifecycle
from realtime.transports.asgi import Receive, Send
from realtime.wire import frames

__all__ = ["AuthMiddlewareStack", "OriginCheck", "TicketMiddleware"]

logger = logging.getLogger("realtime.auth")

#: The Origin of pages that have none of their own (RFC 6454 section 6.1).
_NULL = "null"
#: What a browser sends as an Origin: ASCII in lower case, and nothing but scheme, host and port.
_SERIALIZED = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")


class TicketMiddleware:
    """Authenticate the clients that present a ticket. All others are left to the inner application.

    A ticket decides alone: a client with a bad one is closed with 4501, whatever cookies it sends. With a
    valid one, the inner application is called with `scope["user"]`. `AuthMiddlewareStack` does the same. Use
    this class in front of any other middleware for authentication, which must leave a connection alone that
    has a `user` in its scope.

    Args:
        inner: The ASGI application that is called with the new scope.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        """Return the awaitable of the inner application, or of the verification before it."""
        texts = presented.take(scope) if scope["type"] == "websocket" else []
        if texts:
            return _serve_with_ticket(self._inner, texts, scope, receive, send)
        return self._inner(scope, receive, send)


class AuthMiddlewareStack:
    """Set `scope["cookies"]`, `scope["session"]` and `scope["user"]`, as Channels' stack of this name does.

    For every client, Channels' stack looks for the user on the thread that all consumers share for the ORM.
    If a client has no session cookie, this class makes it an anonymous user without that. Its session is made
    when a handler first uses it.

    A client that presents a ticket is the user of the ticket. Its cookies are not read.

    Args:
        inner: The ASGI application that is called with the new scope.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._full = FullAuthMiddlewareStack(inner)

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        # The caller awaits the result. A coroutine here would stay as long as the connection, with a scope.
        if scope["type"] != "websocket" or "session" in scope or "user" in scope:
            return self._full(scope, receive, send)
        if texts := presented.take(scope):
            return _serve_with_ticket(self._without_session, texts, scope, receive, send)
        # Of several headers the first counts, as in Channels.
        header = next((value for name, value in scope.get("headers", ()) if name == b"cookie"), b"")
        cookies = parse_cookie(header.decode("latin-1")) if header else {}
        if settings.SESSION_COOKIE_NAME in cookies:
            return self._full(scope, receive, send)
        return self._without_session({**scope, "cookies": cookies}, receive, send)

    def _without_session(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        missing = {"cookies": {}, "session": SimpleLazyObject(_new_session), "user": AnonymousUser()}
        return self._inner({**missing, **scope}, receive, send)


class OriginCheck:
    """Refuse a WebSocket from a page of another site, by the rule of Django's CsrfViewMiddleware.

    A browser sends cookies with a WebSocket handshake from any page, and no CSRF token protects the
    handshake. So its Origin must be the scheme, host and port of the request itself, with a host of
    ALLOWED_HOSTS, or one of CSRF_TRUSTED_ORIGINS or of ALLOWED_ORIGINS in REALTIME.

    Every browser sends an Origin (RFC 6455 section 4.1), so a request without one does not come from a page.
    It is accepted only with a ticket, or if ALLOW_MISSING_ORIGIN is True. The Origin `null` is never
    accepted, because any site can have its pages send it.

    Before that, the handshakes of each address are limited (MAX_HANDSHAKES_PER_SECOND).

    Channels' AllowedHostsOriginValidator refuses a request without an Origin, and compares neither scheme nor
    port.

    Args:
        application: The ASGI application that is called if the handshake may continue.
    """

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        """Return the awaitable of the application, or of a refusal with HTTP 403.

        Raises:
            ValueError: The connection is no WebSocket.
        """
        if scope["type"] != "websocket":
            raise ValueError("OriginCheck is for WebSockets only; Django checks the Origin of HTTP requests.")
        # Also for a client that is refused below: the server may log the query of its scope.
        has_ticket = presented.is_there(scope)
        if not handshakes.admits(scope) or not self.allows(scope):
            return deny(scope, receive, send)
        if has_ticket and _origin_of(scope) is None:
            scope[NEEDS_TICKET] = True
        # The caller awaits the result, so no frame of this middleware stays as long as the connection.
        return self.application(scope, receive, send)

    def allows(self, scope: dict[str, Any]) -> bool:
        """Return True if the handshake in `scope` may continue. Log a refusal with both compared values.

        Many refusals of the same kind are logged once a minute.
        """
        request = _handshake(scope)
        origin = request.META.get("HTTP_ORIGIN")
        ours = conf.get()
        if origin is None:
            if ours.ALLOW_MISSING_ORIGIN or presented.is_there(scope):
                return True
            refusals.note(
                "ALLOW_MISSING_ORIGIN",
                refusals.client_in_words(address_of(scope)),
                "It sends no Origin, as an app that is no browser, and no ticket. Let it send a ticket, or "
                'set REALTIME["ALLOW_MISSING_ORIGIN"]',
            )
            return False
        if origin == _NULL:
            # Each sandboxed frame of any site has this origin, so an entry in a list would allow all sites.
            refusals.note(
                "ALLOWED_ORIGINS",
                "a page with the origin null",
                "Sandboxed frames and files of any site have this origin, so no list can allow it. Serve the "
                "page from an origin of its own",
            )
            return False
        try:
            own = f"{request.scheme}://{request.get_host()}"
        except DisallowedHost:
            own = "a host that is not in ALLOWED_HOSTS"
        allowed = [*settings.CSRF_TRUSTED_ORIGINS, *ours.ALLOWED_ORIGINS]
        if origin == own or any(_matches(origin, each) for each in allowed):
            return True
        refusals.note(
            "ALLOWED_ORIGINS",
            f"a page of {origin[:200]!a}",
            f"This site is {own}. If that page is yours, add its origin to CSRF_TRUSTED_ORIGINS, or to "
            'REALTIME["ALLOWED_ORIGINS"] if it may only connect',
        )
        return False


async def deny(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Close a WebSocket before it is accepted; the server answers HTTP 403.

    Channels' WebsocketDenier is a consumer, which asks the channel layer first.
    """
    await receive()
    await send({"type": "websocket.close"})


async def _serve_with_ticket(
    inner: Any, texts: list[str], scope: dict[str, Any], receive: Receive, send: Send
) -> None:
    """Call the inner application as the user of a ticket, or close the connection."""
    try:
        if len(texts) > 1:
            raise BadTicket("There are several tickets.")
        verified = await tickets.verify(texts[0])
    except BadTicket as error:
        refusals.note(
            "TICKET_TTL",
            refusals.client_in_words(address_of(scope)),
            f"{error} Let the client ask for a new ticket before each connect",
        )
        await _say_goodbye(CloseReason.NOT_AUTHENTICATED, scope, receive, send)
        return
    except LayerUnavailable as error:
        logger.warning("A ticket could not be verified: %s", error)
        await _say_goodbye(CloseReason.SERVER_UNAVAILABLE, scope, receive, send)
        return
    finally:
        texts.clear()
    user = verified.user or AnonymousUser()
    serving = inner({**scope, "user": user, SCOPE_KEY: verified.authorization}, receive, send)
    del scope, verified
    await serving


async def _say_goodbye(reason: CloseReason, scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Accept a handshake and close it, so that a browser learns the reason."""
    await receive()
    speaks_v1 = frames.SUBPROTOCOL in scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": frames.SUBPROTOCOL if speaks_v1 else None})
    if speaks_v1:
        await send(lifecycle.goodbye(reason))
    metrics.refused.labels(reason=reason.value).inc()
    await send({"type": "websocket.close", "code": reason.code})


def _origin_of(scope: dict[str, Any]) -> bytes | None:
    return next((value for name, value in scope.get("headers", ()) if name == b"origin"), None)


def _new_session() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore(None)


def _handshake(scope: dict[str, Any]) -> ASGIRequest:
    """Return the handshake as an HTTP request, so that Django's settings for proxies apply."""
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    request = {"method": "GET", "path": "/", "scheme": scheme}
    request |= {key: scope[key] for key in ("headers", "client", "server") if key in scope}
    return ASGIRequest(request, io.BytesIO())


def _matches(origin: str, trusted: str) -> bool:
    """Return True if `origin` matches `trusted`, which may include all subdomains: `https://*.example.com`."""
    if "*" not in trusted:
        return origin == trusted
    # Otherwise `https://evil.example\.example.com` would end as the pattern does.
    if _SERIALIZED.fullmatch(origin) is None:
        return False
    try:
        page, pattern = urlsplit(origin), urlsplit(trusted)
    except ValueError:
        return False
    return page.scheme == pattern.scheme and is_same_domain(page.netloc, pattern.netloc.removeprefix("*"))
