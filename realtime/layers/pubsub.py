"""channels_redis's pub/sub layer, with the few lines that a hub needs, and with a subscriber connection that
can be replaced.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer, RedisSingleShardConnection
from channels_redis.utils import decode_hosts
from redis import asyncio as aioredis

from realtime import conf
from realtime.layers import messages
from realtime.layers.bounded_queue import BoundedQueue
from realtime.layers.contents import Listeners
from realtime.layers.redis_pool import Outage, pool
from realtime.layers.stamped import ForHubs


class PubSubLayer(RedisPubSubChannelLayer):
    """channels_redis's pub/sub layer: nothing stored in Redis, membership ends with the process."""

    def _get_layer(self) -> "PubSubLoopLayer":
        loop = asyncio.get_running_loop()
        if loop not in self._layers:
            # The library makes its own loop layer, which knows how to close with the loop; ours takes its
            # place.
            super()._get_layer()
            self._layers[loop] = PubSubLoopLayer(*self._args, **self._kwargs, channel_layer=self)
        layer: PubSubLoopLayer = self._layers[loop]
        return layer


class PubSubLoopLayer(ForHubs, RedisPubSubLoopLayer):
    """The pub/sub layer of one event loop."""

    def __init__(self, hosts: Any = None, **options: Any) -> None:
        super().__init__(hosts=hosts, **options)
        self._shards = [_Shard(host, self) for host in decode_hosts(hosts)]

    async def group_discard(self, group: str, channel: str) -> None:
        await super().group_discard(group, channel)
        # The library forgets the group before Redis is asked, and would never repeat a discard that failed.
        name = self._get_group_channel_name(group)
        if name not in self.groups:
            await self._get_shard(name).unsubscribe(name)

    async def close_channel(self, channel: str) -> None:
        self.channels.pop(channel, None)
        for shard in self._shards:
            await shard.unsubscribe(channel)

    async def open_channel(self, channel: str) -> None:
        await self._subscribe_to_channel(channel)

    async def _subscribe_to_channel(self, channel: str) -> None:
        self.channels[channel] = BoundedQueue(conf.get().MAX_QUEUED_BYTES)
        await self._get_shard(channel).subscribe(channel)

    async def echo(self, channels: Sequence[str], number: int) -> int:
        # All channels of a process share one connection to each Redis, and the groups are spread over all of
        # these: each connection has to prove itself, by the channel on which nothing else waits.
        channel = channels[0]
        for part, shard in enumerate(self._shards):
            await shard.subscribe(channel)
            echo = messages.encode(messages.EchoPart(number, part))
            await shard.publish(channel, self.channel_layer.serialize(echo))
        return len(self._shards)

    def heard(self, channels: Sequence[str]) -> Sequence[int]:
        return [shard.received for shard in self._shards]

    async def rebuild(self, parts: Collection[int]) -> None:
        for part in parts:
            self._shards[part].rebuild()

    async def holds(self, group: str, channel: str) -> bool:
        # Where others subscribe as well, our own subscription is not seen; it is asserted in its turn.
        name = self._get_group_channel_name(group)
        return bool((await self._get_shard(name).subscribers([name]))[name])

    async def reassert(self, groups: Collection[str], channel: str) -> None:
        for shard, names in self._by_shard(groups).items():
            await shard.reassert(names)

    async def contents(self) -> Listeners:
        beginning = self._get_group_channel_name("")
        found: dict[str, int] = {}
        for shard in self._shards:
            names = await shard.subscribed(f"{beginning}*")
            found |= {
                name.removeprefix(beginning): number
                for name, number in (await shard.subscribers(names)).items()
            }
        return Listeners(found)

    def _by_shard(self, groups: Iterable[str]) -> dict["_Shard", list[str]]:
        """The names under which these groups are subscribed, and where."""
        by_shard: dict[_Shard, list[str]] = {}
        for group in groups:
            name = self._get_group_channel_name(group)
            by_shard.setdefault(self._get_shard(name), []).append(name)
        return by_shard


class _Shard(RedisSingleShardConnection):
    """One Redis of the pub/sub layer: waits for messages instead of polling ten times a second, and outlives
    outages.
    """

    _redis: Any
    _pubsub: Any

    def __init__(self, host: dict[str, Any], channel_layer: PubSubLoopLayer) -> None:
        super().__init__(host, channel_layer)
        self._outage = Outage("subscriber connection", channel_layer._tell_back)
        self.received = 0
        """How many messages came in over the subscriber connection."""

    def _ensure_redis(self) -> None:
        if self._redis is None:
            self._redis = aioredis.Redis(connection_pool=pool(self.host))
            self._pubsub = self._redis.pubsub()

    async def publish(self, channel: str, message: bytes) -> None:
        # Without the lock, under which the subscriber connection may wait for a Redis that hangs.
        self._ensure_redis()
        await self._redis.publish(channel, message)

    async def subscribed(self, pattern: str) -> list[str]:
        """The names like this that anybody has subscribed."""
        self._ensure_redis()
        return [name.decode() for name in await self._redis.pubsub_channels(pattern)]

    async def subscribers(self, names: Collection[str]) -> dict[str, int]:
        """How many connections have subscribed each of these."""
        self._ensure_redis()
        found = await self._redis.pubsub_numsub(*names) if names else []
        return {name.decode(): int(number) for name, number in found}

    async def reassert(self, names: Collection[str]) -> None:
        """SUBSCRIBE again, which changes nothing where Redis still knows."""
        async with self._lock:
            if known := [name for name in names if name in self._subscribed_to]:
                self._ensure_redis()
                self._ensure_receiver()
                await self._pubsub.subscribe(*known)

    def rebuild(self) -> None:
        """Cut the subscriber connection; whoever reads it opens another and subscribes all names on it."""
        connection = self._pubsub.connection if self._pubsub is not None else None
        if connection is not None and connection._writer is not None:
            # An orderly close would wait for bytes that nobody takes.
            connection._writer.transport.abort()

    async def _do_receiving(self) -> None:
        while True:
            try:
                if self._outage.lasts:
                    # Opens a connection if there is none, and subscribes all names on it.
                    await self._pubsub.connect()
                    await self._forget_what_was_left()
                    self._outage.over()
                if self._pubsub is not None and self._pubsub.subscribed:
                    message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                    self.received += 1
                    self._receive_message(message)
                else:
                    await asyncio.sleep(0.05)
            except Exception as error:
                # Whatever it was: a process whose messages nobody reads any more would be deaf for ever.
                await self._outage.pause(error)

    async def _forget_what_was_left(self) -> None:
        """redis-py subscribes also what it was told to leave when the answer got lost with the connection."""
        async with self._lock:
            left = {name.decode() for name in self._pubsub.channels} - self._subscribed_to
            if left:
                await self._pubsub.unsubscribe(*left)
