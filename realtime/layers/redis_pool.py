"""Connections to Redis as this stack needs them: no dead one is handed out, and outages are waited out."""

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

#: Seconds that a new connection may take, and after it the handshake of the protocol.
CONNECT_TIMEOUT = 5.0
#: A connection that lay unused for so many seconds is asked for a sign of life before it is used again …
UNUSED_FOR = 5.0
#: … which may take this long; Redis answers in under a millisecond or is not well.
PING_TIMEOUT = 1.0


class Outage:
    """Retries of one Redis call: a jittered pause that grows to a second, one log line at each end, and
    `on_back` is called when it is over.
    """

    def __init__(self, call: str, on_back: Callable[[], None]) -> None:
        self._call = call
        self._on_back = on_back
        self._failures = 0

    @property
    def lasts(self) -> bool:
        return self._failures > 0

    async def pause(self, error: BaseException) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning(
                "Redis is out of reach for the %s; trying again until it is back: %s", self._call, error
            )
        # Full jitter, so that the processes of a fleet do not all come back in the same instant.
        await asyncio.sleep(random.uniform(0.02, min(1.0, 0.05 * 2**self._failures)))  # noqa: S311 - not a secret

    def over(self) -> None:
        """The call was answered."""
        if self._failures:
            logger.warning("Redis is back for the %s after %d attempts", self._call, self._failures)
            self._failures = 0
            self._on_back()


class Pool(aioredis.BlockingConnectionPool):
    """Hands out no connection of which the other end may be gone.

    A command on a connection that a firewall has forgotten, or whose Redis was replaced, fails or hangs, and
    afterwards nobody knows whether it was carried out. So the question comes before the command, and no
    command is ever sent twice.
    """

    async def ensure_connection(self, connection: Any) -> None:
        if connection.is_connected and connection._reader.at_eof():
            # Redis closed it. redis-py looks for that only where it expects no notices of maintenance.
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)
        now = asyncio.get_running_loop().time()
        if now - getattr(connection, "used_at", now) < UNUSED_FOR:
            return
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await connection._send_ping()
        except (RedisError, OSError):
            await connection.disconnect(nowait=True)
            await connection.connect()

    async def release(self, connection: Any) -> None:
        connection.used_at = asyncio.get_running_loop().time()
        await super().release(connection)


class UnixConnection(aioredis.UnixDomainSocketConnection):
    """redis-py's own shakes hands twice, the first time without any bound."""

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


def pool(host: dict[str, Any]) -> aioredis.ConnectionPool:
    """A pool for one host of CHANNEL_LAYERS with the options that this stack needs; what the project set
    itself is kept.

    `socket_timeout` None: any other value ends idle reads (redis-py#4091) and, before Python 3.12, loses
    task cancellations (gh-86296). A BlockingConnectionPool makes the 51st call wait for a connection
    instead of failing.
    """
    options = {
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "redis_connect_func": _shake_hands,
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


async def _shake_hands(connection: Any) -> None:
    """redis-py bounds the handshake by `socket_timeout` only: a Redis that hangs takes connections from its
    kernel's backlog, and would hold us for ever.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.on_connect()
    except TimeoutError as error:
        raise RedisTimeoutError("Redis took the connection and did not shake hands.") from error
