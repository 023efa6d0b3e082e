"""Every setting of `REALTIME = {…}`: its default, its unit, and the relations between them.

The declaration is the default. A project overrides single keys in its Django settings; nothing is written
back to them.
"""

import difflib
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from realtime.liveness.connection import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one project. Times are seconds, sizes are bytes; None switches a limit off."""

    #: A connection is pinged when this time has passed since its last ping.
    PING_INTERVAL: float = 20.0
    #: Dead when the oldest unanswered ping, counted from the last pong if later, is older than this.
    PONG_TIMEOUT: float = 8.0
    #: After a write, a ping leaves within this time.
    PROBE_AFTER: float = 5.0
    #: A ping leaves whenever this many bytes were written since the last one.
    PROBE_BYTES: int = 256 * 1024
    #: Evicted as slow above this, once the oldest unanswered ping is a second old.
    MAX_UNACKED_BYTES: int = 4 * 1024 * 1024
    #: Evicted as slow when more than this waits unsent in this process, beside the message under way.
    MAX_UNSENT_BYTES: int = 1024 * 1024
    #: If more than this waits unsent in this process for all connections together, those that have read least
    #: are evicted as slow.
    MAX_UNSENT_TOTAL_BYTES: int = 256 * 1024 * 1024
    #: On the pub/sub layer, messages that come faster than this process can write them wait up to this size;
    #: above it the oldest are dropped.
    MAX_QUEUED_BYTES: int = 64 * 1024 * 1024
    #: On Daphne, frames are written to the socket itself while nothing is queued before them; only where the
    #: server is known well enough, and never needed for correctness.
    DIRECT_WRITES: bool = True
    #: A large group that has just been written to waits so long, at most, for more to leave with its next
    #: message; 0 never waits.
    COALESCE_WINDOW: float = 0.002
    #: A write that the server keeps suspended this long ends the connection as slow.
    SEND_TIMEOUT: float = 10.0
    #: A client that is closed and takes nothing of what waits for it for this long is cut off.
    CLOSE_TIMEOUT: float = 2.0
    #: A client that is closed is cut off after this time, whether it reads or not.
    CLOSE_LIMIT: float = 60.0
    #: Closed when the client sent no application frame for this long.
    IDLE_TIMEOUT: float | None = None
    #: Evicted when one handler runs longer.
    HANDLER_TIMEOUT: float | None = None
    #: The largest message taken from a client, after reassembly.
    MAX_MESSAGE_BYTES: int = 64 * 1024
    #: How many frames may come while a handler is busy with one.
    MAX_INBOUND_QUEUE: int = 100
    #: Told to clients: nothing at all from the server for this long means that the socket is dead.
    MAX_SILENCE: float = 45.0
    #: How far apart rounds are.
    ROUND_INTERVAL: float = 10.0
    #: How long a round waits for the answers of processes.
    ROUND_TIMEOUT: float = 5.0
    #: How many rounds in a row a process may leave unanswered before it is lost.
    MISSES_ALLOWED: int = 1
    #: How many echoes in a row a process may miss before it sends its clients to other processes; None keeps
    #: them. Each interval it sends itself one echo, and a second one where the first does not come back.
    MAX_ECHOES_MISSED: int | None = 6
    #: How long a planned stop may take: a process that is told to stop ends its connections within this.
    DRAIN_TIMEOUT: float = 6.0
    #: Clients of a process that stops are told to come back within this time, each at its own moment.
    RECONNECT_WINDOW: float = 5.0
    #: Records are deleted this long after they were closed, memberships after they were left; a month. None
    #: keeps them for ever.
    KEEP_CLOSED: float | None = 2_592_000.0
    #: What records and logs keep of a client: "full", its address and user agent; "network", only the first
    #: 24 bits of an IPv4 address or 48 of an IPv6 one; "none", neither.
    CLIENT_DETAILS: str = "full"
    #: "thread", or "inline" for test suites: records are written in the thread and transaction of the test.
    LEDGER: str = "thread"
    #: Thresholds of the garbage collector (gc.set_threshold) in a server process; None leaves Python's own.
    GC_THRESHOLD: tuple[int, int, int] | None = (5_000, 10, 10)
    #: Dotted path to `policy(scope, action, group) -> bool`, sync or async; `action` is "join" or "publish".
    POLICY: str = "realtime.policy.default_policy"

    def limits(self) -> Limits:
        """The part that `liveness` decides by."""
        return Limits(
            ping_interval=self.PING_INTERVAL,
            pong_timeout=self.PONG_TIMEOUT,
            probe_after=self.PROBE_AFTER,
            probe_bytes=self.PROBE_BYTES,
            max_unacked_bytes=self.MAX_UNACKED_BYTES,
            idle_timeout=self.IDLE_TIMEOUT,
        )


#: Settings that may be None, or zero; every other number must be above zero.
_MAY_BE_NONE = {"IDLE_TIMEOUT", "HANDLER_TIMEOUT", "KEEP_CLOSED", "GC_THRESHOLD", "MAX_ECHOES_MISSED"}
_MAY_BE_ZERO = {"COALESCE_WINDOW", "MISSES_ALLOWED"}


def problems(given: Any) -> list[str]:
    """One sentence for each key, value or relation in `REALTIME` that cannot work; empty when all is well."""
    if not isinstance(given, dict):
        return [f"REALTIME is {given!r}; set a dict of settings."]
    names = {field.name: field for field in fields(Settings)}
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
    if key == "POLICY":
        return None if isinstance(value, str) and "." in value else f"POLICY is {value!r}; set a dotted path."
    if key == "LEDGER":
        return None if value in ("thread", "inline") else f'LEDGER is {value!r}; set "thread" or "inline".'
    if key == "CLIENT_DETAILS":
        known = ("full", "network", "none")
        return None if value in known else f'{key} is {value!r}; set "full", "network" or "none".'
    if key == "DIRECT_WRITES":
        return None if isinstance(value, bool) else f"DIRECT_WRITES is {value!r}; set True or False."
    if value is None and key in _MAY_BE_NONE:
        return None
    if key == "GC_THRESHOLD" and not _is_threshold(value):
        return f"{key} is {value!r}; set three whole numbers above zero, or None."
    if key == "GC_THRESHOLD":
        return None
    whole = key.endswith(("_BYTES", "_QUEUE", "_ALLOWED", "_MISSED"))
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{key} is {value!r}; set {'a whole number' if whole else 'a number of seconds'}."
    if value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
        return f"{key} is {value!r}; set it above zero."
    return None


def _is_threshold(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 3:
        return False
    # Zero for the first would switch the collector off, and cycles would never be freed.
    return all(type(each) is int and each > 0 for each in value)


def _wrong_relations(settings: Settings) -> list[str]:
    """Relations without which liveness would judge wrongly."""
    found = []
    if settings.PONG_TIMEOUT >= settings.PING_INTERVAL:
        found.append(
            f"PONG_TIMEOUT ({settings.PONG_TIMEOUT}) must be below PING_INTERVAL ({settings.PING_INTERVAL}): "
            "else the next ping leaves before the last one was judged."
        )
    if settings.MAX_SILENCE <= 2 * settings.PING_INTERVAL:
        found.append(
            f"MAX_SILENCE ({settings.MAX_SILENCE}) must be above 2 * PING_INTERVAL "
            f"({2 * settings.PING_INTERVAL}): a client that talks is pinged no oftener than that."
        )
    if settings.ROUND_TIMEOUT >= settings.ROUND_INTERVAL:
        found.append(
            f"ROUND_TIMEOUT ({settings.ROUND_TIMEOUT}) must be below ROUND_INTERVAL "
            f"({settings.ROUND_INTERVAL}): else the next round comes before this one was judged."
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
            f"({settings.MAX_UNACKED_BYTES}): else a client is called slow before it was asked."
        )
    return found


@cache
def get() -> Settings:
    """The settings in force.

    Raises ImproperlyConfigured with every sentence of `problems()` when they cannot work.
    """
    given = getattr(django_settings, "REALTIME", {})
    if found := problems(given):
        raise ImproperlyConfigured(" ".join(found))
    return Settings(**given)


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "REALTIME":
        get.cache_clear()


setting_changed.connect(_forget)
