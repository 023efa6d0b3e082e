"""The same consumer on plain Channels and on `realtime`: only its base class differs.

Each test gives the source of a consumer as a function of its base class, and a conversation with it. Both run
once on Channels' own base class and layer and once on ours; what went over the wire, which handlers were
called with what, and what the conversation saw have to be the same, and leave nothing open behind. The tests
at the end are about what differs on purpose.
"""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from channels.auth import AuthMiddlewareStack, login
from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import AcceptConnection, DenyConnection, InvalidChannelLayerError, StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import channel_layers, get_channel_layer
from channels.routing import URLRouter
from channels.sessions import SessionMiddlewareStack
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import path, re_path

from realtime import apublish, publish
from realtime.consumers import GroupConsumer, RealtimeConsumer, RealtimeJsonConsumer
from realtime.errors import LayerUnavailable, RoundFailed
from realtime.fleet.rounds import Reaper
from realtime.layers import groups
from realtime.models import Connection, Membership, Process
from realtime.records import connection_rows
from realtime.serving import lifecycle, runner
from realtime.testing import connect
from tests.support.applications.tutorial import CHAT_AFTER, CHAT_BEFORE, websocket_urlpatterns
from tests.support.assertions.eventually import eventually_async
from tests.support.doubles import rows

pytestmark = pytest.mark.django_db(transaction=True)

LAYER_OF = {
    "plain": "channels.layers.InMemoryChannelLayer",
    "ours": "realtime.layers.MemoryLayer",
}

PATIENCE = 5.0  # seconds

Calls = list[Any]


class Client(WebsocketCommunicator):
    """Channels' own test client, which remembers what came over the wire."""

    def __init__(self, application: Any, path: str = "/", **options: Any) -> None:
        super().__init__(application, path, **options)
        self.wire: list[dict[str, Any]] = []

    # Each of Channels' methods has a timeout of its own, of a second, which is short on a busy machine.

    async def receive_output(self, *_: float) -> Any:
        self.wire.append(await super().receive_output(PATIENCE))
        return self.wire[-1]

    async def wait(self, *_: float) -> None:
        await super().wait(PATIENCE)

    async def disconnect(self, code: int = 1000, *_: float) -> None:
        await super().disconnect(code)
        while not self.output_queue.empty():
            self.wire.append(self.output_queue.get_nowait())


@dataclass
class Run:
    """One base class: what its consumer did, in the order in which it did it."""

    base: type
    calls: Calls = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    def client(self, application: Any, path: str = "/", **options: Any) -> Client:
        self.clients.append(Client(application, path, **options))
        return self.clients[-1]

    @property
    def wire(self) -> list[list[dict[str, Any]]]:
        return [client.wire for client in self.clients]


Conversation = Callable[[Run], Awaitable[Any]]
Both = Callable[..., Awaitable[tuple[Run, Run]]]


@pytest.fixture
def use_layers(settings: Any) -> Callable[..., None]:
    def use(backend: str | None, *aliases: str) -> None:
        settings.CHANNEL_LAYERS = {alias: {"BACKEND": backend} for alias in aliases} if backend else {}
        channel_layers.backends.clear()

    return use


@pytest_asyncio.fixture
async def both(use_layers: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Both]:
    """Holds a conversation with either base class and compares."""
    # Channels' test client reports no disconnect after a close, so waiting for one is shortened.
    monkeypatch.setattr(runner, "DISCONNECT_TIMEOUT", 0.1)

    async def run(
        conversation: Conversation,
        *,
        json: bool = False,
        layers: tuple[str, ...] = ("default",),
        same_wire: bool = True,
    ) -> tuple[Run, Run]:
        plain = Run(AsyncJsonWebsocketConsumer if json else AsyncWebsocketConsumer)
        ours = Run(RealtimeJsonConsumer if json else RealtimeConsumer)
        use_layers(LAYER_OF["plain"], *layers)
        seen = await conversation(plain)
        use_layers(LAYER_OF["ours"], *layers)
        assert await conversation(ours) == seen
        assert ours.calls == plain.calls
        if same_wire:
            assert ours.wire == plain.wire
        await lifecycle.stop()
        assert not await Connection.objects.open().aexists()
        assert not await Membership.objects.to_leave().aexists()
        for alias in layers:
            assert not get_channel_layer(alias).groups
        return plain, ours

    yield run
    await lifecycle.stop()


def text(content: str) -> dict[str, str]:
    return {"type": "websocket.send", "text": content}


ACCEPT = {"type": "websocket.accept", "subprotocol": None}


# -- the tutorial ----------------------------------------------------------------------------------


async def test_the_tutorials_chat_as_the_documentation_moves_it(both: Both) -> None:
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


async def test_what_a_client_said_before_it_left_is_handled(both: Both) -> None:
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


# -- groups and channels ---------------------------------------------------------------------------


async def test_the_groups_attribute(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Member(run.base):  # type: ignore[name-defined,misc]
            groups = ("one", "two")

            async def note(self, event: Any) -> None:
                await self.send(text_data=event["text"])

        client = run.client(Member.as_asgi())
        await client.connect()
        heard = []
        for group in ("one", "two", "three"):
            await get_channel_layer().group_send(group, {"type": "note", "text": group})
        heard = [await client.receive_from() for _ in range(2)]
        members = {group: len(channels) for group, channels in get_channel_layer().groups.items()}
        await client.disconnect()
        return heard, members

    await both(conversation)


@pytest.mark.parametrize("kind", ["chat.message", "chat_message", "a.b.c", "websocket.note"])
async def test_events_of_the_authors_own_types_through_a_group_and_to_the_own_channel(
    both: Both, kind: str
) -> None:
    async def conversation(run: Run) -> None:
        async def handler(self: Any, event: Any) -> None:
            run.calls.append(event)
            await self.send(text_data=event["text"])

        class Member(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.channel_layer.group_add(group="g", channel=self.channel_name)
                await self.accept()

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                if text_data == "leave":
                    await self.channel_layer.group_discard("g", self.channel_name)
                await self.channel_layer.group_send("g", {"type": kind, "text": "group"})
                await self.channel_layer.send(self.channel_name, {"type": kind, "text": "own"})

        setattr(Member, kind.replace(".", "_"), handler)
        client = run.client(Member.as_asgi())
        await client.connect()
        await client.send_to(text_data="stay")
        heard = sorted([await client.receive_from(), await client.receive_from()])
        await client.send_to(text_data="leave")
        heard.append(await client.receive_from())
        assert heard == ["group", "own", "own"]
        assert await client.receive_nothing()
        await client.disconnect()
        # Which of the two queues is looked at first is not defined.
        run.calls.sort(key=str)
        for client in run.clients:
            client.wire.sort(key=str)

    _, ours = await both(conversation)
    assert {"type": kind, "text": "group"} in ours.calls


async def test_a_channel_of_its_own_can_be_left_out() -> None:
    class Member(RealtimeConsumer):
        own_channel = False

        async def connect(self) -> None:
            await self.channel_layer.group_add("g", self.channel_name)
            await self.accept()

        async def note(self, event: Any) -> None:
            await self.send(text_data=event["text"])

    async with connect(Member.as_asgi(), "/", subprotocols=()) as client:
        (name,) = get_channel_layer().groups["g"]
        assert name == (await lifecycle.hub()).channel
        await get_channel_layer().group_send("g", {"type": "note", "text": "hi"})
        assert await client.receive() == "hi"
        assert set(get_channel_layer().channels) == {name, groups.control_of(name)}


async def test_what_one_member_does_to_an_event_no_other_member_sees(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Greedy(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def note(self, event: Any) -> None:
                await self.send(text_data=",".join(event["words"]))
                event["words"].clear()

        clients = [run.client(Greedy.as_asgi()) for _ in range(3)]
        for client in clients:
            await client.connect()
        await get_channel_layer().group_send("g", {"type": "note", "words": ["a", "b"]})
        heard = [await client.receive_from() for client in clients]
        for client in clients:
            await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.wire[2][-1] == text("a,b")


async def test_a_second_channel_layer(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Member(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def note(self, event: Any) -> None:
                run.calls.append((type(self).__name__, event["text"]))
                await self.send(text_data=event["text"])

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.channel_layer.send(self.channel_name, {"type": "note", "text": text_data})

        class Other(Member):
            channel_layer_alias = "other"

        one, other = run.client(Member.as_asgi()), run.client(Other.as_asgi())
        for client in (one, other):
            await client.connect()
        await get_channel_layer().group_send("g", {"type": "note", "text": "by default"})
        await get_channel_layer("other").group_send("g", {"type": "note", "text": "by the other"})
        heard = [await client.receive_from() for client in (one, other)]
        for client in (one, other):
            await client.send_to(text_data="own")
            heard.append(await client.receive_from())
        assert set(get_channel_layer().groups) == set(get_channel_layer("other").groups) == {"g"}
        await one.disconnect()
        assert set(get_channel_layer("other").groups) == {"g"}
        await other.disconnect()
        run.calls.sort()
        return heard

    _, ours = await both(conversation, layers=("default", "other"))
    assert ours.calls == [
        ("Member", "by default"),
        ("Member", "own"),
        ("Other", "by the other"),
        ("Other", "own"),
    ]
    addresses = [process.channel_name async for process in Process.objects.order_by("channel_name")]
    assert len(addresses) == 2
    assert addresses[0].startswith("other:")


async def test_a_message_published_to_another_layer_reaches_its_members_only(use_layers: Any) -> None:
    class Member(RealtimeConsumer):
        groups = ("g",)

    class Other(Member):
        channel_layer_alias = "other"

    use_layers(LAYER_OF["ours"], "default", "other")
    async with connect(Member.as_asgi(), "/") as one, connect(Other.as_asgi(), "/") as other:
        await apublish("g", 1)
        await apublish("g", 2, alias="other")
        await sync_to_async(publish)("g", 3, alias="other")
        assert await one.receive_message() == 1
        assert [await other.receive_message(), await other.receive_message()] == [2, 3]


async def test_clients_publish_to_the_layer_of_their_consumer(use_layers: Any) -> None:
    class Groups(GroupConsumer):
        channel_layer_alias = "other"

    use_layers(LAYER_OF["ours"], "default", "other")
    anne = await User.objects.acreate_user("anne")
    kwargs = {"url_route": {"kwargs": {"group": "public.a"}}}
    async with connect(Groups.as_asgi(), "/", user=anne, scope=kwargs) as client:
        await client.send({"type": "publish", "ref": 1, "group": "public.a", "data": "hello"})
        assert await client.receive_message() == "hello"
        assert not get_channel_layer().groups


async def test_a_process_on_another_layer_is_asked_swept_and_forgotten_there(use_layers: Any) -> None:
    use_layers(LAYER_OF["ours"], "default", "other")
    living = await lifecycle.hub("other")
    address = await groups.new_address("other")
    dead = await database_sync_to_async(rows.a_process)(channel_name=address)
    (connection,) = await database_sync_to_async(rows.open_connections)(dead, 1)
    await database_sync_to_async(connection_rows.open_memberships)(rows.joins(dead, [connection], "g"))
    await groups.add("g", address)
    assert set(get_channel_layer("other").groups) == {"g"}

    reaper = Reaper(interval=0.5, timeout=0.3, misses_allowed=0)
    report = await reaper.round()
    await reaper.close()
    assert report is not None
    assert (report.asked, report.answered, report.lost, report.discarded) == (2, 1, 1, 1)
    assert not get_channel_layer("other").groups
    assert not await Membership.objects.to_leave().aexists()
    assert (await Process.objects.aget(pk=living.process)).stopped_at is None
    await lifecycle.stop()


async def test_a_process_on_a_layer_that_the_reaper_lacks_is_not_asked_and_keeps_no_other_from_being_swept(
    use_layers: Any,
) -> None:
    use_layers(LAYER_OF["ours"], "default")
    running, there, here = [
        await database_sync_to_async(rows.a_process)(channel_name=name)
        for name in ("other:specific.a", "other:specific.b", await groups.new_address("default"))
    ]
    for process in (there, here):
        (connection,) = await database_sync_to_async(rows.open_connections)(process, 1)
        await database_sync_to_async(connection_rows.open_memberships)(rows.joins(process, [connection], "g"))
    await database_sync_to_async(rows.make_lost)(there, here)
    reaper = Reaper(interval=0.02, timeout=0.01, misses_allowed=0)
    with pytest.raises(RoundFailed, match='no "other" layer'):
        await reaper.round()
    await reaper.close()
    assert (await Process.objects.aget(pk=running)).stopped_at is None
    assert [held.process_id async for held in Membership.objects.to_leave()] == [there]
    assert not await Connection.objects.open().aexists()


# -- Django around it ------------------------------------------------------------------------------


async def test_synchronous_code_that_sends(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Member(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def note(self, event: Any) -> None:
                await self.send(text_data=event["text"])

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await sync_to_async(self.from_a_thread)(text_data)

            def from_a_thread(self, content: str) -> None:
                async_to_sync(self.channel_layer.group_send)("g", {"type": "note", "text": content})

        client = run.client(Member.as_asgi())
        await client.connect()
        await client.send_to(text_data="from a thread")
        heard = await client.receive_from()
        await client.disconnect()
        return heard

    await both(conversation)


async def test_the_database_in_handlers_and_handlers_that_are_wrapped(both: Both) -> None:
    def logged(handler: Any) -> Any:
        @functools.wraps(handler)
        def call(self: Any, event: Any) -> Any:
            return handler(self, event)

        return call

    async def conversation(run: Run) -> Any:
        class Users(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send(text_data=str(await self.create(text_data)))

            @database_sync_to_async
            def create(self, name: str) -> bool:
                return User.objects.get_or_create(username=name)[0].is_active

            @database_sync_to_async
            def counted(self, event: Any) -> None:
                run.calls.append(User.objects.filter(username=event["name"]).count())
                async_to_sync(self.send)(text_data="counted")

            @logged
            async def wrapped(self, event: Any) -> None:
                await self.send(text_data=str(await User.objects.filter(username=event["name"]).acount()))

        client = run.client(Users.as_asgi())
        await client.connect()
        await client.send_to(text_data="anne")
        heard = [await client.receive_from()]
        for kind in ("counted", "wrapped"):
            await get_channel_layer().group_send("g", {"type": kind, "name": "anne"})
            heard.append(await client.receive_from())
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.calls == [1]


async def test_the_session_and_auth_middleware(both: Both) -> None:
    user = await User.objects.acreate_user("anne")
    browser = AsyncClient()
    await browser.aforce_login(user)
    cookie = f"sessionid={browser.cookies['sessionid'].value}".encode()

    async def conversation(run: Run) -> Any:
        class Profile(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.accept()
                await self.send(text_data=str(self.scope["user"]))

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.scope["session"]["seen"] = text_data
                await database_sync_to_async(self.scope["session"].save)()
                await self.send(text_data=self.scope["session"]["seen"])

        seen = []
        for headers in ([], [(b"cookie", cookie)]):
            client = run.client(AuthMiddlewareStack(Profile.as_asgi()), headers=headers)
            await client.connect()
            seen.append(await client.receive_from())
            if headers:
                await client.send_to(text_data="everything")
                seen.append(await client.receive_from())
            await client.disconnect()
        return seen

    _, ours = await both(conversation)
    assert [wire[-1]["text"] for wire in ours.wire] == ["AnonymousUser", "everything"]
    assert sorted([record.user_id async for record in Connection.objects.all()]) == ["", str(user.pk)]


async def test_logging_in_through_the_socket(both: Both) -> None:
    user = await User.objects.acreate_user("anne")

    async def conversation(run: Run) -> Any:
        class Login(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await login(self.scope, user, "django.contrib.auth.backends.ModelBackend")
                await self.send(text_data=str(self.scope["user"]))

        client = run.client(SessionMiddlewareStack(Login.as_asgi()))
        await client.connect()
        await client.send_to(text_data="go")
        heard = await client.receive_from()
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.wire == [[ACCEPT, text("anne")]]


async def test_a_middleware_that_waits_before_it_passes_things_on(both: Both) -> None:
    def slow(application: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def wait_and_send(event: Any) -> None:
                await asyncio.sleep(0.01)
                await send(event)

            await application({**scope, "added": True}, receive, wait_and_send)

        return middleware

    async def conversation(run: Run) -> Any:
        class Closing(run.base):  # type: ignore[name-defined,misc]
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                assert self.scope["added"]
                for number in range(3):
                    await self.send(text_data=str(number))
                await self.close(4001)

        client = run.client(slow(Closing.as_asgi()))
        await client.connect()
        await client.send_to(text_data="go")
        while (await client.receive_output())["type"] != "websocket.close":
            pass
        await client.disconnect()

    _, ours = await both(conversation)
    assert [event["type"] for event in ours.wire[0][-2:]] == ["websocket.send", "websocket.close"]


async def test_url_kwargs_initkwargs_and_two_consumers_on_two_routes(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Room(run.base):  # type: ignore[name-defined,misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self.prefix = options["prefix"]

            async def connect(self) -> None:
                await self.accept()
                kwargs = self.scope["url_route"]["kwargs"]
                await self.send(text_data=f"{self.prefix} {kwargs['name']} {kwargs.get('number')}")

        class Other(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.accept()
                await self.send(text_data=f"other {self.scope['url_route']['args']}")

        application = URLRouter(
            [
                path("room/<str:name>/<int:number>/", Room.as_asgi(prefix="numbered")),
                path("room/<str:name>/", Room.as_asgi(prefix="room")),
                re_path(r"^other/(\w+)/$", Other.as_asgi()),
            ]
        )
        assert Room.as_asgi(prefix="x").consumer_class is Room
        heard = []
        for address in ("/room/a/7/", "/room/b/", "/other/c/"):
            client = run.client(application, address)
            await client.connect()
            heard.append(await client.receive_from())
            await client.disconnect()
        return heard

    _, ours = await both(conversation)
    heard = [wire[-1]["text"] for wire in ours.wire]
    assert heard == ["numbered a 7", "room b None", "other ('c',)"]
    assert [record.path async for record in Connection.objects.order_by("opened_at")] == [
        "/room/a/7/",
        "/room/b/",
        "/other/c/",
    ]


# -- the author's class ----------------------------------------------------------------------------


async def test_handlers_of_a_mixin_on_either_side_and_a_dispatch_of_the_authors_own(both: Both) -> None:
    class Before:
        async def first(self, event: Any) -> None:
            await self.send(text_data="first")  # type: ignore[attr-defined]

    class After:
        async def second(self, event: Any) -> None:
            await self.send(text_data="second")  # type: ignore[attr-defined]

    async def conversation(run: Run) -> Any:
        class Mixed(Before, run.base, After):  # type: ignore[name-defined,misc]
            groups = ("g",)

            async def dispatch(self, message: Any) -> None:
                run.calls.append(message["type"])
                await super().dispatch(message)

            async def websocket_connect(self, message: Any) -> None:
                run.calls.append("websocket_connect")
                await super().websocket_connect(message)

        client = run.client(Mixed.as_asgi())
        await client.connect()
        heard = []
        for kind in ("first", "second"):
            await get_channel_layer().group_send("g", {"type": kind})
            heard.append(await client.receive_from())
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.calls == [
        "websocket.connect",
        "websocket_connect",
        "first",
        "second",
        "websocket.disconnect",
    ]


async def test_a_call_of_the_authors_own_and_what_as_asgi_says_of_the_consumer(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Echo(run.base):  # type: ignore[name-defined,misc]
            """Says it again."""

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                run.calls.append("begins")
                await super().__call__(scope, receive, send)

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send(text_data=text_data)

        application = Echo.as_asgi(greeting="hello")
        client = run.client(Echo.as_asgi())
        await client.connect()
        await client.send_to(text_data="1")
        assert await client.receive_from() == "1"
        await client.disconnect()
        assert application.consumer_class is Echo
        run.calls += [application.consumer_initkwargs, application.__name__, application.__doc__]
        # What asgiref, and with it Daphne, asks before it calls an application as ASGI 3 says.
        run.calls.append(iscoroutinefunction(application))

    _, ours = await both(conversation)
    assert ours.calls == ["begins", {"greeting": "hello"}, "Echo", "Says it again.", True]


async def test_an_author_may_use_any_name_for_attributes_and_methods(both: Both) -> None:
    taken = sorted(
        {*vars(runner.Runner)}  # its attributes too: they are slots
        | {"_serving", "connection", "connections", "group_add", "group_discard", "refuse", "joined"}
    )
    names = [name for name in taken if not name.startswith("__") and name not in ("send", "run")]

    async def conversation(run: Run) -> Any:
        class Named(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                for name in names:
                    setattr(self, name, "the author's")
                await self.channel_layer.group_add("g", self.channel_name)
                await self.accept()

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.channel_layer.group_send("g", {"type": "note"})

            async def note(self, event: Any) -> None:
                await self.send(text_data=",".join({getattr(self, name) for name in names}))
                await self.close()

            async def disconnect(self, code: int) -> None:
                await self.channel_layer.group_discard("g", self.channel_name)

        client = run.client(Named.as_asgi())
        await client.connect()
        await client.send_to(text_data="go")
        heard = await client.receive_from()
        await client.receive_output()
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert "_handle" in names
    assert ours.wire[0][1] == text("the author's")


async def test_a_group_add_of_the_authors_own_that_calls_the_layer(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Named(run.base):  # type: ignore[name-defined,misc]
            async def connect(self) -> None:
                await self.group_add("g")
                await self.accept()

            async def group_add(self, group: str) -> None:
                await self.channel_layer.group_add(group, self.channel_name)

            async def note(self, event: Any) -> None:
                await self.send(text_data="noted")

        client = run.client(Named.as_asgi())
        await client.connect()
        await get_channel_layer().group_send("g", {"type": "note"})
        heard = await client.receive_from()
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.wire == [[ACCEPT, text("noted")]]


# -- exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["connect", "receive", "note", "disconnect"])
async def test_what_a_handler_raises_is_raised_by_the_test_clients_wait(both: Both, where: str) -> None:
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

    # On the wire ours says 4000, where a server that runs plain Channels closes with 1011 by itself.
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


async def test_sending_nothing_and_joining_an_impossible_group_raise_in_the_handler(both: Both) -> None:
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


async def test_groups_without_a_channel_layer(use_layers: Any) -> None:
    use_layers(None)
    for base in (AsyncWebsocketConsumer, RealtimeConsumer):
        consumer = type("Member", (base,), {"groups": ("g",)})
        client = Client(consumer.as_asgi())
        await client.send_input({"type": "websocket.connect"})
        with pytest.raises(InvalidChannelLayerError):
            await client.wait()


# -- what differs on purpose -----------------------------------------------------------------------


@pytest.mark.parametrize("event", [{"type": "no.such"}, {"no": "type"}])
async def test_an_unknown_type_of_event_is_ignored_where_channels_ends_the_consumer(
    use_layers: Any, event: Any
) -> None:
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


async def test_a_consumer_that_stops_itself_closes_its_socket_which_channels_leaves_open(
    use_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DISCONNECT_TIMEOUT", 0.1)

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


async def test_going_on_after_a_close_ends_the_handler_and_leaves_nothing(
    use_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DISCONNECT_TIMEOUT", 0.1)
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
    use_layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "HANDLER_GRACE", 0.3)
    monkeypatch.setattr(runner, "DISCONNECT_TIMEOUT", 0.1)
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


async def test_without_one_of_our_layers_the_test_client_raises_what_to_set(use_layers: Any) -> None:
    for backend, sentence in ((None, 'has no "default" layer'), (LAYER_OF["plain"], "set the BACKEND")):
        use_layers(backend, "default")
        client = Client(RealtimeConsumer.as_asgi())
        await client.send_input({"type": "websocket.connect"})
        with pytest.raises(LayerUnavailable, match=sentence):
            await client.wait()


async def test_a_synchronous_consumer_of_channels_goes_on_beside_ours_on_the_same_layer(
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
    with pytest.raises(TypeError, match="synchronous consumer, which is not supported"):

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
