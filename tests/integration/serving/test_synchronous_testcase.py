"""Synchronous consumers in Django's `TestCase`: their handlers see the data of the test's transaction."""

from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.test import TestCase, TransactionTestCase

from realtime.consumers import SyncRealtimeConsumer
from realtime.models import Connection
from realtime.testing import connect


class Counts(SyncRealtimeConsumer):
    def connect(self) -> None:
        async_to_sync(self.channel_layer.group_add)("g", self.channel_name)
        self.accept()

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.group_add("h")
        self.group_discard("h")
        self.send(text_data=f"{User.objects.count()} users, {sorted(self.connection.groups)}")

    def note(self, event: Any) -> None:
        self.send(text_data=f"{User.objects.count()} users")


class Conversation:
    async def test_handlers_use_the_database_of_the_test(self) -> None:
        await User.objects.acreate(username="anne")
        async with connect(Counts.as_asgi(), "/", subprotocols=()) as client:
            await client.send(text="x")
            assert await client.receive() == "1 users, ['g']"
            for _ in range(3):
                await get_channel_layer().group_send("g", {"type": "note"})
                assert await client.receive() == "1 users"
            assert await Connection.objects.open().acount() == 1
        assert not await Connection.objects.open().aexists()


class InATransaction(Conversation, TestCase):
    pass


class WithoutATransaction(Conversation, TransactionTestCase):
    pass
