"""What is served: the protocols, the WebSocket paths, and those that lead nowhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.urls import URLPattern


async def nowhere(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Close before it was accepted, which is answered with 403. (Channels' WebsocketDenier would ask Redis
    first.)
    """
    await receive()
    await send({"type": "websocket.close"})


class Protocols:
    """Calls the application for the type of the scope: "http" or "websocket".

    Channels' ProtocolTypeRouter does the same, but keeps the server's scope, of which the middlewares below
    make their own, for as long as the connection.
    """

    def __init__(self, applications: Mapping[str, Any]) -> None:
        self._applications = applications

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        application = self._applications.get(scope["type"])
        if application is None:
            # Servers take this as the answer that there is no lifespan to speak of.
            raise ValueError(f"nothing here serves the scope type {scope['type']!r}")
        running = application(scope, receive, send)
        del scope
        await running


class Routes:
    """Calls the application of the first pattern that matches, with `url_route` in its scope.

    Channels' URLRouter does the same, but raises where no path matches, which is a traceback in the log for
    every scanner; takes a root path off, which Daphne takes from a header that anybody may send, though this
    project is mounted below none; and stays, with two copies of the scope, for as long as the connection.
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
