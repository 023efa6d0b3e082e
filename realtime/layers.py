"""The library's two Redis layers, and Channels' in-memory one, each with the few lines that a hub needs.

A message in a channel layer does not say which group it was sent to, and a hub, which has one channel for
all its groups, must know. `group_send` therefore stamps the group's name on the message, and `receive`
takes the stamp off again, so that all other code sees plain Channels; only a hub reads stamps, through
`receive_stamped`.

The Redis layers also mend what the installed libraries get wrong: redis-py 8 gives up a read after 5 s,
just when the core layer blocks for 5 s (channels_redis#422); its pool refuses the 101st connection instead
of waiting; and `receive` of the core layer raises when Redis restarts, which ends every consumer.
"""

import asyncio
import logging
import random
from typing import Any, Protocol

from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer, RedisSingleShardConnection
from channels_redis.utils import create_pool, decode_hosts
from redis import asyncio as aioredis
from redis.exceptions import RedisError

logger = logging.getLogger("realtime.layers")

#: What a layer raises when it cannot do its work now.
LAYER_ERRORS = (RedisError, OSError, ChannelFull, TimeoutError)

#: The key under which a group message carries the name of its group.
STAMP = "realtime.group"

# Types of events to a group that only hubs understand.
MESSAGE = "realtime.message"
MARK = "realtime.mark"

#: A full queue drops group messages silently, and the queue is one for a whole process (channels_redis#181).
CAPACITY = 10_000

Message = dict[str, Any]


class Layer(Protocol):
    """What the rest of `realtime` uses of a channel layer."""

    async def new_channel(self, prefix: str = ...) -> str: ...
    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def receive_stamped(self, channel: str) -> Message: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...
    async def forget_channel(self, channel: str) -> None: ...


class _Stamps:
    """Stamps the group on what is sent, and takes the stamp off for every receiver but a hub.

    What hubs say to each other through a group they alone receive: any other consumer in that group (one of
    plain Channels, a synchronous one) would end with an exception.
    """

    async def group_send(self, group: str, message: Message) -> None:
        await super().group_send(group, {**message, STAMP: group})  # type: ignore[misc]

    async def receive(self, channel: str) -> Message:
        while True:
            message = await self.receive_stamped(channel)
            if message.pop(STAMP, None) is None or message.get("type") not in (MESSAGE, MARK):
                return message

    async def receive_stamped(self, channel: str) -> Message:
        """The next message on the channel, with `STAMP` in it where it was sent to a group."""
        message: Message = await super().receive(channel)  # type: ignore[misc]
        # A copy, because the core layer hands one and the same object to all receivers of a process.
        return {**message}

    async def forget_channel(self, channel: str) -> None:
        """Remove what the layer stores for the channel of a process that is gone."""


class MemoryLayer(_Stamps, InMemoryChannelLayer):
    """Channels' in-memory layer: for tests, and for one process that nobody else publishes to.

    Its queues belong to the event loop that waits on them, so what comes from another loop (synchronous
    code that publishes) is handed over to that one.
    """

    def __init__(self, *, capacity: int = CAPACITY, **options: Any) -> None:
        super().__init__(capacity=capacity, **options)
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}

    async def send(self, channel: str, message: Message) -> None:
        home, here = self._loops.get(channel), asyncio.get_running_loop()
        if home is None or home is here or home.is_closed():
            await super().send(channel, message)
        else:
            sending = asyncio.run_coroutine_threadsafe(super().send(channel, message), home)
            await asyncio.wrap_future(sending)

    async def receive_stamped(self, channel: str) -> Message:
        self._loops[channel] = asyncio.get_running_loop()
        try:
            return await super().receive_stamped(channel)
        except asyncio.CancelledError:
            # As with the other layers, whoever stops receiving is gone.
            self._loops.pop(channel, None)
            raise


class CoreLayer(_Stamps, RedisChannelLayer):
    """channels_redis's core layer: group membership stored in Redis, messages queued there for a minute."""

    def __init__(self, hosts: Any = None, *, capacity: int = CAPACITY, **options: Any) -> None:
        super().__init__(hosts=hosts, capacity=capacity, **options)

    def create_pool(self, index: int) -> aioredis.ConnectionPool:
        return _pool(self.hosts[index])

    async def receive_stamped(self, channel: str) -> Message:
        outage = _Outage("receive")
        while True:
            try:
                message = await super().receive_stamped(channel)
            except (RedisError, OSError) as error:
                await outage.pause(error)
            else:
                outage.over()
                return message

    async def forget_channel(self, channel: str) -> None:
        """Delete the queue that a killed process left behind; Redis would keep it for the minute of
        `expiry`.
        """
        name = self.non_local_name(channel)
        connection = self.connection(self.consistent_hash(channel))
        await connection.delete(self.prefix + name, self._backup_channel_name(self.prefix + name))


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


class PubSubLoopLayer(_Stamps, RedisPubSubLoopLayer):
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


class _Shard(RedisSingleShardConnection):
    """One Redis of the pub/sub layer: waits for messages instead of polling ten times a second, and outlives
    outages.
    """

    _redis: Any
    _pubsub: Any

    def _ensure_redis(self) -> None:
        if self._redis is None:
            self._redis = aioredis.Redis(connection_pool=_pool(self.host))
            self._pubsub = self._redis.pubsub()

    async def _do_receiving(self) -> None:
        outage = _Outage("subscriber connection")
        while True:
            try:
                if self._pubsub is not None and self._pubsub.subscribed:
                    message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                    outage.over()
                    self._receive_message(message)
                else:
                    await asyncio.sleep(0.05)
            except (RedisError, OSError, RuntimeError) as error:
                await outage.pause(error)


#: The layers that say which group a message was sent to.
OURS = (CoreLayer, MemoryLayer, PubSubLayer)


class _Outage:
    """Retries of one Redis call: a jittered pause that grows to a second, and one log line at each end."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._failures = 0

    async def pause(self, error: BaseException) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning(
                "Redis is out of reach for the %s; trying again until it is back: %s", self._call, error
            )
        # Full jitter, so that the processes of a fleet do not all come back in the same instant.
        await asyncio.sleep(random.uniform(0.02, min(1.0, 0.05 * 2**self._failures)))  # noqa: S311 - not a secret

    def over(self) -> None:
        if self._failures:
            logger.warning("Redis is back for the %s after %d attempts", self._call, self._failures)
            self._failures = 0


def _pool(host: dict[str, Any]) -> aioredis.ConnectionPool:
    """A pool with the options that this stack needs; what the project set itself is kept.

    `socket_timeout` None: any other value ends idle reads (redis-py#4091) and, before Python 3.12, loses
    task cancellations (gh-86296). A BlockingConnectionPool makes the 51st call wait for a connection
    instead of failing.
    """
    options = {"socket_timeout": None, "socket_connect_timeout": 5.0, **host}
    if "master_name" in options:
        pool: aioredis.ConnectionPool = create_pool(options)
        return pool
    address = options.pop("address", None)
    if address is None or not address.startswith("unix:"):
        options.setdefault("socket_keepalive", True)
    options = {"max_connections": 50, "timeout": 20, **options}
    if address is None:
        return aioredis.BlockingConnectionPool(**options)
    return aioredis.BlockingConnectionPool.from_url(address, **options)
