"""The ready-made WebSocket paths, and Channels' routers for connections that stay open for long.

`ProtocolTypeRouter` and `URLRouter` take the arguments of Channels' classes of the same names. All four may
be nested in each other, and Channels' own also work with this package.

While a connection is open, the frames of Channels' routers and middlewares stay, each with a scope. The
routers here, `realtime.auth.OriginCheck` and `realtime.auth.AuthMiddlewareStack` leave no frame. For a client
without a session cookie, the four together keep about 1 KiB for each connection, and Channels' four 6 KiB.
`URLRouter` alone saves 1.2 KiB and `ProtocolTypeRouter` 0.3 KiB (`python -m benchmarks.middlewares`).
"""

import logging
from collections.abc import Iterable
from typing import Any

from channels import routing as channels_routing
from django.conf import settings
from django.urls import Resolver404, path, re_path

from realtime.auth import deny
from realtime.consumers import GroupConsumer
from realtime.process import drain
from realtime.transports.asgi import Receive, Send

__all__ = ["ProtocolTypeRouter", "URLRouter", "lifespan", "websocket_urlpatterns"]

logger = logging.getLogger("realtime.routing")

#: The paths of `realtime.consumers.GroupConsumer`: a client joins groups by frames, or connects to one group.
websocket_urlpatterns = [
    path("ws/", GroupConsumer.as_asgi()),
    # The pattern accepts any text. So the consumer answers a bad group name by a close code with a reason,
    # not the router by a plain refusal.
    re_path(r"^ws/(?P<group>[^/]+)/$", GroupConsumer.as_asgi()),
]


async def lifespan(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer the lifespan protocol of ASGI: when the server stops, drain this process.

    Servers send `lifespan.shutdown` and wait for the answer. It is given when every connection is evicted and
    recorded, or after DRAIN_TIMEOUT.

    Args:
        scope: The ASGI scope of the type "lifespan".
        receive: The server's `receive`.
        send: The server's `send`.
    """
    while True:
        event = await receive()
        if event["type"] == "lifespan.shutdown":
            await drain.finish()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


class ProtocolTypeRouter(channels_routing.ProtocolTypeRouter):
    """Call the application for the type of the scope: "http", "websocket" or "lifespan".

    If the mapping has no application for "lifespan", `lifespan` is called.

    Channels' class keeps the server's scope as long as the connection, in addition to the copies that the
    middlewares make. This class does not.

    Args:
        application_mapping: The ASGI application of each type.
    """

    # Servers recognize an ASGI 3 application by its coroutine function, so the outermost one must be `async`.
    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Run the application of `scope["type"]`.

        Raises:
            ValueError: There is none.
        """
        application = self.application_mapping.get(scope["type"])
        if application is None and scope["type"] == "lifespan":
            application = lifespan
        if application is None:
            raise ValueError(f"No application configured for scope type {scope['type']!r}")
        running = application(scope, receive, send)
        del scope
        await running


class URLRouter(channels_routing.URLRouter):
    """Call the application of the first pattern that matches the path, with `url_route` in its scope.

    Channels' class does the same, with three differences:

    - If no path matches a WebSocket, Channels' class raises, so every scanner causes a traceback in the log.
      This class refuses the handshake (HTTP 403) and logs one line.
    - Channels' class removes the scope's `root_path` from the path. Daphne reads `root_path` from a header
      that any client may send, so a client can pass a proxy's rules for paths. This class removes Django's
      setting `FORCE_SCRIPT_NAME` and ignores `root_path`.
    - Channels' class stays as long as the connection, with the scope that it was called with.

    Args:
        routes: Entries of `path()` and `re_path()`. Nest routers instead of `include()`.
    """

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        """Return the awaitable of the application that serves the path.

        Raises:
            Resolver404: This router is nested in another one and has no route.
            ValueError: There is no route, and the connection is no WebSocket.
        """
        # The caller awaits the result, so no frame of this router stays as long as the connection.
        nested = "path_remaining" in scope
        if nested:
            remaining = scope["path_remaining"]
        else:
            root = settings.FORCE_SCRIPT_NAME or ""
            scope = {**scope, "root_path": root}
            remaining = scope["path"].removeprefix(root)
        if found := _find(self.routes, remaining, scope):
            application, scope = found
            return application(scope, receive, send)
        missing = f"No route found for path {scope['path'][:200]!a}."
        if nested:
            raise Resolver404(missing)
        if scope["type"] != "websocket":
            raise ValueError(missing)
        logger.warning(missing)
        return deny(scope, receive, send)


def _find(routes: Iterable[Any], remaining: str, scope: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Return the application for the path and the scope to call it with, through nested routers."""
    remaining = remaining.lstrip("/")
    for route in routes:
        match = route.pattern.match(remaining)
        if match is None:
            continue
        rest, args, kwargs = match
        outer = scope.get("url_route", {})
        found = {
            "args": outer.get("args", ()) + args,
            "kwargs": {**outer.get("kwargs", {}), **kwargs, **route.default_args},
        }
        inner = {**scope, "path_remaining": rest, "url_route": found}
        if type(route.callback) not in (URLRouter, channels_routing.URLRouter):
            return route.callback, inner
        if deeper := _find(route.callback.routes, rest, inner):
            return deeper
    return None
