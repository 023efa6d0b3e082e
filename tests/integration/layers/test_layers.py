"""Both Redis layers against a real Redis, and the in-memory layer."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis
from channels_redis.pubsub import RedisPubSubChannelLayer

from realtime import metrics
from realtime.layers import CoreLayer, MemoryLayer, PubSubLayer
from realtime.layers.messages import MARK, MESSAGE
from realtime.layers.redis_pool import shake_hands
from realtime.layers.stamped import STAMP
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.in_process import value_of
from tests.support.programs.servers import RedisServer, redis_program

pytestmark = pytest.mark.acceptance  # for the real Redis, and the seconds that its restarts take


@pytest.fixture(scope="module", params=["redis", pytest.param("valkey", marks=pytest.mark.matrix)])
def program(request: pytest.FixtureRequest) -> str:
    return redis_program(request.param)


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), program=program) as running:
        yield running


@pytest_asyncio.fixture(params=["core", "pubsub", "memory"])
async def layer(request: pytest.FixtureRequest, server: RedisServer) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryLayer()
        return
    made = {"core": CoreLayer, "pubsub": PubSubLayer}[request.param](hosts=[server.url])
    yield made
    await made.flush()


async def within(seconds: float, what: Any) -> Any:
    async with asyncio.timeout(seconds):
        return await what


async def joined(layer: Any, group: str) -> str:
    channel: str = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel


async def test_a_hub_learns_the_group_of_a_message(layer: Any) -> None:
    channel = await joined(layer, "g")
    await layer.group_send("g", {"type": "x", "n": 1})
    assert await within(5, layer.receive_stamped(channel)) == {"type": "x", "n": 1, STAMP: "g"}


async def test_a_member_receives_as_soon_as_it_is_added(layer: Any) -> None:
    channel = await layer.new_channel()
    for number in range(100):
        await layer.group_add(f"g{number}", channel)
        await layer.group_send(f"g{number}", {"type": "x", "n": number})
        assert (await within(5, layer.receive_stamped(channel)))["n"] == number
        await layer.group_discard(f"g{number}", channel)


async def test_other_receivers_see_plain_channels(layer: Any) -> None:
    channel = await joined(layer, "g")
    await layer.group_send("g", {"type": "x", "n": 1})
    assert await within(5, layer.receive(channel)) == {"type": "x", "n": 1}


async def test_two_receivers_of_one_process_have_a_message_each(layer: Any) -> None:
    """The core layer hands all receivers of a process one and the same object."""
    hub, consumer = await joined(layer, "g"), await joined(layer, "g")
    for _ in range(2):
        await layer.group_send("g", {"type": "x"})
    for _ in range(2):
        assert await within(5, layer.receive(consumer)) == {"type": "x"}
        assert await within(5, layer.receive_stamped(hub)) == {"type": "x", STAMP: "g"}


@pytest.mark.parametrize("kind", [MARK, MESSAGE])
async def test_old_marks_and_messages_reach_hubs_only(layer: Any, kind: str) -> None:
    hub, consumer = await joined(layer, "g"), await joined(layer, "g")
    await layer.group_send("g", {"type": kind})
    await layer.group_send("g", {"type": "x"})
    assert await within(5, layer.receive(consumer)) == {"type": "x"}
    assert (await within(5, layer.receive_stamped(hub)))["type"] == kind


async def test_a_message_to_a_channel_bears_no_stamp(layer: Any) -> None:
    channel = await layer.new_channel()
    receiving = asyncio.ensure_future(layer.receive_stamped(channel))
    await asyncio.sleep(0.1)
    await layer.send(channel, {"type": "x"})
    assert await within(5, receiving) == {"type": "x"}


async def test_the_message_of_the_sender_is_not_changed(layer: Any) -> None:
    message = {"type": "x"}
    await layer.group_send("g", message)
    assert message == {"type": "x"}


async def test_a_hub_learns_the_group_of_a_plain_sender(server: RedisServer) -> None:
    layer, plain = PubSubLayer(hosts=[server.url]), RedisPubSubChannelLayer(hosts=[server.url])
    channel = await joined(layer, "g")
    await plain.group_send("g", {"type": "x"})
    await plain.group_send("g", {"type": "x", STAMP: "g"})  # as older versions stamp it
    for _ in range(2):
        assert await within(5, layer.receive_stamped(channel)) == {"type": "x", STAMP: "g"}
    for each in (layer, plain):
        await each.flush()


async def test_a_plain_receiver_gets_the_event_of_the_sender(server: RedisServer) -> None:
    layer, plain = PubSubLayer(hosts=[server.url]), RedisPubSubChannelLayer(hosts=[server.url])
    channel = await plain.new_channel()
    await plain.group_add("g", channel)
    await eventually_sent(layer, plain, channel)
    for each in (layer, plain):
        await each.flush()


async def eventually_sent(layer: Any, plain: Any, channel: str) -> None:
    receiving = asyncio.ensure_future(plain.receive(channel))
    while not receiving.done():  # channels_redis does not wait until its subscription is active
        await layer.group_send("g", {"type": "x"})
        await asyncio.sleep(0.01)
    assert receiving.result() == {"type": "x"}


async def test_a_join_waits_for_a_redis_that_hangs(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = PubSubLayer(hosts=[server.url])
    channel, before = await joined(layer, "g"), value_of(metrics.subscribe_unconfirmed)
    server.freeze()
    try:
        adding = asyncio.ensure_future(layer.group_add("h", channel))
        await asyncio.sleep(0.3)
        assert not adding.done()
        layer._shards[0].acknowledged_within = 0.1
        await within(5, layer.group_add("i", channel))
    finally:
        server.thaw()
    assert value_of(metrics.subscribe_unconfirmed) == before + 1
    assert "did not acknowledge the subscription to group i" in caplog.text
    await within(5, adding)
    assert value_of(metrics.subscribe_unconfirmed) == before + 1
    await layer.flush()


async def test_a_join_outlives_its_connection(server: RedisServer) -> None:
    layer, before = PubSubLayer(hosts=[server.url]), value_of(metrics.subscribe_unconfirmed)
    layer._shards[0].acknowledged_within = 5.0
    channel = await joined(layer, "g")
    server.freeze()
    try:
        adding = asyncio.ensure_future(layer.group_add("h", channel))
        await asyncio.sleep(0.1)
        await layer.rebuild([0])
        await asyncio.sleep(0.1)
        assert not adding.done()
    finally:
        server.thaw()
    await within(5, adding)
    await layer.group_send("h", {"type": "x"})
    assert await within(5, layer.receive_stamped(channel)) == {"type": "x", STAMP: "h"}
    assert value_of(metrics.subscribe_unconfirmed) == before
    await layer.flush()


@pytest.mark.parametrize("backend", [CoreLayer, PubSubLayer])
async def test_a_receiver_outlives_a_restart_of_redis(backend: Any, program: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, program=program) as server:
        layer = backend(hosts=[server.url])
        channel = await joined(layer, "g")
        receiving = asyncio.ensure_future(layer.receive_stamped(channel))
        await asyncio.sleep(0.2)
        server.restart()

        async def send_until_received() -> None:
            while not receiving.done():
                try:
                    await layer.group_add("g", channel)
                    await layer.group_send("g", {"type": "x"})
                except (redis.RedisError, OSError):
                    pass  # the connections of the pool learn of the restart one by one
                await asyncio.sleep(0.05)

        await within(10, send_until_received())
        assert (await receiving)["type"] == "x"
        await layer.flush()


@pytest.mark.parametrize("backend", [CoreLayer, PubSubLayer])
async def test_an_idle_receiver_is_not_given_up(backend: Any, server: RedisServer) -> None:
    """redis-py 8 ends reads after 5 s by itself, at the same moment as the core layer."""
    layer = backend(hosts=[server.url])
    channel = await joined(layer, "idle")
    receiving = asyncio.ensure_future(layer.receive_stamped(channel))
    await asyncio.sleep(6)
    assert not receiving.done()
    await layer.group_send("idle", {"type": "x"})
    assert (await within(5, receiving))["type"] == "x"
    await layer.flush()


@pytest.mark.parametrize("backend", [CoreLayer, PubSubLayer])
async def test_a_connection_that_died_unused_is_replaced(backend: Any, server: RedisServer) -> None:
    """No command is sent twice."""
    impatient = {"address": server.url, "unused_for": 0.0, "ping_timeout": 0.2}
    receiver, layer = backend(hosts=[server.url]), backend(hosts=[impatient])
    channel = await joined(receiver, "g")
    await layer.group_send("g", {"type": "x", "n": 0})
    for connection in pool_of(layer)._available_connections:
        connection._writer.transport.pause_reading()
    await within(3, layer.group_send("g", {"type": "x", "n": 1}))
    await layer.group_send("g", {"type": "x", "n": 2})
    assert [(await within(5, receiver.receive(channel)))["n"] for _ in range(3)] == [0, 1, 2]
    for each in (receiver, layer):
        await each.flush()


def pool_of(layer: Any) -> Any:
    if isinstance(layer, CoreLayer):
        return layer.connection(0).connection_pool
    return layer._shards[0]._redis.connection_pool


async def test_a_redis_that_never_answers_the_handshake_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.sock"))
        mute.listen()  # only the kernel takes connections
        address = f"unix://{tmp_path}/mute.sock"
        layer = CoreLayer(
            hosts=[{"address": address, "redis_connect_func": partial(shake_hands, within=0.3)}]
        )
        with pytest.raises(redis.RedisError):
            await within(3, layer.group_send("g", {"type": "x"}))
        await layer.close_pools()


async def test_the_core_layer_forgets_the_queue_of_a_dead_process(server: RedisServer) -> None:
    dead, living = CoreLayer(hosts=[server.url]), CoreLayer(hosts=[server.url])
    channel = await dead.new_channel()
    await living.send(channel, {"type": "x"})
    with redis.Redis.from_url(server.url) as client:
        assert client.keys(f"*{dead.client_prefix}*")
        await living.forget_channel(channel)
        assert not client.keys(f"*{dead.client_prefix}*")
    await living.close_pools()
    await dead.close_pools()


@pytest.mark.parametrize("backend", [CoreLayer, PubSubLayer])
async def test_more_callers_than_connections_wait_for_one(backend: Any, server: RedisServer) -> None:
    layer = backend(hosts=[server.url])
    await within(20, asyncio.gather(*(layer.group_send("g", {"type": "x"}) for _ in range(300))))
    await layer.flush()


async def test_host_options_of_the_project_are_kept(server: RedisServer) -> None:
    layer = CoreLayer(hosts=[{"address": server.url, "max_connections": 3}])
    assert layer.create_pool(0).max_connections == 3
    assert layer.capacity == 10_000


async def test_a_failed_discard_is_repeated_by_the_next_one(server: RedisServer) -> None:
    layer = PubSubLayer(hosts=[server.url])
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    shard, name = layer._shards[0], layer._get_group_channel_name("g")
    pubsub, unsubscribe = shard._pubsub, shard._pubsub.unsubscribe

    async def failing(*names: str) -> None:
        raise OSError("connection lost")

    pubsub.unsubscribe = failing
    with pytest.raises(OSError, match="connection lost"):
        await layer.group_discard("g", channel)
    pubsub.unsubscribe = unsubscribe
    assert name in shard._subscribed_to
    await layer.group_discard("g", channel)
    assert name not in shard._subscribed_to
    await layer.flush()


async def test_only_the_dead_connection_of_several_is_rebuilt(
    server: RedisServer, program: str, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, program=program) as second:
        layer = PubSubLayer(hosts=[server.url, second.url])
        channel = await layer.new_channel()
        echoes: list[dict[str, Any]] = []

        async def read() -> None:
            while True:
                echoes.append(await layer.receive_stamped(channel))

        reading = asyncio.ensure_future(read())

        numbers = itertools.count()

        async def both_echo() -> None:
            echoes.clear()

            async def send() -> None:
                while {each["part"] for each in echoes} != {0, 1}:
                    await layer.echo((channel,), next(numbers))
                    await asyncio.sleep(0.1)

            await within(10, send())

        await both_echo()
        deaf, other = (shard._pubsub.connection for shard in layer._shards)
        deaf._writer.transport.pause_reading()
        deaf._writer.transport.resume_reading = lambda: None
        before, untouched = deaf._writer, other._writer
        await layer.rebuild([0])
        await both_echo()
        assert deaf._writer is not before
        assert other._writer is untouched
        reading.cancel()
        await asyncio.wait([reading])
        await layer.flush()


async def test_a_name_left_during_a_break_is_not_subscribed(server: RedisServer) -> None:
    layer = PubSubLayer(hosts=[server.url])
    channel = await joined(layer, "g")
    shard, name = layer._shards[0], layer._get_group_channel_name("g")
    # As when the answer to UNSUBSCRIBE is lost: redis-py still has the name, and would subscribe to it.
    layer.groups.pop(name)
    shard._subscribed_to.remove(name)
    await layer.rebuild([0])
    with server.client() as client:
        await eventually_async(lambda: client.pubsub_numsub(name) == [(name, 0)], within=5)
        await eventually_async(lambda: client.pubsub_numsub(channel) == [(channel, 1)], within=5)
    await layer.flush()


async def test_one_of_many_receivers_asks_if_redis_is_back(program: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path, program=program) as server:
        layer = CoreLayer(hosts=[server.url])
        channels = [await layer.new_channel() for _ in range(50)]
        receiving = [asyncio.ensure_future(layer.receive(channel)) for channel in channels]
        back: list[None] = []
        layer.on_back.add(lambda: back.append(None))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.restart)
        await eventually_async(lambda: back, within=5)
        for channel in channels:
            await layer.send(channel, {"type": "x"})
        assert await within(10, asyncio.gather(*receiving)) == [{"type": "x"}] * 50
        assert len(back) == 1
        await layer.close_pools()
