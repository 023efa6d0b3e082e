"""The settings of `REALTIME = {…}`: their defaults, types and units, and the relations between them.

The declaration below is the default. A project overrides single keys in its Django settings. Nothing is
written back to those.

Private: docs/reference.md lists the public names.
"""

import difflib
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

import msgspec
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from msgspec import Meta

from realtime import addresses, patterns
from realtime.addresses import PROXIES, UNIX
from realtime.history import retention
from realtime.history.retention import Retention
from realtime.liveness.connection import Limits

# The type of each setting. Its description completes the sentence "… is 0; set …" about a wrong value.
Seconds: TypeAlias = Annotated[float, Meta(gt=0, description="a number of seconds above zero")]
SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, description="a number of seconds, zero or more")]
Whole: TypeAlias = Annotated[int, Meta(gt=0, description="a whole number above zero")]
WholeOrZero: TypeAlias = Annotated[int, Meta(ge=0, description="a whole number, zero or more")]
Switch: TypeAlias = Annotated[bool, Meta(description="True or False")]
DottedPath: TypeAlias = Annotated[str, Meta(pattern=r"\.", description="a dotted path")]
# Zero for the first threshold would switch the collector off, and cycles would never be freed.
Thresholds: TypeAlias = Annotated[
    tuple[Whole, Whole, Whole], Meta(description="three whole numbers above zero")
]
Details: TypeAlias = Annotated[
    Literal["full", "network", "none"], Meta(description='"full", "network" or "none"')
]
LedgerKind: TypeAlias = Annotated[Literal["thread", "inline"], Meta(description='"thread" or "inline"')]
# `retention.problems` looks at the patterns and their values.
Patterns: TypeAlias = Annotated[
    dict[str, Any], Meta(description='a dict such as {"public.*": {"size": 300, "ttl": 300}}')
]
GroupPatterns: TypeAlias = Annotated[
    tuple[str, ...], Meta(description='a list of patterns of group names such as ["room.*"]')
]
Origins: TypeAlias = Annotated[
    tuple[str, ...], Meta(description='a list of origins such as ["https://example.com"]')
]
Networks: TypeAlias = Annotated[
    tuple[str, ...], Meta(description='a list of addresses and networks such as ["10.0.0.0/8"]')
]
WithoutRedis: TypeAlias = Annotated[Literal["accept", "refuse"], Meta(description='"accept" or "refuse"')]


# Equal only to itself, so that it can be a key of `_retention`.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """The settings of one project. Times are seconds, sizes are bytes. None switches a limit off."""

    #: A connection is pinged when this time has passed since its last ping.
    PING_INTERVAL: Seconds = 20.0
    #: A client is dead if it has not answered a ping for this long. The time counts from the oldest
    #: unanswered ping, or from the last pong if that came later.
    PONG_TIMEOUT: Seconds = 8.0
    #: After a write, a ping is sent within this time.
    PROBE_AFTER: Seconds = 5.0
    #: If this many bytes were written since the last ping, a ping is sent immediately.
    PROBE_BYTES: Whole = 256 * 1024
    #: A client with more unacknowledged bytes than this is evicted as slow, once its oldest unanswered ping
    #: is a second old.
    MAX_UNACKED_BYTES: Whole = 4 * 1024 * 1024
    #: A client is evicted as slow if more than this waits unsent for it in this process. The message that is
    #: being sent does not count.
    MAX_UNSENT_BYTES: Whole = 1024 * 1024
    #: If more than this waits unsent in this process for all connections together, the clients that have
    #: read least are evicted as slow.
    MAX_UNSENT_TOTAL_BYTES: Whole = 256 * 1024 * 1024
    #: On the pub/sub layer, messages that arrive faster than this process writes them wait up to this size.
    #: Above it the oldest are dropped.
    MAX_QUEUED_BYTES: Whole = 64 * 1024 * 1024
    #: On Daphne, frames are written directly to the socket while nothing is queued before them. This happens
    #: only if the server has the internals that are known here. Correctness never depends on it.
    DIRECT_WRITES: Switch = True
    #: After a write to a large group, the next write waits at most this long, so that further messages share
    #: it. 0 never waits.
    COALESCE_WINDOW: SecondsOrZero = 0.002
    #: A write that the server keeps suspended this long ends the connection as slow.
    SEND_TIMEOUT: Seconds = 10.0
    #: After a close, a client that reads nothing of the rest for this long is cut off.
    CLOSE_TIMEOUT: Seconds = 2.0
    #: After a close, a client is cut off after this time, even if it reads.
    CLOSE_LIMIT: Seconds = 60.0
    #: A connection is closed when its client sent no application frame for this long.
    IDLE_TIMEOUT: Seconds | None = None
    #: The same for a connection that neither this process nor the server pings. None keeps it, even if its
    #: client has vanished. A client that only listens is closed too, and must be one that comes back.
    UNPINGED_IDLE_TIMEOUT: Seconds | None = None
    #: A connection is evicted when one of its handlers runs longer.
    HANDLER_TIMEOUT: Seconds | None = None
    #: When a connection has ended, its handlers, `disconnect` included, are cancelled after this time. A
    #: handler that runs already has 3/4 of it. Daphne kills consumers 10 s after their connection.
    DISCONNECT_TIMEOUT: Seconds = 8.0
    #: The largest message accepted from a client, after reassembly.
    MAX_MESSAGE_BYTES: Whole = 64 * 1024
    #: The number of frames that may wait while a handler is busy with another.
    MAX_INBOUND_QUEUE: Whole = 100
    #: Told to clients: if the server sends nothing at all for this long, the socket is dead.
    MAX_SILENCE: Seconds = 45.0
    #: The time from one round to the next.
    ROUND_INTERVAL: Seconds = 10.0
    #: The time that a round waits for the answers of processes.
    ROUND_TIMEOUT: Seconds = 5.0
    #: The number of rounds in a row that a process may leave unanswered. After one more it is lost.
    MISSES_ALLOWED: WholeOrZero = 1
    #: The number of echoes in a row that a process may miss before it sends its clients to other processes;
    #: None keeps them. In each interval a process sends itself one echo, and a second one if the first does
    #: not come back.
    MAX_ECHOES_MISSED: Whole | None = 6
    #: A process that is told to stop ends its connections within this time.
    DRAIN_TIMEOUT: Seconds = 6.0
    #: Clients of a process that stops are told to reconnect within this time, each at a moment of its own.
    RECONNECT_WINDOW: Seconds = 5.0
    #: Records are deleted this long after they were closed, memberships after they were left. The default is
    #: 30 days. None keeps them for ever.
    KEEP_CLOSED: Seconds | None = 2_592_000.0
    #: The details of a client that records and logs keep. "full": its address and user agent. "network": only
    #: the first 24 bits of an IPv4 address, or 48 of an IPv6 one. "none": neither.
    CLIENT_DETAILS: Details = "full"
    #: Pages of these origins may connect, in addition to those of the site itself and those of Django's
    #: CSRF_TRUSTED_ORIGINS. `https://*.example.com` stands for all subdomains.
    ALLOWED_ORIGINS: Origins = ()
    #: A client that sends no Origin, as an app that is no browser, may connect without a ticket.
    ALLOW_MISSING_ORIGIN: Switch = False
    #: A ticket must be used within this time.
    TICKET_TTL: Seconds = 60.0
    #: A client that connected with a ticket must send another one within this time; None never asks for one.
    CONNECTION_TTL: Seconds | None = 3600.0
    #: A client is asked for a refresh this long before its session or its CONNECTION_TTL ends.
    REFRESH_BEFORE: Seconds = 30.0
    #: While Redis cannot say if a ticket was used before: "refuse" it, or "accept" it.
    TICKETS_WITHOUT_REDIS: WithoutRedis = "refuse"
    #: The proxies in front of the servers: their addresses and networks, or "unix" for a Unix socket. Only
    #: what they say about the address of a client is believed.
    TRUSTED_PROXIES: Networks = ()
    #: The addresses and networks that may see metrics and readiness. "proxies" stands for TRUSTED_PROXIES.
    OPERATORS: Networks = ("127.0.0.0/8", "::1", "proxies")
    #: The open connections of one user, in all processes.
    MAX_CONNECTIONS_PER_USER: Whole | None = 20
    #: The open connections of anonymous clients with one address, in all processes. All addresses of an IPv6
    #: network of 64 bits count as one.
    MAX_CONNECTIONS_PER_ADDRESS: Whole | None = 100
    #: The open connections of logged-in users with one address, in all processes.
    MAX_USER_CONNECTIONS_PER_ADDRESS: Whole | None = 1000
    #: The open connections of one server process.
    MAX_CONNECTIONS: Whole | None = None
    #: The handshakes of one address per second in one process, on average over RECONNECT_WINDOW.
    MAX_HANDSHAKES_PER_SECOND: Whole | None = 50
    #: The groups of one connection.
    MAX_GROUPS: Whole | None = 100
    #: The frames of one client per second, on average over a few seconds.
    MAX_FRAMES_PER_SECOND: Whole | None = 100
    #: The bytes of its frames per second, on average over a few seconds.
    MAX_BYTES_PER_SECOND: Whole | None = 256 * 1024
    #: The frames `publish` of one user per second in all processes, on average over a few seconds. Anonymous
    #: clients with one address count as one user.
    MAX_PUBLISHES_PER_SECOND: Whole | None = 50
    #: While Redis cannot say what other processes hold: "accept" what this process can count itself, or
    #: "refuse" new connections and publishes.
    LIMITS_WITHOUT_REDIS: WithoutRedis = "accept"
    #: "thread", or "inline" for test suites: records are written in the thread and transaction of the test.
    LEDGER: LedgerKind = "thread"
    #: Thresholds of the garbage collector (gc.set_threshold) in a server process. None keeps Python's own.
    GC_THRESHOLD: Thresholds | None = (5_000, 10, 10)
    #: The default of `on_commit` for `publish` and `apublish`: messages wait for the commit of the open
    #: transaction.
    PUBLISH_ON_COMMIT: Switch = False
    #: The groups that keep their recent messages: patterns of names, in which `*` stands for any characters,
    #: each with the number of messages (`size`) and the seconds after the latest one (`ttl`). The first
    #: pattern that matches counts.
    HISTORY: Patterns = field(default_factory=dict)
    #: Recent messages of all groups together that a server process keeps in memory for clients that come
    #: back. What is not there is read from Redis.
    HISTORY_TAIL_BYTES: Whole = 64 * 1024 * 1024
    #: The groups that are tracked for presence: patterns of names, where `*` stands for any characters. If
    #: there is none, it is not tracked either who is online.
    PRESENCE: GroupPatterns = ("*",)
    #: A user has left, or is offline, when the last connection has been gone for this long. A user that comes
    #: back within this time was never away.
    PRESENCE_GRACE: SecondsOrZero = 15.0
    #: The number of threads for the handlers of synchronous consumers. None runs them in the one thread that
    #: all synchronous code of the process shares, as Channels does.
    THREADS: Whole | None = None
    #: Dotted path to `policy(scope, action, group) -> bool`, sync or async. `action` is "join", "publish" or
    #: "presence".
    POLICY: DottedPath = "realtime.policy.default_policy"

    def limits(self) -> Limits:
        """Return the part of the settings that liveness needs."""
        return Limits(
            ping_interval=self.PING_INTERVAL,
            pong_timeout=self.PONG_TIMEOUT,
            probe_after=self.PROBE_AFTER,
            probe_bytes=self.PROBE_BYTES,
            max_unacked_bytes=self.MAX_UNACKED_BYTES,
            idle_timeout=self.IDLE_TIMEOUT,
            unpinged_idle_timeout=self.UNPINGED_IDLE_TIMEOUT,
        )

    def retention(self, group: str) -> Retention | None:
        """Return how much history a group keeps; None if it keeps none."""
        return _retention(self, group) if self.HISTORY else None

    def tracks_presence(self, group: str) -> bool:
        """Return True if the users of a group are tracked."""
        return "*" in self.PRESENCE or _tracks_presence(self, group)


_TYPES = get_type_hints(Settings, include_extras=True)


@lru_cache(maxsize=10_000)
def _retention(settings: Settings, group: str) -> Retention | None:
    return retention.find(settings.HISTORY, group)


@lru_cache(maxsize=10_000)
def _tracks_presence(settings: Settings, group: str) -> bool:
    return any(patterns.matches(pattern, group) for pattern in settings.PRESENCE)


def problems(given: Any) -> list[str]:
    """Find each key, value and relation in `REALTIME` that cannot work.

    Args:
        given: The project's `REALTIME`, of any type.

    Returns:
        One sentence for each problem. Relations are checked only if all keys and values are right.
    """
    if not isinstance(given, dict):
        return [f"REALTIME is {given!r}; set a dict of settings."]
    names = [field.name for field in fields(Settings)]
    found = []
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(str(key).upper(), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(names)}."
            found.append(f"REALTIME has no setting {key!r}; {hint}")
    known = {key: value for key, value in given.items() if key in names}
    found += [sentence for key, value in known.items() if (sentence := _wrong_value(key, value))]
    return found or _wrong_relations(Settings(**known))


def _wrong_value(key: str, value: Any) -> str | None:
    try:
        msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError:
        return f"{key} is {value!r}; set {_description(_TYPES[key])}."
    return None


def _description(type_: Any) -> str:
    """Describe the values that a type of a setting accepts."""
    alternatives = get_args(type_)
    if NoneType in alternatives:
        return f"{_description(alternatives[0])}, or None"
    return str(type_.__metadata__[0].description)


def _wrong_relations(settings: Settings) -> list[str]:
    """Find relations with which liveness or rounds would judge wrongly."""
    found = list(retention.problems(settings.HISTORY))
    for pattern in settings.PRESENCE:
        if wrong := patterns.problem(pattern):
            found.append(f"PRESENCE has the pattern {pattern!r}: {wrong}")
    for name, words in (("TRUSTED_PROXIES", (UNIX,)), ("OPERATORS", (UNIX, PROXIES))):
        for network in getattr(settings, name):
            if wrong := addresses.problem(network, words):
                found.append(f"{name} has {network!r}: {wrong}.")
    for origin in settings.ALLOWED_ORIGINS:
        if "://" not in origin or origin.rstrip("/") != origin:
            found.append(
                f"ALLOWED_ORIGINS has {origin!r}; write it with its scheme and without a path, like "
                "https://example.com."
            )
    if settings.MAX_BYTES_PER_SECOND and settings.MAX_BYTES_PER_SECOND < settings.MAX_MESSAGE_BYTES:
        found.append(
            f"MAX_BYTES_PER_SECOND ({settings.MAX_BYTES_PER_SECOND}) must not be below MAX_MESSAGE_BYTES "
            f"({settings.MAX_MESSAGE_BYTES}): otherwise an allowed message is above the rate."
        )
    if settings.PONG_TIMEOUT >= settings.PING_INTERVAL:
        found.append(
            f"PONG_TIMEOUT ({settings.PONG_TIMEOUT}) must be below PING_INTERVAL ({settings.PING_INTERVAL}): "
            "otherwise the next ping is sent before the last one was judged."
        )
    if settings.MAX_SILENCE <= 2 * settings.PING_INTERVAL:
        found.append(
            f"MAX_SILENCE ({settings.MAX_SILENCE}) must be above 2 * PING_INTERVAL "
            f"({2 * settings.PING_INTERVAL}): a client that sends frames is pinged only that often."
        )
    if settings.ROUND_TIMEOUT >= settings.ROUND_INTERVAL:
        found.append(
            f"ROUND_TIMEOUT ({settings.ROUND_TIMEOUT}) must be below ROUND_INTERVAL "
            f"({settings.ROUND_INTERVAL}): otherwise the next round begins before this one was judged."
        )
    if settings.MAX_UNSENT_BYTES > settings.MAX_UNSENT_TOTAL_BYTES:
        found.append(
            f"MAX_UNSENT_BYTES ({settings.MAX_UNSENT_BYTES}) must not be above MAX_UNSENT_TOTAL_BYTES "
            f"({settings.MAX_UNSENT_TOTAL_BYTES}): otherwise one connection may use more than all together."
        )
    if settings.CLOSE_TIMEOUT > settings.CLOSE_LIMIT:
        found.append(
            f"CLOSE_TIMEOUT ({settings.CLOSE_TIMEOUT}) must not be above CLOSE_LIMIT "
            f"({settings.CLOSE_LIMIT}): otherwise a client is cut off before it has had the time to read."
        )
    if settings.PROBE_BYTES > settings.MAX_UNACKED_BYTES:
        found.append(
            f"PROBE_BYTES ({settings.PROBE_BYTES}) must not be above MAX_UNACKED_BYTES "
            f"({settings.MAX_UNACKED_BYTES}): otherwise a client is judged slow before it was pinged."
        )
    return found


@cache
def get() -> Settings:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: They cannot work. The message has every sentence of `problems`.
    """
    given = getattr(django_settings, "REALTIME", {})
    if found := problems(given):
        raise ImproperlyConfigured(" ".join(found))
    return Settings(**given)


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "REALTIME":
        get.cache_clear()
        _retention.cache_clear()
        _tracks_presence.cache_clear()


setting_changed.connect(_forget)
