"""The differences between `realtime` and plain Channels that are intended."""

import asyncio
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import (
    AsyncWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import get_channel_layer

from realtime import apublish
from realtime.consumers import RealtimeConsumer
from realtime.errors import LayerUnavailable
from realtime.models import Connection
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from realtime.testing import connect
from tests.support.assertions.conversation import LAYER_OF, PATIENCE, Calls, Client
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("event", [{"type": "no.such"}, {"no": "type"}])
async def test_an_unknown_event_is_ignored_and_ends_plain_channels(use_layers: Any, event: Any) -> None:
    def member(base: type) -> type[Any]:
        class Member(base):  # type: ignore[misc,valid-type]
            groups = ("g",)

        return Member

    use_layers(LAYER_OF["plain"], "default")
    plain = Client(member(AsyncWebsocketConsumer).as_asgi())
    await plain.connect()
    await get_channel_layer().group_send("g", event)
    with pytest.raises(ValueError, match="type"):
        await plain.wait()

    async with connect(member(RealtimeConsumer).as_asgi(), "/") as ours:
        await get_channel_layer().group_send("g", event)
        await apublish("g", "still here")
        assert await ours.receive_message() == "still here"


async def test_a_consumer_that_stops_itself_closes_its_socket(
    use_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1))

    def stops(base: type, told: Calls) -> type[Any]:
        class Stops(base):  # type: ignore[misc,valid-type]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                raise StopConsumer

            async def disconnect(self, code: int) -> None:
                told.append(code)

        return Stops

    for base, layer, after in (
        (AsyncWebsocketConsumer, "plain", ([], [])),
        (RealtimeConsumer, "ours", ([{"type": "websocket.close", "code": 1000}], [1000])),
    ):
        use_layers(LAYER_OF[layer], "default")
        told: Calls = []
        client = Client(stops(base, told).as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        await client.wait()
        wire = [client.output_queue.get_nowait() for _ in range(client.output_queue.qsize())]
        assert (wire, told) == after
    await lifecycle.stop()


async def test_a_handler_that_goes_on_after_a_close_is_ended(
    use_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1))
    told: Calls = []

    class Closes(RealtimeConsumer):
        async def connect(self) -> None:
            await self.close()
            told.append("closed")
            await self.group_add("g")
            told.append("joined")

        async def disconnect(self, code: int) -> None:
            told.append(code)

    use_layers(LAYER_OF["ours"], "default")
    client = Client(Closes.as_asgi())
    assert await client.connect() == (False, 1000)
    await client.wait()
    assert told == ["closed", 1000]
    assert not await Connection.objects.aexists()
    assert not get_channel_layer().groups


async def test_a_burst_to_a_group_reaches_every_member_whole(use_layers: Any) -> None:
    class Member(RealtimeConsumer):
        groups = ("g",)

        async def note(self, event: Any) -> None:
            await self.send(text_data=str(event["number"]))

    async with connect(Member.as_asgi(), "/", subprotocols=()) as client:
        layer = get_channel_layer()
        for number in range(300):
            await layer.group_send("g", {"type": "note", "number": number})
        assert [await client.receive() for _ in range(300)] == [str(number) for number in range(300)]


async def test_events_after_the_end_do_not_give_a_handler_more_time(
    use_layers: Any, monkeypatch: pytest.MonkeyPatch, realtime_settings: Any
) -> None:
    realtime_settings(DISCONNECT_TIMEOUT=0.6)
    monkeypatch.setattr(Runner, "times", Times(server_report=0.1))
    names: Calls = []

    class Stuck(RealtimeConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            names.append(self.channel_name)
            await asyncio.sleep(60)

    use_layers(LAYER_OF["ours"], "default")
    client = Client(Stuck.as_asgi())
    await client.connect()
    await client.send_to(text_data="x")
    await eventually_async(lambda: names, within=PATIENCE)
    await client.send_input({"type": "websocket.disconnect", "code": 1000})
    began = asyncio.get_running_loop().time()
    while not client.future.done():
        await get_channel_layer().send(names[0], {"type": "note"})
        await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began < PATIENCE
    await lifecycle.stop()


async def test_without_our_layer_the_error_says_what_to_set(use_layers: Any) -> None:
    for backend, sentence in ((None, 'has no "default" layer'), (LAYER_OF["plain"], "set the BACKEND")):
        use_layers(backend, "default")
        client = Client(RealtimeConsumer.as_asgi())
        await client.send_input({"type": "websocket.connect"})
        with pytest.raises(LayerUnavailable, match=sentence):
            await client.wait()


async def test_a_synchronous_consumer_works_beside_ours_on_one_layer(
    use_layers: Any,
) -> None:
    class Synchronous(WebsocketConsumer):
        groups = ("g",)

        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            async_to_sync(self.channel_layer.group_send)("g", {"type": "note", "text": text_data})

        def note(self, event: Any) -> None:
            self.send(text_data=f"sync {event['text']}")

    class Ours(RealtimeConsumer):
        groups = ("g",)

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.channel_layer.group_send("g", {"type": "note", "text": text_data})

        async def note(self, event: Any) -> None:
            await self.send(text_data=f"ours {event['text']}")

    use_layers(LAYER_OF["ours"], "default")
    clients = [Client(Synchronous.as_asgi()), Client(Ours.as_asgi())]
    for client in clients:
        await client.connect()
    for client, word in zip(clients, ("one", "two"), strict=True):
        await client.send_to(text_data=word)
        assert [await each.receive_from() for each in clients] == [f"sync {word}", f"ours {word}"]
    for client in clients:
        await client.disconnect()
    await lifecycle.stop()


def test_a_synchronous_consumer_cannot_be_mixed_in() -> None:
    with pytest.raises(TypeError, match="use SyncRealtimeConsumer"):

        class Mixed(RealtimeConsumer, WebsocketConsumer):
            pass


@pytest.mark.parametrize("name", ["connect", "disconnect", "receive"])
def test_a_method_that_is_not_async_is_warned_of(name: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"Moved.{name} is not `async def`"):
        type("Moved", (RealtimeConsumer,), {name: lambda self: None})


def test_a_method_behind_a_decorator_is_not_warned_of() -> None:
    class Wrapped(RealtimeConsumer):
        @database_sync_to_async
        def connect(self) -> None: ...

    assert issubclass(Wrapped, AsyncConsumer)
