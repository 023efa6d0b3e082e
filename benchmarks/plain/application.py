"""The routes and middlewares of the Channels tutorial, for any consumer."""

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.urls import re_path


def serving(consumer: Any, http: Any) -> ProtocolTypeRouter:
    """Return an application that serves this consumer, and `http` for all other requests."""
    websocket_urlpatterns = [re_path(r"ws/chat/(?P<room_name>\w+)/$", consumer.as_asgi())]
    return ProtocolTypeRouter(
        {
            "http": http,
            "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
        }
    )
