"""The heartbeat of one process: ping its connections, judge their silence, and notice its own stalls.

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

logger = logging.getLogger("realtime.hub")

#: The longest time between two ticks, in seconds. Each tick measures how late the loop is, so this is far
#: less than LONGEST_STEP. It is no shorter, because ticks are most of the work of an idle process.
TICK = 0.25
#: The shortest time between two ticks, in seconds. Pings that leave together are answered together, and a
#: message that is published meanwhile waits for all of the pongs.
SHORTEST_TICK = 0.05
#: A gap between two ticks counts as running time up to this many seconds. The rest is a stall of this process
#: and counts against no client.
LONGEST_STEP = 0.5
#: Loop turns from a readable socket to a frame that the inbox has read: the server's read, the getter of the
#: server's queue, the inbox.
READ_TURNS = 3
#: Seconds between two checks for a handler that waits until its client has read what it sent.
DRAINED_EVERY = 0.01
#: Connections that are judged before the loop gets a turn.
BATCH = 200

_REASONS = {
    Verdict.SILENT: CloseReason.PING_TIMEOUT,
    Verdict.SLOW: CloseReason.SLOW_CONSUMER,
    Verdict.IDLE: CloseReason.IDLE,
}

#: The reasons of zombies: no client has read what was written to them since their last proof of life.
_ZOMBIES = frozenset({CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER})


class Heartbeat:
    """The liveness of the connections of one process, and the memory of what they have not read.

    Args:
        limits: The settings that say when a connection is dead, slow or idle.
        max_unsent: The setting MAX_UNSENT_TOTAL_BYTES.
        evict: Called for each connection that failed.
        tick: The longest time between two ticks, in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        max_unsent: int,
        evict: Callable[[Connection, CloseReason], object],
        *,
        tick: float = TICK,
    ) -> None:
        self._limits = limits
        self._limits_of_unpinged = limits.of_unpinged
        self._max_unsent = max_unsent
        self._evict = evict
        self._tick = tick
        # Collected until the next tick, because a metric costs almost as much as a pong.
        self._pings = 0
        self._round_trips: list[float] = []
        self._behind: set[Connection] = set()
        """Connections that had unsent bytes in this process at the last check."""
        self._confirming: dict[Connection, list[tuple[int, asyncio.Future[bool]]]] = {}
        """The callers that wait until a client answers a ping, each with the number of the ping."""
        self._schedule: Schedule[Connection] = Schedule()
        self._loop = asyncio.get_running_loop()
        self._time = RunningTime(self._loop.time(), longest_step=LONGEST_STEP)
        self.lag = 0.0
        """The seconds by which the last tick was late."""

    def now(self) -> float:
        """Return the running time in seconds, in which the silence of clients is measured.

        It does not advance while this process is stalled.
        """
        return self._time.now(self._loop.time())

    def watch(self, connection: Connection) -> None:
        """Watch a connection that has been accepted: from now on the client must prove that it lives."""
        spread = connection.id.int % 1024 / 1024
        # Clients without `realtime.v1` get RFC 6455 pings if the transport can send them. Otherwise the
        # server's own keepalive counts, if it has one.
        pingable = connection.speaks_v1 or connection.transport.can_ping
        unpinged = _is_unpinged(connection, pingable)
        limits = self._limits_of_unpinged if unpinged else self._limits
        connection.liveness = Liveness(limits, self.now(), spread=spread, pingable=pingable)
        self._schedule.set(connection, connection.liveness.look_at)
        if unpinged:
            metrics.unpinged.inc()

    def forget(self, connection: Connection) -> None:
        """Stop watching a connection that ended, and count the messages that its client never read."""
        self._schedule.discard(connection)
        self._behind.discard(connection)
        self._confirm(connection, inf, False)
        if connection.liveness is not None and connection.reason is not None:
            silence = self.now() - connection.liveness.last_proof_at
            metrics.zombie_lifetime.labels(reason=connection.reason.value).observe(silence)
            if connection.reason in _ZOMBIES:
                _count_what_was_lost(connection.liveness, connection.reason)
        if connection.liveness is not None and _is_unpinged(connection, connection.liveness.pingable):
            metrics.unpinged.dec()
        # A last write to it must not bring it back into the schedule.
        connection.liveness = None

    def wrote(self, connection: Connection, size: int, messages: int = 1) -> bool:
        """Note messages that are handed to the connection's transport.

        Args:
            connection: The connection.
            size: The bytes of all messages.
            messages: The number of messages.

        Returns:
            True if the caller must `ask` when they are written.
        """
        liveness = connection.liveness
        if liveness is not None and (then := liveness.wrote(size, self.now(), messages)):
            return self.follow_up(connection, liveness, then)
        return False

    def follow_up(self, connection: Connection, liveness: Liveness, then: int) -> bool:
        """Do what must follow a write, as `Liveness.wrote` says; return what `wrote` returns."""
        if then == PING:
            return True
        self._schedule.set(connection, liveness.look_at)
        return False

    def ask(self, connection: Connection, *, since: float = inf) -> None:
        """Send a ping, unless one was sent at or after the running time `since`."""
        liveness = connection.liveness
        if liveness is None or connection.gone or liveness.last_ping_at >= since:
            return
        self._send(connection, liveness, self._next(liveness))

    def confirm(self, connection: Connection) -> "asyncio.Future[bool]":
        """Send a ping, to find out if the client has read everything that was written before.

        Returns:
            A future. It is True as soon as the client has answered this ping or a later one. It is False when
            the connection has ended, or if the client cannot be pinged. A caller that stops waiting cancels
            it.
        """
        confirmed: asyncio.Future[bool] = self._loop.create_future()
        liveness = connection.liveness
        if liveness is None or connection.gone or not liveness.pingable:
            confirmed.set_result(False)
            return confirmed
        n = self._next(liveness)
        # Before the ping is written, because a write that fails ends the connection.
        self._confirming.setdefault(connection, []).append((n, confirmed))
        confirmed.add_done_callback(lambda _: self._forget_confirmed(connection))
        self._send(connection, liveness, n)
        return confirmed

    def _next(self, liveness: Liveness) -> int:
        # Use the time of the ping itself: loop turns since the caller's check must not shorten its deadline.
        return liveness.pinged(self.now())

    def _send(self, connection: Connection, liveness: Liveness, n: int) -> None:
        self._pings += 1
        self._schedule.set(connection, liveness.look_at)
        connection.transport.ping(ping_for(n, connection.speaks_v1))

    def _confirm(self, connection: Connection, n: float, outcome: bool) -> None:
        """Tell all callers that wait for a ping up to this number."""
        for number, confirmed in self._confirming.get(connection, ()):
            if number <= n and not confirmed.done():
                confirmed.set_result(outcome)

    def _forget_confirmed(self, connection: Connection) -> None:
        waiting = [each for each in self._confirming.pop(connection, ()) if not each[1].done()]
        if waiting:
            self._confirming[connection] = waiting

    def is_behind(self, connection: Connection) -> None:
        """Note that bytes for this connection wait in this process."""
        self._behind.add(connection)

    async def drained(self, connection: Connection) -> None:
        """Wait until a handler may send more: little waits here, and the client has read most of the rest.

        The kernel would take megabytes from a handler in one turn of the event loop, and the first ping would
        leave behind them.
        """
        await connection.transport.drained()
        # Checked periodically: an event object for each connection would cost all of them memory.
        while (liveness := connection.liveness) is not None and liveness.is_full:  # noqa: ASYNC110 - see above
            await asyncio.sleep(DRAINED_EVERY)

    def heard(self, connection: Connection) -> None:
        """Note a frame of the application: it is a proof of life, and the next regular ping moves."""
        if connection.liveness is not None:
            connection.liveness.received(self.now())

    def ponged(self, connection: Connection, n: int) -> bool:
        """Note that the client answered ping `n`.

        Returns:
            False if no such ping is unanswered.
        """
        liveness = connection.liveness
        if liveness is None or not liveness.ponged(n, self.now()):
            return False
        self._round_trips.append(liveness.round_trip or 0.0)
        if self._confirming:
            self._confirm(connection, n, True)
        self._schedule.set(connection, liveness.look_at)
        return True

    async def run(self) -> None:
        """Tick until cancelled."""
        counted = self._time.stalled
        while True:
            asked, seconds = self._loop.time(), pause(self._schedule.next_at, self.now(), self._tick)
            await asyncio.sleep(seconds)
            self.lag = max(0.0, self._loop.time() - asked - seconds)
            metrics.loop_lag.set(self.lag)
            self._count()
            now = self.now()
            # Compare with the last tick, because another caller of `now` may have noticed the stall.
            if (stalled := self._time.stalled - counted) > 0:
                counted = self._time.stalled
                metrics.stalled.inc(stalled)
                logger.warning("The event loop stalled for %.1f s; no client is evicted for it", self.lag)
            if self._behind:
                self._bound_unsent()
            if due := self._schedule.due(now):
                # First read what arrived during the delay, so that an answer in time never counts as silence.
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
                # Go on: the other connections must be pinged and judged.
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
        """Evict the connections with the most unsent bytes until the sum of all is within the bound."""
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


def pause(next_at: float | None, now: float, tick: float = TICK) -> float:
    """Return the seconds until the next tick.

    Args:
        next_at: The running time at which the next connection is due; None if none is.
        now: The running time.
        tick: The longest pause.
    """
    return tick if next_at is None else min(tick, max(SHORTEST_TICK, next_at - now))


def _is_unpinged(connection: Connection, pingable: bool) -> bool:
    """Return True if neither this process nor the server pings the client."""
    return not (pingable or connection.transport.server_pings)


def _count_what_was_lost(liveness: Liveness, reason: CloseReason) -> None:
    if liveness.pingable:
        metrics.zombie_messages.labels(reason=reason.value).inc(liveness.unacked_messages)
        metrics.zombie_bytes.labels(reason=reason.value).inc(liveness.unacked_bytes)
