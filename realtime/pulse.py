"""The clock of one process: pings its connections, judges their silence, and knows when the process itself
stood still.

Pings follow this clock, one interval apart for each connection, whether or not rounds come.
"""

import asyncio
import logging
from collections.abc import Callable

from realtime import frames, metrics
from realtime.closing import CloseReason
from realtime.connection import Connection
from realtime.liveness import Limits, Liveness, RunningTime, Verdict
from realtime.schedule import Schedule

logger = logging.getLogger("realtime.pulse")

#: Seconds between two looks, at most: so often is measured whether the loop is late.
TICK = 0.1
#: And at least: the answers to pings that leave together come back together, and what is published meanwhile
#: waits for all of them.
SHORTEST_TICK = 0.05
#: A gap between two ticks counts as running time up to here; the rest is a stall, and nobody's silence.
LONGEST_STEP = 0.5
#: Loop turns from the readiness of a socket to its frame being read: the server's read, its queue's getter,
#: our reader.
READ_TURNS = 3
#: Connections judged before the loop gets a turn.
BATCH = 200

_REASONS = {
    Verdict.SILENT: CloseReason.PING_TIMEOUT,
    Verdict.SLOW: CloseReason.SLOW_CONSUMER,
    Verdict.IDLE: CloseReason.IDLE,
}

#: What was written to these since their last proof of life, nobody has read.
_ZOMBIES = frozenset({CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER})


class Pulse:
    """Liveness of the connections of one process. `evict` is called for those that failed."""

    def __init__(self, limits: Limits, evict: Callable[[Connection, CloseReason], object]) -> None:
        self._limits = limits
        self._evict = evict
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
        self._schedule.discard(connection)
        if connection.liveness is not None and connection.reason is not None:
            silence = self.now() - connection.liveness.last_proof_at
            metrics.zombie_lifetime.labels(reason=connection.reason.value).observe(silence)
            if connection.reason in _ZOMBIES:
                _count_what_was_lost(connection.liveness, connection.reason)
        # What is written to it in its last moments must not bring it back here.
        connection.liveness = None

    def wrote(self, connection: Connection, size: int, messages: int = 1) -> None:
        """So many messages, and bytes in all, are handed to the connection's transport."""
        liveness = connection.liveness
        if liveness is not None and liveness.wrote(size, self.now(), messages):
            self.look_anew(connection)

    def look_anew(self, connection: Connection) -> None:
        """Its `Liveness` says another time for the next look."""
        if connection.liveness is not None:
            self._schedule.set(connection, connection.liveness.look_at)

    def heard(self, connection: Connection) -> None:
        """An application frame came in; the next regular ping moves."""
        if connection.liveness is not None:
            connection.liveness.heard(self.now())

    def ponged(self, connection: Connection, n: int) -> None:
        """The client answered ping `n`."""
        liveness = connection.liveness
        if liveness is not None and liveness.ponged(n, self.now()):
            if liveness.round_trip is not None:
                metrics.round_trip.observe(liveness.round_trip)
            self._schedule.set(connection, liveness.look_at)

    async def run(self) -> None:
        """Tick until cancelled."""
        counted = self._time.stalled
        while True:
            asked, seconds = self._loop.time(), pause(self._schedule.next_at, self.now())
            await asyncio.sleep(seconds)
            self.lag = max(0.0, self._loop.time() - asked - seconds)
            metrics.loop_lag.set(self.lag)
            now = self.now()
            # Since the last tick, because somebody else who asked for the time may have noticed the stall.
            if (stalled := self._time.stalled - counted) > 0:
                counted = self._time.stalled
                metrics.stalled.inc(stalled)
                logger.warning("The event loop stood still for %.1f s; nobody is evicted for it", self.lag)
            if due := self._schedule.due(now):
                # What arrived while we were late is read first, so that an answer in time is never silence.
                for _ in range(READ_TURNS):
                    await asyncio.sleep(0)
                await self._look_at(due, now)

    async def _look_at(self, due: list[Connection], now: float) -> None:
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
        verdict = liveness.verdict(now)
        if verdict in _REASONS:
            self._evict(connection, _REASONS[verdict])
            return
        if verdict is Verdict.PROBE:
            # The time of the ping itself: loop turns since this look must not shorten its deadline.
            _ping(connection, liveness.pinged(self.now()))
            metrics.pings.inc()
        if not connection.gone:
            self._schedule.set(connection, liveness.look_at)


def pause(next_at: float | None, now: float) -> float:
    """Seconds until the next look, where the next connection is due at `next_at`."""
    return TICK if next_at is None else min(TICK, max(SHORTEST_TICK, next_at - now))


def _ping(connection: Connection, n: int) -> None:
    """By a frame of `realtime.v1`, which proves that the page itself runs, or else by RFC 6455."""
    if connection.speaks_v1:
        text = frames.build(frames.Ping(n=n))
        connection.transport.write({"type": "websocket.send", "text": text}, len(text))
    else:
        connection.transport.ping(str(n).encode())


def _count_what_was_lost(liveness: Liveness, reason: CloseReason) -> None:
    if liveness.pingable:
        metrics.zombie_messages.labels(reason=reason.value).inc(liveness.unacked_messages)
        metrics.zombie_bytes.labels(reason=reason.value).inc(liveness.unacked_bytes)
