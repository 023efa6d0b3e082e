"""Tickets: issued by Python and by the view, verified once, in every layer, for consumers and frames."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from channels.auth import AuthMiddlewareStack as ChannelsStack
from channels.db import database_sync_to_async
from channels.layers import channel_layers, get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User
from django.test import Client as Browser

from realtime import metrics, tickets
from realtime.auth import AuthMiddlewareStack, TicketMiddleware
from realtime.consumers import GroupConsumer, RealtimeConsumer, SyncRealtimeConsumer
from realtime.errors import BadGroup, BadTicket, LayerUnavailable
from realtime.models import Connection
from realtime.rights import users
from realtime.rights.tickets import verify
from tests.support.programs.servers import RedisServer

pytestmark = pytest.mark.django_db(transaction=True)

HTTP = {"content_type": "application/json"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(params=["MemoryLayer", "PubSubLayer", "CoreLayer"])
async def layer(request: pytest.FixtureRequest, settings: Any, redis: RedisServer) -> AsyncIterator[None]:
    config = {} if request.param == "MemoryLayer" else {"hosts": [redis.url]}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"realtime.layers.{request.param}", "CONFIG": config}}
    channel_layers.backends.clear()
    yield
    await get_channel_layer().flush()
    channel_layers.backends.clear()


@database_sync_to_async
def make_user(name: str = "ada") -> User:
    return User.objects.create_user(name, password="first")


@database_sync_to_async
def change(user: User, **fields: Any) -> None:
    User.objects.filter(pk=user.pk).update(**fields)


# -- verified once


async def test_a_ticket_is_accepted_once(layer: None) -> None:
    user = await make_user()
    text = tickets.ticket(user, groups=["room.1", "room.2"], connection_ttl=50)
    found = await verify(text)
    assert found.user == user
    assert found.authorization.user_id == str(user.pk)
    assert found.authorization.groups == {"room.1", "room.2"}
    assert found.authorization.expires_at == pytest.approx(time.time() + 50, abs=20)
    with pytest.raises(BadTicket, match="used before"):
        await verify(text)


async def test_of_many_at_the_same_time_one_is_accepted(layer: None) -> None:
    text = tickets.ticket(await make_user())
    outcomes = await asyncio.gather(*(verify(text) for _ in range(20)), return_exceptions=True)
    assert [isinstance(each, BadTicket) for each in outcomes].count(True) == 19


async def test_a_ticket_without_a_user_is_an_anonymous_client(layer: None) -> None:
    found = await verify(await tickets.aticket(AnonymousUser()))
    assert found.user is None
    assert found.authorization.is_ticket


@pytest.mark.parametrize(
    "fields", [{"is_active": False}, {"password": "another"}], ids=["inactive", "password"]
)
async def test_a_user_who_changed_meanwhile_is_refused(site: None, fields: dict[str, Any]) -> None:
    user = await make_user()
    text = tickets.ticket(user)
    await change(user, **fields)
    with pytest.raises(BadTicket):
        await verify(text)


async def test_a_deleted_user_is_refused(site: None) -> None:
    user = await make_user()
    text = tickets.ticket(user)
    await database_sync_to_async(user.delete)()
    with pytest.raises(BadTicket, match="does not exist"):
        await verify(text)


async def test_a_text_that_was_not_signed_costs_nothing(redis_is_down: None) -> None:
    # It would raise LayerUnavailable if it asked Redis.
    for text in ("", "x", "a.b.c", tickets.ticket()[:-8]):
        with pytest.raises(BadTicket, match="not signed"):
            await verify(text)


async def test_without_redis_a_ticket_is_refused_by_default(redis_is_down: None) -> None:
    with pytest.raises(LayerUnavailable):
        await verify(tickets.ticket())


async def test_without_redis_a_setting_accepts_it(redis_is_down: None, realtime_settings: Any) -> None:
    realtime_settings(TICKETS_WITHOUT_REDIS="accept")
    assert (await verify(tickets.ticket())).authorization.is_ticket


async def test_the_outcomes_are_counted(site: None) -> None:
    def counts() -> list[float]:
        return [metrics.tickets.labels(outcome=each)._value.get() for each in ("accepted", "refused")]

    before = counts()
    text = tickets.ticket()
    await verify(text)
    with pytest.raises(BadTicket):
        await verify(text)
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 1]


# -- arguments


@pytest.mark.parametrize(
    "times", [{"ttl": 0}, {"ttl": -1}, {"connection_ttl": 0}, {"connection_ttl": float("nan")}]
)
def test_times_must_be_above_zero(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        tickets.ticket(**times)  # type: ignore[arg-type]


def test_a_group_must_be_possible() -> None:
    with pytest.raises(BadGroup):
        tickets.ticket(groups=["no group"])


def test_a_user_must_be_saved() -> None:
    with pytest.raises(ValueError, match="saved"):
        tickets.ticket(User(username="new"))


# -- the view


def test_the_view_gives_a_ticket_to_a_user_who_is_logged_in(site: None, client: Browser) -> None:
    user = User.objects.create_user("ada")
    client.force_login(user)
    answer = client.post("/realtime/ticket")
    assert answer.status_code == 200
    assert answer.json()["expires_in"] == 60
    assert "no-store" in answer["Cache-Control"]

    async def verified() -> Any:
        return await verify(answer.json()["ticket"])

    assert asyncio.run(verified()).user == user


@pytest.mark.parametrize(
    ("body", "groups"),
    [
        ({"data": {"groups": ["a", "b"]}}, {"a", "b"}),
        ({"data": json.dumps({"groups": ["a"]}), **HTTP}, {"a"}),
        ({"data": "", **HTTP}, None),
        ({}, None),
    ],
    ids=["form", "json", "empty-json", "nothing"],
)
def test_the_body_may_name_groups(client: Browser, body: Any, groups: Any, site: None) -> None:
    client.force_login(User.objects.create_user("ada"))
    text = client.post("/realtime/ticket", **body).json()["ticket"]

    async def verified() -> Any:
        return await verify(text)

    assert asyncio.run(verified()).authorization.groups == groups


@pytest.mark.parametrize("data", ["[", '{"groups": 1}', '{"groups": [1]}', '{"groups": ["no group"]}', "[]"])
def test_a_bad_body_is_answered_with_400(client: Browser, data: str) -> None:
    client.force_login(User.objects.create_user("ada"))
    answer = client.post("/realtime/ticket", data, **HTTP)
    assert (answer.status_code, "error" in answer.json()) == (400, True)


def test_the_view_gives_nothing_to_others(client: Browser) -> None:
    assert client.post("/realtime/ticket").status_code == 401
    client.force_login(User.objects.create_user("ada"))
    assert client.get("/realtime/ticket").status_code == 405


def test_the_view_needs_the_token_against_csrf() -> None:
    strict = Browser(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_user("ada"))
    assert strict.post("/realtime/ticket").status_code == 403


# -- in front of consumers


class Greeter(RealtimeConsumer):
    async def connect(self) -> None:
        await self.accept()
        await self.send(f"{self.scope['user']} {self.scope['query_string']!r} {self.scope['subprotocols']}")


async def open_with(
    stack: Any,
    query: str = "",
    subprotocols: list[str] | None = None,
    headers: Any = (),
    consumer: Any = Greeter,
) -> WebsocketCommunicator:
    application = stack(consumer.as_asgi())

    # The test client takes a coroutine function for an ASGI 3 application, and nothing else.
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await application(scope, receive, send)

    return WebsocketCommunicator(serve, f"/{query}", headers=list(headers), subprotocols=subprotocols)


@pytest.mark.parametrize(
    "stack", [AuthMiddlewareStack, lambda inner: TicketMiddleware(AuthMiddlewareStack(inner))]
)
@pytest.mark.parametrize("by", ["query", "subprotocol"])
async def test_a_ticket_is_the_user_of_the_connection(site: None, stack: Any, by: str) -> None:
    user, other = await make_user(), await make_user("eve")
    browser = Browser()
    await database_sync_to_async(browser.force_login)(other)
    cookie = [(b"cookie", f"sessionid={browser.session.session_key}".encode())]
    text = tickets.ticket(user)
    if by == "query":
        communicator = await open_with(stack, f"?a=1&ticket={text}&b=2", ["chat"], cookie)
    else:
        communicator = await open_with(stack, "?a=1&b=2", ["chat", f"realtime.ticket.{text}"], cookie)
    assert (await communicator.connect())[0]
    assert await communicator.receive_from() == "ada b'a=1&b=2' ['chat']"
    await communicator.disconnect()


class Seeing(RealtimeConsumer):
    user: Any = None

    async def connect(self) -> None:
        type(self).user = self.scope["user"]
        await self.accept()


@pytest.mark.parametrize("inner", [AuthMiddlewareStack, ChannelsStack], ids=["ours", "channels"])
async def test_a_cookie_does_not_change_whose_rights_are_watched(site: None, inner: Any) -> None:
    user, other = await make_user(), await make_user("eve")
    browser = Browser()
    await database_sync_to_async(browser.force_login)(other)
    cookie = [(b"cookie", f"sessionid={browser.session.session_key}".encode())]
    query = f"?ticket={tickets.ticket(user)}"
    communicator = await open_with(
        lambda consumer: TicketMiddleware(inner(consumer)), query, headers=cookie, consumer=Seeing
    )
    assert (await communicator.connect())[0]
    saved = await database_sync_to_async(User.objects.get)(pk=user.pk)
    assert users.known_of(Seeing.user) == users.known_of(saved)
    await communicator.disconnect()


@pytest.mark.parametrize("query", ["?ticket=", "?ticket=nonsense", "?ticket={0}&ticket={1}"])
async def test_a_bad_ticket_is_closed_with_4501(site: None, query: str) -> None:
    query = query.format(tickets.ticket(await make_user()), tickets.ticket(await make_user("eve")))
    communicator = await open_with(AuthMiddlewareStack, query, ["realtime.v1"])
    assert await communicator.connect() == (True, "realtime.v1")
    assert json.loads(await communicator.receive_from())["reason"] == "not_authenticated"
    assert await communicator.receive_output() == {"type": "websocket.close", "code": 4501}
    assert not await database_sync_to_async(Connection.objects.exists)()


async def test_without_redis_the_client_is_told_to_come_back(redis_is_down: None) -> None:
    communicator = await open_with(AuthMiddlewareStack, f"?ticket={tickets.ticket()}", ["realtime.v1"])
    await communicator.connect()
    goodbye = json.loads(await communicator.receive_from())
    assert (goodbye["reason"], goodbye["reconnect"]) == ("server_unavailable", True)
    assert (await communicator.receive_output())["code"] == 4000


async def test_a_consumer_is_not_reached_without_its_ticket(site: None) -> None:
    scope = {"realtime.needs_ticket": True}
    communicator = WebsocketCommunicator(Greeter.as_asgi(), "/")
    communicator.scope.update(scope)
    assert (await communicator.connect())[0] is False
    assert not await database_sync_to_async(Connection.objects.exists)()


# -- refresh


@pytest_asyncio.fixture
async def opened(site: None) -> AsyncIterator[Any]:
    """`opened(user, consumer)` opens a connection with a ticket that gives a right for 50 s."""
    communicators = []

    async def open_one(user: User, consumer: Any = GroupConsumer) -> WebsocketCommunicator:
        query = f"?ticket={tickets.ticket(user, connection_ttl=50)}"
        communicator = await open_with(AuthMiddlewareStack, query, consumer=consumer)
        communicators.append(communicator)
        assert (await communicator.connect())[0]
        return communicator

    yield open_one
    for each in communicators:
        await each.disconnect()


async def test_a_client_refreshes_with_a_new_ticket(opened: Any) -> None:
    user = await make_user()
    client = await opened(user)
    ticket = tickets.ticket(user, connection_ttl=500)
    await client.send_json_to({"type": "refresh", "ref": 1, "ticket": ticket})
    answer = await client.receive_json_from()
    assert (answer["type"], answer["ref"]) == ("refreshed", 1)
    assert answer["expires_in"] == pytest.approx(500, abs=20)


async def test_a_refresh_without_a_ticket_says_what_is_left(opened: Any) -> None:
    client = await opened(await make_user())
    await client.send_json_to({"type": "refresh", "ref": 1})
    assert (await client.receive_json_from())["expires_in"] == pytest.approx(50, abs=20)


@pytest.mark.parametrize("whose", ["another", "nobody", "used"])
async def test_a_ticket_that_is_not_for_the_user_refreshes_nothing(opened: Any, whose: str) -> None:
    user = await make_user()
    bad = {"another": tickets.ticket(await make_user("eve")), "nobody": tickets.ticket()}
    bad["used"] = tickets.ticket(user)
    await verify(bad["used"])
    client = await opened(user)
    await client.send_json_to({"type": "refresh", "ref": 1, "ticket": bad[whose]})
    answer = await client.receive_json_from()
    assert (answer["type"], answer["code"], answer["ref"]) == ("error", "bad_ticket", 1)


class Renewing(SyncRealtimeConsumer):
    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            self.send(f"{self.refresh(text_data)!r}")
        except BadTicket as error:
            self.send(str(error))


async def test_a_synchronous_consumer_refreshes_too(opened: Any) -> None:
    user = await make_user()
    client = await opened(user, Renewing)
    await client.send_to(tickets.ticket(user, connection_ttl=None))
    assert await client.receive_from() == "None"
    await client.send_to("nonsense")
    assert await client.receive_from() == "The ticket was not signed by this site."
