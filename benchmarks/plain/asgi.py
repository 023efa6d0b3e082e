"""The ASGI application of the Channels tutorial, and the same with other consumers."""

import os
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.plain.settings")
django_asgi_app = get_asgi_application()

from benchmarks.plain.consumers import ChatConsumer  # noqa: E402
from benchmarks.plain.recording import RecordingChatConsumer  # noqa: E402
from benchmarks.plain.synchronous import ChatConsumer as SyncChatConsumer  # noqa: E402


def serving(consumer: Any) -> ProtocolTypeRouter:
    websocket_urlpatterns = [re_path(r"ws/chat/(?P<room_name>\w+)/$", consumer.as_asgi())]
    return ProtocolTypeRouter(
        {
            "http": django_asgi_app,
            "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
        }
    )


application = serving(ChatConsumer)
recording = serving(RecordingChatConsumer)
synchronous = serving(SyncChatConsumer)
