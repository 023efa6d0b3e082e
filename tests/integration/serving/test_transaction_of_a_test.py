"""A test that holds a transaction is told immediately what to do, instead of waiting for its own records."""

import asyncio
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.layers import channel_layers
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.test import TestCase, TransactionTestCase

from realtime.consumers import RealtimeConsumer
from realtime.errors import RecordsUnavailable
from realtime.models import Connection
from realtime.serving import lifecycle
from realtime.testing import connect


class Echo(RealtimeConsumer):
    async def connect(self) -> None:
        await database_sync_to_async(User.objects.count)()
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data)


async def converse() -> None:
    client = WebsocketCommunicator(Echo.as_asgi(), "/")
    assert await client.connect() == (True, None)
    await client.send_to(text_data="hello")
    assert await client.receive_from() == "hello"
    await client.disconnect()
    await lifecycle.stop()


REMEDIES = r"realtime\.testing\.connect.*LEDGER.*inline.*TransactionTestCase"


class OurLayer:
    @pytest.fixture(autouse=True)
    def _our_layer(self, settings: Any) -> None:
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.MemoryLayer"}}
        channel_layers.backends.clear()


class InATestCase(OurLayer, TestCase):
    async def test_an_async_test_is_told(self) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(RecordsUnavailable, match=REMEDIES):
            await converse()
        # The client looks for the exception after its own time-out of a second.
        assert asyncio.get_running_loop().time() - began < 4

    def test_a_sync_test_is_told(self) -> None:
        with pytest.raises(RecordsUnavailable, match=REMEDIES):
            async_to_sync(converse)()

    async def test_our_client_works(self) -> None:
        async with connect(Echo.as_asgi(), "/", subprotocols=()) as client:
            await client.send(text="hello")
            assert await client.receive() == "hello"
            assert await Connection.objects.open().acount() == 1


class WithTheLedgerOfTests(OurLayer, TestCase):
    @pytest.fixture(autouse=True)
    def _inline(self, realtime_settings: Any) -> None:
        realtime_settings(LEDGER="inline")

    async def test_channels_client_works(self) -> None:
        began = asyncio.get_running_loop().time()
        user = await User.objects.acreate(username="anne")
        await converse()
        assert asyncio.get_running_loop().time() - began < 4
        assert (await User.objects.aget()).pk == user.pk, "the transaction of the test was lost"
        assert await Connection.objects.filter(close_reason="client_closed").acount() == 1


class InATransactionTestCase(OurLayer, TransactionTestCase):
    async def test_channels_client_works(self) -> None:
        await converse()


@pytest.mark.usefixtures("db")
class TestWithPytest(OurLayer):
    async def test_a_test_in_a_transaction_is_told(self) -> None:
        with pytest.raises(RecordsUnavailable, match=REMEDIES):
            await converse()
