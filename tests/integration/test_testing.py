"""`realtime.testing` as an application uses it: in a TestCase, and with the fixture `db`."""

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from django.contrib.auth.models import User
from django.test import TestCase

from realtime import apublish, publish
from realtime.closing import CloseReason
from realtime.consumers import RealtimeConsumer
from realtime.models import Connection, Membership
from realtime.presence import ais_online, apresence
from realtime.routing import websocket_urlpatterns
from realtime.testing import Refused, connect

application = URLRouter(websocket_urlpatterns)


class Shouting(RealtimeConsumer):
    """The consumer of an application."""

    async def connect(self) -> None:
        if not self.scope["user"].is_authenticated:
            await self.close()
            return
        await self.group_add("shouts")
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "stop":
            await self.close(4001)
        else:
            await self.send(text_data=str(text_data).upper())


class InsideATestCase(TestCase):
    """The loop runs beside the thread that holds the transaction."""

    async def test_a_consumer(self) -> None:
        anne = await User.objects.acreate(username="anne")
        async with connect(Shouting.as_asgi(), "/", user=anne) as client:
            await client.send(text="hello")
            assert await client.receive() == "HELLO"
            record = await Connection.objects.aget()
            assert (record.user_id, record.closed_at) == (str(anne.pk), None)
            await client.send(text="stop")
            await client.assert_closed(4001)
        record = await Connection.objects.aget()
        assert record.close_reason == CloseReason.APPLICATION_CLOSED.value
        assert not await Membership.objects.to_leave().aexists()

    async def test_a_client_that_comes_back(self) -> None:
        url = "/ws/?client=0123456789abcdef"
        async with connect(application, url) as older, connect(application, url):
            await older.assert_closed(CloseReason.SUPERSEDED)
        reasons = [reason async for reason in Connection.objects.values_list("close_reason", flat=True)]
        assert sorted(reasons) == ["client_closed", "superseded"]

    async def test_a_refusal(self) -> None:
        with pytest.raises(Refused):
            async with connect(Shouting.as_asgi(), "/"):
                pass

    async def test_a_policy(self) -> None:
        anne = await User.objects.acreate(username="anne")
        async with connect(application, f"/ws/user.{anne.pk}/", user=anne) as client:
            assert client.welcome is not None
            assert client.welcome["groups"] == [f"user.{anne.pk}"]
        async with connect(application, f"/ws/user.{anne.pk + 1}/", user=anne) as client:
            await client.assert_closed(CloseReason.FORBIDDEN)

    async def test_publishing_from_async_and_from_sync_code(self) -> None:
        async with connect(application, "/ws/public.a/") as one, connect(application, "/ws/public.a/") as two:
            await apublish("public.a", {"n": 1})
            await sync_to_async(publish)("public.a", {"n": 2})
            for client in (one, two):
                assert await client.receive_message() == {"n": 1}
                assert await client.receive_message() == {"n": 2}


@pytest.mark.django_db
async def test_with_the_db_fixture_a_client_gets_messages() -> None:
    async with connect(application, "/ws/public.a/") as client:
        await apublish("public.a", "hello")
        assert await client.receive_message() == "hello"


@pytest.mark.django_db
async def test_with_the_db_fixture_an_earlier_test_leaves_nothing() -> None:
    async with connect(application, "/ws/public.a/", subprotocols=()) as client:
        await client.send({"type": "publish", "ref": 1, "group": "public.a", "data": 1})
        assert (await client.receive_frame())["code"] == "forbidden"


@pytest.mark.django_db
async def test_a_client_answers_pings(realtime_settings: Any) -> None:
    realtime_settings(PING_INTERVAL=0.3, PONG_TIMEOUT=0.2)
    async with connect(application, "/ws/public.a/") as client:
        with pytest.raises(AssertionError, match="Nothing came"):
            await client.receive(within=1.2)
        await apublish("public.a", "still here")
        assert await client.receive_message() == "still here"


@pytest.mark.django_db
async def test_receiving_from_a_closed_connection_fails() -> None:
    anne = User(username="anne", pk=1)
    async with connect(Shouting.as_asgi(), "/", user=anne) as client:
        await client.send(text="stop")
        with pytest.raises(AssertionError, match="closed with 4001"):
            await client.receive()


class Buggy(RealtimeConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        raise ZeroDivisionError("a bug")


@pytest.mark.django_db
async def test_an_exception_of_a_handler_is_raised_at_the_end() -> None:
    with pytest.raises(ZeroDivisionError):
        async with connect(Buggy.as_asgi(), "/") as client:
            await client.send(text="x")


@pytest.mark.django_db
async def test_an_expected_close_hides_the_exception_of_a_handler() -> None:
    async with connect(Buggy.as_asgi(), "/") as client:
        await client.send(text="x")
        await client.assert_closed(CloseReason.HANDLER_ERROR)


@pytest.mark.django_db
async def test_with_the_db_fixture_presence_sees_the_test() -> None:
    async with connect(Shouting.as_asgi(), "/", user=User(pk=7, username="anne")):
        assert (await apresence("shouts")).users == ("7",)
        assert await ais_online(7)
