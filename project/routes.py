"""WebSocket paths that lead nowhere."""

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path


async def nowhere(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Close before it was accepted, which is answered with 403."""
    await receive()
    await send({"type": "websocket.close"})


class Routes:
    """Channels' URLRouter, which raises where no path matches: a traceback in the log for every scanner."""

    def __init__(self, urlpatterns: list[Any]) -> None:
        anything: Any = re_path(r"", nowhere)  # type: ignore[arg-type] # Channels' patterns name applications
        self._router = URLRouter([*urlpatterns, anything])

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        # Daphne takes the root path from a header that anybody may send; this project is mounted below none.
        return await self._router({**scope, "root_path": ""}, receive, send)
