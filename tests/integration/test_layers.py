"""Both Redis layers and the in-memory one, against a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis

from realtime.layers import MARK, MESSAGE, STAMP, CoreLayer, MemoryLayer, PubSubLayer
from tests.support.servers import RedisServer

pytestmark = pytest.mark.acceptance  # for the real Redis, and the seconds that its restarts take


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
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
    await asyncio.sleep(0.1)  # a SUBSCRIBE that was written is not yet one that is active; a hub sends a mark
    return channel


async def test_a_hub_learns_which_group_a_message_was_sent_to(layer: Any) -> None:
    channel = await joined(layer, "g")
    await layer.group_send("g", {"type": "x", "n": 1})
    assert await within(5, layer.receive_stamped(channel)) == {"type": "x", "n": 1, STAMP: "g"}


async def test_everybody_else_sees_plain_channels(layer: Any) -> None:
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
async def test_what_only_hubs_understand_no_other_member_of_a_group_receives(layer: Any, kind: str) -> None:
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


async def test_the_senders_message_is_left_as_it_was(layer: Any) -> None:
    message = {"type": "x"}
    await layer.group_send("g", message)
    assert message == {"type": "x"}


@pytest.mark.parametrize("backend", [CoreLayer, PubSubLayer])
async def test_a_receiver_outlives_a_restart_of_redis(backend: Any, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
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
    """redis-py 8 ends reads after 5 s by itself, in the moment in which the core layer's own 5 s end."""
    layer = backend(hosts=[server.url])
    channel = await joined(layer, "idle")
    receiving = asyncio.ensure_future(layer.receive_stamped(channel))
    await asyncio.sleep(6)
    assert not receiving.done()
    await layer.group_send("idle", {"type": "x"})
    assert (await within(5, receiving))["type"] == "x"
    await layer.flush()


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


async def test_own_host_options_are_kept(server: RedisServer) -> None:
    layer = CoreLayer(hosts=[{"address": server.url, "max_connections": 3}])
    assert layer.create_pool(0).max_connections == 3
    assert layer.capacity == 10_000


async def test_a_group_that_redis_did_not_leave_is_left_by_the_next_discard(server: RedisServer) -> None:
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
