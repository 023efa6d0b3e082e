"""The applications of `benchmarks.plain.asgi`, with consumers on our base classes."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
django_asgi_app = get_asgi_application()

from benchmarks.plain import consumers as tutorial  # noqa: E402
from benchmarks.plain import synchronous as sync_tutorial  # noqa: E402
from benchmarks.plain.application import serving  # noqa: E402
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


application = serving(ChatConsumer, django_asgi_app)
synchronous = serving(SyncChatConsumer, django_asgi_app)
