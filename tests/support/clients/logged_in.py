"""A user of a process under test, who is logged in on several devices."""

import asyncio
import json
from typing import Any

from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client as Browser

from realtime.auth import AuthMiddlewareStack
from realtime.routing import websocket_urlpatterns
from realtime.wire import frames

_stack = AuthMiddlewareStack(URLRouter(websocket_urlpatterns))


async def groups_application(scope: Any, receive: Any, send: Any) -> None:
    """The demo's WebSockets, as the test client of Channels wants them."""
    await _stack(scope, receive, send)


@database_sync_to_async
def make_user(name: str, **fields: Any) -> User:
    return User.objects.create_user(name, password="secret", **fields)


class Device:
    """A browser where a user is logged in, and its one connection."""

    def __init__(self) -> None:
        self.browser = Browser()
        self.frames: list[dict[str, Any]] = []
        self.socket: WebsocketCommunicator

    @property
    def session(self) -> str:
        return str(self.browser.cookies[settings.SESSION_COOKIE_NAME].value)

    async def log_in(self, user: User) -> "Device":
        await database_sync_to_async(self.browser.force_login)(user)
        return self

    async def log_out(self) -> None:
        await database_sync_to_async(self.browser.logout)()

    async def connect(self, path: str = "/ws/", application: Any = groups_application) -> "Device":
        cookie = f"{settings.SESSION_COOKIE_NAME}={self.session}".encode()
        self.socket = WebsocketCommunicator(
            application, path, headers=[(b"cookie", cookie)], subprotocols=[frames.SUBPROTOCOL]
        )
        accepted, _ = await self.socket.connect(timeout=5)
        assert accepted
        return self

    async def send(self, **frame: Any) -> None:
        await self.socket.send_json_to(frame)

    async def receive(self, kind: str) -> dict[str, Any]:
        """Return the next frame of a type; frames of other types before it are skipped."""
        while True:
            event = await self.socket.receive_output(timeout=5)
            assert event["type"] == "websocket.send", event
            frame: dict[str, Any] = json.loads(event["text"])
            if frame["type"] == kind:
                return frame

    async def join(self, group: str) -> dict[str, Any]:
        await self.send(type="join", ref=1, group=group)
        return await self.receive("joined")

    async def closes(self) -> int:
        """Return the close code of the server, after any other frames."""
        while (event := await self.socket.receive_output(timeout=5))["type"] != "websocket.close":
            pass
        return int(event["code"])

    async def stays(self, seconds: float = 0.3) -> bool:
        """Return True if nothing but pings is received for this long."""
        until = asyncio.get_running_loop().time() + seconds
        while (rest := until - asyncio.get_running_loop().time()) > 0:
            if not await self.socket.receive_nothing(timeout=rest):
                event = await self.socket.receive_output(timeout=5)
                if event["type"] != "websocket.send" or json.loads(event["text"])["type"] != "ping":
                    return False
        return True


async def device(user: User, path: str = "/ws/", application: Any = groups_application) -> Device:
    """Return a device of a user with an open connection."""
    made = await (await Device().log_in(user)).connect(path, application)
    await made.receive("welcome")
    return made
