"""The same events of groups and channels on plain Channels and on `realtime`; other channel layers.

`tests.support.assertions.conversation` says how a test compares the two base classes.
"""

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.contrib.auth.models import User

from realtime import apublish, publish
from realtime.consumers import GroupConsumer, RealtimeConsumer
from realtime.errors import RoundFailed
from realtime.fleet.rounds import Reaper
from realtime.layers import groups
from realtime.models import Connection, Membership, Process
from realtime.records import connection_rows
from realtime.serving import lifecycle
from realtime.testing import connect
from tests.support.assertions.conversation import LAYER_OF, Both, Run, text
from tests.support.doubles import rows

pytestmark = pytest.mark.django_db(transaction=True)


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
async def test_events_of_own_types_by_group_and_by_channel(both: Both, kind: str) -> None:
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
        # The order of the two queues is not defined.
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


async def test_each_member_gets_its_own_copy_of_an_event(both: Both) -> None:
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


async def test_a_message_to_another_layer_reaches_only_its_members(use_layers: Any) -> None:
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


async def test_a_process_on_another_layer_is_asked_and_swept_there(use_layers: Any) -> None:
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


async def test_a_process_on_an_unknown_layer_stops_no_other_sweep(
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
