"""The clock of one process: pings its connections, judges their silence, and knows when the process itself
stood still.

Pings follow this clock, one interval apart for each connection, whether or not rounds come.
"""

import asyncio
import logging
from collections.abc import Callable
from math import inf

from realtime import metrics
from realtime.closing import CloseReason
from realtime.hub.connection import Connection
from realtime.liveness.clock import RunningTime
from realtime.liveness.connection import PING, Limits, Liveness, Verdict
from realtime.liveness.schedule import Schedule
from realtime.transports.asgi import ping_for

logger = logging.getLogger("realtime.pulse")

#: Seconds between two looks, at most: so often is measured whether the loop is late. Far less than
#: LONGEST_STEP, and not less than that needs, because a tick costs an idle process most of what it does.
TICK = 0.25
#: And at least: the answers to pings that leave together come back together, and what is published meanwhile
#: waits for all of them.
SHORTEST_TICK = 0.05
#: A gap between two ticks counts as running time up to here; the rest is a stall, and nobody's silence.
LONGEST_STEP = 0.5
#: Loop turns from the readiness of a socket to its frame being read: the server's read, its queue's getter,
#: our reader.
READ_TURNS = 3
#: Seconds between two looks of a handler that waits until its client has read what it sent.
DRAINED_EVERY = 0.01
#: Connections judged before the loop gets a turn.
BATCH = 200

_REASONS = {
    Verdict.SILENT: CloseReason.PING_TIMEOUT,
    Verdict.SLOW: CloseReason.SLOW_CONSUMER,
    Verdict.IDLE: CloseReason.IDLE,
}

#: What was written to these since their last proof of life, nobody has read.
_ZOMBIES = frozenset({CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER})


class Heartbeat:
    """Liveness of the connections of one process, and what they leave unsent in its memory.

    `evict` is called for those that failed. `max_unsent` is the setting MAX_UNSENT_TOTAL_BYTES.
    """

    def __init__(
        self, limits: Limits, max_unsent: int, evict: Callable[[Connection, CloseReason], object]
    ) -> None:
        self._limits = limits
        self._max_unsent = max_unsent
        self._evict = evict
        # Since the last tick, which adds them to the metrics: a pong costs little more than what they do.
        self._pings = 0
        self._round_trips: list[float] = []
        self._behind: set[Connection] = set()
        """Connections for which something waited in this process when it was last looked at."""
        self._schedule: Schedule[Connection] = Schedule()
        self._loop = asyncio.get_running_loop()
        self._time = RunningTime(self._loop.time(), longest_step=LONGEST_STEP)
        self.lag = 0.0
        """Seconds by which the last tick was late."""

    def now(self) -> float:
        """Running time: the time of ours in which a client's silence counts."""
        return self._time.now(self._loop.time())

    def watch(self, connection: Connection) -> None:
        """From now on the connection has to prove that it lives; called when it has been accepted."""
        spread = connection.id.int % 1024 / 1024
        # Who speaks no `realtime.v1` is pinged below it where the server lets us; else the server's own
        # keepalive counts.
        pingable = connection.speaks_v1 or connection.transport.can_ping
        connection.liveness = Liveness(self._limits, self.now(), spread=spread, pingable=pingable)
        self._schedule.set(connection, connection.liveness.look_at)

    def forget(self, connection: Connection) -> None:
        """Stop watching a connection that ended, and count what was written to it in vain."""
        self._schedule.discard(connection)
        self._behind.discard(connection)
        if connection.liveness is not None and connection.reason is not None:
            silence = self.now() - connection.liveness.last_proof_at
            metrics.zombie_lifetime.labels(reason=connection.reason.value).observe(silence)
            if connection.reason in _ZOMBIES:
                _count_what_was_lost(connection.liveness, connection.reason)
        # What is written to it in its last moments must not bring it back here.
        connection.liveness = None

    def wrote(self, connection: Connection, size: int, messages: int = 1) -> bool:
        """Note messages that are handed to the connection's transport, and their bytes in all.

        Returns:
            True if the caller has to `ask` when they are written.
        """
        liveness = connection.liveness
        if liveness is not None and (then := liveness.wrote(size, self.now(), messages)):
            return self.follow_up(connection, liveness, then)
        return False

    def follow_up(self, connection: Connection, liveness: Liveness, then: int) -> bool:
        """Do what `Liveness.wrote` says has to follow a write; returns what `wrote` returns."""
        if then == PING:
            return True
        self._schedule.set(connection, liveness.look_at)
        return False

    def ask(self, connection: Connection, *, since: float = inf) -> None:
        """Send a ping, unless one has left since then."""
        liveness = connection.liveness
        if liveness is None or connection.gone or liveness.last_ping_at >= since:
            return
        # The time of the ping itself: loop turns since the caller's look must not shorten its deadline.
        ping = ping_for(liveness.pinged(self.now()), connection.speaks_v1)
        self._pings += 1
        self._schedule.set(connection, liveness.look_at)
        connection.transport.ping(ping)

    def is_behind(self, connection: Connection) -> None:
        """Note that something waits in this process for the connection to read it."""
        self._behind.add(connection)

    async def drained(self, connection: Connection) -> None:
        """Wait until a handler may send more: little waits here, and the client has read most of the rest.

        The kernel alone would take megabytes from a handler in one turn of the event loop, and the first ping
        would leave behind them.
        """
        await connection.transport.drained()
        # Looked at now and then: an event for each connection would cost all of them memory.
        while (liveness := connection.liveness) is not None and liveness.is_full:  # noqa: ASYNC110 - see above
            await asyncio.sleep(DRAINED_EVERY)

    def heard(self, connection: Connection) -> None:
        """An application frame came in; the next regular ping moves."""
        if connection.liveness is not None:
            connection.liveness.received(self.now())

    def ponged(self, connection: Connection, n: int) -> None:
        """The client answered ping `n`."""
        liveness = connection.liveness
        if liveness is not None and liveness.ponged(n, self.now()):
            self._round_trips.append(liveness.round_trip or 0.0)
            self._schedule.set(connection, liveness.look_at)

    async def run(self) -> None:
        """Tick until cancelled."""
        counted = self._time.stalled
        while True:
            asked, seconds = self._loop.time(), pause(self._schedule.next_at, self.now())
            await asyncio.sleep(seconds)
            self.lag = max(0.0, self._loop.time() - asked - seconds)
            metrics.loop_lag.set(self.lag)
            self._count()
            now = self.now()
            # Since the last tick, because somebody else who asked for the time may have noticed the stall.
            if (stalled := self._time.stalled - counted) > 0:
                counted = self._time.stalled
                metrics.stalled.inc(stalled)
                logger.warning("The event loop stood still for %.1f s; nobody is evicted for it", self.lag)
            if self._behind:
                self._bound_unsent()
            if due := self._schedule.due(now):
                # What arrived while we were late is read first, so that an answer in time is never silence.
                for _ in range(READ_TURNS):
                    await asyncio.sleep(0)
                await self._judge_due(due, now)

    def _count(self) -> None:
        if self._pings:
            metrics.pings.inc(self._pings)
            self._pings = 0
        for seconds in self._round_trips:
            metrics.round_trip.observe(seconds)
        self._round_trips.clear()

    async def _judge_due(self, due: list[Connection], now: float) -> None:
        for position, connection in enumerate(due, start=1):
            try:
                self._judge(connection, now)
            except Exception:
                # One connection that cannot be judged must not keep all others from being pinged and judged.
                logger.exception("A connection could not be judged", extra=connection.log_fields())
                self._schedule.set(connection, now + self._limits.ping_interval)
            if position % BATCH == 0:
                await asyncio.sleep(0)

    def _judge(self, connection: Connection, now: float) -> None:
        liveness = connection.liveness
        if liveness is None or connection.gone:
            return
        if (verdict := liveness.verdict(now)) is Verdict.LINE:
            line = connection.transport.line()
            if line is None:
                liveness.no_line()
            else:
                liveness.line(line.waiting, line.acknowledged, line.window, now)
            verdict = liveness.verdict(now)
        if verdict in _REASONS:
            self._evict(connection, _REASONS[verdict])
        elif verdict is Verdict.PROBE:
            self.ask(connection)
        else:
            self._schedule.set(connection, liveness.look_at)

    def _bound_unsent(self) -> None:
        """Evict the connections with the most unsent bytes, until the sum for all is within the bound."""
        unsent = {connection: connection.transport.unsent for connection in self._behind}
        self._behind = {connection for connection, size in unsent.items() if size}
        total, closed = sum(unsent.values()), 0
        if total <= self._max_unsent:
            return
        for connection in sorted(self._behind, key=unsent.__getitem__, reverse=True):
            if total <= self._max_unsent:
                break
            total -= unsent[connection]
            closed += 1
            self._evict(connection, CloseReason.SLOW_CONSUMER)
        logger.error(
            "More than %d bytes were unsent in this process (MAX_UNSENT_TOTAL_BYTES); "
            "the %d connections that had read least are closed",
            self._max_unsent,
            closed,
        )


def pause(next_at: float | None, now: float) -> float:
    """Seconds until the next look, where the next connection is due at `next_at`."""
    return TICK if next_at is None else min(TICK, max(SHORTEST_TICK, next_at - now))


def _count_what_was_lost(liveness: Liveness, reason: CloseReason) -> None:
    if liveness.pingable:
        metrics.zombie_messages.labels(reason=reason.value).inc(liveness.unacked_messages)
        metrics.zombie_bytes.labels(reason=reason.value).inc(liveness.unacked_bytes)
