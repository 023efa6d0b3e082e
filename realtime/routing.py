"""The WebSocket paths: join groups by frame, or the group of the path at connect."""

from django.urls import path, re_path

from realtime.consumers import GroupConsumer

websocket_urlpatterns = [
    path("ws/", GroupConsumer.as_asgi()),
    # Any text, so that a name that cannot be a group's is answered by a close code and not by a 404 that
    # says nothing.
    re_path(r"^ws/(?P<group>[^/]+)/$", GroupConsumer.as_asgi()),
]
