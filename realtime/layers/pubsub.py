"""channels_redis's pub/sub layer, with the additions that a hub needs.

Its subscriber connections can be replaced. `group_add` returns when Redis has acknowledged the subscription,
so what is sent afterwards arrives. The layer stamps a message when it receives it, by the name of the Redis
channel that brought it, so it does not matter which layer the sender has.
"""

import asyncio
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer, RedisSingleShardConnection
from channels_redis.utils import decode_hosts
from redis import asyncio as aioredis
from redis.exceptions import NoPermissionError

from realtime import conf, metrics
from realtime.history import streams
from realtime.history.positions import Log, Position
from realtime.history.retention import Retention
from realtime.layers import messages, redis_scripts
from realtime.layers.bounded_queue import BoundedQueue, Received
from realtime.layers.contents import Listeners
from realtime.layers.redis_history import RedisHistory
from realtime.layers.redis_pool import Outage, pool
from realtime.layers.stamped import STAMP, Message, StampedLayer
from realtime.scripts import Argument, KeyScript

logger = logging.getLogger("realtime.layers")


class PubSubLayer(RedisPubSubChannelLayer):
    """channels_redis's pub/sub layer. Redis stores nothing, and memberships end with the process."""

    def _get_layer(self) -> "PubSubLoopLayer":
        loop = asyncio.get_running_loop()
        if loop not in self._layers:
            # The library arranges that its own loop layer is closed with the loop. Ours takes its place.
            super()._get_layer()
            self._layers[loop] = PubSubLoopLayer(*self._args, **self._kwargs, channel_layer=self)
        layer: PubSubLoopLayer = self._layers[loop]
        return layer


class PubSubLoopLayer(StampedLayer, RedisPubSubLoopLayer):
    """The pub/sub layer of one event loop."""

    def __init__(self, hosts: Any = None, **options: Any) -> None:
        super().__init__(hosts=hosts, **options)
        self._shards = [_Shard(host, self) for host in decode_hosts(hosts)]
        self._group_prefix = self._get_group_channel_name("")
        self._history = RedisHistory(self.prefix, self.channel_layer)

    async def receive_stamped(self, channel: str) -> Message:
        if channel not in self.channels:
            await self._subscribe_to_channel(channel)
        try:
            group, content, position = await self.channels[channel].get()
        except (asyncio.CancelledError, TimeoutError, GeneratorExit):
            # As in the library: a receiver that stops is gone.
            if self.channels.pop(channel, None) is not None:
                try:
                    await self._get_shard(channel).unsubscribe(channel)
                except BaseException:
                    # Not raised: the caller is cancelled, and must learn of that.
                    logger.exception("The channel of a receiver that stopped is still subscribed")
            raise
        message: Message = self.channel_layer.deserialize(content)
        if group is not None and isinstance(message, dict):
            # The sender may have any layer. A sender of an older version stamps the same name.
            message[STAMP] = group
            if position is not None:
                message["epoch"], message["offset"] = position.epoch, position.offset
        return message

    def put(self, name: str, content: bytes) -> None:
        """Queue a message for the channels of this process that it is for.

        Args:
            name: The Redis channel that brought it.
            content: The encoded message.
        """
        if (queue := self.channels.get(name)) is not None:
            queue.put_nowait(Received(None, content))
        elif (members := self.groups.get(name)) is not None:
            position, content = streams.split(content)
            received = Received(name[len(self._group_prefix) :], content, position)
            for channel in members:
                if (queue := self.channels.get(channel)) is not None:
                    queue.put_nowait(received)

    async def group_add(self, group: str, channel: str) -> None:
        """Add the channel to the group; return when Redis has acknowledged the subscription.

        If Redis does not acknowledge it within a second, the layer logs and counts this, and the call
        returns. The subscription is on its way, and redis-py repeats it on a new connection.
        """
        await super().group_add(group, channel)
        name = self._get_group_channel_name(group)
        shard = self._get_shard(name)
        if not await shard.acknowledged(name):
            metrics.subscribe_unconfirmed.inc()
            logger.warning(
                "Redis did not acknowledge the subscription to group %s within %s s",
                group,
                shard.acknowledged_within,
            )

    async def group_discard(self, group: str, channel: str) -> None:
        await super().group_discard(group, channel)
        # The library forgets the group before it asks Redis, and would never repeat a failed discard.
        name = self._get_group_channel_name(group)
        if name not in self.groups:
            await self._get_shard(name).unsubscribe(name)

    async def append(
        self, group: str, message: Message, keep: Retention, once: str | None
    ) -> tuple[Position, bool]:
        name = self._get_group_channel_name(group)
        return await self._history.append(self._client_of(name), group, message, keep, once, name)

    async def read(self, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int) -> Log:
        client = self._client_of(self._get_group_channel_name(group))
        return await self._history.read(client, group, after, keep, limit, max_bytes)

    async def distrust(self, group: str, keep: Retention, epoch: str) -> None:
        client = self._client_of(self._get_group_channel_name(group))
        await self._history.distrust(client, group, keep, epoch)

    async def positions(self, groups: Collection[str]) -> dict[str, Log]:
        by_client: dict[Any, list[str]] = {}
        for group in groups:
            by_client.setdefault(self._client_of(self._get_group_channel_name(group)), []).append(group)
        return await self._history.positions(by_client.items())

    async def run_script(self, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any:
        return await redis_scripts.run(self._client_of(key), self.prefix, script, key, arguments)

    async def run_script_everywhere(
        self, script: KeyScript, key: str, arguments: Sequence[Argument]
    ) -> list[Any]:
        return [
            await redis_scripts.run(shard.client(), self.prefix, script, key, arguments)
            for shard in self._shards
        ]

    def _client_of(self, name: str) -> Any:
        """Return a client of the Redis that has the group of this name in Redis."""
        return self._get_shard(name).client()

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
        # All channels of a process share one connection to each Redis, and the groups are spread over these
        # connections. Each connection carries a part, on the control channel, where no group message waits.
        channel = channels[0]
        for part, shard in enumerate(self._shards):
            await shard.subscribe(channel)
            message = messages.encode(messages.EchoPart(number, part))
            await shard.publish(channel, self.channel_layer.serialize(message))
        return len(self._shards)

    def received(self, channels: Sequence[str]) -> Sequence[int]:
        return [shard.received for shard in self._shards]

    async def rebuild(self, parts: Collection[int]) -> None:
        for part in parts:
            self._shards[part].rebuild()

    async def holds(self, group: str, channel: str) -> bool:
        # If other processes subscribe as well, a lost subscription of this one is not noticed here. The hub
        # re-adds all memberships in turn.
        name = self._get_group_channel_name(group)
        return bool((await self._get_shard(name).count_subscribers([name]))[name])

    async def re_add(self, groups: Collection[str], channel: str) -> None:
        for shard, names in self._by_shard(groups).items():
            await shard.subscribe_again(names)

    async def contents(self) -> Listeners:
        beginning = self._get_group_channel_name("")
        found: dict[str, int] = {}
        for shard in self._shards:
            names = await shard.names_like(f"{beginning}*")
            found |= {
                name.removeprefix(beginning): number
                for name, number in (await shard.count_subscribers(names)).items()
            }
        return Listeners(found)

    def _by_shard(self, groups: Iterable[str]) -> dict["_Shard", list[str]]:
        """Return the names under which these groups are subscribed, by the Redis that has them."""
        by_shard: dict[_Shard, list[str]] = {}
        for group in groups:
            name = self._get_group_channel_name(group)
            by_shard.setdefault(self._get_shard(name), []).append(name)
        return by_shard


class _Shard(RedisSingleShardConnection):
    """One Redis of the pub/sub layer.

    It waits for messages instead of polling ten times a second, and it outlives outages.
    """

    acknowledged_within = 1.0
    """Seconds to wait for the answer to a SUBSCRIBE. Redis normally answers in less than a millisecond."""

    _redis: Any
    _pubsub: Any

    def __init__(self, host: dict[str, Any], channel_layer: PubSubLoopLayer) -> None:
        super().__init__(host, channel_layer)
        self._outage = Outage("subscriber connection", channel_layer._call_on_back)
        self.received = 0
        """The number of messages that the subscriber connection brought."""
        # Subscriptions that Redis has not acknowledged yet. All that wait for one share its future.
        self._unacknowledged: dict[str, asyncio.Future[None]] = {}
        # UNSUBSCRIBEs that were written to this socket and not answered yet.
        self._leaving: Counter[str] = Counter()
        # A weak reference: one that is kept alive would be reported as never closed.
        self._socket: Callable[[], object] = lambda: None
        self._refusal: NoPermissionError | None = None
        """The last refusal of a SUBSCRIBE, until a caller gets it. Redis answers to the reader only."""

    def _ensure_redis(self) -> None:
        if self._redis is None:
            self._redis = aioredis.Redis(connection_pool=pool(self.host))
            self._pubsub = self._redis.pubsub()

    def client(self) -> Any:
        """Return the client whose pool is used for all but the subscriptions."""
        self._ensure_redis()
        return self._redis

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal

    async def publish(self, channel: str, message: bytes) -> None:
        # Without the lock: a task that holds it may be waiting for a Redis that hangs.
        self._ensure_redis()
        await self._redis.publish(channel, message)

    async def names_like(self, pattern: str) -> list[str]:
        """Return the names that match the pattern and have at least one subscriber."""
        self._ensure_redis()
        return [name.decode() for name in await self._redis.pubsub_channels(pattern)]

    async def count_subscribers(self, names: Collection[str]) -> dict[str, int]:
        """Return the number of connections that have subscribed to each name."""
        self._ensure_redis()
        found = await self._redis.pubsub_numsub(*names) if names else []
        return {name.decode(): int(number) for name, number in found}

    # -- subscriptions -----------------------------------------------------------------------------

    async def subscribe(self, channel: str) -> None:
        self._raise_refusal()
        async with self._lock:
            if channel in self._subscribed_to:
                return
            self._ensure_redis()
            self._ensure_receiver()
            # Before the command is written: its answer may be read before the call returns.
            self._unacknowledged.setdefault(channel, asyncio.get_running_loop().create_future())
            try:
                await self._pubsub.subscribe(channel)
            except BaseException:
                self._is_acknowledged(channel)
                raise
            self._subscribed_to.add(channel)

    async def unsubscribe(self, channel: str) -> None:
        async with self._lock:
            if channel in self._subscribed_to:
                self._ensure_redis()
                self._ensure_receiver()
                await self._send_unsubscribe(channel)
                self._subscribed_to.discard(channel)
                self._is_acknowledged(channel)

    async def acknowledged(self, channel: str) -> bool:
        """Wait until Redis has acknowledged a subscription.

        Returns:
            False if that takes too long.

        Raises:
            NoPermissionError: Redis has refused it.
        """
        waiting = self._unacknowledged.get(channel)
        if waiting is None:
            return True
        done, _ = await asyncio.wait([waiting], timeout=self.acknowledged_within)
        self._raise_refusal()
        return bool(done)

    async def _send_unsubscribe(self, *channels: str) -> None:
        self._check_socket()
        # Before the command is written, like `_unacknowledged`.
        self._leaving.update(channels)
        await self._pubsub.unsubscribe(*channels)

    def _answered(self, kind: str, channel: str) -> None:
        """Note the answer to a SUBSCRIBE or UNSUBSCRIBE."""
        self._check_socket()
        if kind == "unsubscribe":
            self._leaving[channel] -= 1
            if self._leaving[channel] <= 0:
                del self._leaving[channel]
        elif channel not in self._leaving:
            # Otherwise it answers a SUBSCRIBE before the UNSUBSCRIBE, and another one may follow.
            self._is_acknowledged(channel)

    def _is_acknowledged(self, channel: str) -> None:
        """Wake all that wait for this subscription, also if it was given up."""
        waiting = self._unacknowledged.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _check_socket(self) -> None:
        """Forget the UNSUBSCRIBEs of a connection that was replaced: they are answered no more.

        redis-py repeats every SUBSCRIBE on the new connection, so these are still acknowledged.
        """
        socket = getattr(self._pubsub.connection, "_writer", None)
        if socket is not self._socket():
            self._socket = (lambda: None) if socket is None else weakref.ref(socket)
            self._leaving.clear()

    def _wake_all(self) -> None:
        """Wake all that wait for a subscription: the answers do not come."""
        for channel in tuple(self._unacknowledged):
            self._is_acknowledged(channel)

    async def flush(self) -> None:
        await super().flush()
        self._wake_all()
        self._leaving.clear()

    async def subscribe_again(self, names: Collection[str]) -> None:
        """Send SUBSCRIBE again. It changes nothing for a name that Redis still has."""
        async with self._lock:
            if known := [name for name in names if name in self._subscribed_to]:
                self._ensure_redis()
                self._ensure_receiver()
                await self._pubsub.subscribe(*known)

    def rebuild(self) -> None:
        """Cut the subscriber connection. Its reader opens another one and subscribes to all names on it."""
        connection = self._pubsub.connection if self._pubsub is not None else None
        if connection is not None and connection._writer is not None:
            # An orderly close would wait until the other end has taken all bytes.
            connection._writer.transport.abort()

    async def _do_receiving(self) -> None:
        while True:
            try:
                if self._outage.lasts:
                    # Opens a connection if there is none, and subscribes to all names on it.
                    await self._pubsub.connect()
                    await self._unsubscribe_left_names()
                    self._outage.over()
                if self._pubsub is not None and self._pubsub.subscribed:
                    message = await self._pubsub.get_message(timeout=None)
                    self.received += 1
                    self._receive_message(message)
                else:
                    await asyncio.sleep(0.05)
            except NoPermissionError as error:
                # No outage: the connection works, and an outage would end with the same SUBSCRIBE again.
                self._outage.refused(error)
                self._refusal = error
                # Redis does not say which SUBSCRIBE it refused.
                self._wake_all()
            except Exception as error:
                # Any exception at all: if this loop ended, the process would never receive a message again.
                await self._outage.pause(error)

    def _receive_message(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        name, kind = message["channel"], message["type"]
        if isinstance(name, bytes):
            name = name.decode()
        if kind == "message":
            self.channel_layer.put(name, message["data"])
        elif kind in ("subscribe", "unsubscribe"):
            self._answered(kind, name)

    async def _unsubscribe_left_names(self) -> None:
        """Unsubscribe from names that were left while the connection broke.

        If the answer to UNSUBSCRIBE was lost with the connection, redis-py subscribes to the name again.
        """
        async with self._lock:
            left = {name.decode() for name in self._pubsub.channels} - self._subscribed_to
            if left:
                await self._send_unsubscribe(*left)
