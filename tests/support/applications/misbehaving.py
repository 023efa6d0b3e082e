"""An ASGI application with handlers that do what a handler can do wrong.

A client of `/ws/` chooses it by the text that it sends: `raise`, `sleep 5`, … The consumer at
`/connect/<what>/` does it while connecting, the one at `/disconnect/<what>/` when the connection has ended.
"""

import asyncio
import logging
import os
import time
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
# Before the imports below: they import models, which needs the set-up of Django.
django.setup()

from channels.db import database_sync_to_async  # noqa: E402
from channels.exceptions import StopConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402

from realtime.consumers import RealtimeConsumer, SyncRealtimeConsumer  # noqa: E402

logger = logging.getLogger("tests.misbehaving")

GROUP = "public.room"


class Blocking(SyncRealtimeConsumer):
    """A synchronous consumer, whose handler blocks its thread for as many seconds as the client says."""

    groups = (GROUP,)

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        time.sleep(float(text_data or 0))
        self.send(text_data='{"type":"blocked"}')

    def disconnect(self, code: int) -> None:
        logger.info("disconnected with %s", code)


class Misbehaving(RealtimeConsumer):
    """A consumer that is a member of a group from the start."""

    async def connect(self) -> None:
        await self.group_add(GROUP)
        await self.do(self._told_to("connect"))
        if self._told_to("connect") != "return":
            await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.do(text_data or "")

    async def disconnect(self, code: int) -> None:
        logger.info("disconnected with %s", code)
        await self.do(self._told_to("disconnect"))

    async def echo_by_channel(self, event: dict[str, Any]) -> None:
        await self.do("echo")

    async def raise_in_event(self, event: dict[str, Any]) -> None:
        await self.do("raise")

    def _told_to(self, when: str) -> str:
        kwargs: dict[str, str] = self.scope["url_route"]["kwargs"]
        return kwargs.get(when, "")

    async def do(self, what: str) -> None:
        match what.split():
            case ["raise"]:
                raise ZeroDivisionError("a bug")
            case ["raise-in-thread"]:
                await database_sync_to_async(_raise)()
            case ["raise-in-event"]:
                await get_channel_layer().send(self.channel_name, {"type": "raise.in.event"})
            case ["echo-by-channel"]:
                await get_channel_layer().send(self.channel_name, {"type": "echo.by.channel"})
            case ["cancelled"]:
                raise asyncio.CancelledError
            case ["cancel-itself"]:
                task = asyncio.current_task()
                assert task is not None, "handlers run in a task"
                task.cancel()
                await asyncio.sleep(60)
            case ["stop"]:
                raise StopConsumer
            case ["close", *codes]:
                for code in codes:
                    await self.close(int(code))
            case ["close-and-send"]:
                await self.close(4321)
                await self.send(text_data='{"type":"late"}')
                await self.group_add("public.late")
            case ["sleep", seconds]:
                await asyncio.sleep(float(seconds))
                await self.send(text_data='{"type":"slept"}')
            case ["block", seconds]:
                time.sleep(float(seconds))  # noqa: ASYNC251 - the fault under test
                await self.send(text_data='{"type":"blocked"}')
            case ["write"]:
                await database_sync_to_async(_write)()
            case ["echo"]:
                await self.send(text_data='{"type":"echo"}')


def _raise() -> None:
    raise ZeroDivisionError("a bug")


def _write() -> None:
    get_user_model().objects.filter(pk=0).update(is_active=True)


application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter(
            [
                path("ws/", Misbehaving.as_asgi()),
                path("sync/", Blocking.as_asgi()),
                path("connect/<connect>/", Misbehaving.as_asgi()),
                path("disconnect/<disconnect>/", Misbehaving.as_asgi()),
            ]
        ),
    }
)
