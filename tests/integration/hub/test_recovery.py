"""Members of groups with history get every message once and in order, or are told that they cannot."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import pytest
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser

from realtime import Position, apublish, metrics
from realtime.consumers import GroupConsumer, RealtimeConsumer
from realtime.errors import LayerUnavailable
from realtime.history.positions import Joined, Log
from realtime.hub.follower import Follower
from realtime.hub.hub import Hub
from realtime.serving import lifecycle
from realtime.wire.frames import SUBPROTOCOL
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of

pytestmark = pytest.mark.usefixtures("history")

GROUP = "public.g"
PATIENCE = 5.0


@pytest.fixture
def history(realtime_settings: Callable[..., None], site: None) -> None:
    realtime_settings(
        HISTORY={"public.*": {"size": 100, "ttl": 60}, "short.*": {"size": 3, "ttl": 60}},
        ROUND_INTERVAL=0.4,
        ROUND_TIMEOUT=0.2,
        POLICY=f"{__name__}.allow",
    )


def allow(scope: dict[str, Any], action: str, group: str) -> bool:
    return True


class Client:
    """A client of the JSON protocol in this process."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self._communicator = communicator
        self._refs = 0

    async def send(self, **frame: Any) -> None:
        await self._communicator.send_to(text_data=json.dumps(frame))

    async def event(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            event: dict[str, Any] = await self._communicator.output_queue.get()
        return event

    async def frame(self) -> dict[str, Any]:
        """Return the next frame that is no ping."""
        while True:
            event = await self.event()
            assert event["type"] == "websocket.send", event
            frame: dict[str, Any] = json.loads(event["text"])
            if frame["type"] != "ping":
                return frame
            await self.send(type="pong", n=frame["n"])

    async def join(self, group: str = GROUP, since: dict[str, Any] | None = None) -> dict[str, Any]:
        self._refs += 1
        await self.send(type="join", group=group, ref=self._refs, **({"since": since} if since else {}))
        while (frame := await self.frame())["type"] != "joined":
            pass
        return frame

    async def messages(self, number: int) -> list[Any]:
        """Return the data of the next messages. Any other frame is an error."""
        frames = [await self.frame() for _ in range(number)]
        assert [frame["type"] for frame in frames] == ["message"] * number, frames
        return [frame["data"] for frame in frames]

    async def nothing_more(self) -> None:
        """Check that no message is on its way: the next answer comes first."""
        await self.send(type="ping", n=1)
        frame = await self.frame()
        assert frame == {"type": "pong", "n": 1}, frame


@contextlib.asynccontextmanager
async def client(application: Any = None, path: str = "/ws/", **scope: Any) -> AsyncIterator[Client]:
    communicator = WebsocketCommunicator(application or GroupConsumer.as_asgi(), path, [], [SUBPROTOCOL])
    communicator.scope.update(user=AnonymousUser(), client=["127.0.0.1", 0], **scope)
    accepted, _ = await communicator.connect(timeout=PATIENCE)
    assert accepted
    made = Client(communicator)
    made.welcome = await made.frame()  # type: ignore[attr-defined]
    try:
        yield made
    finally:
        await communicator.disconnect()


def place(frame: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": frame["epoch"], "offset": frame["offset"]}


async def publish(*numbers: int, group: str = GROUP) -> None:
    for number in numbers:
        await apublish(group, number)


def losing(hub: Hub, *lost: int) -> Any:
    """Have the hub lose the messages with these numbers, as a channel layer may."""
    put = hub.recovery.put

    async def selected(group: str, position: Position, text: str) -> None:
        if json.loads(text)["data"] not in lost:
            await put(group, position, text)

    return mock.patch.object(hub.recovery, "put", selected)


# -- join ------------------------------------------------------------------------------------------


async def test_a_join_says_where_the_group_stands() -> None:
    async with client() as one:
        first = await one.join()
        assert first["offset"] == 0
        assert "recovered" not in first
        await publish(1)
        message = await one.frame()
        assert (message["data"], place(message)) == (1, {"epoch": first["epoch"], "offset": 1})


async def test_a_client_that_comes_back_gets_what_it_missed_first() -> None:
    async with client() as one, client() as other:
        since = place(await one.join())
        await other.join()
        await publish(1, 2, 3)
        assert await other.messages(3) == [1, 2, 3]
    await publish(4, 5)
    async with client() as back:
        joined = await back.join(since=since)
        assert (joined["recovered"], joined["offset"]) == (True, 5)
        await publish(6)
        assert await back.messages(6) == [1, 2, 3, 4, 5, 6]
        await back.nothing_more()


async def test_a_client_that_missed_nothing_gets_nothing_twice() -> None:
    async with client() as one:
        await one.join()
        await publish(1)
        since = place(await one.frame())
    async with client() as back:
        joined = await back.join(since=since)
        assert (joined["recovered"], joined["offset"]) == (True, 1)
        await back.nothing_more()


async def test_a_gap_larger_than_the_history_is_refused_whole() -> None:
    async with client() as one:
        since = place(await one.join("short.g"))
    await publish(1, 2, 3, 4, group="short.g")
    async with client() as back:
        joined = await back.join("short.g", since=since)
        assert (joined["recovered"], joined["offset"]) == (False, 4)
        await publish(5, group="short.g")
        assert await back.messages(1) == [5]


@pytest.mark.parametrize("offset", [0, 1, 2, 99])
async def test_an_unknown_epoch_is_refused_with_one_reading(offset: int) -> None:
    await publish(1, 2)
    async with client() as member:
        await member.join()
        before = value_of(metrics.history_reads, cause="join")
        for _ in range(5):
            joined = await member.join(since={"epoch": "unknown", "offset": offset})
            assert (joined["recovered"], joined["offset"]) == (False, 2)
        assert value_of(metrics.history_reads, cause="join") - before == 1


async def test_an_offset_that_no_message_has_is_refused() -> None:
    async with client() as member:
        first = await member.join()
        joined = await member.join(since={"epoch": first["epoch"], "offset": 7})
        assert (joined["recovered"], joined["offset"]) == (False, 0)


async def test_a_group_without_history_has_no_positions() -> None:
    async with client() as one:
        joined = await one.join("plain", since={"epoch": "e", "offset": 3})
        assert joined == {"type": "joined", "ref": 1, "group": "plain"}
        await publish(1, group="plain")
        assert "offset" not in await one.frame()


async def test_a_member_that_joins_again_catches_up() -> None:
    async with client() as one:
        first = await one.join()
        await publish(1, 2)
        await one.messages(2)
        joined = await one.join(since=place(first))
        assert (joined["recovered"], joined["offset"]) == (True, 2)
        await publish(3)
        assert await one.messages(3) == [1, 2, 3]


async def test_many_clients_that_come_back_cost_one_reading() -> None:
    async with client() as one:
        since = place(await one.join())
    await publish(*range(50))
    before = value_of(metrics.history_reads, cause="join"), value_of(metrics.history_reads, cause="page")
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(client()) for _ in range(30)]
        joins = await asyncio.gather(*(each.join(since=since) for each in crowd))
        assert all(joined["recovered"] for joined in joins)
        for each in crowd:
            assert await each.messages(50) == list(range(50))
    after = value_of(metrics.history_reads, cause="join"), value_of(metrics.history_reads, cause="page")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)


async def test_members_that_join_during_a_reading_share_it() -> None:
    reading, may_go_on, read = asyncio.Event(), asyncio.Event(), Follower._read

    async def slowly(self: Follower, *arguments: Any) -> Log:
        reading.set()
        await may_go_on.wait()
        return await read(self, *arguments)

    before = value_of(metrics.history_reads, cause="join")
    async with client() as one, client() as two:
        with mock.patch.object(Follower, "_read", slowly):
            first = asyncio.create_task(one.join())
            await reading.wait()
            second = asyncio.create_task(two.join())
            follower = (await lifecycle.hub()).recovery._followers[GROUP]
            await eventually_async(lambda: len(follower._waiters) == 2, within=PATIENCE)
            may_go_on.set()
            assert place(await first) == place(await second)
    assert value_of(metrics.history_reads, cause="join") == before + 1


async def test_what_memory_no_longer_has_is_read_from_the_history() -> None:
    async with client() as one:
        since = place(await one.join())
        await publish(*range(20))
        await one.messages(20)
        home = await lifecycle.hub()
        home.recovery._followers[GROUP].tail.trim(15)
        async with client() as back:
            assert (await back.join(since=since))["recovered"]
            assert await back.messages(20) == list(range(20))
            await back.nothing_more()


async def test_a_history_above_the_unsent_limit_is_recovered_whole() -> None:
    async with client() as one:
        since = place(await one.join())
    for _ in range(40):
        await apublish(GROUP, "x" * 60_000)
    async with client() as back:
        assert (await back.join(since=since))["recovered"]
        assert len(await back.messages(40)) == 40
        await back.nothing_more()


# -- the layer -------------------------------------------------------------------------------------


async def test_a_lost_message_is_delivered_before_the_next_one() -> None:
    async with client() as one:
        await one.join()
        with losing(await lifecycle.hub(), 2, 3):
            await publish(1, 2, 3, 4)
            assert await one.messages(4) == [1, 2, 3, 4]


async def test_a_lost_last_message_is_delivered_within_an_interval() -> None:
    async with client() as one:
        await one.join()
        with losing(await lifecycle.hub(), 1):
            await publish(1)
            assert await one.messages(1) == [1]


async def test_messages_that_arrive_twice_or_late_are_delivered_once() -> None:
    async with client() as one:
        first = await one.join()
        home, texts = await lifecycle.hub(), []
        put = home.recovery.put

        async def keep(group: str, position: Position, text: str) -> None:
            texts.append((group, position, text))

        with mock.patch.object(home.recovery, "put", keep):
            await publish(1, 2, 3)
            await eventually_async(lambda: len(texts) == 3, within=5)
        for each in (texts[0], texts[2], texts[0], texts[1], texts[2]):
            await put(*each)
        assert await one.messages(3) == [1, 2, 3]
        await one.nothing_more()
        assert first["offset"] == 0


async def test_a_lost_history_is_told_within_an_interval() -> None:
    async with client() as one:
        first = await one.join()
        await publish(1)
        await one.messages(1)
        get_channel_layer()._history.clear()
        reset = await one.frame()
        assert (reset["type"], reset["group"], reset["offset"]) == ("reset", GROUP, 0)
        assert reset["epoch"] != first["epoch"]
        await publish(2)
        message = await one.frame()
        assert (message["data"], place(message)) == (2, {"epoch": reset["epoch"], "offset": 1})


async def test_messages_after_a_lost_history_follow_the_reset() -> None:
    async with client() as one:
        await one.join()
        await publish(*range(5))
        await one.messages(5)
        get_channel_layer()._history.clear()
        await publish(5, 6)
        assert (await one.frame())["type"] == "reset"
        assert await one.messages(2) == [5, 6]


async def test_a_position_that_only_other_processes_know_is_recovered() -> None:
    async with client() as one, client() as back:
        await one.join()
        await publish(*range(5))
        await one.messages(5)
        get_channel_layer()._history.clear()
        read = Follower._read

        async def slowly(self: Follower, *arguments: Any) -> Log:
            # As with Redis, others run meanwhile.
            await asyncio.sleep(0.01)
            return await read(self, *arguments)

        with losing(await lifecycle.hub(), 5, 6), mock.patch.object(Follower, "_read", slowly):
            await publish(5)
            latest = await apublish(GROUP, 6)
            # This process is at an offset that the new history has not reached.
            joined = await back.join(since={"epoch": latest.epoch, "offset": latest.offset})
        assert (joined["recovered"], place(joined)) == (True, {"epoch": latest.epoch, "offset": 2})
        await publish(7)
        assert await back.messages(1) == [7]
        assert (await one.frame())["type"] == "reset"
        assert await one.messages(3) == [5, 6, 7]


async def test_a_client_with_a_lost_epoch_is_refused() -> None:
    async with client() as one:
        since = place(await one.join())
        await publish(1)
    get_channel_layer()._history.clear()
    async with client() as back:
        joined = await back.join(since=since)
        assert (joined["recovered"], joined["offset"]) == (False, 0)


async def test_a_history_that_cannot_be_read_fails_the_join() -> None:
    async def join() -> None:
        async with client() as one:
            with mock.patch.object(get_channel_layer(), "read", side_effect=OSError("down")):
                await one.send(type="join", group=GROUP, ref=1)
                assert (await one.event())["type"] == "websocket.close"

    with pytest.raises(LayerUnavailable):
        await join()
    home = await lifecycle.hub()
    assert home.recovery._followers == {}
    async with client() as back:
        await back.join()


async def test_messages_wait_while_the_history_cannot_be_read() -> None:
    async with client() as one:
        await one.join()
        layer, home = get_channel_layer(), await lifecycle.hub()
        with losing(home, 1), mock.patch.object(layer, "read", side_effect=OSError("down")):
            await publish(1, 2, 3)
            await one.nothing_more()
        assert await one.messages(3) == [1, 2, 3]


# -- consumers of authors --------------------------------------------------------------------------


JOINED: list[Joined | None] = []


class Author(RealtimeConsumer):
    async def connect(self) -> None:
        JOINED.append(await self.group_add(GROUP, since=self.scope.get("since")))
        await self.accept()


async def test_messages_before_the_handshake_follow_the_welcome() -> None:
    async with client() as one:
        first = await one.join()
    await publish(1, 2, 3)
    since = Position(first["epoch"], 1)
    async with client(Author.as_asgi(), since=since) as back:
        assert back.welcome["groups"] == [GROUP]  # type: ignore[attr-defined]
        assert back.welcome["positions"] == {GROUP: {"epoch": since.epoch, "offset": 1}}  # type: ignore[attr-defined]
        assert JOINED[-1] == Joined(Position(first["epoch"], 3), recovered=True)
        await publish(4)
        assert await back.messages(3) == [2, 3, 4]


async def test_a_group_of_the_url_is_in_the_welcome_with_its_position() -> None:
    await publish(1, 2)
    async with client(path="/ws/g/", url_route={"kwargs": {"group": GROUP}}) as one:
        assert one.welcome["positions"][GROUP]["offset"] == 2  # type: ignore[attr-defined]
        await publish(3)
        assert await one.messages(1) == [3]


async def test_a_large_recovery_before_the_handshake_is_whole() -> None:
    async with client() as one:
        first = await one.join()
    for _ in range(40):
        await apublish(GROUP, "x" * 60_000)
    async with client(Author.as_asgi(), since=Position(first["epoch"], 0)) as back:
        assert len(await back.messages(40)) == 40


async def test_group_add_returns_nothing_without_history() -> None:
    class Plain(RealtimeConsumer):
        async def connect(self) -> None:
            JOINED.append(await self.group_add("plain", since=Position("e", 1)))
            await self.accept()

    async with client(Plain.as_asgi()):
        assert JOINED[-1] is None


# -- together --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_under_load_with_losses_and_reconnects_nothing_is_missed(seed: int) -> None:
    """Clients come and go while messages are published, lost, repeated and reordered."""
    rng = random.Random(seed)
    home = await lifecycle.hub()
    put, sent, stop = home.recovery.put, [], asyncio.Event()
    delayed: list[tuple[str, Position, str]] = []

    async def unreliable(group: str, position: Position, text: str) -> None:
        chance = rng.random()
        if chance < 0.1:
            return
        if chance < 0.2:
            delayed.append((group, position, text))
            return
        await put(group, position, text)
        if chance < 0.3:
            await put(group, position, text)
        if delayed and chance > 0.7:
            await put(*delayed.pop(rng.randrange(len(delayed))))

    async def talk() -> None:
        while not stop.is_set():
            await publish(len(sent))
            sent.append(len(sent))
            await asyncio.sleep(rng.uniform(0, 0.004))

    async def listen(pauses: random.Random) -> list[int]:
        seen: list[int] = []
        since = None
        while True:
            async with client() as one:
                joined = await one.join(since=since)
                assert joined.get("recovered", True)
                if since is None:
                    since = place(joined)
                    seen.extend(range(joined["offset"]))
                until = asyncio.get_running_loop().time() + pauses.uniform(0.01, 0.2)
                while asyncio.get_running_loop().time() < until or stop.is_set():
                    if stop.is_set() and len(seen) == len(sent):
                        return seen
                    try:
                        async with asyncio.timeout(0.05):
                            message = await one.frame()
                    except TimeoutError:
                        continue
                    if message["type"] == "message":
                        since = place(message)
                        seen.append(message["data"])
            await asyncio.sleep(pauses.uniform(0, 0.05))

    with mock.patch.object(home.recovery, "put", unreliable):
        talking = asyncio.create_task(talk())
        listeners = [asyncio.create_task(listen(random.Random(seed * 100 + n))) for n in range(8)]
        await asyncio.sleep(1.0)
        stop.set()
        await talking
        async with asyncio.timeout(20):
            for seen in await asyncio.gather(*listeners):
                assert seen == sent
