"""The consumers behind the test client of Channels."""

import asyncio
import functools
import gc
import json
import logging
import weakref
from typing import Any

import pytest
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User

from realtime import apublish
from realtime.closing import CloseReason
from realtime.consumers import RealtimeConsumer, served
from realtime.models import Connection as Record
from realtime.models import Membership
from realtime.routing import websocket_urlpatterns
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from realtime.wire import frames
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.usefixtures("site")

V1 = [frames.SUBPROTOCOL]


@pytest.fixture(autouse=True)
def _no_server_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test client of Channels reports no disconnect after a close, so the wait for one is short."""
    monkeypatch.setattr(Runner, "times", Times(server_report=0.2))


def communicator(
    application: Any, path: str = "/", *, v1: bool = False, user: Any = None
) -> WebsocketCommunicator:
    made = WebsocketCommunicator(application, path, subprotocols=V1 if v1 else [])
    made.scope["user"] = user or AnonymousUser()
    return made


def groups_app(path: str, **options: Any) -> WebsocketCommunicator:
    return communicator(URLRouter(websocket_urlpatterns), path, **options)


async def receive(client: WebsocketCommunicator) -> Any:
    return json.loads(await client.receive_from(timeout=5))


async def send(client: WebsocketCommunicator, **frame: Any) -> Any:
    """Send a frame and return the next one from the server."""
    await client.send_to(text_data=json.dumps(frame))
    return await receive(client)


async def closed(client: WebsocketCommunicator) -> int:
    """Return the close code of the server, after any other frames."""
    while (event := await client.receive_output(timeout=5))["type"] != "websocket.close":
        pass
    return int(event["code"])


async def the_record() -> Record:
    return await Record.objects.aget()


async def ended() -> Record:
    """Wait until the record is closed and every membership is left, and return the record."""
    async with asyncio.timeout(5):
        while await Record.objects.open().aexists() or await Membership.objects.to_leave().aexists():
            await asyncio.sleep(0.02)
    return await the_record()


class TestGroupConsumer:
    async def test_a_v1_client_is_welcomed_first(self) -> None:
        client = groups_app("/ws/public.lobby/", v1=True)
        assert await client.connect() == (True, "realtime.v1")
        welcome = await receive(client)
        record = await the_record()
        assert welcome == {
            "type": "welcome",
            "connection": str(record.pk),
            "max_silence": 45.0,
            "groups": ["public.lobby"],
        }
        await client.disconnect()

    async def test_a_plain_client_receives_only_messages(self) -> None:
        client = groups_app("/ws/public.lobby/")
        assert await client.connect() == (True, None)
        await apublish("public.lobby", "hello")
        assert await receive(client) == {"type": "message", "group": "public.lobby", "data": "hello"}
        assert await client.receive_nothing()
        await client.disconnect()

    async def test_join_publish_and_leave_are_answered_with_their_ref(self) -> None:
        user = await User.objects.acreate_user("anne")
        client = groups_app("/ws/", user=user)
        await client.connect()
        assert await send(client, type="join", ref=1, group="public.a") == {
            "type": "joined",
            "ref": 1,
            "group": "public.a",
        }
        await client.send_to(
            text_data=json.dumps({"type": "publish", "ref": "p", "group": "public.a", "data": [1]})
        )
        got = [await receive(client), await receive(client)]
        assert {"type": "published", "ref": "p", "group": "public.a"} in got
        assert {"type": "message", "group": "public.a", "data": [1], "from": str(user.pk)} in got
        assert (await send(client, type="leave", ref=3, group="public.a"))["type"] == "left"
        assert (await send(client, type="leave", ref=4, group="public.a"))["code"] == "not_joined"
        await client.disconnect()

    async def test_a_ping_is_answered(self) -> None:
        client = groups_app("/ws/", v1=True)
        await client.connect()
        assert (await receive(client))["type"] == "welcome"
        assert await send(client, type="ping", n=7) == {"type": "pong", "n": 7}
        await client.disconnect()

    async def test_a_plain_clients_ping_is_answered_by_an_error_frame_only(self) -> None:
        client = groups_app("/ws/")
        await client.connect()
        assert (await send(client, type="ping", n=7))["code"] == "unknown_type"
        await client.disconnect()

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            ({"type": "join", "ref": 1, "group": "secret"}, "forbidden"),
            ({"type": "publish", "ref": 1, "group": "public.a", "data": 1}, "forbidden"),
            ({"type": "join", "ref": 1, "group": "not a group"}, "bad_group"),
            ({"type": "join", "ref": 1}, "bad_frame"),
            ({"type": "presence", "ref": 1}, "bad_frame"),
        ],
    )
    async def test_a_refused_frame_is_answered(self, frame: dict[str, Any], code: str) -> None:
        client = groups_app("/ws/")
        await client.connect()
        answer = await send(client, **frame)
        assert (answer["type"], answer["code"], answer["ref"]) == ("error", code, 1)
        await client.disconnect()

    @pytest.mark.parametrize(
        ("path", "known", "code"),
        [
            ("/ws/user.77/", False, 4501),
            ("/ws/user.77/", True, 4503),
            ("/ws/not%20a%20group/", False, 4500),
            ("/ws/realtime.mine/", False, 4500),
        ],
    )
    async def test_a_refused_path_is_closed_with_a_code_and_no_record(
        self, path: str, known: bool, code: int
    ) -> None:
        user = await User.objects.acreate_user("anne") if known else None
        client = groups_app(path, v1=True, user=user)
        assert (await client.connect())[0]
        assert (await receive(client))["type"] == "goodbye"
        assert await closed(client) == code
        await client.wait(timeout=5)
        assert not await Record.objects.aexists()

    async def test_a_binary_frame_is_a_protocol_error(self) -> None:
        client = groups_app("/ws/")
        await client.connect()
        await client.send_to(bytes_data=b"\x00")
        assert await closed(client) == 4500

    async def test_more_than_ten_errors_in_a_minute_end_the_connection(self) -> None:
        client = groups_app("/ws/")
        await client.connect()
        for _ in range(10):
            assert (await send(client, type="nonsense"))["code"] == "unknown_type"
        await client.send_to(text_data="{")
        assert await closed(client) == 4500
        assert (await ended()).close_reason == "protocol_error"

    async def test_a_frame_above_the_limit_is_too_large(self) -> None:
        client = groups_app("/ws/")
        await client.connect()
        await client.send_to(text_data='"' + "é" * 33_000 + '"')
        assert await closed(client) == 4513


class TestLiveness:
    @pytest.mark.acceptance  # for its seconds
    async def test_a_v1_client_is_pinged_and_its_pong_keeps_it(self, realtime_settings: Any) -> None:
        realtime_settings(PING_INTERVAL=0.4, PONG_TIMEOUT=0.3)
        client = groups_app("/ws/public.a/", v1=True)
        await client.connect()
        assert (await receive(client))["type"] == "welcome"
        for number in (1, 2, 3):
            assert await receive(client) == {"type": "ping", "n": number}
            await client.send_to(text_data=json.dumps({"type": "pong", "n": number}))
        assert (await the_record()).closed_at is None
        await client.disconnect()

    async def test_a_client_that_does_not_answer_is_evicted(self, realtime_settings: Any) -> None:
        realtime_settings(PING_INTERVAL=0.4, PONG_TIMEOUT=0.3)
        client = groups_app("/ws/public.a/", v1=True)
        await client.connect()
        assert await closed(client) == 4008
        record = await ended()
        assert (record.close_reason, record.close_code) == ("ping_timeout", 4008)

    @pytest.mark.acceptance  # for its seconds
    async def test_a_pong_is_seen_while_a_handler_runs(self, realtime_settings: Any) -> None:
        realtime_settings(PING_INTERVAL=0.4, PONG_TIMEOUT=0.3)

        class Busy(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await asyncio.sleep(1.5)
                await self.send(text_data="done")

        client = communicator(Busy.as_asgi(), v1=True)
        await client.connect()
        await client.send_to(text_data="work")
        pings = 0
        while (text := await client.receive_from(timeout=5)) != "done":
            frame = json.loads(text)
            if frame["type"] == "ping":
                pings += 1
                await client.send_to(text_data=json.dumps({"type": "pong", "n": frame["n"]}))
        assert pings >= 3
        await client.disconnect()

    async def test_an_idle_client_is_closed_when_that_is_set(self, realtime_settings: Any) -> None:
        realtime_settings(IDLE_TIMEOUT=0.3)
        client = groups_app("/ws/")
        await client.connect()
        assert await closed(client) == 4011


class TestRealtimeConsumer:
    async def test_the_author_of_a_consumer_writes_every_frame(self) -> None:
        class Echo(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send(text_data=text_data, bytes_data=bytes_data)

        client = communicator(Echo.as_asgi())
        assert await client.connect() == (True, None)
        await client.send_to(text_data="hello")
        assert await client.receive_from() == "hello"
        await client.send_to(bytes_data=b"\xff")
        assert await client.receive_from() == b"\xff"
        assert await client.receive_nothing()
        await client.disconnect()

    async def test_group_add_through_the_layer_and_a_handler_of_its_events(self) -> None:
        class Chat(RealtimeConsumer):
            async def connect(self) -> None:
                await self.channel_layer.group_add("chat", self.channel_name)
                await self.accept()

            async def disconnect(self, code: int) -> None:
                await self.channel_layer.group_discard("chat", self.channel_name)

            async def chat_message(self, event: dict[str, Any]) -> None:
                await self.send(text_data=event["message"])

        client = communicator(Chat.as_asgi())
        await client.connect()
        await get_channel_layer().group_send("chat", {"type": "chat.message", "message": "hi"})
        assert await client.receive_from() == "hi"
        await client.disconnect()
        assert not get_channel_layer().groups.get("chat")
        assert not await Membership.objects.to_leave().aexists()

    async def test_a_message_to_its_own_channel_reaches_the_handler(self) -> None:
        class Named(RealtimeConsumer):
            async def connect(self) -> None:
                await self.accept()
                await self.send(text_data=self.channel_name)

            async def note(self, event: dict[str, Any]) -> None:
                await self.send(text_data=event["text"])

        client = communicator(Named.as_asgi())
        await client.connect()
        name = await client.receive_from()
        await get_channel_layer().send(name, {"type": "note", "text": "yours"})
        assert await client.receive_from() == "yours"
        await client.disconnect()

    async def test_the_groups_attribute_is_joined_and_left(self) -> None:
        class Fixed(RealtimeConsumer):
            groups = ("one", "two")

        client = communicator(Fixed.as_asgi())
        await client.connect()
        layer = get_channel_layer()
        assert layer.groups["one"]
        assert layer.groups["two"]
        await client.disconnect()
        assert not layer.groups.get("one")
        assert not layer.groups.get("two")

    async def test_a_handshake_that_is_refused_leaves_no_record(self) -> None:
        class Closed(RealtimeConsumer):
            async def connect(self) -> None:
                await self.close()

        client = communicator(Closed.as_asgi())
        assert (await client.connect())[0] is False
        assert not await Record.objects.aexists()

    async def test_a_handler_that_raises_ends_the_connection_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[int] = []

        class Buggy(RealtimeConsumer):
            async def connect(self) -> None:
                await self.group_add("g")
                await self.accept()

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                raise ZeroDivisionError("a bug")

            async def disconnect(self, code: int) -> None:
                told.append(code)

        client = communicator(Buggy.as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        assert await closed(client) == 4000
        with pytest.raises(ZeroDivisionError):
            await client.wait(timeout=5)
        assert (await ended()).close_reason == "handler_error"
        assert told == [4000]
        assert len([entry for entry in caplog.records if entry.exc_info]) == 1

    async def test_an_exception_in_connect_is_answered_and_leaves_nothing(self) -> None:
        class Buggy(RealtimeConsumer):
            async def connect(self) -> None:
                await self.group_add("g")
                raise ZeroDivisionError("a bug")

        client = communicator(Buggy.as_asgi())
        await client.connect()
        assert await closed(client) == 4000
        with pytest.raises(ZeroDivisionError):
            await client.wait(timeout=5)
        assert not await Membership.objects.to_leave().aexists()
        assert (await ended()).close_reason == "handler_error"

    async def test_stopping_the_consumer_closes_the_socket(self) -> None:
        class Stops(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                raise StopConsumer

        client = communicator(Stops.as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        assert await closed(client) == 1000

    async def test_a_consumer_that_is_cancelled_repeatedly_is_cleaned_up(self) -> None:
        told: list[int] = []

        class Member(RealtimeConsumer):
            groups = ("g",)

            async def disconnect(self, code: int) -> None:
                await asyncio.sleep(0.1)
                told.append(code)

        client = communicator(Member.as_asgi())
        await client.connect()
        for _ in range(3):
            client.future.cancel()
            await asyncio.sleep(0.01)
        assert (await ended()).close_reason == "cancelled"
        await eventually_async(lambda: told == [4000], within=5)

    async def test_a_receive_that_fails_ends_the_connection(self, caplog: pytest.LogCaptureFixture) -> None:
        sent: list[Any] = []
        events = [{"type": "websocket.connect"}]

        async def receive() -> Any:
            if events:
                return events.pop()
            await eventually_async(lambda: sent, within=5)
            raise OSError("the server broke")

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {"type": "websocket", "path": "/", "headers": [], "subprotocols": []}
        await RealtimeConsumer.as_asgi()(scope, receive, send)
        assert [event["type"] for event in sent] == ["websocket.accept", "websocket.close"]
        assert (await ended()).close_reason == "server_unavailable"
        assert "the server broke" in caplog.text

    async def test_a_handler_above_its_timeout_is_evicted(
        self, realtime_settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        realtime_settings(HANDLER_TIMEOUT=0.2)

        class Stuck(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await asyncio.sleep(60)

        # First, because the start of the hub would count as time of the handler `connect`.
        await lifecycle.hub()
        client = communicator(Stuck.as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        assert await closed(client) == 4000
        assert (await ended()).close_reason == "handler_timeout"

    async def test_too_many_frames_for_a_busy_handler_end_the_connection(
        self, realtime_settings: Any
    ) -> None:
        realtime_settings(MAX_INBOUND_QUEUE=5)
        busy = asyncio.Event()

        class Busy(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                busy.set()
                await asyncio.sleep(1)

        client = communicator(Busy.as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        await busy.wait()
        for _ in range(6):
            await client.send_to(text_data="x")
        assert await closed(client) == 4029

    async def test_many_small_frames_in_one_packet_are_handled(self, realtime_settings: Any) -> None:
        realtime_settings(MAX_INBOUND_QUEUE=5)
        taken: list[str] = []

        class Slow(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await asyncio.sleep(0.01)
                taken.append(text_data or "")

        client = communicator(Slow.as_asgi())
        await client.connect()
        sent = [str(number) for number in range(9)]
        for text in sent:
            # As from a server that finds all of them in one packet: no other task runs in between.
            client.input_queue.put_nowait({"type": "websocket.receive", "text": text})
        await eventually_async(lambda: taken == sent, within=5)
        await client.disconnect()

    @pytest.mark.parametrize("text", ["x", "x" * 900], ids=["too many", "too large together"])
    async def test_frames_that_come_too_fast_end_the_connection(
        self, realtime_settings: Any, text: str
    ) -> None:
        realtime_settings(MAX_INBOUND_QUEUE=5, MAX_MESSAGE_BYTES=1000)
        turns, taken = asyncio.Semaphore(0), 0

        class Slow(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                nonlocal taken
                taken += 1
                await turns.acquire()

        client = communicator(Slow.as_asgi())
        await client.connect()
        for turn in range(1, 50):
            # Never too many for one turn, and always more than the consumer takes.
            for _ in range(4):
                await client.send_to(text_data=text)
            await eventually_async(lambda turn=turn: taken == turn or client.output_queue.qsize(), within=5)
            turns.release()
        assert await closed(client) == 4029

    @pytest.mark.parametrize(
        "kind",
        [
            "no.such",
            "send",
            "disconnect",
            "websocket_receive",
            "websocket.receive",
            "websocket.disconnect",
            "_private",
            "plain",
        ],
    )
    async def test_only_handlers_that_the_author_wrote_take_events(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Careful(RealtimeConsumer):
            groups = ("g",)

            def plain(self, event: dict[str, Any]) -> None:
                raise AssertionError("a plain method is no handler")

            async def _private(self, event: dict[str, Any]) -> None:
                raise AssertionError("a private method is no handler")

            async def good(self, event: dict[str, Any]) -> None:
                await self.send(text_data="good")

        client = communicator(Careful.as_asgi())
        await client.connect()
        with caplog.at_level(logging.WARNING, logger="realtime"):
            for _ in range(3):
                await get_channel_layer().group_send("g", {"type": kind})
            await get_channel_layer().group_send("g", {"type": "good"})
            assert await client.receive_from() == "good"
        assert [each.name for each in caplog.records].count("realtime.serving") == 1
        assert "has no handler for events of type" in caplog.text
        await client.disconnect()

    async def test_an_object_that_is_awaited_when_called_takes_events(self) -> None:
        class Observer:
            """A handler as decorators of other packages make it."""

            def __get__(self, consumer: RealtimeConsumer, owner: type) -> Any:
                return functools.partial(self, consumer)

            async def __call__(self, consumer: RealtimeConsumer, event: dict[str, Any]) -> None:
                await consumer.send(text_data=event["text"])

        class Observing(RealtimeConsumer):
            groups = ("g",)
            observed = Observer()

        client = communicator(Observing.as_asgi())
        await client.connect()
        await get_channel_layer().group_send("g", {"type": "observed", "text": "seen"})
        assert await client.receive_from() == "seen"
        await client.disconnect()

    async def test_an_instance_is_an_application_to_the_test_client(self) -> None:
        class Echoing(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send(text_data=text_data)

        client = communicator(Echoing())
        assert await client.connect() == (True, None)
        await client.send_to(text_data="hello")
        assert await client.receive_from() == "hello"
        await client.disconnect()
        await ended()

    async def test_a_consumer_of_an_author_speaks_v1_with_a_v1_client(self) -> None:
        class Quiet(RealtimeConsumer):
            pass

        client = communicator(Quiet.as_asgi(), v1=True)
        assert await client.connect() == (True, "realtime.v1")
        assert (await receive(client))["type"] == "welcome"
        await client.disconnect()

    async def test_a_message_before_accept_arrives_after_the_welcome(self) -> None:
        class Slow(RealtimeConsumer):
            async def connect(self) -> None:
                await self.group_add("g")
                await apublish("g", 1)
                connection = self.connection
                await eventually_async(lambda: connection.transport.unsent, within=5)
                await self.accept()

        client = communicator(Slow.as_asgi(), v1=True)
        await client.connect()
        assert [(await receive(client))["type"], (await receive(client))["type"]] == ["welcome", "message"]
        await client.disconnect()

    async def test_sending_after_the_connection_was_closed_does_nothing(self) -> None:
        class Late(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.close(4001)
                await self.send(text_data="late")
                await self.close(4002)

        client = communicator(Late.as_asgi())
        await client.connect()
        await client.send_to(text_data="x")
        assert await client.receive_output(timeout=5) == {"type": "websocket.close", "code": 4001}
        await client.wait(timeout=5)
        assert (await ended()).close_reason == "application_closed"

    async def test_an_administrator_evicts_it_by_its_id(self) -> None:
        client = groups_app("/ws/public.a/", v1=True)
        await client.connect()
        home = await lifecycle.hub()
        (connection,) = home.connections.values()
        await lifecycle.evict(connection, CloseReason.KICKED)
        assert await closed(client) == 4504


async def test_an_ended_connection_needs_no_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    begin = Runner.__init__

    class Noted(Runner):
        __slots__ = ("__weakref__",)

        def __init__(self, consumer: Any, *arguments: Any) -> None:
            begin(self, consumer, *arguments)
            living.update((self, consumer))

    monkeypatch.setattr(served, "Runner", Noted)
    client = groups_app("/ws/public.lobby/", v1=True)
    await client.connect()
    await receive(client)
    assert len(living) == 2
    gc.disable()
    try:
        await client.disconnect()
        del client
        await eventually_async(lambda: not living, within=5)
    finally:
        gc.enable()
