"""Presence as clients, consumers and receivers of signals see it, in one process."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User
from django.db import OperationalError

from realtime import signals
from realtime.closing import CloseReason
from realtime.consumers import RealtimeConsumer, SyncRealtimeConsumer
from realtime.errors import BadGroup, NoPresence
from realtime.hub import watches
from realtime.models import PresentUser
from realtime.presence import Presence, ais_online, apresence
from realtime.records import presence_rows
from realtime.routing import websocket_urlpatterns
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from tests.support.assertions.eventually import eventually_async

pytestmark = pytest.mark.usefixtures("site")

GROUP = "public.room"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch, realtime_settings: Any) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.2))
    monkeypatch.setattr(watches, "TELL_EVERY", 0.1)
    monkeypatch.setattr(watches, "COUNT_AFTER", 0.1)
    realtime_settings(PRESENCE_GRACE=0.5, ROUND_INTERVAL=2.0, ROUND_TIMEOUT=1.0)


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    """The signals of users, in order: the name of the signal and the user."""
    found: list[tuple[str, str]] = []

    def online(user_id: str, **_: Any) -> None:
        found.append(("online", user_id))

    def offline(user_id: str, **_: Any) -> None:
        found.append(("offline", user_id))

    def dormant(connection: Any, **_: Any) -> None:
        found.append(("dormant", connection.user_id))

    for signal, receiver in (
        (signals.user_online, online),
        (signals.user_offline, offline),
        (signals.connection_dormant, dormant),
    ):
        signal.connect(receiver)
    yield found
    signals.user_online.disconnect(online)
    signals.user_offline.disconnect(offline)
    signals.connection_dormant.disconnect(dormant)


def open_client(user: Any = None, path: str = "/ws/", application: Any = None) -> WebsocketCommunicator:
    client = WebsocketCommunicator(application or URLRouter(websocket_urlpatterns), path)
    client.scope["user"] = user or AnonymousUser()
    return client


async def connected(user: Any = None, path: str = "/ws/") -> WebsocketCommunicator:
    client = open_client(user, path)
    assert (await client.connect())[0]
    return client


async def receive(client: WebsocketCommunicator) -> Any:
    return json.loads(await client.receive_from(timeout=5))


async def ask(client: WebsocketCommunicator, **frame: Any) -> Any:
    await client.send_to(text_data=json.dumps(frame))
    return await receive(client)


async def join(client: WebsocketCommunicator, group: str = GROUP, **more: Any) -> Any:
    return await ask(client, type="join", ref=1, group=group, presence=True, **more)


async def user(name: str) -> User:
    return await User.objects.acreate_user(name)


class TestClients:
    async def test_a_member_is_told_who_is_there_and_who_comes_and_leaves(self) -> None:
        anne, bob = await user("anne"), await user("bob")
        watcher, other = await connected(anne), await connected(bob)

        joined = await join(watcher)
        assert joined["presence"] == {"users": [str(anne.pk)], "anonymous": 0, "total": 1}

        await ask(other, type="join", ref=1, group=GROUP)
        came = await receive(watcher)
        assert came == {
            "type": "presence",
            "group": GROUP,
            "joined": [str(bob.pk)],
            "anonymous": 0,
            "total": 2,
        }

        await other.disconnect()
        left = await receive(watcher)
        assert left == {"type": "presence", "group": GROUP, "left": [str(bob.pk)], "anonymous": 0, "total": 1}
        await watcher.disconnect()

    async def test_a_user_who_comes_back_within_the_grace_was_never_away(self, told: Any) -> None:
        anne, bob = await user("anne"), await user("bob")
        watcher = await connected(anne)
        await join(watcher)
        phone = await connected(bob)
        await ask(phone, type="join", ref=1, group=GROUP)
        assert (await receive(watcher))["joined"] == [str(bob.pk)]

        for _ in range(3):
            await phone.disconnect()
            phone = await connected(bob)
            await ask(phone, type="join", ref=1, group=GROUP)

        assert await watcher.receive_nothing(timeout=1.2)
        assert told == [("online", str(anne.pk)), ("online", str(bob.pk))]
        await phone.disconnect()
        await watcher.disconnect()

    async def test_a_user_with_two_tabs_is_there_once(self) -> None:
        anne = await user("anne")
        tabs = [await connected(anne) for _ in range(2)]
        answers = [await join(tab) for tab in tabs]
        assert [answer["presence"]["users"] for answer in answers] == [[str(anne.pk)]] * 2

        await tabs[0].disconnect()
        assert await tabs[1].receive_nothing(timeout=1.0)
        await tabs[1].disconnect()

    async def test_anonymous_clients_are_counted(self) -> None:
        watcher = await connected()
        assert (await join(watcher))["presence"] == {"users": [], "anonymous": 1, "total": 0}

        other = await connected(path=f"/ws/{GROUP}/")
        assert (await receive(watcher))["anonymous"] == 2
        await other.disconnect()
        assert (await receive(watcher))["anonymous"] == 1
        await watcher.disconnect()

    async def test_a_client_that_is_no_member_may_ask(self) -> None:
        anne = await user("anne")
        member, asks = await connected(anne, f"/ws/{GROUP}/"), await connected()

        assert await ask(asks, type="presence", ref=7, group=GROUP) == {
            "type": "presence",
            "ref": 7,
            "group": GROUP,
            "users": [str(anne.pk)],
            "anonymous": 0,
            "total": 1,
        }
        await member.disconnect()
        await asks.disconnect()

    async def test_a_member_may_ask_for_presence_later(self) -> None:
        watcher = await connected(path=f"/ws/{GROUP}/")
        assert (await join(watcher))["presence"]["anonymous"] == 1
        await watcher.disconnect()

    async def test_presence_is_refused_where_it_is_not_tracked(self, realtime_settings: Any) -> None:
        realtime_settings(PRESENCE=["public.other"])
        client = await connected()
        assert (await join(client))["code"] == "no_presence"
        assert (await ask(client, type="presence", ref=1, group=GROUP))["code"] == "no_presence"
        assert (await ask(client, type="leave", ref=1, group=GROUP))["code"] == "not_joined"
        await client.disconnect()

    async def test_a_policy_may_hide_who_is_there(self, realtime_settings: Any) -> None:
        realtime_settings(POLICY=f"{__name__}.hides_presence")
        client = await connected()
        assert (await join(client))["code"] == "forbidden"
        assert (await ask(client, type="presence", ref=1, group=GROUP))["code"] == "forbidden"
        assert (await ask(client, type="join", ref=1, group=GROUP))["type"] == "joined"
        await client.disconnect()

    async def test_a_client_that_asks_a_database_that_is_down_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(*arguments: Any) -> Any:
            raise OperationalError("The database is down.")

        client = await connected()
        with monkeypatch.context() as patch:
            patch.setattr(presence_rows, "read", read)
            error = await ask(client, type="presence", ref=1, group=GROUP)
        assert (error["type"], error["code"], error["ref"]) == ("error", "internal", 1)
        assert (await ask(client, type="presence", ref=2, group=GROUP))["total"] == 0
        await client.disconnect()

    async def test_a_client_that_leaves_is_told_nothing_more(self) -> None:
        watcher = await connected()
        await join(watcher)
        await ask(watcher, type="leave", ref=2, group=GROUP)

        other = await connected(await user("anne"), f"/ws/{GROUP}/")
        assert await watcher.receive_nothing(timeout=0.5)
        await other.disconnect()
        await watcher.disconnect()

    async def test_presence_precedes_the_messages_that_were_missed(self, realtime_settings: Any) -> None:
        from realtime import apublish

        realtime_settings(HISTORY={"public.*": {"size": 10, "ttl": 60}})
        position = await apublish(GROUP, 1)
        await apublish(GROUP, 2)
        assert position is not None
        watcher = await connected(await user("anne"))
        joined = await join(watcher, since={"epoch": position.epoch, "offset": position.offset})
        assert (joined["recovered"], joined["presence"]["total"]) == (True, 1)
        assert (await receive(watcher))["data"] == 2
        await watcher.disconnect()

    async def test_a_large_group_names_its_first_users(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watches, "MAX_USERS", 2)
        users = [await user(f"u{number}") for number in range(5)]
        clients = [await connected(each, f"/ws/{GROUP}/") for each in users]
        watcher = await connected()
        presence = (await join(watcher))["presence"]
        assert (presence["users"], presence["total"]) == ([str(users[0].pk), str(users[1].pk)], 5)
        for client in clients:
            await client.disconnect()
        left = [await receive(watcher) for _ in range(3)]
        assert [len(frame["left"]) for frame in left] == [2, 2, 1]
        assert left[-1]["total"] == 0
        await watcher.disconnect()


async def hides_presence(scope: dict[str, Any], action: str, group: str) -> bool:
    return action != "presence"


class TestSignals:
    async def test_a_user_is_online_once_with_any_number_of_connections(self, told: Any) -> None:
        anne = await user("anne")
        clients = [await connected(anne) for _ in range(3)]
        await eventually_async(lambda: told == [("online", str(anne.pk))], within=5)
        assert await ais_online(anne)
        assert await ais_online(anne.pk)

        for client in clients:
            await client.disconnect()
        await eventually_async(lambda: told[1:] == [("offline", str(anne.pk))], within=5)
        assert not await ais_online(anne)
        assert not await PresentUser.objects.aexists()

    async def test_a_user_without_an_answer_is_dormant(self, told: Any) -> None:
        anne = await user("anne")
        client = await connected(anne)
        hub = await lifecycle.hub()
        (connection,) = hub.connections.values()
        await lifecycle.evict(connection, CloseReason.PING_TIMEOUT)
        name = str(anne.pk)
        await eventually_async(
            lambda: told == [("online", name), ("dormant", name), ("offline", name)], within=5
        )
        row = await PresentUser.objects.aget()
        assert row.dormant_since is not None
        assert row.left_at is not None
        assert not await ais_online(anne)
        await client.disconnect()

        client = await connected(anne)
        await eventually_async(lambda: told[3:] == [("online", name)], within=5)
        row = await PresentUser.objects.aget()
        assert (row.dormant_since, row.left_at) == (None, None)
        await client.disconnect()

    async def test_a_user_with_another_connection_is_not_dormant(self, told: Any) -> None:
        anne = await user("anne")
        clients = [await connected(anne) for _ in range(2)]
        hub = await lifecycle.hub()
        await lifecycle.evict(next(iter(hub.connections.values())), CloseReason.PING_TIMEOUT)
        await asyncio.sleep(0.2)
        assert told == [("online", str(anne.pk))]
        for client in clients:
            await client.disconnect()

    async def test_nothing_is_tracked_without_a_pattern(self, realtime_settings: Any, told: Any) -> None:
        realtime_settings(PRESENCE=())
        anne = await user("anne")
        client = await connected(anne, f"/ws/{GROUP}/")
        assert not await PresentUser.objects.aexists()
        with pytest.raises(NoPresence, match="PRESENCE"):
            await ais_online(anne)
        with pytest.raises(NoPresence, match=r"public\.room"):
            await apresence(GROUP)
        await client.disconnect()
        assert told == []


class TestPython:
    async def test_presence_names_users_and_counts_anonymous_clients(self) -> None:
        anne = await user("anne")
        clients = [
            await connected(each, f"/ws/{GROUP}/") for each in (anne, anne, None, await user("bob"), None)
        ]
        found = await apresence(GROUP)
        assert found == Presence(GROUP, (str(anne.pk), found.users[1]), anonymous=2, total=2)
        assert (await apresence(GROUP, limit=1)).total == 2
        for client in clients:
            await client.disconnect()

    async def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(BadGroup):
            await apresence("no such group")
        with pytest.raises(ValueError, match="limit"):
            await apresence(GROUP, limit=-1)


class Room(RealtimeConsumer):
    async def connect(self) -> None:
        await self.group_add(GROUP)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        found = await self.presence(GROUP)
        await self.send(json.dumps({"users": found.users, "total": found.total}))

    async def presence_changed(self, event: dict[str, Any]) -> None:
        await self.send(json.dumps(event))


class SyncRoom(SyncRealtimeConsumer):
    def connect(self) -> None:
        self.group_add(GROUP)
        self.accept()

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        found = self.presence(GROUP)
        self.send(json.dumps({"users": found.users, "total": found.total}))

    def presence_changed(self, event: dict[str, Any]) -> None:
        self.send(json.dumps(event))


class Deaf(RealtimeConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        found = await self.presence(GROUP)
        await self.send(json.dumps({"users": found.users, "total": found.total}))


class OwnPresence(RealtimeConsumer):
    """An application with own events of this type."""

    async def connect(self) -> None:
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.accept()

    async def presence(self, event: dict[str, Any]) -> None:  # type: ignore[override]
        await self.send(event["text"])


@pytest.mark.parametrize("consumer", [Room, SyncRoom])
async def test_a_consumer_of_an_author_is_told(consumer: Any) -> None:
    anne, bob = await user("anne"), await user("bob")
    watcher = open_client(anne, application=consumer.as_asgi())
    await watcher.connect()
    assert await ask(watcher, any=1) == {"users": [str(anne.pk)], "total": 1}

    other = await connected(bob, f"/ws/{GROUP}/")
    assert await receive(watcher) == {
        "type": "presence.changed",
        "group": GROUP,
        "joined": [str(bob.pk)],
        "left": [],
        "anonymous": 0,
        "total": 2,
    }
    await other.disconnect()
    assert (await receive(watcher))["left"] == [str(bob.pk)]
    await watcher.disconnect()


async def test_a_consumer_outside_of_the_group_is_answered_only() -> None:
    anne = await user("anne")
    member = await connected(anne, f"/ws/{GROUP}/")
    asks = open_client(application=Deaf.as_asgi())
    await asks.connect()
    assert await ask(asks, any=1) == {"users": [str(anne.pk)], "total": 1}
    await member.disconnect()
    assert await asks.receive_nothing(timeout=1.0)
    await asks.disconnect()


async def test_a_handler_that_is_called_presence_stays_a_handler() -> None:
    from channels.layers import get_channel_layer

    client = open_client(application=OwnPresence.as_asgi())
    await client.connect()
    layer: Any = get_channel_layer()
    await layer.group_send(GROUP, {"type": "presence", "text": "theirs"})
    assert await client.receive_from(timeout=5) == "theirs"
    await client.disconnect()
