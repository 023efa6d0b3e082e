"""Judge from pings, pongs and writes whether a connection is alive.

Silence is an answer only to a question. A client is dead if it did not answer a ping in time. It is not dead
because it was quiet, or because this process was stopped and could not read the answer. So every `now` here
is a reading of `RunningTime`, in seconds, and the caller reports answers that have arrived before it asks for
a verdict.

A client that stopped answering is found, in running time:

- within `ping_interval + pong_timeout`, if nothing is sent in either direction;
- within `probe_after + pong_timeout` of the first write;
- within `2 * ping_interval + pong_timeout`, if it goes on sending frames of its own.

A client on a slow link cannot answer a ping before it has read everything that was written before the ping.
All bytes that were written and not yet acknowledged by the peer's kernel are the line of a connection. While
a ping is in the line, and the client takes bytes from it, the time to answer has not begun. A peer that
vanished takes nothing, and is found as soon as any other.
"""

import enum
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that a connection must keep; durations are seconds, sizes are bytes.

    All but `slow_after` are settings of a project (`conf.Settings.limits`).
    """

    ping_interval: float
    pong_timeout: float
    """The time to answer, from the oldest unanswered ping, or from the last pong if that came later."""
    probe_after: float
    """If written bytes are not known to have arrived, a ping follows within this time."""
    probe_bytes: int
    """After this many bytes since the last ping, the next one is sent immediately."""
    max_unacked_bytes: int
    slow_after: float = 1.0
    """Above `max_unacked_bytes`, a connection is slow once its oldest unanswered ping is this old."""
    idle_timeout: float | None
    """A client that sends no frame of its own for this long is idle; None means never."""
    unpinged_idle_timeout: float | None = None
    """The same for a client that neither this process nor the server pings. The shorter time counts."""

    @property
    def of_unpinged(self) -> "Limits":
        """The limits of a connection that neither this process nor the server pings."""
        times = [each for each in (self.idle_timeout, self.unpinged_idle_timeout) if each is not None]
        return replace(self, idle_timeout=min(times, default=None))

    @property
    def line_every(self) -> float:
        """Seconds between two looks at the line of a connection that has not answered a ping."""
        return min(self.slow_after, self.pong_timeout) / 4

    @property
    def kernel_every(self) -> float:
        """Seconds between two looks at the line, once the ping has arrived in the peer's kernel."""
        return self.pong_timeout / 8

    def reading_time(self, size: int) -> float:
        """Return the seconds that a client may take to read bytes in its own kernel or in a proxy's.

        The slowest rate that is allowed is `probe_bytes` in `pong_timeout`.
        """
        return size * self.pong_timeout / self.probe_bytes

    @property
    def full(self) -> int:
        """The number of unacknowledged bytes above which a handler that sends must wait for a pong."""
        return max(self.max_unacked_bytes // 2, self.probe_bytes)


#: The results of `Liveness.wrote`. They are plain numbers because it runs for each member of a group.
NOTHING, LOOK, PING = range(3)

#: Bytes of the longest header of a frame that a server sends (RFC 6455 section 5.2).
LONGEST_HEADER = 10
#: Bytes of the longest frame of a ping.
LONGEST_PING = 48


class Verdict(enum.Enum):
    """The action that a connection needs now."""

    ALIVE = enum.auto()
    LINE = enum.auto()
    """Look at the line, report it, and ask for a verdict again."""
    PROBE = enum.auto()
    """Send a ping."""
    SILENT = enum.auto()
    """Evict: a ping was not answered in time."""
    SLOW = enum.auto()
    """Evict: the client reads more slowly than it is written to."""
    IDLE = enum.auto()
    """Evict: the client sent no frame of its own for too long."""


class _Ping(NamedTuple):
    n: int
    sent_at: float
    written: int
    """The number of bytes that were written before it. Its pong acknowledges them."""
    messages: int
    """The number of messages that were written before it."""


class Liveness:
    """The pings, pongs and writes of one connection, and the verdict that follows from them.

    Args:
        limits: The limits of the connection.
        now: The time at which it opened.
        spread: Its own offset in [0, 1). Thousands of connections may open, or be written to, in one instant;
            their offsets keep them from being pinged in one instant.
        pingable: False if no ping can be sent. Such a connection can only become idle.
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
        # Numbered without gaps, oldest first. A list, because an empty deque takes 600 bytes per connection.
        self._unanswered: list[_Ping] = []
        self._last_n = 0
        self._last_pong_at = self._received_at = now
        self._regular_ping_at = now + limits.ping_interval * (0.5 + 0.5 * spread)
        self._probe_at = inf
        self._written = self._written_at_ping = self._acked = 0
        self._messages = self._acked_messages = 0
        # The time of the next look at the line, and the time at which a ping in it was last seen to advance.
        self._line_at = inf
        self._line_moved_at = -inf
        # The last byte for which the client had room at the last look. None if the oldest ping was not in the
        # line then.
        self._reach: int | None = None
        # The bytes that the peer's kernel had acknowledged at the last look.
        self._acknowledged = 0
        # The time at which that kernel was last known to answer, and the time until which the client may read
        # the bytes in it that precede the oldest ping.
        self._kernel_answered_at = self._reads_until = -inf
        # Until this many bytes in all are written, a write changes nothing: the next ping has its time.
        self._notice_above: float = -1 if pingable else inf
        # From this time on, the next ping follows a write.
        self._follow_at = inf
        self.last_ping_at = now
        """The time of the last ping; before the first one, the time at which the connection opened."""
        self.last_proof_at = now
        """The time at which the client last sent anything."""
        self.round_trip: float | None = None
        """Seconds from the last answered ping to its pong."""

    def pinged(self, now: float) -> int:
        """Note that a ping is sent now.

        Returns:
            The number of the ping, counted from 1.
        """
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
        """Note that the client answered ping `n`, and with it every earlier one.

        Returns:
            False if no such ping is unanswered: it was never sent, or already answered. Then nothing changes.
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
        # Another ping is the oldest now.
        self._reach, self._reads_until = None, -inf
        if self.unacked_bytes and not self._unanswered:
            self._probe_at = min(self._probe_at, now + self._limits.probe_after)
        self._arrange()
        return True

    def received(self, now: float) -> None:
        """Note that the client sent a frame other than a pong.

        This postpones the next regular ping, but not for ever. It postpones no probe, because a client may
        send without reading.
        """
        interval = self._limits.ping_interval
        self._regular_ping_at = min(now + interval, self.last_ping_at + 2 * interval)
        self._received_at = self.last_proof_at = now

    def wrote(self, size: int, now: float, messages: int = 1) -> int:
        """Note that messages of `size` bytes in all are handed to the transport.

        Returns:
            NOTHING, LOOK if `look_at` has become earlier, or PING if a ping must follow this write.
        """
        self._messages += messages
        self._written += size
        # Almost every write ends here. This runs for each member of a group.
        if self._written > self._notice_above or now >= self._follow_at:
            return self._notice(now)
        return NOTHING

    def _notice(self, now: float) -> int:
        """Arrange the ping that the written bytes call for."""
        # Pings that are sent together, and their pongs, cost less than each at its own time. So if a write
        # comes a little before the time of a ping, the ping follows it.
        if now >= self._follow_at or self._written - self._written_at_ping >= self._limits.probe_bytes:
            return PING
        if not self._unanswered and self._probe_at == inf:
            probe_after = self._limits.probe_after
            # A client that answered just now has a time of its own already. Clients that were quiet, or were
            # never pinged, may all be written to in one instant, and must not all be pinged in one instant.
            quiet = not self._last_n or now - self.last_proof_at > probe_after
            self._probe_at = now + probe_after * (self._spread if quiet else 1.0)
            self._arrange()
            return LOOK
        # Above the cap on unacknowledged bytes, the age of the unanswered ping decides.
        return LOOK if self._slow_at < inf else NOTHING

    def _arrange(self) -> None:
        """Recompute `_notice_above` and `_follow_at`, below which a write changes nothing."""
        limits = self._limits
        above: float = -1
        if self._unanswered or self._probe_at < inf:
            above = self._written_at_ping + limits.probe_bytes - 1
            if self._unanswered:
                above = min(above, self._acked + limits.max_unacked_bytes)
        self._notice_above = above if self._pingable else inf
        self._follow_at = self._probe_at - limits.probe_after / 5

    def line(self, waiting: int, acknowledged: int, window: int, now: float) -> None:
        """Note the state of the line, as the kernel knows it. At least one ping must be unanswered.

        While the oldest ping is in the line, it advances if the peer makes room, that is, if the sum of the
        acknowledged bytes and the window grows. When the ping has left the line, it is in the peer's kernel
        or in a proxy's, behind bytes that the client has not read yet. Nothing here can see those. The client
        gets the `reading_time` of all bytes between the last answered ping and this one. Meanwhile the peer's
        kernel must answer: it must acknowledge all that it is sent. If no message is sent, pings are.

        Args:
            waiting: Bytes that the peer has not acknowledged, in this process and in the kernel.
            acknowledged: Bytes that the peer has acknowledged, in all.
            window: Bytes for which the peer has room.
            now: The time of this look.
        """
        oldest, limits = self._unanswered[0], self._limits
        # The bytes that were written after the ping, with the longest headers that their frames can have. If
        # more than that waits, a part of it was written before the ping.
        behind = (
            self._written
            - oldest.written
            + LONGEST_HEADER * (self._messages - oldest.messages)
            + LONGEST_PING * (len(self._unanswered) - 1)
        )
        in_line = waiting > behind
        reach, had_room = acknowledged + window, self._reach
        if had_room is not None and reach > had_room:
            # Also if the ping has left the line since the last look: it was in the line for a part of that
            # time.
            self._line_moved_at = now
        # The largest so far, because a kernel that is short of memory shrinks its window and widens it again.
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
                # From now on, only the kernel's answers show that the client is not gone.
                self._probe_at = now
        self._line_at = now + (limits.line_every if in_line else limits.kernel_every)

    def no_line(self) -> None:
        """Note that the state of the line cannot be known."""
        self._line_at, self._reads_until = inf, -inf

    def verdict(self, now: float) -> Verdict:
        """Decide what the connection needs now. A reason to evict precedes a ping that is due."""
        if now >= self._line_at:
            # First, because the state of the line may postpone an eviction.
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
        """The time at which the verdict ceases to be ALIVE unless an event changes it; infinite for never."""
        if self._unanswered:
            return min(self._silent_at, self._slow_at, self._idle_at, self._ping_at, self._line_at)
        if self._limits.idle_timeout is None and self._pingable:
            # The usual case, after each pong.
            return min(self._regular_ping_at, self._probe_at)
        return min(self._idle_at, self._ping_at)

    @property
    def unacked_bytes(self) -> int:
        """The number of bytes that were written since the last answered ping was sent."""
        return self._written - self._acked

    @property
    def unacked_messages(self) -> int:
        """The number of messages that were written since the last answered ping was sent."""
        return self._messages - self._acked_messages

    @property
    def is_full(self) -> bool:
        """True if a handler must wait before it sends more, because too much is unacknowledged."""
        return self._pingable and self._written - self._acked > self._limits.full

    @property
    def pingable(self) -> bool:
        """True if pings can be sent, so that pongs can acknowledge writes."""
        return self._pingable

    @property
    def _silent_at(self) -> float:
        if not self._unanswered:
            return inf
        return max(self._answer_by, self._reads_until)

    @property
    def _answer_by(self) -> float:
        """The time by which the oldest ping must be answered, if the client has nothing to read before it."""
        # A slow but honest reader reaches one ping after the other, so each pong starts the time of the next.
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
