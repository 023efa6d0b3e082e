"""Who connects: Channels' `AuthMiddlewareStack`, at no cost for clients that have no session."""

from importlib import import_module
from typing import Any

from channels.auth import AuthMiddlewareStack as FullAuthMiddlewareStack
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.http import parse_cookie
from django.utils.functional import SimpleLazyObject

from realtime.transports.asgi import Receive, Send


class AuthMiddlewareStack:
    """`scope["cookies"]`, `scope["session"]` and `scope["user"]`, as Channels' stack of this name sets them.

    That one looks for the user on the thread that all consumers share for the ORM, also where no session
    cookie says who it could be. Here such a client is nobody at once, with a session that is made when a
    handler first uses it.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._full = FullAuthMiddlewareStack(inner)

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        # What is returned is awaited by the caller: a coroutine here would stay, with its own scope, for as
        # long as the connection.
        if scope["type"] != "websocket" or "session" in scope or "user" in scope:
            return self._full(scope, receive, send)
        # The first of several headers counts, as in Channels.
        header = next((value for name, value in scope.get("headers", ()) if name == b"cookie"), b"")
        cookies = parse_cookie(header.decode("latin-1")) if header else {}
        if settings.SESSION_COOKIE_NAME in cookies:
            return self._full(scope, receive, send)
        nobody = {"cookies": cookies, "session": SimpleLazyObject(_new_session), "user": AnonymousUser()}
        return self._inner({**scope, **nobody}, receive, send)


def _new_session() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore(None)
