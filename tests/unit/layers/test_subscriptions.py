"""`realtime.layers.pubsub`: which answer of Redis acknowledges which SUBSCRIBE."""

import asyncio
from types import SimpleNamespace
from typing import Any

from realtime.layers.pubsub import PubSubLayer

NAME = b"asgi__group__g"


class Writer:
    """Stands in for asyncio's end of a socket."""


class Socket:
    """A subscriber connection of redis-py that sends nothing; the test hands the answers to the layer."""

    def __init__(self) -> None:
        self.connection: Any = SimpleNamespace()
        self.replace()
        self.sent: list[str] = []

    async def subscribe(self, *names: str) -> None:
        self.sent.append("subscribe")

    async def unsubscribe(self, *names: str) -> None:
        self.sent.append("unsubscribe")

    def replace(self) -> None:
        self.connection._writer = Writer()


class Subscriptions:
    """The layer in front of such a connection."""

    def __init__(self) -> None:
        self._layer = PubSubLayer(hosts=["redis://nowhere"])._get_layer()
        self.shard = self._layer._shards[0]
        self.socket = self.shard._pubsub = Socket()
        self.shard._ensure_redis = self.shard._ensure_receiver = lambda: None
        self._layer.channels["me"] = asyncio.Queue()

    async def add(self) -> "asyncio.Task[None]":
        adding = asyncio.ensure_future(self._layer.group_add("g", "me"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return adding

    async def discard(self) -> None:
        await self._layer.group_discard("g", "me")

    async def answer(self, kind: str) -> None:
        self.shard._receive_message({"type": kind, "channel": NAME, "data": 1})
        for _ in range(3):
            await asyncio.sleep(0)


def test_a_join_returns_with_the_acknowledgement_of_redis() -> None:
    async def run() -> None:
        redis = Subscriptions()
        first, second = await redis.add(), await redis.add()
        assert not first.done()
        assert not second.done()
        await redis.answer("subscribe")
        assert first.done()
        assert second.done()
        assert (await redis.add()).done()
        assert redis.socket.sent == ["subscribe"]

    asyncio.run(run())


def test_an_answer_from_before_a_leave_acknowledges_no_join() -> None:
    async def run() -> None:
        redis = Subscriptions()
        await redis.add()
        await redis.answer("subscribe")
        await redis.shard.subscribe_again([NAME.decode()])
        await redis.discard()
        adding = await redis.add()
        assert redis.socket.sent == ["subscribe", "subscribe", "unsubscribe", "subscribe"]
        await redis.answer("subscribe")
        assert not adding.done()
        await redis.answer("unsubscribe")
        assert not adding.done()
        await redis.answer("subscribe")
        assert adding.done()

    asyncio.run(run())


def test_a_leave_ends_the_wait_for_an_acknowledgement() -> None:
    async def run() -> None:
        redis = Subscriptions()
        adding = await redis.add()
        await redis.discard()
        await asyncio.wait_for(adding, 0.5)

    asyncio.run(run())


def test_the_answers_of_a_replaced_connection_count() -> None:
    """The answer to an UNSUBSCRIBE is lost with its connection; redis-py repeats each SUBSCRIBE."""

    async def run() -> None:
        redis = Subscriptions()
        await redis.add()
        await redis.answer("subscribe")
        await redis.discard()
        redis.socket.replace()
        adding = await redis.add()
        await redis.answer("subscribe")
        assert adding.done()

    asyncio.run(run())
