"""The tutorial's consumer of somebody who wants to see who is connected: one ORM write for each connect and
each disconnect, in the order that leaves a row for every connection that was accepted."""

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
