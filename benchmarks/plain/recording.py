"""The tutorial's consumer with a list of connected clients: one ORM write per connect and per disconnect.

The order of the writes leaves a row for every connection that was accepted.
"""

from django.utils import timezone

from benchmarks.plain.consumers import ChatConsumer
from benchmarks.plain.models import Visit


class RecordingChatConsumer(ChatConsumer):
    async def connect(self):
        room = self.scope["url_route"]["kwargs"]["room_name"]
        self.visit = await Visit.objects.acreate(room=room)
        await super().connect()

    async def disconnect(self, close_code):
        await super().disconnect(close_code)
        await Visit.objects.filter(pk=self.visit.pk).aupdate(closed_at=timezone.now())
