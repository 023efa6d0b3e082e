"""Connections to Redis: a pool that hands out no dead connection, and a pause that outlives an outage."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from channels_redis.utils import create_pool
from redis import asyncio as aioredis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

logger = logging.getLogger("realtime.layers")

#: Seconds that a new connection may take. The handshake of the protocol may then take as long again.
CONNECT_TIMEOUT = 5.0
#: Seconds after which an unused connection must answer a PING before it is used again.
UNUSED_FOR = 5.0
#: Seconds for the answer to this PING. A Redis that works answers in less than a millisecond.
PING_TIMEOUT = 1.0


class Outage:
    """The retries of one call to Redis: pauses with jitter that grow to a second, and a log line at each end.

    Args:
        call: The call, in words for the log.
        on_back: Called when Redis answers again.
    """

    def __init__(self, call: str, on_back: Callable[[], None]) -> None:
        self._call = call
        self._on_back = on_back
        self._failures = 0

    @property
    def lasts(self) -> bool:
        """True from the first failure until `over`."""
        return self._failures > 0

    async def pause(self, error: BaseException) -> None:
        """Note a failure, and wait before the next attempt."""
        self._failures += 1
        if self._failures == 1:
            logger.warning(
                "Redis is out of reach for the %s; trying again until it is back: %s", self._call, error
            )
        # Full jitter, so that the processes of a fleet do not all come back at the same moment.
        await asyncio.sleep(random.uniform(0.02, min(1.0, 0.05 * 2**self._failures)))  # noqa: S311 - not a secret

    def over(self) -> None:
        """Note that Redis answered."""
        if self._failures:
            logger.warning("Redis is back for the %s after %d attempts", self._call, self._failures)
            self._failures = 0
            self._on_back()


class Pool(aioredis.BlockingConnectionPool):
    """A pool that hands out no connection of which the other end may be gone.

    A firewall may have forgotten a connection, or its Redis may have been replaced. A command on such a
    connection fails or hangs, and it is not known if Redis carried the command out. Therefore the pool sends
    a PING first, and no command is ever sent twice. redis-py's own `health_check_interval` would wait
    for the answer without a bound.

    Args:
        unused_for: Seconds after which an unused connection must answer a PING before it is used again.
        ping_timeout: Seconds for the answer to this PING.
        **options: The options of `redis.asyncio.BlockingConnectionPool`.
    """

    def __init__(
        self, *, unused_for: float = UNUSED_FOR, ping_timeout: float = PING_TIMEOUT, **options: Any
    ) -> None:
        super().__init__(**options)
        self._unused_for = unused_for
        self._ping_timeout = ping_timeout

    async def ensure_connection(self, connection: Any) -> None:
        if connection.is_connected and connection._reader.at_eof():
            # Redis closed it. redis-py checks this only if it expects no notices of maintenance.
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)
        now = asyncio.get_running_loop().time()
        if now - getattr(connection, "used_at", now) < self._unused_for:
            return
        try:
            async with asyncio.timeout(self._ping_timeout):
                await connection._send_ping()
        except (RedisError, OSError):
            await connection.disconnect(nowait=True)
            await connection.connect()

    async def release(self, connection: Any) -> None:
        connection.used_at = asyncio.get_running_loop().time()
        await super().release(connection)


class UnixConnection(aioredis.UnixDomainSocketConnection):
    """A connection to a Unix socket with one handshake. redis-py's own makes two, the first unbounded."""

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


def pool(host: dict[str, Any]) -> aioredis.ConnectionPool:
    """Return a pool for one host of CHANNEL_LAYERS. Options that the project set itself are kept.

    `socket_timeout` is None, because any other value ends idle reads (redis-py#4091) and, before Python 3.12,
    loses cancellations of tasks (gh-86296). With a BlockingConnectionPool, the 51st call waits for a
    connection instead of failing.

    Args:
        host: An item of `hosts` in CHANNEL_LAYERS, as `channels_redis.utils.decode_hosts` returns it.
    """
    options = {
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "redis_connect_func": shake_hands,
        **host,
    }
    if "master_name" in options:
        made: aioredis.ConnectionPool = create_pool(options)
        return made
    address = options.pop("address", None)
    if address is None or not address.startswith("unix:"):
        options.setdefault("socket_keepalive", True)
    options = {"max_connections": 50, "timeout": 20, **options}
    if address is None:
        return Pool(**options)
    ours = Pool.from_url(address, **options)
    if ours.connection_class is aioredis.UnixDomainSocketConnection:
        ours.connection_class = UnixConnection
    return ours


async def shake_hands(connection: Any, within: float = CONNECT_TIMEOUT) -> None:
    """Make the handshake of the protocol on a new connection.

    redis-py bounds it by `socket_timeout` only. A Redis that hangs accepts connections, because its kernel
    does, and the handshake would never end.

    Args:
        connection: A connection of redis-py that has just been opened.
        within: Seconds for the handshake.

    Raises:
        redis.exceptions.TimeoutError: Redis did not answer in time.
    """
    try:
        async with asyncio.timeout(within):
            await connection.on_connect()
    except TimeoutError as error:
        raise RedisTimeoutError("Redis took the connection but did not answer the handshake.") from error
