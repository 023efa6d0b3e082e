"""Limit the publishes of each user per second, in all processes together.

The bucket of a user is in Redis. Each process takes portions of it, so that most publishes ask nobody.

Private: docs/reference.md lists the public names.
"""

import asyncio
import enum
import logging
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any

from realtime import conf
from realtime.layers import groups
from realtime.layers.stamped import LAYER_ERRORS
from realtime.limits.buckets import TokenBucket
from realtime.limits.leases import Decision, Lease, portion
from realtime.limits.rates import BURST
from realtime.limits.recent import Recent
from realtime.limits.shared_counts import KEY
from realtime.process import tasks
from realtime.scripts import Argument, KeyScript, Script

logger = logging.getLogger("realtime.limits")

#: Seconds that a publish waits for Redis, at most. A Redis that works answers in less than a millisecond.
PATIENCE = 1.0
#: Seconds between two questions to a Redis that did not answer. No publish waits for these.
RETRY = 1.0
#: Users whose portions a process remembers. Of more, the one that published least recently is forgotten.
MAX_USERS = 10_000

# KEYS: the bucket. ARGV: the prefix, the rate per second, the burst, the portion. Returns what it grants.
_TAKE = Script(
    """
local rate, burst, portion = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local stored = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(stored[1]) or burst, tonumber(stored[2]) or now
-- The clock of a promoted Redis may be behind.
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
local granted = math.min(portion, math.floor(tokens))
redis.call('HSET', KEYS[1],
  'tokens', string.format('%.6f', tokens - granted), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return granted
"""
)


def _take_in_memory(store: dict[str, Any], key: str, arguments: Sequence[Argument], now: float) -> int:
    rate, burst, count = map(float, arguments)
    stored: tuple[float, float] = store.get(key, (burst, now))
    tokens = min(burst, stored[0] + max(0.0, now - stored[1]) * rate)
    granted = min(int(count), math.floor(tokens))
    store[key] = tokens - granted, now
    return granted


TAKE = KeyScript(_TAKE, _take_in_memory, "HMGET, HSET, PEXPIRE and TIME")


class Outcome(enum.Enum):
    """The answer to one publish."""

    ALLOWED = enum.auto()
    REFUSED = enum.auto()
    """The user publishes too much."""
    UNKNOWN = enum.auto()
    """Redis does not answer, and LIMITS_WITHOUT_REDIS is "refuse"."""


class Publishes:
    """The leases of one event loop, in one channel layer.

    Args:
        alias: The alias of the layer.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._leases: Recent[Lease] = Recent(MAX_USERS, Lease.lapsed)
        self._asking: dict[str, asyncio.Task[None]] = {}
        # Only while Redis does not answer: what this process counts itself.
        self._local: dict[str, TokenBucket] = {}
        self._is_away = False
        self._retry_at = 0.0

    async def take(self, user: str, rate: int) -> Outcome:
        """Count a publish.

        Args:
            user: The user, or what stands for an anonymous one.
            rate: MAX_PUBLISHES_PER_SECOND.
        """
        lease = self._leases.of(user, time.monotonic(), Lease)
        while True:
            now = time.monotonic()
            match lease.take(now):
                case Decision.ALLOW:
                    return Outcome.ALLOWED
                case Decision.REFUSE:
                    return Outcome.REFUSED
            if self._is_away:
                if now >= self._retry_at:
                    self._retry_at = now + RETRY
                    self._ask(user, lease, rate)
                return self._without_redis(user, rate, now)
            # One question for all publishes of the user that wait. Each of them looks again then.
            await tasks.shielded(self._ask(user, lease, rate))

    def _ask(self, user: str, lease: Lease, rate: int) -> "asyncio.Task[None]":
        """Return the task that asks Redis for a portion. The first call starts it."""
        task = self._asking.get(user)
        if task is None:
            task = self._asking[user] = tasks.start(self._ask_redis(user, lease, rate))
        return task

    async def _ask_redis(self, user: str, lease: Lease, rate: int) -> None:
        layer = groups.layer(self._alias)
        try:
            async with asyncio.timeout(PATIENCE):
                granted = await layer.run_script(
                    TAKE, f"{KEY}:publishes:{user}", (rate, BURST * rate, portion(rate))
                )
        except LAYER_ERRORS as error:
            if not self._is_away:
                logger.warning(
                    "The publishes of users are not counted across processes, because Redis does not answer "
                    "(%s). LIMITS_WITHOUT_REDIS says what happens meanwhile",
                    f"{type(error).__name__}: {error}".rstrip(": "),
                )
            self._is_away = True
            self._retry_at = time.monotonic() + RETRY
            return
        finally:
            # Here and not in a callback, which would run after the publishes that waited have looked again.
            del self._asking[user]
        if self._is_away:
            logger.warning("The publishes of users are counted across processes again")
            self._is_away = False
            self._local.clear()
        lease.granted(int(granted), rate, time.monotonic())

    def _without_redis(self, user: str, rate: int, now: float) -> Outcome:
        if conf.get().LIMITS_WITHOUT_REDIS == "refuse":
            return Outcome.UNKNOWN
        bucket = self._local.get(user)
        if bucket is None:
            if len(self._local) >= MAX_USERS:
                self._local.clear()
            bucket = self._local[user] = TokenBucket(rate, BURST * rate, now)
        return Outcome.ALLOWED if bucket.take(1, now) else Outcome.REFUSED


_here: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Publishes]] = (
    weakref.WeakKeyDictionary()
)


async def take(alias: str, user: str) -> Outcome:
    """Count a publish of a user.

    Args:
        alias: The alias of the channel layer that counts.
        user: The user, or what stands for an anonymous one.
    """
    rate = conf.get().MAX_PUBLISHES_PER_SECOND
    if rate is None:
        return Outcome.ALLOWED
    mine = _here.setdefault(asyncio.get_running_loop(), {})
    if alias not in mine:
        mine[alias] = Publishes(alias)
    return await mine[alias].take(user, rate)
