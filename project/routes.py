"""The dispatch of the demo project: by protocol, by WebSocket path, and a refusal for every other path."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.urls import URLPattern


async def nowhere(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Close a connection before it is accepted; the server answers 403.

    Channels' WebsocketDenier would ask Redis first.
    """
    await receive()
    await send({"type": "websocket.close"})


class Protocols:
    """ASGI application that calls the application for the type of the scope: "http" or "websocket".

    Channels' ProtocolTypeRouter does the same, but it keeps the server's scope as long as the connection, in
    addition to the copies that the middlewares below it make.
    """

    def __init__(self, applications: Mapping[str, Any]) -> None:
        self._applications = applications

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        application = self._applications.get(scope["type"])
        if application is None:
            # Servers take this exception as the answer that the application has no lifespan.
            raise ValueError(f"nothing here serves the scope type {scope['type']!r}")
        running = application(scope, receive, send)
        del scope
        await running


class Routes:
    """ASGI application that calls the first matching pattern's application, with `url_route` in the scope.

    Channels' URLRouter does the same, with three differences. If no path matches, it raises, so every scanner
    causes a traceback in the log. It removes a root path, which Daphne reads from a header that any client
    may send, although this project has no root path. And it stays as long as the connection, with two copies
    of the scope.
    """

    def __init__(self, urlpatterns: Sequence[URLPattern]) -> None:
        self._routes = tuple(urlpatterns)

    def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        path = scope["path"].lstrip("/")
        for route in self._routes:
            if match := route.pattern.match(path):
                _, args, kwargs = match
                found = {"args": args, "kwargs": kwargs | route.default_args}
                return route.callback({**scope, "root_path": "", "url_route": found}, receive, send)
        return nowhere(scope, receive, send)
