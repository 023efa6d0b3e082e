"""The same synchronous consumer on plain Channels and on `realtime`.

`tests.support.assertions.conversation` says how a test compares the two base classes.
"""

import asyncio
import functools
import json
import threading
import time
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.auth import AuthMiddlewareStack, login
from channels.exceptions import AcceptConnection, DenyConnection, InvalidChannelLayerError
from channels.generic.websocket import WebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.sessions import SessionMiddlewareStack
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import path, re_path

from realtime.consumers import SyncRealtimeConsumer
from realtime.models import Connection
from tests.support.applications.tutorial import SYNC_CHAT_AFTER, SYNC_CHAT_BEFORE, websocket_urlpatterns
from tests.support.assertions.conversation import ACCEPT, Both, Client, Run, text

pytestmark = pytest.mark.django_db(transaction=True)

setting = ContextVar("setting", default="unset")


@pytest.fixture
def both(both: Both) -> Both:
    return functools.partial(both, sync=True)


# -- the tutorial ----------------------------------------------------------------------------------


async def test_the_tutorials_synchronous_chat(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        chat = SYNC_CHAT_AFTER if run.base is SyncRealtimeConsumer else SYNC_CHAT_BEFORE
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
            def connect(self) -> None:
                run.calls.append("connect")
                self.accept()

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                run.calls.append(("receive", text_data, bytes_data))
                self.send(text_data=text_data, bytes_data=bytes_data)

            def disconnect(self, code: int) -> None:
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
            def receive_json(self, content: Any, **options: Any) -> None:
                run.calls.append((content, options))
                self.send_json({"you": content})

            @classmethod
            def encode_json(cls, content: Any) -> str:
                return json.dumps(content, indent=1)

        client = run.client(Json.as_asgi())
        await client.connect()
        await client.send_json_to([1, {"a": None}])
        assert await client.receive_json_from() == {"you": [1, {"a": None}]}
        await client.disconnect()

    _, ours = await both(conversation, json=True)
    assert ours.calls == [([1, {"a": None}], {})]


async def test_frames_are_handled_one_by_one_also_before_a_disconnect(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Slow(run.base):  # type: ignore[name-defined,misc]
            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                run.calls.append(("begin", text_data))
                time.sleep(0.01)
                run.calls.append(("end", text_data))

            def disconnect(self, code: int) -> None:
                run.calls.append(code)

        client = run.client(Slow.as_asgi())
        await client.connect()
        for word in ("one", "two", "three"):
            await client.send_to(text_data=word)
        await client.disconnect(code=1001)

    _, ours = await both(conversation)
    assert len(ours.calls) == 7


async def test_many_frames_of_one_handler_keep_their_order(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Counts(run.base):  # type: ignore[name-defined,misc]
            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                for number in range(1000):
                    self.send(text_data=f"{number} {'x' * 1000}")
                self.send(text_data="last", close=4001)

        client = run.client(Counts.as_asgi())
        await client.connect()
        await client.send_to(text_data="go")
        for number in range(1000):
            assert (await client.receive_from()).startswith(f"{number} ")
        assert await client.receive_from() == "last"
        assert await client.receive_output() == {"type": "websocket.close", "code": 4001}
        await client.disconnect()

    await both(conversation)


async def test_a_thread_that_the_author_starts_may_send(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Clock(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                self.accept()
                self.ticking = threading.Thread(target=self.tick)
                self.ticking.start()

            def tick(self) -> None:
                for number in range(3):
                    self.send(text_data=str(number))

            def disconnect(self, code: int) -> None:
                self.ticking.join()

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
        ({"code": 4001, "reason": "no"}, {"type": "websocket.close", "code": 4001, "reason": "no"}),
    ],
)
@pytest.mark.parametrize("in_connect", [True, False])
async def test_closing_before_accept_and_after_it(
    both: Both, arguments: Any, frame: Any, in_connect: bool
) -> None:
    async def conversation(run: Run) -> None:
        class Closing(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                if in_connect:
                    self.close(**arguments)
                else:
                    self.accept()

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.close(**arguments)

            def disconnect(self, code: int) -> None:
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


@pytest.mark.parametrize("raised", [AcceptConnection, DenyConnection])
async def test_accepting_and_denying_by_exception(both: Both, raised: type[Exception]) -> None:
    async def conversation(run: Run) -> Any:
        class Raises(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                raise raised

        client = run.client(Raises.as_asgi())
        answer = await client.connect()
        await client.disconnect()
        return answer

    _, ours = await both(conversation)
    assert ours.wire == [[ACCEPT if raised is AcceptConnection else {"type": "websocket.close"}]]


async def test_subprotocols_and_headers_of_the_accept(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Chooses(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                self.accept("b", headers=[(b"x-served-by", b"a")])

        client = run.client(Chooses.as_asgi(), subprotocols=["a", "b"])
        answer = await client.connect()
        await client.disconnect()
        return answer, client.response_headers

    await both(conversation)


# -- exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["connect", "receive", "note", "disconnect"])
async def test_an_exception_of_a_handler_is_raised_by_wait(both: Both, where: str) -> None:
    async def conversation(run: Run) -> Any:
        class Buggy(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            def connect(self) -> None:
                self.fail("connect")
                self.accept()

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.fail("receive")

            def note(self, event: Any) -> None:
                self.fail("note")

            def disconnect(self, code: int) -> None:
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


async def test_a_json_consumer_raises_what_channels_raises(both: Both) -> None:
    async def conversation(run: Run) -> None:
        client = run.client(type("Json", (run.base,), {}).as_asgi())
        await client.connect()
        await client.send_input({"type": "websocket.receive", "text": "{"})
        with pytest.raises(ValueError, match="Expecting property name"):
            await client.wait()

    await both(conversation, json=True, same_wire=False)


async def test_an_empty_send_and_a_bad_group_raise_in_the_handler(both: Both) -> None:
    async def conversation(run: Run) -> None:
        class Careless(run.base):  # type: ignore[name-defined,misc]
            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                with pytest.raises(ValueError, match="You must pass one of"):
                    self.send()
                with pytest.raises(TypeError):
                    async_to_sync(self.channel_layer.group_add)("no such name", self.channel_name)
                self.send(text_data="still here")

        client = run.client(Careless.as_asgi())
        await client.connect()
        await client.send_to(text_data="go")
        assert await client.receive_from() == "still here"
        await client.disconnect()

    await both(conversation)


async def test_groups_without_a_channel_layer(use_layers: Any) -> None:
    use_layers(None)
    for base in (WebsocketConsumer, SyncRealtimeConsumer):
        client = Client(type("Member", (base,), {"groups": ("g",)}).as_asgi())
        await client.send_input({"type": "websocket.connect"})
        with pytest.raises(InvalidChannelLayerError):
            await client.wait()


# -- groups and channels ---------------------------------------------------------------------------


async def test_the_groups_attribute(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Member(run.base):  # type: ignore[name-defined,misc]
            groups = ("one", "two")

            def note(self, event: Any) -> None:
                self.send(text_data=event["text"])

        client = run.client(Member.as_asgi())
        await client.connect()
        for group in ("one", "two", "three"):
            await get_channel_layer().group_send(group, {"type": "note", "text": group})
        heard = [await client.receive_from() for _ in range(2)]
        members = {group: len(channels) for group, channels in get_channel_layer().groups.items()}
        await client.disconnect()
        return heard, members

    await both(conversation)


@pytest.mark.parametrize("kind", ["chat.message", "chat_message", "websocket.note"])
async def test_events_of_own_types_by_group_and_by_channel(both: Both, kind: str) -> None:
    async def conversation(run: Run) -> None:
        def handler(self: Any, event: Any) -> None:
            run.calls.append(event)
            self.send(text_data=event["text"])

        class Member(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                async_to_sync(self.channel_layer.group_add)("g", self.channel_name)
                self.accept()

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                if text_data == "leave":
                    async_to_sync(self.channel_layer.group_discard)("g", self.channel_name)
                async_to_sync(self.channel_layer.group_send)("g", {"type": kind, "text": "group"})
                async_to_sync(self.channel_layer.send)(self.channel_name, {"type": kind, "text": "own"})

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
        # The order of the two queues is not defined.
        run.calls.sort(key=str)
        client.wire.sort(key=str)

    await both(conversation)


async def test_each_member_gets_its_own_copy_of_an_event(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Greedy(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            def note(self, event: Any) -> None:
                self.send(text_data=",".join(event["words"]))
                event["words"].clear()

        clients = [run.client(Greedy.as_asgi()) for _ in range(3)]
        for client in clients:
            await client.connect()
        await get_channel_layer().group_send("g", {"type": "note", "words": ["a", "b"]})
        heard = [await client.receive_from() for client in clients]
        for client in clients:
            await client.disconnect()
        return heard

    await both(conversation)


async def test_a_second_channel_layer(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Other(run.base):  # type: ignore[name-defined,misc]
            channel_layer_alias = "other"
            groups = ("g",)

            def note(self, event: Any) -> None:
                self.send(text_data=event["text"])

        client = run.client(Other.as_asgi())
        await client.connect()
        await get_channel_layer("other").group_send("g", {"type": "note", "text": "by the other"})
        heard = await client.receive_from()
        await client.disconnect()
        return heard

    await both(conversation, layers=("default", "other"))


# -- Django around it ------------------------------------------------------------------------------


async def test_the_orm_without_any_wrapper(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Users(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.send(text_data=str(User.objects.get_or_create(username=text_data)[0].is_active))

            def counted(self, event: Any) -> None:
                run.calls.append(User.objects.filter(username=event["name"]).count())
                self.send(text_data="counted")

        client = run.client(Users.as_asgi())
        await client.connect()
        await client.send_to(text_data="anne")
        heard = [await client.receive_from()]
        await get_channel_layer().group_send("g", {"type": "counted", "name": "anne"})
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
            def connect(self) -> None:
                self.accept()
                self.send(text_data=str(self.scope["user"]))

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.scope["session"]["seen"] = text_data
                self.scope["session"].save()
                self.send(text_data=self.scope["session"]["seen"])

        client = run.client(AuthMiddlewareStack(Profile.as_asgi()), headers=[(b"cookie", cookie)])
        await client.connect()
        seen = [await client.receive_from()]
        await client.send_to(text_data="everything")
        seen.append(await client.receive_from())
        await client.disconnect()
        return seen

    _, ours = await both(conversation)
    assert [event["text"] for event in ours.wire[0][1:]] == ["anne", "everything"]


async def test_logging_in_through_the_socket(both: Both) -> None:
    user = await User.objects.acreate_user("anne")

    async def conversation(run: Run) -> Any:
        class Login(run.base):  # type: ignore[name-defined,misc]
            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                async_to_sync(login)(self.scope, user, "django.contrib.auth.backends.ModelBackend")
                self.send(text_data=str(self.scope["user"]))

        client = run.client(SessionMiddlewareStack(Login.as_asgi()))
        await client.connect()
        await client.send_to(text_data="go")
        heard = await client.receive_from()
        await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.wire == [[ACCEPT, text("anne")]]


async def test_url_kwargs_initkwargs_and_two_consumers_on_two_routes(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Room(run.base):  # type: ignore[name-defined,misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self.prefix = options["prefix"]

            def connect(self) -> None:
                self.accept()
                kwargs = self.scope["url_route"]["kwargs"]
                self.send(text_data=f"{self.prefix} {kwargs['name']} {kwargs.get('number')}")

        class Other(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                self.accept()
                self.send(text_data=f"other {self.scope['url_route']['args']}")

        application = URLRouter(
            [
                path("room/<str:name>/<int:number>/", Room.as_asgi(prefix="numbered")),
                path("room/<str:name>/", Room.as_asgi(prefix="room")),
                re_path(r"^other/(\w+)/$", Other.as_asgi()),
            ]
        )
        heard = []
        for address in ("/room/a/7/", "/room/b/", "/other/c/"):
            client = run.client(application, address)
            await client.connect()
            heard.append(await client.receive_from())
            await client.disconnect()
        return heard

    await both(conversation)


# -- threads and contexts --------------------------------------------------------------------------


async def test_context_variables_last_from_handler_to_handler(both: Both) -> None:
    def with_setting(application: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            setting.set("by a middleware")
            await application(scope, receive, send)

        return middleware

    async def conversation(run: Run) -> Any:
        class Reads(run.base):  # type: ignore[name-defined,misc]
            groups = ("g",)

            def connect(self) -> None:
                run.calls.append(setting.get())
                setting.set("by connect")
                self.accept()

            def note(self, event: Any) -> None:
                run.calls.append(setting.get())
                setting.set("by note")
                self.send(text_data="noted")

            def disconnect(self, code: int) -> None:
                run.calls.append(setting.get())

        clients = [run.client(with_setting(Reads.as_asgi())) for _ in range(2)]
        for client in clients:
            await client.connect()
        await get_channel_layer().group_send("g", {"type": "note"})
        for client in clients:
            assert await client.receive_from() == "noted"
        for client in clients:
            await client.disconnect()
        assert setting.get() == "unset"

    _, ours = await both(conversation)
    assert ours.calls == ["by a middleware"] * 2 + ["by connect"] * 2 + ["by note"] * 2


async def test_all_handlers_and_nested_synchronous_code_share_a_thread(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        names = set()

        class Nested(run.base):  # type: ignore[name-defined,misc]
            def connect(self) -> None:
                self.accept()
                async_to_sync(self.on_the_loop)()

            async def on_the_loop(self) -> None:
                run.calls.append(threading.current_thread() is threading.main_thread())
                await sync_to_async(self.note_thread)()

            def note_thread(self) -> None:
                names.add(threading.current_thread().name)
                async_to_sync(asyncio.sleep)(0)
                self.send(text_data="nested")

            def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                self.note_thread()

        clients = [run.client(Nested.as_asgi()) for _ in range(2)]
        for client in clients:
            await client.connect()
            await client.send_to(text_data="x")
            assert [await client.receive_from() for _ in range(2)] == ["nested"] * 2
            await client.disconnect()
        return names

    _, ours = await both(conversation)
    assert ours.calls == [True, True]


# -- the author's class ----------------------------------------------------------------------------


async def test_an_overridden_dispatch_call_and_server_event(both: Both) -> None:
    async def conversation(run: Run) -> Any:
        class Overrides(run.base):  # type: ignore[name-defined,misc]
            """Says it again."""

            groups = ("g",)

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                run.calls.append("begins")
                await super().__call__(scope, receive, send)

            async def dispatch(self, message: Any) -> None:
                run.calls.append(message["type"])
                await super().dispatch(message)

            def websocket_connect(self, message: Any) -> None:
                run.calls.append("websocket_connect")
                super().websocket_connect(message)

            def note(self, event: Any) -> None:
                self.send(text_data="noted")

        application = Overrides.as_asgi(greeting="hello")
        client = run.client(application)
        await client.connect()
        await get_channel_layer().group_send("g", {"type": "note"})
        assert await client.receive_from() == "noted"
        await client.disconnect()
        assert application.consumer_class is Overrides
        return application.consumer_initkwargs, application.__name__, application.__doc__

    await both(conversation)
