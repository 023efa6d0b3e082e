"""A check of the Origin: it decides which web pages may open a WebSocket.

A browser sends cookies with a WebSocket handshake from any page, and no CSRF token protects the handshake.
"""

import io
import logging
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.utils.http import is_same_domain

from project.routes import nowhere

logger = logging.getLogger("project.origin")


class OriginCheck:
    """Middleware that refuses a WebSocket from another site, by the rule of Django's CsrfViewMiddleware.

    The Origin must be the scheme, host and port of the request itself, with a host of ALLOWED_HOSTS, or it
    must be one of CSRF_TRUSTED_ORIGINS. A request without an Origin is accepted: every browser sends one
    (RFC 6455 section 4.1), so the request does not come from a page. Channels' AllowedHostsOriginValidator
    refuses such a request, and compares neither scheme nor port.
    """

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        # The caller awaits the result, so no frame of this middleware stays as long as the connection.
        application = self.application if self.allows(scope) else nowhere
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
