"""Whether a connection lives, and whether a process does.

Silence is an answer only to a question: dead is what did not answer a question in time, never what was merely
quiet, nor what could not answer because this process was stopped. So every `now` of a connection is a reading
of `RunningTime`, in seconds, and answers that have arrived are told before a verdict is asked for.

A connection that stopped answering is found, in running time, within `ping_interval + pong_timeout` where
nothing is sent either way, `probe_after + pong_timeout` after the first write, and
`2 * ping_interval + pong_timeout` where it goes on sending frames of its own.
"""

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple, TypeVar


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a connection; durations in seconds."""

    ping_interval: float = 20.0
    pong_timeout: float = 8.0
    """Counted from the oldest unanswered ping, or from the last pong if that came later."""
    probe_after: float = 5.0
    """Bytes that are not known to have arrived are followed by a ping within this time."""
    probe_bytes: int = 256 * 1024
    """So many bytes since the last ping are followed by one at once."""
    max_unacked_bytes: int = 4 * 1024 * 1024
    slow_after: float = 1.0
    """Above `max_unacked_bytes`, a connection is slow once its oldest unanswered ping is this old."""
    idle_timeout: float | None = None
    """A client that sends no frame of its own for so long is idle."""


class Verdict(enum.Enum):
    """What is to be done with a connection now."""

    ALIVE = enum.auto()
    PROBE = enum.auto()
    """Send a ping."""
    SILENT = enum.auto()
    """Evict: a ping was not answered in time."""
    SLOW = enum.auto()
    """Evict: it reads more slowly than it is written to."""
    IDLE = enum.auto()
    """Evict: it sent nothing of its own for too long."""


class _Ping(NamedTuple):
    n: int
    sent_at: float
    written: int
    """The bytes that were written before it, which its pong acknowledges."""
    messages: int
    """The same, counted in messages."""


class Liveness:
    """What is known of one connection, and what follows from it.

    `spread`, in [0, 1), is the connection's own offset: it keeps thousands that were opened, or written to,
    in one instant from all being pinged in one instant. One that is not `pingable` can only become idle.
    """

    __slots__ = (
        "_acked",
        "_acked_messages",
        "_heard_at",
        "_last_n",
        "_last_ping_at",
        "_last_pong_at",
        "_limits",
        "_messages",
        "_notice_above",
        "_pingable",
        "_probe_at",
        "_regular_ping_at",
        "_spread",
        "_unanswered",
        "_written",
        "_written_at_ping",
        "last_proof_at",
        "round_trip",
    )

    def __init__(self, limits: Limits, now: float, *, spread: float, pingable: bool = True) -> None:
        self._limits = limits
        self._spread = spread
        self._pingable = pingable
        # Numbered without gaps, oldest first; a list, because an empty deque takes 600 bytes per connection.
        self._unanswered: list[_Ping] = []
        self._last_n = 0
        self._last_ping_at = self._last_pong_at = self._heard_at = now
        self._regular_ping_at = now + limits.ping_interval * (0.5 + 0.5 * spread)
        self._probe_at = inf
        self._written = self._written_at_ping = self._acked = 0
        self._messages = self._acked_messages = 0
        # Writes up to so many bytes in all change nothing: the next ping is arranged for.
        self._notice_above: float = -1
        self.last_proof_at = now
        """When the client last sent anything."""
        self.round_trip: float | None = None
        """From the last answered ping to its pong."""

    def pinged(self, now: float) -> int:
        """A ping leaves now; returns its number, counted from 1."""
        self._last_n += 1
        self._unanswered.append(_Ping(self._last_n, now, self._written, self._messages))
        self._written_at_ping = self._written
        self._last_ping_at = now
        self._regular_ping_at = now + self._limits.ping_interval
        self._probe_at = inf
        self._arrange()
        return self._last_n

    def ponged(self, n: int, now: float) -> bool:
        """The client answered ping `n`, and with it every earlier one.

        False, and nothing happens, for a number that is not outstanding: never sent, or already answered.
        """
        if not self._unanswered or not self._unanswered[0].n <= n <= self._last_n:
            return False
        position = n - self._unanswered[0].n
        answered = self._unanswered[position]
        del self._unanswered[: position + 1]
        self._acked, self._acked_messages = answered.written, answered.messages
        self.round_trip = now - answered.sent_at
        self._last_pong_at = self.last_proof_at = now
        if self.unacked_bytes and not self._unanswered:
            self._probe_at = min(self._probe_at, now + self._limits.probe_after)
        self._arrange()
        return True

    def heard(self, now: float) -> None:
        """The client sent a frame other than a pong.

        This postpones the next regular ping, but not for ever, and no probe: it may send without reading.
        """
        interval = self._limits.ping_interval
        self._regular_ping_at = min(now + interval, self._last_ping_at + 2 * interval)
        self._heard_at = self.last_proof_at = now

    def wrote(self, size: int, now: float, messages: int = 1) -> bool:
        """So many bytes were handed to the transport. False if `look_at` is as before, or was due already."""
        self._messages += messages
        self._written += size
        # Almost every write ends here: this is done for each member of a group.
        return self._written > self._notice_above and self._notice(now)

    def _notice(self, now: float) -> bool:
        """Arrange for a ping that what was written calls for."""
        if self._written - self._written_at_ping >= self._limits.probe_bytes:
            probe_at = now
        elif not self._unanswered and self._probe_at == inf:
            probe_after = self._limits.probe_after
            # At most `probe_after` from now, whichever is the later: the last proof is not in the future.
            probe_at = max(self.last_proof_at + probe_after, now + probe_after * self._spread)
        else:
            # Above the cap on unacknowledged bytes, the age of a ping that is under way decides.
            return self._slow_at < inf
        moved = probe_at < self._probe_at
        self._probe_at = min(self._probe_at, probe_at)
        self._arrange()
        return moved

    def _arrange(self) -> None:
        """Find out which writes the next ping, as it is arranged for, has to take no notice of."""
        limits = self._limits
        above: float = -1
        if self._unanswered or self._probe_at < inf:
            above = self._written_at_ping + limits.probe_bytes - 1
            if self._written > above:
                # That ping is due already.
                above = inf
            if self._unanswered:
                above = min(above, self._acked + limits.max_unacked_bytes)
        self._notice_above = above

    def verdict(self, now: float) -> Verdict:
        """What is to be done now; a cause to evict goes before a ping that is due."""
        if now >= self._silent_at:
            return Verdict.SILENT
        if now >= self._slow_at:
            return Verdict.SLOW
        if now >= self._idle_at:
            return Verdict.IDLE
        if now >= self._ping_at:
            return Verdict.PROBE
        return Verdict.ALIVE

    @property
    def look_at(self) -> float:
        """When the verdict ceases to be ALIVE if nothing else happens; infinite for never."""
        return min(self._silent_at, self._slow_at, self._idle_at, self._ping_at)

    @property
    def outstanding(self) -> int:
        """How many pings are unanswered."""
        return len(self._unanswered)

    @property
    def unacked_bytes(self) -> int:
        """How many bytes were written since the last answered ping was sent."""
        return self._written - self._acked

    @property
    def unacked_messages(self) -> int:
        """How many messages were written since the last answered ping was sent."""
        return self._messages - self._acked_messages

    @property
    def pingable(self) -> bool:
        """Whether writes can be acknowledged at all."""
        return self._pingable

    @property
    def _silent_at(self) -> float:
        if not self._unanswered:
            return inf
        # A slow but honest reader gets to each ping in its turn, so a pong grants the next one its own time.
        return max(self._unanswered[0].sent_at, self._last_pong_at) + self._limits.pong_timeout

    @property
    def _slow_at(self) -> float:
        if not self._unanswered or self.unacked_bytes <= self._limits.max_unacked_bytes:
            return inf
        return self._unanswered[0].sent_at + self._limits.slow_after

    @property
    def _idle_at(self) -> float:
        return inf if self._limits.idle_timeout is None else self._heard_at + self._limits.idle_timeout

    @property
    def _ping_at(self) -> float:
        return min(self._regular_ping_at, self._probe_at) if self._pingable else inf


class RunningTime:
    """A clock of ours that stands still while this process does.

    It is to be read far more often than every `longest_step` seconds; a longer gap between two readings was a
    stall (a blocked event loop, SIGSTOP, a suspended machine), and only `longest_step` of it counts.
    """

    def __init__(self, real: float, *, longest_step: float) -> None:
        self._real = self._now = real
        self._longest_step = longest_step
        self.stalled = 0.0
        """Seconds that were not counted, in total."""

    def now(self, real: float) -> float:
        """The running time at this reading of a monotonic clock; never less than the last one."""
        gap = max(0.0, real - self._real)
        step = min(gap, self._longest_step)
        self._real = max(self._real, real)
        self._now += step
        self.stalled += gap - step
        return self._now


P = TypeVar("P", bound=Hashable)


class Outcome(NamedTuple):
    """What a round says of a process: the rounds in a row that it has missed, and whether it is lost."""

    missed: int
    lost: bool


class RollCall(Generic[P]):
    """One round's question to processes, each known by a key, and who answered it."""

    def __init__(self, *, misses_allowed: int) -> None:
        self._misses_allowed = misses_allowed
        self._asked: set[P] = set()
        self._answered: set[P] = set()

    def asked(self, process: P) -> None:
        """The question was delivered to this process's channel."""
        self._asked.add(process)

    def not_asked(self, process: P) -> None:
        """The question could not be delivered, so silence will mean nothing."""
        self._asked.discard(process)

    def answered(self, process: P) -> None:
        """The process answered, whichever way."""
        self._answered.add(process)

    def outcome(self, process: P, missed: int) -> Outcome:
        """What follows for a process that had missed so many rounds in a row before this one."""
        if process in self._answered:
            return Outcome(0, lost=False)
        if process not in self._asked:
            return Outcome(missed, lost=False)
        return Outcome(missed + 1, lost=missed + 1 > self._misses_allowed)
