"""The same frames, handshakes and exceptions on plain Channels and on `realtime`.

`tests.support.assertions.conversation` says how a test compares the two base classes.
"""

import asyncio
import json
from typing import Any

import pytest
from channels.exceptions import AcceptConnection, DenyConnection, InvalidChannelLayerError
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
)
from channels.layers import get_channel_layer
from channels.routing import URLRouter

from realtime.consumers import RealtimeConsumer
from realtime.models import Connection
from tests.support.applications.tutorial import CHAT_AFTER, CHAT_BEFORE, websocket_urlpatterns
from tests.support.assertions.conversation import ACCEPT, Both, Client, Run, text

pytestmark = pytest.mark.django_db(transaction=True)


# -- the tutorial ----------------------------------------------------------------------------------


async def test_the_tutorials_chat_before_and_after_its_move(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        chat = CHAT_AFTER if run.base is RealtimeConsumer else CHAT_BEFORE
        assert issubclass(chat, run.base)
        application = URLRouter(websocket_urlpatterns(chat))
        anne, bob = (run.client(application, "/ws/chat/lobby/") for _ in range(2))
        stranger = run.client(application, "/ws/chat/elsewhere/")
        for client in (anne, bob, stranger):
            await client.connect()
        await anne.send_to(text_data='{"message": "hello"}')
        heard = [await client.receive_from() for client in (anne, bob)]
        await bob.disconnect()
        await anne.send_to(text_data='{"message": "anybody?"}')
        heard.append(await anne.receive_from())
        assert await stranger.receive_nothing()
        await anne.disconnect()
        await stranger.disconnect()
        return [json.loads(frame) for frame in heard]

    _, ours = await both(conversation)
    assert ours.wire[1] == [ACCEPT, text('{"message": "hello"}')]


# -- frames ----------------------------------------------------------------------------------------


async def test_text_and_binary_frames_and_the_handlers_arguments(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Echo(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                run.calls.append("connect")
                await self.accept()

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                run.calls.append(("receive", text_data, bytes_data))
                await self.send(text_data=text_data, bytes_data=bytes_data)

            async def disconnect(self, code: int) -> None:
                run.calls.append(("disconnect", code))

        client = run.client(Echo.as_asgi())
        assert await client.connect() == (True, None)
        await client.send_to(text_data="hé\0llo")
        assert await client.receive_from() == "hé\0llo"
        await client.send_to(bytes_data=b"\x00\xff")
        assert await client.receive_from() == b"\x00\xff"
        await client.send_input({"type": "websocket.receive", "text": "", "bytes": None})
        assert await client.receive_from() == ""
        await client.disconnect(code=1001)

    _, ours = await both(conversation)
    assert ours.calls == [
        "connect",
        ("receive", "hé\0llo", None),
        ("receive", None, b"\x00\xff"),
        ("receive", "", None),
        ("disconnect", 1001),
    ]


async def test_a_json_consumer_also_with_its_own_encoder(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Json(run.base):  # type: ignore[name-defined,misc]
            async def receive_json(self, content: Any, **options: Any) -> None:
                run.calls.append((content, options))
                await self.send_json({"you": content})

            @classmethod
            async def encode_json(cls, content: Any) -> str:
                return json.dumps(content, indent=1)

        client = run.client(Json.as_asgi())
        await client.connect()
        await client.send_json_to([1, {"a": None}])
        assert await client.receive_json_from() == {"you": [1, {"a": None}]}
        await client.disconnect()

    _, ours = await both(conversation, json=True)
    assert ours.calls == [([1, {"a": None}], {})]


def test_a_json_consumer_may_also_name_both_base_classes() -> None:
    class First(RealtimeConsumer, AsyncJsonWebsocketConsumer):
        pass

    class Last(AsyncJsonWebsocketConsumer, RealtimeConsumer):
        pass

    for consumer in (First, Last):
        assert consumer.__call__ is RealtimeConsumer.__call__
        assert consumer.dispatch is RealtimeConsumer.dispatch
        assert consumer.receive is AsyncJsonWebsocketConsumer.receive


async def test_several_frames_are_handled_one_after_the_other(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Slow(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                run.calls.append(("begin", text_data))
                await asyncio.sleep(0.01)
                run.calls.append(("end", text_data))
                await self.send(text_data=text_data)

        client = run.client(Slow.as_asgi())
        await client.connect()
        for word in ("one", "two", "three"):
            await client.send_to(text_data=word)
        assert [await client.receive_from() for _ in range(3)] == ["one", "two", "three"]
        await client.disconnect()

    await both(conversation)


async def test_frames_before_a_disconnect_are_handled(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Listens(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await asyncio.sleep(0.01)
                await self.channel_layer.group_send("elsewhere", {"type": "x"})
                run.calls.append(text_data)

            async def disconnect(self, code: int) -> None:
                run.calls.append(code)

        client = run.client(Listens.as_asgi())
        await client.connect()
        for word in ("save", "this"):
            await client.send_to(text_data=word)
        await client.disconnect(code=1001)

    _, ours = await both(conversation)
    assert ours.calls == ["save", "this", 1001]


async def test_a_task_of_the_consumers_own_may_send(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Clock(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.accept()
                self.ticking = asyncio.create_task(self.tick())

            async def tick(self) -> None:
                for number in range(3):
                    await self.send(text_data=str(number))

            async def disconnect(self, code: int) -> None:
                await self.ticking

        client = run.client(Clock.as_asgi())
        await client.connect()
        assert [await client.receive_from() for _ in range(3)] == ["0", "1", "2"]
        await client.disconnect()

    await both(conversation)


# -- the handshake ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "frame"),
    [
        ({}, {"type": "websocket.close"}),
        ({"code": 4001}, {"type": "websocket.close", "code": 4001}),
        ({"code": 4001, "reason": "no"}, {"type": "websocket.close", "code": 4001, "reason": "no"}),
    ],
)
@pytest.mark.parametrize("in_connect", [True, False])
async def test_closing_before_accept_and_after_it(
    both: Both, arguments: Any, frame: Any, in_connect: bool
) -> None:
    async def conversation(run: Run) -> None:
        class Closing(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await (self.close(**arguments) if in_connect else self.accept())

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.close(**arguments)

            async def disconnect(self, code: int) -> None:
                run.calls.append(("disconnect", code))

        client = run.client(Closing.as_asgi())
        if in_connect:
            assert await client.connect() == (False, arguments.get("code", 1000))
        else:
            await client.connect()
            await client.send_to(text_data="go")
            await client.receive_output()
        await client.disconnect(code=1006)

    _, ours = await both(conversation)
    assert ours.wire == [[frame] if in_connect else [ACCEPT, frame]]
    assert ours.calls == [("disconnect", 1006)]
    assert await Connection.objects.acount() == (0 if in_connect else 1)


@pytest.mark.parametrize("close", [True, 4001])
async def test_sending_and_closing_in_one_call(both: Both, close: bool | int) -> None:
    async def conversation(run: Run) -> None:
        class Once(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send(text_data="bye", close=close)

        client = run.client(Once.as_asgi())
        await client.connect()
        await client.send_to(text_data="go")
        assert await client.receive_from() == "bye"
        await client.receive_output()
        await client.disconnect()

    _, ours = await both(conversation)
    assert ours.wire[0][-1] == {"type": "websocket.close"} | ({"code": 4001} if close == 4001 else {})


@pytest.mark.parametrize("raised", [AcceptConnection, DenyConnection])
async def test_accepting_and_denying_by_exception(both: Both, raised: type[Exception]) -> None:
    async def conversation(run: Run) -> Any:
        class Raises(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                raise raised

        client = run.client(Raises.as_asgi())
        answer = await client.connect()
        await client.disconnect()
        return answer

    _, ours = await both(conversation)
    assert ours.wire == [[ACCEPT if raised is AcceptConnection else {"type": "websocket.close"}]]


@pytest.mark.parametrize(("offered", "chosen"), [([], None), (["a", "b"], "b"), (["a", "b"], None)])
async def test_subprotocols(both: Both, offered: list[str], chosen: str | None) -> None:
    async def conversation(run: Run) -> Any:
        class Chooses(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                run.calls.append(self.scope["subprotocols"])
                await self.accept(chosen)

        client = run.client(Chooses.as_asgi(), subprotocols=offered)
        answer = await client.connect()
        await client.disconnect()
        return answer

    _, ours = await both(conversation)
    assert ours.calls == [offered]
    assert ours.wire == [[{"type": "websocket.accept", "subprotocol": chosen}]]


async def test_headers_of_the_accept(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Header(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.accept(headers=[(b"x-served-by", b"a")])

        client = run.client(Header.as_asgi())
        await client.connect()
        await client.disconnect()
        return client.response_headers

    _, ours = await both(conversation)
    assert ours.wire == [[{**ACCEPT, "headers": [(b"x-served-by", b"a")]}]]


# -- exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["connect", "receive", "note", "disconnect"])
async def test_an_exception_of_a_handler_is_raised_by_wait(both: Both, where: str) -> None:
    async def conversation(run: Run) -> Any:
        class Buggy(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def connect(self) -> None:
                self.fail("connect")
                await self.accept()

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.fail("receive")

            async def note(self, event: Any) -> None:
                self.fail("note")

            async def disconnect(self, code: int) -> None:
                self.fail("disconnect")

            def fail(self, here: str) -> None:
                if where == here:
                    raise ZeroDivisionError(where)

        client = run.client(Buggy.as_asgi())
        await client.send_input({"type": "websocket.connect"})
        if where != "connect":
            await client.receive_output()
        if where == "receive":
            await client.send_to(text_data="x")
        if where == "note":
            await get_channel_layer().group_send("g", {"type": "note"})
        if where == "disconnect":
            await client.send_input({"type": "websocket.disconnect", "code": 1000})
        with pytest.raises(ZeroDivisionError, match=where):
            await client.wait()
        get_channel_layer().groups.clear()

    # On the wire ours says 4000. With plain Channels the server itself closes with 1011.
    await both(conversation, same_wire=False)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"bytes": b"\x00"}, "No text section"),
        ({"text": ""}, "No text section"),
        ({"text": "{"}, "Expecting property name"),
    ],
)
async def test_a_json_consumer_raises_what_channels_raises(both: Both, frame: Any, message: str) -> None:
    async def conversation(run: Run) -> None:
        class Json(run.base):  # type: ignore[name-defined,misc]
            pass

        client = run.client(Json.as_asgi())
        await client.connect()
        await client.send_input({"type": "websocket.receive", **frame})
        with pytest.raises(ValueError, match=message):
            await client.wait()

    await both(conversation, json=True, same_wire=False)


async def test_an_empty_send_and_a_bad_group_raise_in_the_handler(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Careless(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                with pytest.raises(ValueError, match="You must pass one of"):
                    await self.send()
                with pytest.raises(TypeError):
                    await self.channel_layer.group_add("no such name", self.channel_name)
                await self.send(text_data="still here")

        client = run.client(Careless.as_asgi())
        await client.connect()
        await client.send_to(text_data="go")
        assert await client.receive_from() == "still here"
        await client.disconnect()

    await both(conversation)


async def test_groups_without_a_channel_layer(use_layers: Any, caplog: pytest.LogCaptureFixture) -> None:
    use_layers(None)
    for base in (AsyncWebsocketConsumer, RealtimeConsumer):
        consumer = type("Member", (base,), {"groups": ("g",)})
        client = Client(consumer.as_asgi())
        await client.send_input({"type": "websocket.connect"})
        with pytest.raises(InvalidChannelLayerError):
            await client.wait()
    assert caplog.text.count('CHANNEL_LAYERS has no "default" layer; set its BACKEND') == 1
