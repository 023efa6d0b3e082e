"""The ASGI application of the Channels tutorial, and the same with other consumers."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.plain.settings")
django_asgi_app = get_asgi_application()

from benchmarks.plain.application import serving  # noqa: E402
from benchmarks.plain.consumers import ChatConsumer  # noqa: E402
from benchmarks.plain.recording import RecordingChatConsumer  # noqa: E402
from benchmarks.plain.synchronous import ChatConsumer as SyncChatConsumer  # noqa: E402

application = serving(ChatConsumer, django_asgi_app)
recording = serving(RecordingChatConsumer, django_asgi_app)
synchronous = serving(SyncChatConsumer, django_asgi_app)
