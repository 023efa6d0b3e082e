"""The applications of `benchmarks.plain.asgi`, with consumers on our base classes."""

import os
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
django_asgi_app = get_asgi_application()

from benchmarks.plain import consumers as tutorial  # noqa: E402
from benchmarks.plain import synchronous as sync_tutorial  # noqa: E402
from realtime.consumers import RealtimeConsumer, SyncRealtimeConsumer  # noqa: E402


class ChatConsumer(RealtimeConsumer):
    """The tutorial's methods, unchanged."""

    connect = tutorial.ChatConsumer.connect
    disconnect = tutorial.ChatConsumer.disconnect
    receive = tutorial.ChatConsumer.receive
    chat_message = tutorial.ChatConsumer.chat_message


class SyncChatConsumer(SyncRealtimeConsumer):
    """The methods of the tutorial's synchronous consumer, unchanged."""

    connect = sync_tutorial.ChatConsumer.connect
    disconnect = sync_tutorial.ChatConsumer.disconnect
    receive = sync_tutorial.ChatConsumer.receive
    chat_message = sync_tutorial.ChatConsumer.chat_message


def serving(consumer: Any) -> ProtocolTypeRouter:
    websocket_urlpatterns = [re_path(r"ws/chat/(?P<room_name>\w+)/$", consumer.as_asgi())]
    return ProtocolTypeRouter(
        {
            "http": django_asgi_app,
            "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
        }
    )


application = serving(ChatConsumer)
synchronous = serving(SyncChatConsumer)
