"""The middlewares in front of a consumer: the pages that may connect, and the user behind a connection.

Channels' middlewares also work with this package. While a connection is open, those here leave no frame and
no second scope. For a client without a session cookie, `AuthMiddlewareStack` saves 3.8 KiB of memory for each
connection and about 0.1 ms of CPU for each connect. `OriginCheck` saves 0.6 KiB
(`python -m benchmarks.middlewares`).
"""

import io
import logging
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

from realtime.transports.asgi import Receive, Send

__all__ = ["AuthMiddlewareStack", "OriginCheck"]

logger = logging.getLogger("realtime.auth")


class AuthMiddlewareStack:
    """Set `scope["cookies"]`, `scope["session"]` and `scope["user"]`, as Channels' stack of this name does.

    For every client, Channels' stack looks for the user on the thread that all consumers share for the ORM.
    If a client has no session cookie, this class makes it an anonymous user without that. Its session is made
    when a handler first uses it.

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
        # Of several headers the first counts, as in Channels.
        header = next((value for name, value in scope.get("headers", ()) if name == b"cookie"), b"")
        cookies = parse_cookie(header.decode("latin-1")) if header else {}
        if settings.SESSION_COOKIE_NAME in cookies:
            return self._full(scope, receive, send)
        anonymous = {"cookies": cookies, "session": SimpleLazyObject(_new_session), "user": AnonymousUser()}
        return self._inner({**scope, **anonymous}, receive, send)


class OriginCheck:
    """Refuse a WebSocket from a page of another site, by the rule of Django's CsrfViewMiddleware.

    A browser sends cookies with a WebSocket handshake from any page, and no CSRF token protects the
    handshake. So its Origin must be the scheme, host and port of the request itself, with a host of
    ALLOWED_HOSTS, or one of CSRF_TRUSTED_ORIGINS. A request without an Origin is accepted: every browser
    sends one (RFC 6455 section 4.1), so the request does not come from a page.

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
        # The caller awaits the result, so no frame of this middleware stays as long as the connection.
        application = self.application if self.allows(scope) else deny
        return application(scope, receive, send)

    def allows(self, scope: dict[str, Any]) -> bool:
        """Return True if the handshake in `scope` may continue. Log a refusal with both compared values."""
        request = _handshake(scope)
        origin = request.META.get("HTTP_ORIGIN")
        if origin is None:
            return True
        try:
            own = f"{request.scheme}://{request.get_host()}"
        except DisallowedHost:
            own = "a host that is not in ALLOWED_HOSTS"
        if origin == own or any(_matches(origin, trusted) for trusted in settings.CSRF_TRUSTED_ORIGINS):
            return True
        logger.warning(
            "Refused a WebSocket from a page of %s, because this site is %s. "
            "If that page is yours, add its origin to CSRF_TRUSTED_ORIGINS",
            ascii(origin[:200]),
            own,
        )
        return False


async def deny(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Close a WebSocket before it is accepted; the server answers HTTP 403.

    Channels' WebsocketDenier is a consumer, which asks the channel layer first.
    """
    await receive()
    await send({"type": "websocket.close"})


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
    try:
        page, pattern = urlsplit(origin), urlsplit(trusted)
    except ValueError:
        return False
    return page.scheme == pattern.scheme and is_same_domain(page.netloc, pattern.netloc.removeprefix("*"))
