"""Handlers of group events, which the hub calls itself, see what they see in plain Channels."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator

from realtime import apublish
from realtime.consumers import GroupConsumer, RealtimeConsumer
from realtime.hub import lanes
from realtime.process import old_connections
from realtime.testing import connect
from tests.support.assertions.conversation import Both, Run

pytestmark = pytest.mark.django_db(transaction=True)

ROOM: contextvars.ContextVar[str] = contextvars.ContextVar("room", default="none")


def member_of(base: Any, handler: Any, **attributes: Any) -> Any:
    """Return a consumer in the group `g` that handles events of the type `note`."""
    return type("Member", (base,), {"groups": ("g",), "note": handler, **attributes})


def page_of(group: str) -> Any:
    """Return a consumer in this group that handles no events of its own."""
    return type("Page", (GroupConsumer,), {"groups": (group,)})


async def send(*texts: str, **more: Any) -> None:
    for text in texts:
        await get_channel_layer().group_send("g", {"type": "note", "text": text, **more})


async def test_events_are_handled_in_order_one_at_a_time(both: Both) -> None:
    async def conversation(run: Run) -> None:
        async def note(self: Any, event: Any) -> None:
            run.calls.append(f"begins {event['text']}")
            # Some suspend, some do not.
            for _ in range(int(event["text"]) % 3):
                await asyncio.sleep(0.001)
            run.calls.append(f"ends {event['text']}")
            await self.send(text_data=event["text"])

        client = run.client(member_of(run.base, note).as_asgi())
        await client.connect()
        await send(*map(str, range(20)))
        assert [await client.receive_from() for _ in range(20)] == list(map(str, range(20)))
        await client.disconnect()

    await both(conversation)


async def test_each_member_may_change_its_event(both: Both) -> None:
    async def conversation(run: Run) -> list[Any]:
        async def note(self: Any, event: Any) -> None:
            event["seen"] = event.get("seen", 0) + 1
            event["list"].append("changed")
            event["deep"]["er"].append("changed")
            await self.send(text_data=f"{event['seen']} {event['list']} {event['deep']}")

        clients = [run.client(member_of(run.base, note).as_asgi()) for _ in range(3)]
        for client in clients:
            await client.connect()
        await send("", list=[1], deep={"er": [2]})
        heard = [await client.receive_from() for client in clients]
        for client in clients:
            await client.disconnect()
        return heard

    _, ours = await both(conversation)
    assert ours.wire[0][1]["text"] == "1 [1, 'changed'] {'er': [2, 'changed']}"


async def test_context_variables_stay_with_their_connection(both: Both) -> None:
    async def conversation(run: Run) -> None:
        async def connected(self: Any) -> None:
            ROOM.set(self.scope["path"])
            await self.accept()

        async def note(self: Any, event: Any) -> None:
            await self.send(text_data=ROOM.get())
            ROOM.set(ROOM.get() + "+")
            if event["text"] == "slow":
                await asyncio.sleep(0.001)
                ROOM.set(ROOM.get() + "-")

        async def disconnected(self: Any, code: int) -> None:
            run.calls.append(ROOM.get())

        consumer = member_of(run.base, note, connect=connected, disconnect=disconnected)
        clients = [run.client(consumer.as_asgi(), path) for path in ("/a", "/b")]
        for client in clients:
            await client.connect()
        await send("fast", "slow", "fast")
        for client, name in zip(clients, "ab", strict=True):
            heard = [await client.receive_from() for _ in range(3)]
            assert heard == [f"/{name}", f"/{name}+", f"/{name}++-"]
            await client.disconnect()

    await both(conversation)
    assert ROOM.get() == "none"


async def test_time_limits_and_task_groups_in_handlers(both: Both) -> None:
    async def conversation(run: Run) -> list[str]:
        async def child(self: Any) -> None:
            await self.send(text_data="child")

        async def note(self: Any, event: Any) -> None:
            try:
                async with asyncio.timeout(0):
                    await asyncio.sleep(60)
            except TimeoutError:
                await self.send(text_data="late")
            async with asyncio.TaskGroup() as group:
                group.create_task(child(self))
            await self.send(text_data=asyncio.current_task().__class__.__name__)

        client = run.client(member_of(run.base, note).as_asgi())
        await client.connect()
        await send("")
        heard = [await client.receive_from() for _ in range(3)]
        await client.disconnect()
        return heard

    await both(conversation)


@pytest.mark.parametrize("groups", [("g",), ("g", "other")])
async def test_other_tasks_get_a_turn_between_events(both: Both, groups: tuple[str, ...]) -> None:
    async def conversation(run: Run) -> None:
        class Newest(run.base):  # type: ignore[name-defined,misc]
            """Sends the newest event that waits, in a task of its own."""

            async def connect(self) -> None:
                for group in groups:
                    await self.channel_layer.group_add(group, self.channel_name)
                self.newest, self.news = "", asyncio.Event()
                self.sending = asyncio.create_task(self.send_newest())
                await self.accept()

            async def disconnect(self, code: int) -> None:
                self.sending.cancel()

            async def send_newest(self) -> None:
                while True:
                    await self.news.wait()
                    self.news.clear()
                    await self.send(text_data=self.newest)

            async def note(self, event: Any) -> None:
                self.newest = event["text"]
                self.news.set()

        client = run.client(Newest.as_asgi())
        await client.connect()
        numbers = [str(number) for number in range(10)]
        for number in numbers:
            group = groups[int(number) % len(groups)]
            await get_channel_layer().group_send(group, {"type": "note", "text": number})
        assert [await client.receive_from() for _ in numbers] == numbers
        await client.disconnect()

    await both(conversation)


async def test_a_handler_sees_the_task_of_its_connection(site: None) -> None:
    tasks = []

    async def note(self: Any, event: Any) -> None:
        tasks.append(asyncio.current_task())
        await self.send(text_data="")

    async def connected(self: Any) -> None:
        tasks.append(asyncio.current_task())
        await self.accept()

    application = member_of(RealtimeConsumer, note, connect=connected).as_asgi()
    async with connect(application, "/", subprotocols=()) as client:
        await send("one", "two")
        await client.receive()
        await client.receive()
    assert tasks == [tasks[0]] * 3


async def test_a_handler_that_suspends_delays_no_other_member(site: None) -> None:
    gate = asyncio.Event()

    async def note(self: Any, event: Any) -> None:
        if self.scope["path"] == "/slow":
            await gate.wait()
        await self.send(text_data=event["text"])

    application = member_of(RealtimeConsumer, note).as_asgi()
    async with (
        connect(application, "/slow", subprotocols=()) as slow,
        connect(application, "/fast", subprotocols=()) as fast,
    ):
        await send("one", "two")
        assert [await fast.receive(), await fast.receive()] == ["one", "two"]
        gate.set()
        assert [await slow.receive(), await slow.receive()] == ["one", "two"]


async def test_a_handler_that_raises_ends_only_its_member(site: None, caplog: Any) -> None:
    async def note(self: Any, event: Any) -> None:
        if self.scope["path"] == "/bad":
            raise KeyError("deliberate")
        await self.send(text_data=event["text"])

    application = member_of(RealtimeConsumer, note).as_asgi()
    async with (
        connect(application, "/bad", subprotocols=()) as bad,
        connect(application, "/good", subprotocols=()) as good,
    ):
        await send("one", "two")
        assert [await good.receive(), await good.receive()] == ["one", "two"]
        await bad.assert_closed(4000)
    assert caplog.text.count("KeyError: 'deliberate'") == 1


async def test_a_member_that_leaves_in_its_handler_gets_no_more(site: None) -> None:
    async def note(self: Any, event: Any) -> None:
        await self.send(text_data=event["text"])
        if event["text"] == "leave":
            await self.channel_layer.group_discard("g", self.channel_name)
        elif event["text"] == "close":
            await self.close()

    application = member_of(RealtimeConsumer, note).as_asgi()
    async with connect(application, "/", subprotocols=()) as client:
        await send("leave", "never", "never")
        assert await client.receive() == "leave"
    async with connect(application, "/", subprotocols=()) as client:
        await send("close", "never")
        assert await client.receive() == "close"
        await client.assert_closed(1000)


@asynccontextmanager
async def busy_thread() -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Keep the thread that all synchronous code shares busy until the value is called, or the block ends."""
    loop, gate, blocked = asyncio.get_running_loop(), threading.Event(), asyncio.Event()

    def block() -> None:
        loop.call_soon_threadsafe(blocked.set)
        gate.wait()

    async def free() -> None:
        gate.set()
        await blocking

    blocking = asyncio.create_task(sync_to_async(block)())
    await blocked.wait()
    try:
        yield free
    finally:
        await free()


class TestWhileTheSharedThreadIsBusy:
    """Handlers that use the ORM wait for the thread where stale connections are closed. Others do not."""

    async def test_members_that_use_no_database_are_not_delayed(self, site: None) -> None:
        async def note(self: Any, event: Any) -> None:
            await self.send(text_data=event["text"])

        with_orm = member_of(RealtimeConsumer, note).as_asgi()
        without = member_of(RealtimeConsumer, note, closes_old_connections=False).as_asgi()
        async with (
            connect(with_orm, "/", subprotocols=()) as waits,
            connect(without, "/", subprotocols=()) as goes_on,
            connect(page_of("g").as_asgi(), "/") as page,
            busy_thread() as free,
        ):
            await send("one", "two")
            await apublish("g", "published")
            assert [await goes_on.receive(), await goes_on.receive()] == ["one", "two"]
            await page.receive_message()
            assert waits._communicator.output_queue.qsize() <= 1  # What was published.
            await free()
            heard = {await waits.receive() for _ in range(3)}
            assert {"one", "two"} < heard

    async def test_more_events_than_may_wait_keep_their_order(
        self, site: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lanes, "MAX_WAITING", 5)

        async def note(self: Any, event: Any) -> None:
            await self.send(text_data=event["text"])

        async with (
            connect(member_of(RealtimeConsumer, note).as_asgi(), "/", subprotocols=()) as client,
            busy_thread() as free,
        ):
            numbers = [str(number) for number in range(40)]
            for number in numbers:
                await send(number)
                await asyncio.sleep(0)
            await free()
            assert [await client.receive() for _ in numbers] == numbers


async def test_a_connection_with_a_thread_of_its_own_closes_there(
    site: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_in: set[int] = set()

    async def close() -> None:
        closed_in.add(await sync_to_async(threading.get_ident)())

    # The test client of Channels replaces `close_old_connections` itself.
    monkeypatch.setattr(old_connections, "aclose_old_connections", close)

    async def note(self: Any, event: Any) -> None:
        if event["text"] == "first":
            closed_in.clear()
        await self.send(text_data=str(await sync_to_async(threading.get_ident)()))

    consumer = member_of(RealtimeConsumer, note).as_asgi()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with ThreadSensitiveContext():
            await consumer(scope, receive, send)

    client = WebsocketCommunicator(application, "/")
    await client.connect()
    await send("first", "second")
    threads = {int(await client.receive_from()) for _ in range(2)}
    assert closed_in == threads
    await client.disconnect()
