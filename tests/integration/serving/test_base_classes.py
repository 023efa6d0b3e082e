"""Base classes of other packages, before and after ours in the method resolution order."""

import pickle
from abc import ABC
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Generic, TypeVar

import pytest
import strawberry
from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.db.models import signals as django_signals
from djangochannelsrestframework.decorators import action
from djangochannelsrestframework.generics import GenericAsyncAPIConsumer
from djangochannelsrestframework.observer import model_observer
from djangochannelsrestframework.permissions import AllowAny
from rest_framework.serializers import ModelSerializer
from strawberry.channels import GraphQLWSConsumer

from realtime.consumers import RealtimeConsumer, RealtimeMixin
from realtime.consumers.served import Terminal
from realtime.models import Connection
from realtime.serving import lifecycle
from realtime.testing import connect
from tests.support.assertions.conversation import LAYER_OF, Client
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.django_db(transaction=True)

ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["ours-first", "theirs-first"])


@pytest.fixture(autouse=True)
def our_layer(use_layers: Any) -> None:
    use_layers(LAYER_OF["ours"], "default")


def both_bases(ours: type, theirs: type, ours_first: bool) -> tuple[type, ...]:
    return (ours, theirs) if ours_first else (theirs, ours)


class Overriding(AsyncWebsocketConsumer):
    """A base class of another package that overrides each method that ours overrides too."""

    seen: list[Any]
    applications = 0

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        cls.applications += 1
        return super().as_asgi(**initkwargs)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen = ["called"]
        await super().__call__({**scope, "by": "theirs"}, receive, send)

    async def dispatch(self, message: Any) -> None:
        self.seen.append(message["type"])
        if message["type"] == "theirs.only":
            await self.send(text_data="heard")
        else:
            await super().dispatch(message)


class Bare(AsyncConsumer):
    """A consumer without the methods of `AsyncWebsocketConsumer`, which overrides `dispatch`."""

    ended: list[int]

    async def dispatch(self, message: Any) -> None:
        await super().dispatch({**message, "passed": True})

    async def websocket_connect(self, message: Any) -> None:
        assert message["passed"]
        await self.channel_layer.group_add("g", self.channel_name)
        await self.send({"type": "websocket.accept"})

    async def websocket_receive(self, message: Any) -> None:
        await self.send({"type": "websocket.send", "text": message["text"]})

    async def note(self, event: Any) -> None:
        await self.send({"type": "websocket.send", "text": event["text"]})

    async def websocket_disconnect(self, message: Any) -> None:
        self.ended.append(message["code"])
        raise StopConsumer


# -- the three methods that both override ----------------------------------------------------------


@ORDERS
async def test_a_base_class_may_override_what_ours_overrides(ours_first: bool) -> None:
    class Chat(*both_bases(RealtimeConsumer, Overriding, ours_first)):  # type: ignore[misc]
        groups = ("g",)

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data=",".join([self.scope["by"], *self.seen]))

        async def note(self, event: Any) -> None:
            await self.send(text_data="noted")

    application = Chat.as_asgi()
    assert (Chat.applications, application.consumer_class) == (1, Chat)
    async with connect(application, "/", subprotocols=()) as client:
        for kind, answer in (("theirs.only", "heard"), ("note", "noted")):
            await get_channel_layer().group_send("g", {"type": kind})
            assert await client.receive() == answer
        await client.send(text="x")
        seen = ["theirs", "called", "websocket.connect", "theirs.only", "note", "websocket.receive"]
        assert await client.receive() == ",".join(seen)
        assert await Connection.objects.open().acount() == 1
    assert not await Connection.objects.open().aexists()


@ORDERS
@pytest.mark.parametrize("kind", ["close", "send", "base_send", "_private", "__class__", "helper", "scope"])
async def test_no_event_reaches_an_attribute_that_is_no_handler(
    ours_first: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Getting(AsyncWebsocketConsumer):
        async def dispatch(self, message: Any) -> None:
            await getattr(self, message["type"].replace(".", "_"))(message)

    class Chat(*both_bases(RealtimeConsumer, Getting, ours_first)):  # type: ignore[misc]
        groups = ("g",)

        def helper(self, *arguments: Any) -> None:
            raise AssertionError

        async def _private(self, *arguments: Any) -> None:
            raise AssertionError

        async def note(self, event: Any) -> None:
            await self.send(text_data="noted")

    async with connect(Chat.as_asgi(), "/", subprotocols=()) as client:
        for sent in (kind, "note"):
            await get_channel_layer().group_send("g", {"type": sent})
        assert await client.receive() == "noted"
    assert f"Chat has no handler for events of type {kind!r}" in caplog.messages


@ORDERS
async def test_an_unknown_event_is_ignored_below_theirs(ours_first: bool) -> None:
    class Chat(*both_bases(RealtimeConsumer, Overriding, ours_first)):  # type: ignore[misc]
        groups = ("g",)

    async with connect(Chat.as_asgi(), "/", subprotocols=()) as client:
        for kind in ("no.such", "theirs.only"):
            await get_channel_layer().group_send("g", {"type": kind})
        assert await client.receive() == "heard"


def test_the_class_stays_the_authors_own() -> None:
    value = TypeVar("value")

    class Generically(Overriding, ABC, Generic[value]): ...

    class Chat(RealtimeConsumer, Generically[int]): ...

    class Late(AsyncConsumer):
        async def dispatch(self, message: Any) -> None:
            await super().dispatch(message)

    class Child(Chat, Late): ...

    class Explicit(RealtimeMixin, Overriding, AsyncConsumer): ...

    assert Explicit.__mro__[-3:] == (Terminal, AsyncConsumer, object)
    names = [cls.__name__ for cls in Child.__mro__]
    assert type(Child()) is Child
    assert names.index("Late") < names.index("Terminal") < names.index("AsyncConsumer")
    assert names.count("Terminal") == 1
    assert "Terminal" not in [cls.__name__ for cls in type("Own", (RealtimeConsumer,), {}).__mro__]


class Pickled(RealtimeConsumer, Overriding):
    """Defined in a module, as pickle needs it."""


def test_an_instance_can_be_pickled() -> None:
    assert type(pickle.loads(pickle.dumps(Pickled()))) is Pickled  # noqa: S301 - our own bytes


async def test_a_call_without_super_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Cut(AsyncWebsocketConsumer):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.close"})

    class Chat(RealtimeConsumer, Cut): ...

    client = Client(Chat.as_asgi())
    assert await client.connect() == (False, 1000)
    await client.wait()
    assert "was not served by realtime" in caplog.text


# -- bare consumers --------------------------------------------------------------------------------


@ORDERS
async def test_a_bare_consumer_is_served_like_any_other(ours_first: bool) -> None:
    class Chat(*both_bases(RealtimeMixin, Bare, ours_first)):  # type: ignore[misc]
        ended: list[int] = []  # noqa: RUF012 - the test reads it

    async with connect(Chat.as_asgi(), "/", subprotocols=()) as client:
        await client.send(text="hello")
        assert await client.receive() == "hello"
        # The last two name handlers of server events.
        for kind in ("note", "websocket_disconnect", "websocket.receive"):
            await get_channel_layer().group_send("g", {"type": kind, "text": kind})
        assert await client.receive() == "note"
        (record,) = [each async for each in Connection.objects.open()]
        assert record.pk
    await eventually_async(lambda: Chat.ended == [1000], within=5)
    assert not get_channel_layer().groups


async def test_a_bare_consumer_needs_no_handler_for_the_end() -> None:
    class Silent(RealtimeMixin):
        async def websocket_connect(self, message: Any) -> None:
            await self.group_add("g")
            await self.send({"type": "websocket.accept"})

    async with connect(Silent.as_asgi(), "/", subprotocols=()):
        assert set(get_channel_layer().groups) == {"g"}
    assert not get_channel_layer().groups


async def test_a_bare_consumer_without_a_handler_for_frames_fails() -> None:
    class Deaf(RealtimeMixin):
        async def websocket_connect(self, message: Any) -> None:
            await self.send({"type": "websocket.accept"})

    client = Client(Deaf.as_asgi())
    await client.connect()
    await client.send_to(text_data="x")
    with pytest.raises(ValueError, match=r"Deaf has no handler for websocket\.receive"):
        await client.wait()
    await lifecycle.stop()


# -- packages --------------------------------------------------------------------------------------


@strawberry.type
class Query:
    ok: bool = True


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def said(self, info: strawberry.Info) -> AsyncGenerator[str, None]:
        async with info.context["ws"].listen_to_channel("chat.message", groups=["chat"]) as listening:
            async for message in listening:
                yield message["text"]


@ORDERS
async def test_a_graphql_subscription_hears_its_group(ours_first: bool) -> None:
    class GraphQL(*both_bases(RealtimeConsumer, GraphQLWSConsumer, ours_first)):  # type: ignore[misc]
        pass

    application = GraphQL.as_asgi(schema=strawberry.Schema(Query, subscription=Subscription))
    client = WebsocketCommunicator(application, "/", subprotocols=["graphql-transport-ws"])
    assert await client.connect() == (True, "graphql-transport-ws")
    await client.send_json_to({"type": "connection_init"})
    assert (await client.receive_json_from())["type"] == "connection_ack"
    await client.send_json_to({"id": "1", "type": "subscribe", "payload": {"query": "subscription { said }"}})
    await eventually_async(lambda: "chat" in get_channel_layer().groups, within=5)
    assert await Connection.objects.open().acount() == 1
    for word in ("one", "two"):
        await get_channel_layer().group_send("chat", {"type": "chat.message", "text": word})
        answer = await client.receive_json_from()
        assert (answer["type"], answer["payload"]["data"]) == ("next", {"said": word})
    await client.disconnect()
    assert not get_channel_layer().groups
    await lifecycle.stop()


@pytest.fixture
def signals_of_models() -> Iterator[None]:
    """Disconnect the receivers that an observer connects for the rest of the process."""
    names = ("post_init", "post_save", "pre_save", "post_delete", "pre_delete", "m2m_changed")
    found = [getattr(django_signals, name) for name in names]
    before = [list(signal.receivers) for signal in found]
    yield
    for signal, receivers in zip(found, before, strict=True):
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


class UserSerializer(ModelSerializer):  # type: ignore[type-arg]
    class Meta:
        model = User
        fields = ("id", "username")


@ORDERS
@pytest.mark.usefixtures("signals_of_models")
async def test_a_model_observer_tells_of_changes(ours_first: bool) -> None:
    class Users(*both_bases(RealtimeConsumer, GenericAsyncAPIConsumer, ours_first)):  # type: ignore[misc]
        queryset = User.objects.all()
        serializer_class = UserSerializer
        permission_classes = (AllowAny,)

        @model_observer(User)
        async def user_activity(self, message: Any, observer: Any = None, **options: Any) -> None:
            await self.send_json(message)

        @user_activity.serializer
        def user_activity(self, instance: User, action: Any, **options: Any) -> dict[str, Any]:
            return {"username": instance.username, "action": action.value}

        @action()
        async def watch(self, request_id: int, **options: Any) -> None:
            await self.user_activity.subscribe(request_id=request_id)
            await self.send_json({"watching": request_id})

    assert "watch" in Users.available_actions
    async with connect(Users.as_asgi(), "/", subprotocols=()) as client:
        await client.send({"action": "watch", "request_id": 7})
        assert await client.receive_frame() == {"watching": 7}
        await User.objects.acreate(username="anne")
        assert await client.receive_frame() == {"username": "anne", "action": "create"}
