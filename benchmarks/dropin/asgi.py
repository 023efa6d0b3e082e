"""The application of `benchmarks.plain.asgi`, with a consumer on `RealtimeConsumer`."""

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
django_asgi_app = get_asgi_application()

from benchmarks.plain import consumers as tutorial  # noqa: E402
from realtime.consumers import RealtimeConsumer  # noqa: E402


class ChatConsumer(RealtimeConsumer):
    """The tutorial's methods, unchanged."""

    connect = tutorial.ChatConsumer.connect
    disconnect = tutorial.ChatConsumer.disconnect
    receive = tutorial.ChatConsumer.receive
    chat_message = tutorial.ChatConsumer.chat_message


websocket_urlpatterns = [re_path(r"ws/chat/(?P<room_name>\w+)/$", ChatConsumer.as_asgi())]

application = ProtocolTypeRouter(
    {
        "http": django_asgi_app,
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
