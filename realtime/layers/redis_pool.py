"""Connections to Redis: pools that hand out no dead connection, and a pause that outlives an outage.

A layer reaches Redis by an address, or asks Sentinel for the address of the master.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from realtime.process import tasks

logger = logging.getLogger("realtime.layers")

#: Seconds that a new connection may take. The handshake of the protocol may then take as long again.
CONNECT_TIMEOUT = 5.0
#: Seconds after which an unused connection must answer a PING before it is used again.
UNUSED_FOR = 5.0
#: Seconds for the answer to this PING. A Redis that works answers in less than a millisecond.
PING_TIMEOUT = 1.0
#: Seconds for the answer of one Sentinel. Three that do not answer cost less than the bound of a call.
SENTINEL_TIMEOUT = 1.0
#: Seconds between two questions to Sentinel for the master.
ASK_SENTINEL_EVERY = 1.0

#: The reason for which a node of Redis Cluster is refused.
CLUSTER = (
    "This Redis runs as a cluster (cluster_enabled:1), which the channel layers do not support: the core "
    "layer sends all commands to one node, which holds only some of the keys, and the pub/sub layer asks one "
    "node for the subscribers of all. Use a Redis without cluster mode, with Sentinel for failover, or "
    "several hosts of PubSubLayer for more throughput."
)

Address = tuple[str, int]


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
        self._refusals: set[str] = set()

    def refused(self, error: BaseException) -> None:
        """Note that the user in Redis may not run a command. Each refusal is logged once."""
        if (text := str(error)) not in self._refusals:
            self._refusals.add(text)
            logger.error("Redis refuses a command of the %s: %s", self._call, text)

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


class NamedRefusals:
    """A context manager that turns the refusal of a command in a script into that of all other refusals.

    It is a class because each message enters one, and a generator would cost three times as much.

    Args:
        commands: The commands of the scripts, in words. Redis does not say which of them it refused.
    """

    __slots__ = ("_commands",)

    def __init__(self, commands: str) -> None:
        self._commands = commands

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ResponseError) and "user executing the script can't" in str(error):
            raise NoPermissionError(f"{error} The scripts run {self._commands}.") from error


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


class Sentinels(Sentinel):
    """The Sentinels of one master, each asked in a bounded time.

    redis-py repeats a question to a Sentinel that does not answer, with pauses. With one dead Sentinel of
    three, a call to the layer could then exceed its bound.

    Args:
        sentinels: The host and the port of each.
        sentinel_kwargs: Options of the connections to them, such as `password` and `ssl`.
    """

    def __init__(self, sentinels: Sequence[Address], sentinel_kwargs: dict[str, Any] | None) -> None:
        once = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
        options = {**once, **(sentinel_kwargs or {})}
        super().__init__(sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]  # redis-py's

    async def discover_master(self, service_name: str) -> Address:
        """Return the address of the master.

        Raises:
            redis.asyncio.sentinel.MasterNotFoundError: No Sentinel names a master that works. The text has
                the answer of each.
        """
        answers = []
        for sentinel in tuple(self.sentinels):
            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT):
                    masters: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError, TimeoutError) as error:
                answers.append(f"{_name(sentinel)}: {error or 'no answer in time'}")
                continue
            if (state := masters.get(service_name)) is None:
                answers.append(f"{_name(sentinel)} does not know this name")
            elif not self.check_master_state(state, service_name):
                answers.append(f"{_name(sentinel)} says that it is down")
            else:
                # The next question goes to a Sentinel that answered.
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
        raise MasterNotFoundError(
            f"No Sentinel names a working master {service_name!r} ({'; '.join(answers)})."
        )


def _name(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


class SentinelPool(SentinelConnectionPool, Pool):
    """A pool of connections to the master that Sentinel names.

    While the pool is in use, it asks Sentinel every second. If the master changed, connections to the old one
    are cut, also those in use. A master that hangs closes none of them, nor does a host that vanished:
    without the cut, a subscriber or a blocked read would wait on it until the next look of the healer.
    """

    _watching: asyncio.Task[None] | None = None

    async def ensure_connection(self, connection: Any) -> None:
        if self._watching is None:
            self._watching = tasks.create(self._watch_master(), name="realtime sentinel")
        await super().ensure_connection(connection)

    async def _watch_master(self) -> None:
        while True:
            await asyncio.sleep(ASK_SENTINEL_EVERY)
            # Without an answer nothing changes. The next new connection tells its caller the reason.
            with suppress(RedisError, OSError):
                await self.get_master_address()

    async def get_master_address(self) -> Address:
        before = self.master_address
        address: Address = await super().get_master_address()  # type: ignore[no-untyped-call]  # redis-py's
        if before not in (None, address):
            logger.warning("Sentinel names another master: %s:%d instead of %s:%d", *address, *before)
            self._cut_connections_except(address)
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            if self._watching is not None:
                self._watching.cancel()
                self._watching = None
            # The whole pool is being closed. redis-py leaves the connections to the Sentinels open.
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()

    def _cut_connections_except(self, master: Address) -> None:
        connections: set[Any] = self._in_use_connections
        for connection in tuple(connections):
            if connection._writer is not None and (connection.host, connection.port) != master:
                # An orderly close would wait until the other end has taken all bytes.
                connection._writer.transport.abort()


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
    options = {"socket_timeout": None, "socket_connect_timeout": CONNECT_TIMEOUT, **host}
    options = {"max_connections": 50, "timeout": 20, **options}
    address = options.pop("address", None)
    if address is None or not address.startswith("unix:"):
        options.setdefault("socket_keepalive", True)
    if address is None and "master_name" in options:
        options.setdefault("redis_connect_func", shake_hands_with_master)
        sentinels = Sentinels(options.pop("sentinels"), options.pop("sentinel_kwargs", None))
        name = options.pop("master_name")
        return SentinelPool(name, sentinels, **options)  # type: ignore[no-untyped-call]  # redis-py's
    options.setdefault("redis_connect_func", shake_hands)
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
        redis.exceptions.ResponseError: It is a node of Redis Cluster.
    """
    await _introduce(connection, within)


async def shake_hands_with_master(connection: Any, within: float = CONNECT_TIMEOUT) -> None:
    """Do as `shake_hands`, and refuse a Redis that is no master, as the guidelines for Sentinel clients ask.

    A Sentinel that was cut off from the others may name the old master. A replica takes PUBLISH without an
    error, and passes the message to no other Redis.

    Raises:
        redis.exceptions.ConnectionError: Redis is a replica. The next attempt asks Sentinel again.
    """
    if (role := (await _introduce(connection, within)).get("role", "master")) != "master":
        raise RedisConnectionError(
            f"Sentinel names {connection.host}:{connection.port} as the master, but it is a {role}."
        )


async def _introduce(connection: Any, within: float) -> dict[str, Any]:
    """Make the handshake, and return what Redis says about itself. It is empty before Redis 6."""
    try:
        async with asyncio.timeout(within):
            await connection.on_connect()
            about = await _hello(connection)
    except TimeoutError as error:
        raise RedisTimeoutError("Redis took the connection but did not answer the handshake.") from error
    if about.get("mode") == "cluster":
        raise ResponseError(CLUSTER)
    return about


async def _hello(connection: Any) -> dict[str, Any]:
    """Ask Redis for its mode and its role by HELLO, which no ACL can forbid (INFO and ROLE can be)."""
    try:
        await connection.send_command("HELLO")
        answer = await connection.read_response()
    except ResponseError:
        return {}
    # A list of names and values, or with RESP3 a dict.
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
