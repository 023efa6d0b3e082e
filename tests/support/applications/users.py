"""The demo project without logins: `?user=7` in the address of a client says that it is user 7.

The user need not exist. A client without this parameter is anonymous.
"""

from typing import Any
from urllib.parse import parse_qs

# This sets Django up, so it comes before models.
from project.asgi import http

# isort: split

from django.contrib.auth.models import AnonymousUser, User

from realtime.routing import ProtocolTypeRouter, URLRouter, websocket_urlpatterns


class Users:
    """Puts the user that the address names into the scope."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        named = parse_qs(scope["query_string"].decode()).get("user")
        user = User(pk=int(named[0])) if named else AnonymousUser()
        return await self.inner({**scope, "user": user}, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": Users(URLRouter(websocket_urlpatterns))})
