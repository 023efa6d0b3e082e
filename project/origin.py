"""Which web pages may open a WebSocket.

Browsers send cookies along with one from any page, and no CSRF token protects it.
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
    """Refuses a WebSocket that a page of another site opens, by the rule of Django's CsrfViewMiddleware.

    The Origin must be the scheme, host and port of the request itself, its host one of ALLOWED_HOSTS, or one
    of CSRF_TRUSTED_ORIGINS. A request without an Origin is taken: every browser sends one (RFC 6455 section
    4.1), so no page is behind it. (Channels' AllowedHostsOriginValidator refuses it, and compares neither
    scheme nor port.)
    """

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        # Awaited by the caller, so that nothing of this stays for as long as the connection.
        application = self.application if self.allows(scope) else nowhere
        return application(scope, receive, send)

    def allows(self, scope: dict[str, Any]) -> bool:
        """Whether the handshake in `scope` may go on; a refusal is logged with what was compared."""
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
            "refused a WebSocket of a page of %s, because this is %s: "
            "if that page is yours, add it to CSRF_TRUSTED_ORIGINS",
            ascii(origin[:200]),
            own,
        )
        return False


def _handshake(scope: dict[str, Any]) -> ASGIRequest:
    """The handshake as the HTTP request that it is, so that Django's settings for proxies count too."""
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    request = {"method": "GET", "path": "/", "scheme": scheme}
    request |= {key: scope[key] for key in ("headers", "client", "server") if key in scope}
    return ASGIRequest(request, io.BytesIO())


def _matches(origin: str, trusted: str) -> bool:
    """Whether `origin` is `trusted`, which may name a domain with all its subdomains: `https://*.example.com`."""
    if "*" not in trusted:
        return origin == trusted
    try:
        page, pattern = urlsplit(origin), urlsplit(trusted)
    except ValueError:
        return False
    return page.scheme == pattern.scheme and is_same_domain(page.netloc, pattern.netloc.removeprefix("*"))
