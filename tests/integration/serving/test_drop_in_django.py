"""The same Django around a consumer, and the same class of its author, on plain Channels and on `realtime`.

`tests.support.assertions.conversation` says how a test compares the two base classes.
"""

import asyncio
import functools
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from channels.auth import AuthMiddlewareStack, login
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.sessions import SessionMiddlewareStack
from django.contrib.auth.models import User
from django.test import AsyncClient
from django.urls import path, re_path

from realtime.models import Connection
from realtime.serving import runner
from tests.support.assertions.conversation import ACCEPT, Both, Run, text

pytestmark = pytest.mark.django_db(transaction=True)


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


async def test_handlers_of_mixins_and_an_overridden_dispatch(both: Both) -> None:
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


async def test_an_overridden_call_and_the_attributes_of_as_asgi(both: Both) -> None:
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
        # asgiref, and with it Daphne, asks this before it calls an application as ASGI 3 says.
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
