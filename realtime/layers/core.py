"""channels_redis's core layer, with the additions that a hub needs, and with a `receive` that outlives Redis.

The library's `receive` raises when Redis restarts, which would end every consumer.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.serializers import registry
from redis import asyncio as aioredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError

from realtime.history.positions import Log, Position
from realtime.history.retention import Retention
from realtime.layers import redis_scripts
from realtime.layers.contents import StoredMembers
from realtime.layers.redis_history import RedisHistory
from realtime.layers.redis_pool import CONNECT_TIMEOUT, NamedRefusals, Outage, pool
from realtime.layers.stamped import CAPACITY, LAYER_ERRORS, STAMP, KeptUnsent, Message, StampedLayer
from realtime.scripts import Argument, KeyScript

#: Seconds for which a queued message is kept. The age of a message is the difference between the clocks of
#: two senders. With the library's minute, a sender with a clock that is five minutes ahead would remove the
#: latest messages of all others.
EXPIRY = 3600

#: Seconds until a receiver checks again if another receiver has found Redis back.
CHECK_AGAIN_AFTER = 0.5

#: Seconds until a receiver repeats a command that its user in Redis may not run.
REFUSED_PAUSE = 1.0

#: The commands in the scripts of channels_redis. Redis does not say which of them it refused.
IN_SCRIPTS = "DEL, EXPIRE, ZADD, ZCOUNT and ZRANGE"

_refusals = NamedRefusals(IN_SCRIPTS)


class CoreLayer(StampedLayer, RedisChannelLayer):
    """channels_redis's core layer. Redis stores the members of groups, and queues messages for an hour."""

    def __init__(
        self, hosts: Any = None, *, capacity: int = CAPACITY, expiry: int = EXPIRY, **options: Any
    ) -> None:
        super().__init__(hosts=hosts, capacity=capacity, expiry=expiry, **options)
        # A serializer of its own: that of the library refuses an encrypted message which is older than
        # `expiry`.
        serializer = registry.get_serializer(
            options.get("serializer_format", "msgpack"),
            symmetric_encryption_keys=options.get("symmetric_encryption_keys"),
        )
        self._history = RedisHistory(self.prefix, serializer)
        # One for all receivers: they take turns on one queue, and hundreds would each log the same outage.
        self._outage = Outage("receive", self._call_on_back)
        self._asking = False
        self._reads: set[asyncio.Timeout] = set()
        # By queue, because each queue is read by a command of its own.
        self._received: Counter[str] = Counter()

    def create_pool(self, index: int) -> aioredis.ConnectionPool:
        return pool(self.hosts[index])

    async def group_send(self, group: str, message: Message) -> None:
        # Anything that is no mapping is left to the library, which raises as it does in plain Channels.
        stamped = {**message, STAMP: group} if isinstance(message, Mapping) else message
        with _refusals:
            await super().group_send(group, stamped)

    async def append(
        self, group: str, message: Message, keep: Retention, once: str | None
    ) -> tuple[Position, bool]:
        position, repeated = await self._history.append(
            self._connection_of(group), group, message, keep, once
        )
        if not repeated:
            try:
                await self.group_send(group, {**message, "epoch": position.epoch, "offset": position.offset})
            except LAYER_ERRORS as error:
                raise KeptUnsent(group, position) from error
        return position, repeated

    async def read(self, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int) -> Log:
        client = self._connection_of(group)
        return await self._history.read(client, group, after, keep, limit, max_bytes)

    async def distrust(self, group: str, keep: Retention, epoch: str) -> None:
        await self._history.distrust(self._connection_of(group), group, keep, epoch)

    async def positions(self, groups: Collection[str]) -> dict[str, Log]:
        by_client = [(self.connection(index), some) for index, some in self._by_host(groups).items()]
        return await self._history.positions(by_client)

    async def receive_stamped(self, channel: str) -> Message:
        while True:
            try:
                if not self._outage.lasts or await self._is_back(channel):
                    # A copy, because the library hands one and the same object to all receivers of a process.
                    return {**await RedisChannelLayer.receive(self, channel)}
            except NoPermissionError as error:
                # No outage: the other commands work.
                self._outage.refused(error)
                await asyncio.sleep(REFUSED_PAUSE)
            except (RedisError, OSError) as error:
                await self._outage.pause(error)

    async def _is_back(self, channel: str) -> bool:
        """Return True if Redis takes writes again. `receive` alone would notice only with the next message.

        One receiver asks, and all others wait: thousands of questions would keep the process busy.
        """
        if self._asking:
            await asyncio.sleep(CHECK_AGAIN_AFTER)
            return not self._outage.lasts
        self._asking = True
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                # A write that changes nothing, because a replica answers a PING.
                await self._connection_of(channel).zrem(self._queue(channel), "")
        finally:
            self._asking = False
        self._outage.over()
        return True

    async def _brpop_with_clean(self, index: int, channel: str, timeout: float) -> bytes | None:  # noqa: ASYNC109
        """Read as the library does, in a way that `rebuild` can end. The library then reads again."""
        if self._outage.lasts:
            raise RedisConnectionError("Redis was out of reach for another receiver.")
        try:
            async with asyncio.timeout(None) as limit:
                self._reads.add(limit)
                try:
                    with _refusals:
                        content: bytes | None = await super()._brpop_with_clean(index, channel, timeout)
                finally:
                    self._reads.discard(limit)
            self._received[channel] += content is not None
            return content
        except TimeoutError:
            if not limit.expired():
                raise
            self._call_on_back()
            return None

    async def _clean_receive_backup(self, index: int, channel: str) -> None:
        """Remove a message that was taken from its backup. If this fails, the message comes again.

        No caller awaits this task of the library; its exceptions would be logged as tracebacks.
        """
        try:
            await super()._clean_receive_backup(index, channel)
        except NoPermissionError as error:
            self._outage.refused(error)
        except (RedisError, OSError):
            # The receiver notices an outage by itself.
            pass

    async def rebuild(self, parts: Collection[int]) -> None:
        for limit in self._reads:
            limit.reschedule(asyncio.get_running_loop().time())

    def received(self, channels: Sequence[str]) -> Sequence[int]:
        return [self._received[self._queue(channel)] for channel in channels]

    async def holds(self, group: str, channel: str) -> bool:
        return await self._connection_of(group).zscore(self._group_key(group), channel) is not None

    async def run_script(self, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any:
        return await redis_scripts.run(self._connection_of(key), self.prefix, script, key, arguments)

    async def run_script_everywhere(
        self, script: KeyScript, key: str, arguments: Sequence[Argument]
    ) -> list[Any]:
        return [
            await redis_scripts.run(self.connection(index), self.prefix, script, key, arguments)
            for index in range(self.ring_size)
        ]

    async def re_add(self, groups: Collection[str], channel: str) -> None:
        for index, some in self._by_host(groups).items():
            pipe = self.connection(index).pipeline(transaction=False)
            for group in some:
                pipe.zadd(self._group_key(group), {channel: time.time()})
                pipe.expire(self._group_key(group), self.group_expiry)
            await pipe.execute()

    async def contents(self) -> StoredMembers:
        beginning, found = self._group_key("").decode(), set()
        for index in range(self.ring_size):
            connection = self.connection(index)
            async for key in connection.scan_iter(match=f"{beginning}*", count=1000):
                group = key.decode().removeprefix(beginning)
                for channel in await connection.zrange(key, 0, -1):
                    found.add((group, channel.decode()))
        return StoredMembers(frozenset(found))

    async def forget_channel(self, channel: str) -> None:
        """Delete the queue that a killed process left. Otherwise Redis keeps it for the hour of `expiry`."""
        queue = self._queue(channel)
        await self._connection_of(channel).delete(queue, self._backup_channel_name(queue))

    def _queue(self, channel: str) -> str:
        return f"{self.prefix}{self.non_local_name(channel)}"

    def _connection_of(self, name: str) -> Any:
        """Return a connection to the Redis that stores the data of this group or channel."""
        return self.connection(self.consistent_hash(name))

    def _by_host(self, groups: Iterable[str]) -> dict[int, list[str]]:
        by_host: dict[int, list[str]] = {}
        for group in groups:
            by_host.setdefault(self.consistent_hash(group), []).append(group)
        return by_host
