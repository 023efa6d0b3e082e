"""Whether a connection lives, and whether a process does.

Silence is an answer only to a question: dead is what did not answer a question in time, never what was merely
quiet, nor what could not answer because this process was stopped. So every `now` of a connection is a reading
of `RunningTime`, in seconds, and answers that have arrived are told before a verdict is asked for.

A connection that stopped answering is found, in running time, within `ping_interval + pong_timeout` where
nothing is sent either way, `probe_after + pong_timeout` after the first write, and
`2 * ping_interval + pong_timeout` where it goes on sending frames of its own.

A client on a slow link cannot answer a ping before it has read everything that was written before it. So
while a ping stands in the line of unacknowledged bytes, and the client takes bytes out of that line, the time
to answer has not begun. A peer that vanished takes nothing, and is found as soon as any other.
"""

import enum
from dataclasses import dataclass
from math import inf
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is asked of a connection; durations in seconds."""

    ping_interval: float
    pong_timeout: float
    """Counted from the oldest unanswered ping, or from the last pong if that came later."""
    probe_after: float
    """Bytes that are not known to have arrived are followed by a ping within this time."""
    probe_bytes: int
    """So many bytes since the last ping are followed by one at once."""
    max_unacked_bytes: int
    slow_after: float = 1.0
    """Above `max_unacked_bytes`, a connection is slow once its oldest unanswered ping is this old."""
    idle_timeout: float | None
    """A client that sends no frame of its own for so long is idle."""

    @property
    def line_every(self) -> float:
        """Seconds between two looks at the line of a connection that has not answered a ping."""
        return min(self.slow_after, self.pong_timeout) / 4

    @property
    def kernel_every(self) -> float:
        """Seconds between two such looks, once the ping has arrived in the peer's kernel."""
        return self.pong_timeout / 8

    def reading_time(self, size: int) -> float:
        """Seconds in which a client reads so many bytes that lie in its kernel, or in that of a proxy.

        The slowest rate that is granted is `probe_bytes` in `pong_timeout`.
        """
        return size * self.pong_timeout / self.probe_bytes

    @property
    def full(self) -> int:
        """Unacknowledged bytes above which a handler that sends has to wait for a pong."""
        return max(self.max_unacked_bytes // 2, self.probe_bytes)


#: What follows from a write; plain numbers, because this is asked for each member of a group.
NOTHING, LOOK, PING = range(3)

#: Bytes of the longest header of a frame that a server sends (RFC 6455 section 5.2).
LONGEST_HEADER = 10
#: Bytes of the longest frame of a ping.
LONGEST_PING = 48


class Verdict(enum.Enum):
    """What is to be done with a connection now."""

    ALIVE = enum.auto()
    LINE = enum.auto()
    """Look at the bytes on their way to the client, note them, and ask again."""
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
        "_acknowledged",
        "_follow_at",
        "_kernel_answered_at",
        "_last_n",
        "_last_pong_at",
        "_limits",
        "_line_at",
        "_line_moved_at",
        "_messages",
        "_notice_above",
        "_pingable",
        "_probe_at",
        "_reach",
        "_reads_until",
        "_received_at",
        "_regular_ping_at",
        "_spread",
        "_unanswered",
        "_written",
        "_written_at_ping",
        "last_ping_at",
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
        self._last_pong_at = self._received_at = now
        self._regular_ping_at = now + limits.ping_interval * (0.5 + 0.5 * spread)
        self._probe_at = inf
        self._written = self._written_at_ping = self._acked = 0
        self._messages = self._acked_messages = 0
        # When to look at the line next, and when a ping that stands in it was last seen to come nearer.
        self._line_at = inf
        self._line_moved_at = -inf
        # Up to which byte the client had room at the last look, if the oldest ping stood in the line then.
        self._reach: int | None = None
        # What the peer's kernel had acknowledged at the last look, when it was last known to answer, and
        # until when a client may read what lies there before the oldest ping.
        self._acknowledged = 0
        self._kernel_answered_at = self._reads_until = -inf
        # Writes up to so many bytes in all change nothing: the next ping is arranged for.
        self._notice_above: float = -1 if pingable else inf
        # From when on the next ping follows a write.
        self._follow_at = inf
        self.last_ping_at = now
        """When a ping last left; before the first, when this began."""
        self.last_proof_at = now
        """When the client last sent anything."""
        self.round_trip: float | None = None
        """From the last answered ping to its pong."""

    def pinged(self, now: float) -> int:
        """A ping leaves now; returns its number, counted from 1."""
        self._last_n += 1
        if not self._unanswered:
            self._line_at = now + self._limits.line_every
            self._reach, self._reads_until = None, -inf
        self._unanswered.append(_Ping(self._last_n, now, self._written, self._messages))
        self._written_at_ping = self._written
        self.last_ping_at = now
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
        self._line_at = now + self._limits.line_every if self._unanswered else inf
        # Another ping is the oldest one now.
        self._reach, self._reads_until = None, -inf
        if self.unacked_bytes and not self._unanswered:
            self._probe_at = min(self._probe_at, now + self._limits.probe_after)
        self._arrange()
        return True

    def received(self, now: float) -> None:
        """The client sent a frame other than a pong.

        This postpones the next regular ping, but not for ever, and no probe: it may send without reading.
        """
        interval = self._limits.ping_interval
        self._regular_ping_at = min(now + interval, self.last_ping_at + 2 * interval)
        self._received_at = self.last_proof_at = now

    def wrote(self, size: int, now: float, messages: int = 1) -> int:
        """Note that so many bytes are handed to the transport.

        Returns:
            NOTHING, LOOK if `look_at` has become earlier, or PING if a ping has to leave behind this write.
        """
        self._messages += messages
        self._written += size
        # Almost every write ends here: this is done for each member of a group.
        if self._written > self._notice_above or now >= self._follow_at:
            return self._notice(now)
        return NOTHING

    def _notice(self, now: float) -> int:
        """Arrange for a ping that what was written calls for."""
        # Pings that leave together, and their pongs, cost less than each at its own time. So a ping follows a
        # write that comes a little before its time.
        if now >= self._follow_at or self._written - self._written_at_ping >= self._limits.probe_bytes:
            return PING
        if not self._unanswered and self._probe_at == inf:
            probe_after = self._limits.probe_after
            # A client that answered just now has its own time already. Those that were quiet, or were never
            # asked, may all be written to in one instant, and are not to be pinged in one.
            quiet = not self._last_n or now - self.last_proof_at > probe_after
            self._probe_at = now + probe_after * (self._spread if quiet else 1.0)
            self._arrange()
            return LOOK
        # Above the cap on unacknowledged bytes, the age of a ping that is under way decides.
        return LOOK if self._slow_at < inf else NOTHING

    def _arrange(self) -> None:
        """Recompute up to how many written bytes, and until when, writes need no notice."""
        limits = self._limits
        above: float = -1
        if self._unanswered or self._probe_at < inf:
            above = self._written_at_ping + limits.probe_bytes - 1
            if self._unanswered:
                above = min(above, self._acked + limits.max_unacked_bytes)
        self._notice_above = above if self._pingable else inf
        self._follow_at = self._probe_at - limits.probe_after / 5

    def line(self, waiting: int, acknowledged: int, window: int, now: float) -> None:
        """Note what the kernel knows of the bytes that were written.

        While the oldest ping stands in the line, it comes nearer if the peer makes room: if the bytes that it
        has acknowledged and its window grow together. Afterwards it lies in the peer's kernel, or in that of
        a proxy, behind what the client has not read yet, which nothing here can see. Then the client gets its
        `reading_time` for that. But the peer's kernel must answer all the time: it has to acknowledge what it
        is sent meanwhile, and if nothing else is sent, pings are.

        Args:
            waiting: How many bytes the peer has not acknowledged, in this process and in the kernel.
            acknowledged: How many it has, in all.
            window: For how many more it has room.
            now: The time of this look.
        """
        oldest, limits = self._unanswered[0], self._limits
        # Written after the ping, with the longest headers that their frames can have: more than that waits,
        # so some of it was written before the ping.
        behind = (
            self._written
            - oldest.written
            + LONGEST_HEADER * (self._messages - oldest.messages)
            + LONGEST_PING * (len(self._unanswered) - 1)
        )
        in_line = waiting > behind
        reach, had_room = acknowledged + window, self._reach
        if had_room is not None and reach > had_room:
            # Also when the ping has left the line since the last look: it was not there for the whole time.
            self._line_moved_at = now
        # The largest so far: a kernel that is short of memory takes room back, and gives it again.
        self._reach = max(reach, had_room or 0) if in_line else None
        if not waiting or acknowledged > self._acknowledged:
            self._kernel_answered_at = now
        self._acknowledged = acknowledged
        self._reads_until = -inf
        if not in_line and now - self._kernel_answered_at <= 3 * limits.kernel_every:
            answer_by, unread = self._answer_by, oldest.written - self._acked
            self._reads_until = answer_by + limits.reading_time(unread)
            asked_lately = now - self.last_ping_at < limits.kernel_every
            if unread and now >= answer_by - limits.kernel_every and not asked_lately:
                # From here on, only the peer's kernel tells a client that reads from one that is gone.
                self._probe_at = now
        self._line_at = now + (limits.line_every if in_line else limits.kernel_every)

    def no_line(self) -> None:
        """Note that nothing is known of the bytes that were written."""
        self._line_at, self._reads_until = inf, -inf

    def verdict(self, now: float) -> Verdict:
        """What is to be done now; a cause to evict goes before a ping that is due."""
        if now >= self._line_at:
            # First, because what is seen there may put off an eviction.
            return Verdict.LINE
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
        if self._unanswered:
            return min(self._silent_at, self._slow_at, self._idle_at, self._ping_at, self._line_at)
        if self._limits.idle_timeout is None and self._pingable:
            # What is asked after each pong, of connections that live.
            return min(self._regular_ping_at, self._probe_at)
        return min(self._idle_at, self._ping_at)

    @property
    def unacked_bytes(self) -> int:
        """How many bytes were written since the last answered ping was sent."""
        return self._written - self._acked

    @property
    def unacked_messages(self) -> int:
        """How many messages were written since the last answered ping was sent."""
        return self._messages - self._acked_messages

    @property
    def is_full(self) -> bool:
        """True if so many bytes are unacknowledged that a handler has to wait before it sends more."""
        return self._pingable and self._written - self._acked > self._limits.full

    @property
    def pingable(self) -> bool:
        """Whether writes can be acknowledged at all."""
        return self._pingable

    @property
    def _silent_at(self) -> float:
        if not self._unanswered:
            return inf
        return max(self._answer_by, self._reads_until)

    @property
    def _answer_by(self) -> float:
        """When the time to answer the oldest ping ends, for a client that has nothing to read before it."""
        # A slow but honest reader gets to each ping in its turn, so a pong grants the next one its own time.
        since = max(self._unanswered[0].sent_at, self._last_pong_at, self._line_moved_at)
        return since + self._limits.pong_timeout

    @property
    def _slow_at(self) -> float:
        if not self._unanswered or self.unacked_bytes <= self._limits.max_unacked_bytes:
            return inf
        return max(self._unanswered[0].sent_at, self._line_moved_at) + self._limits.slow_after

    @property
    def _idle_at(self) -> float:
        return inf if self._limits.idle_timeout is None else self._received_at + self._limits.idle_timeout

    @property
    def _ping_at(self) -> float:
        return min(self._regular_ping_at, self._probe_at) if self._pingable else inf
