"""The demo project's application, for servers that insist on the lifespan protocol of ASGI."""

from collections.abc import Awaitable, Callable
from typing import Any

from project.asgi import application as project


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answer `lifespan` events, and pass all other events to the project."""
    if scope["type"] != "lifespan":
        await project(scope, receive, send)
        return
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
