"""An ASGI application with each consumer twice: on Channels' base class in `/plain/`, on ours in `/ours/`.

Some are there again as synchronous consumers, in `/plain-sync/` and `/ours-sync/`.

Served by a `WebServer(application="tests.support.applications.drop_in:application")`.
"""

import json
from typing import Any

from django.core.asgi import get_asgi_application

# Consumers and routes may be imported only when Django is set up.
_http = get_asgi_application()

# isort: split

from asgiref.sync import async_to_sync  # noqa: E402
from channels.generic.websocket import (  # noqa: E402
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import WebsocketDenier  # noqa: E402
from django.urls import path, re_path  # noqa: E402

from realtime.consumers import RealtimeConsumer, RealtimeJsonConsumer, SyncRealtimeConsumer  # noqa: E402
from tests.support.applications.tutorial import (  # noqa: E402
    CHAT_AFTER,
    CHAT_BEFORE,
    SYNC_CHAT_AFTER,
    SYNC_CHAT_BEFORE,
    websocket_urlpatterns,
)


def routes(base: Any, json_base: Any, chat: Any) -> list[Any]:
    """Return the routes of all consumers on these base classes."""

    class Echo(base):
        async def connect(self) -> None:
            offered = self.scope["subprotocols"]
            await self.accept(offered[-1] if offered else None, headers=[(b"x-served-by", b"a test")])

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data=text_data, bytes_data=bytes_data)

    class Json(json_base):
        async def receive_json(self, content: Any, **options: Any) -> None:
            await self.send_json({"you": content})

    class Closing(base):
        async def connect(self) -> None:
            if self.scope["url_route"]["kwargs"]["when"] == "before":
                await self.close(4001)
            else:
                await self.accept()

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if text_data == "bye":
                await self.send(text_data="bye", close=4002)
            else:
                await self.close(4001, "a reason")

    class Noted(base):
        async def connect(self) -> None:
            await self.accept()
            await self.channel_layer.send(
                self.channel_name, {"type": "a.note", "text": "to your own channel"}
            )

        async def a_note(self, event: Any) -> None:
            await self.send(text_data=event["text"])

    class Told(base):
        groups = ("told",)

        async def disconnect(self, code: int) -> None:
            await self.channel_layer.group_send("told", {"type": "somebody.left", "code": code})

        async def somebody_left(self, event: Any) -> None:
            await self.send(text_data=f"somebody left with {event['code']}")

    class Other(Noted):
        channel_layer_alias = "other"
        groups = ("others",)

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.channel_layer.group_send("others", {"type": "a.note", "text": text_data})

    class Report(base):
        """Sends as many messages of as many bytes as the client asks for, and a close if it asks."""

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            wanted = json.loads(text_data or "{}")
            for number in range(wanted["count"]):
                head = json.dumps({"type": "report", "n": number, "fill": ""})
                text = f"{head[:-2]}{'x' * (wanted['size'] - len(head))}{head[-2:]}"
                await self.send(text_data=text)
            if wanted.get("close"):
                await self.close(wanted["close"])

    return [
        *websocket_urlpatterns(chat),
        path("echo/", Echo.as_asgi()),
        path("json/", Json.as_asgi()),
        path("closing/<str:when>/", Closing.as_asgi()),
        path("noted/", Noted.as_asgi()),
        path("told/", Told.as_asgi()),
        path("report/", Report.as_asgi()),
        path("other/", Other.as_asgi()),
    ]


def sync_routes(base: Any, chat: Any) -> list[Any]:
    """Return the routes of the synchronous consumers on this base class."""

    class Told(base):
        # One group for each base class: the last client of one conversation leaves during the next one.
        groups = (f"told-{base.__name__}",)

        def disconnect(self, code: int) -> None:
            left = {"type": "somebody.left", "code": code}
            async_to_sync(self.channel_layer.group_send)(self.groups[0], left)

        def somebody_left(self, event: Any) -> None:
            self.send(text_data=f"somebody left with {event['code']}")

    class Report(base):
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            wanted = json.loads(text_data or "{}")
            for number in range(wanted["count"]):
                self.send(text_data=f"{number} {'x' * wanted['size']}")
            self.close(wanted["close"])

    return [
        *websocket_urlpatterns(chat),
        path("told/", Told.as_asgi()),
        path("report/", Report.as_asgi()),
    ]


application = ProtocolTypeRouter(
    {
        "http": _http,
        "websocket": URLRouter(
            [
                path(
                    "plain/",
                    URLRouter(routes(AsyncWebsocketConsumer, AsyncJsonWebsocketConsumer, CHAT_BEFORE)),
                ),
                path("ours/", URLRouter(routes(RealtimeConsumer, RealtimeJsonConsumer, CHAT_AFTER))),
                path("plain-sync/", URLRouter(sync_routes(WebsocketConsumer, SYNC_CHAT_BEFORE))),
                path("ours-sync/", URLRouter(sync_routes(SyncRealtimeConsumer, SYNC_CHAT_AFTER))),
                re_path("", WebsocketDenier.as_asgi()),
            ]
        ),
    }
)
