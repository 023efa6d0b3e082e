"""What one process does, on its own clock, so that it does not stay deaf: no client notices, none reconnects.

Once in an interval it sends itself an echo. Two in a row that do not come back mean that a connection is up
and carries nothing, as after a firewall forgot it; it is replaced. Then it looks for one of its memberships,
another one each time. One that is gone means that Redis lost its memory (FLUSHALL, eviction, a failover), and
all are asserted again; else some are in their turn, so that none gets as old as the layer's `group_expiry`.
When the layer is back after an outage, all are asserted at once.

A process that stays deaf says so. After `MAX_ECHOES_MISSED` echoes in a row it gives its clients up, so that
they come back to a process that hears. If it cannot reach Redis at all, it does so only when another process
hears: an outage of Redis would otherwise close every connection, for nothing.
"""

import asyncio
import logging
import weakref
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from math import ceil
from typing import Protocol
from uuid import UUID

from channels import DEFAULT_CHANNEL_LAYER
from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.errors import LayerUnavailable
from realtime.fleet.mailbox import Mailbox
from realtime.hub.connection import Connection
from realtime.layers import groups
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Join
from realtime.records.ledger import Ledger

logger = logging.getLogger("realtime.healing")

#: Echoes in a row that may stay out before connections are replaced.
ECHOES = 2
#: For how much of an interval an echo is waited for. With at most half, two are judged within two intervals
#: of the fault, whenever that came; where intervals are short, a busy machine is given more of them.
ECHO_WAIT, LONGEST_ECHO_WAIT = 0.3, 0.5
#: Seconds within which a process without connections has to hear itself, when it is asked whether it does.
HEARING_TIMEOUT = 2.0
#: How often in an interval a process tries to send an echo before it gives its clients up.
TRIES = 20
#: Intervals in which another process has to have heard itself, so that Redis counts as up for others.
OTHERS_WITHIN = 3.0
#: Seconds for which an echo is waited for, unless `LONGEST_ECHO_WAIT` is less.
SHORTEST_WAIT = 0.5
#: Memberships asserted in one go; their groups are locked meanwhile. The loop gets a turn in between.
BATCH = 100
#: A process with at most so many groups asserts all of them in each interval.
SMALLEST_SLICE = 200
#: All memberships are asserted once in this many seconds, and four times in the layer's `group_expiry`.
LONGEST_CYCLE = 600.0


class Hub(Protocol):
    """What is asked of a hub here."""

    channel: str
    mailbox: Mailbox
    process: UUID
    ledger: Ledger
    connections: dict[UUID, Connection]
    groups: dict[str, dict[Connection, None]]
    taking: bool
    left_undone: bool

    def give_up(self) -> None: ...
    def locked(self, group: str) -> AbstractAsyncContextManager[None]: ...
    def unfinished(self) -> list[str]: ...
    async def leave(self, group: str) -> None: ...


class Healer:
    """Keeps what one hub holds true in its channel layer; `interval` in seconds."""

    def __init__(self, hub: Hub, interval: float) -> None:
        self._hub = hub
        self._interval = interval
        self._parts_out: set[int] = set()
        self._missed = 0
        """Echoes in a row that did not come back, or could not be sent."""
        self.hears = True
        """False while what this process sends to itself does not arrive."""
        self._wake = asyncio.Event()
        self._times_back = 0
        """How often the layer told that it is back after an outage."""
        self._lost_all: str | None = None
        """Why all memberships have to be asserted, if they have to be."""
        self._looks = 0
        self._asserted_to = 0

    async def run(self) -> None:
        """Look once in each interval, and at once when the layer is back, until cancelled."""
        layer, _ = groups.at(self._hub.channel)
        loop = asyncio.get_running_loop()
        here = _healers.setdefault(loop, {})
        alias = groups.alias_of(self._hub.channel)
        here[alias] = self
        layer.on_back.add(self._layer_is_back)
        self._hears()
        try:
            while True:
                next_at = loop.time() + self._interval
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(next_at):
                        await self._wake.wait()
                try:
                    await self._look()
                except LayerUnavailable as error:
                    # Nothing can be healed in a layer that is down; it tells when it is back.
                    logger.warning("What this process holds could not be looked after: %s", error)
                except Exception:
                    # Whatever it was, a process that looks no more may be deaf for ever.
                    logger.exception("What this process holds could not be looked after")
        finally:
            layer.on_back.discard(self._layer_is_back)
            if here.get(alias) is self:
                # Otherwise the hub has been replaced.
                del here[alias]

    def assert_all(self, cause: str) -> None:
        """Assert all memberships now; `cause` is a label of the metric."""
        self._lost_all = cause
        self._wake.set()

    def _layer_is_back(self) -> None:
        self._times_back += 1
        self.assert_all("layer_back")

    async def _look(self) -> None:
        self._wake.clear()
        if self._lost_all is None and not await self._is_heard():
            metrics.layer_rebuilds.inc()
            logger.error(
                "%d echoes in a row did not come back: this process receives nothing from the channel layer; "
                "it opens new connections",
                self._missed,
            )
            # What was lost meanwhile is asserted when the layer tells that it receives again.
            await groups.rebuild(self._hub.channel, self._parts_out)
            return
        await self._look_for_one()
        if (cause := self._lost_all) is None:
            await self._assert(self._next_slice(), "in_turn")
        else:
            await self._assert(tuple(self._hub.groups), cause)
            # Only now, so that what failed half-way is done again.
            self._lost_all = None
        await self._finish()
        if cause is not None and self._missed:
            # Where Redis goes and comes, the next look may fall into an outage again.
            await self._is_heard()

    # -- echo --------------------------------------------------------------------------------------

    async def _is_heard(self) -> bool:
        """Find out whether what is sent to this process arrives.

        Returns:
            False when no echo came back, although the layer was there all the time.

        Raises:
            LayerUnavailable: Nothing could be sent, which says nothing about what is received.
        """
        missed = 0
        for _ in range(ECHOES):
            times_back = self._times_back
            try:
                if await self._echo():
                    self._hears()
                    return True
            except LayerUnavailable:
                # The second echo could not be sent either.
                await self._misses(ECHOES, sent=False)
                raise
            if self._times_back > times_back:
                # The echo went to a Redis that has gone since, and the connection of then with it.
                continue
            missed += 1
            metrics.echoes_missed.inc()
            await self._misses(1, sent=True)
        return missed < ECHOES

    async def _echo(self) -> bool:
        echo = await self._hub.mailbox.echo(self._hub.channel)
        shortest = min(SHORTEST_WAIT, LONGEST_ECHO_WAIT * self._interval)
        patience = max(shortest, ECHO_WAIT * self._interval)
        is_back = await echo.is_back(patience, busy=lambda: self._hub.taking)
        self._parts_out = echo.missing
        return is_back

    def _hears(self) -> None:
        if self._missed:
            logger.warning("This process hears itself again, after %d missed echoes", self._missed)
        self._missed, self.hears = 0, True
        metrics.deaf.labels(layer=groups.alias_of(self._hub.channel)).set(0)

    async def _misses(self, echoes: int, *, sent: bool) -> None:
        """Count echoes that did not come back; give up the clients of a process that stays deaf."""
        self._missed += echoes
        if self._missed < ECHOES:
            return
        self.hears = False
        metrics.deaf.labels(layer=groups.alias_of(self._hub.channel)).set(1)
        most = conf.get().MAX_ECHOES_MISSED
        if most is None or self._missed < most:
            return
        if sent or (await self._others_hear() and not await self._is_reached()):
            self._hub.give_up()

    async def _is_reached(self) -> bool:
        """Try for a whole interval to send an echo; returns whether the layer took one.

        A Redis that goes and comes may be away at each look of this process, and be there for others.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._interval
        while loop.time() < until:
            await asyncio.sleep(self._interval / TRIES)
            with suppress(LayerUnavailable):
                await self._hub.mailbox.echo(self._hub.channel)
                return True
        return False

    async def _others_hear(self) -> bool:
        """Find out whether Redis works for another process, where this one cannot reach it."""
        try:
            async with asyncio.timeout(groups.CALL_TIMEOUT):
                # A process that hears says so once in an interval.
                return await self._hub.ledger.call(
                    process_rows.others_hear, self._hub.process, OTHERS_WITHIN * self._interval
                )
        except (DatabaseFailure, TimeoutError):
            return False

    # -- memberships -------------------------------------------------------------------------------

    async def _look_for_one(self) -> None:
        """See whether the layer still has a membership; one that it lost is hardly the only one."""
        names = tuple(self._hub.groups)
        if self._lost_all is not None or not names:
            return
        self._looks += 1
        group = names[self._looks % len(names)]
        # Locked, or a group that is left at this moment would look lost.
        async with self._hub.locked(group):
            if group not in self._hub.groups or await groups.holds(group, self._hub.channel):
                return
        logger.error(
            "The channel layer has lost the membership in group %s; all %d are asserted again",
            group,
            len(names),
        )
        self._lost_all = "lost"

    def _next_slice(self) -> Sequence[str]:
        names = tuple(self._hub.groups)
        layer, _ = groups.at(self._hub.channel)
        cycle = min(LONGEST_CYCLE, layer.group_expiry / 4)
        size = max(SMALLEST_SLICE, ceil(len(names) * self._interval / cycle))
        start = self._asserted_to if self._asserted_to < len(names) else 0
        self._asserted_to = start + size
        return names[start : start + size]

    async def _assert(self, names: Sequence[str], cause: str) -> None:
        for first in range(0, len(names), BATCH):
            async with AsyncExitStack() as locks:
                held = [group for group in names[first : first + BATCH] if group in self._hub.groups]
                for group in held:
                    # What is left at this moment must not be added again behind whoever leaves it.
                    await locks.enter_async_context(self._hub.locked(group))
                held = [group for group in held if group in self._hub.groups]
                if held:
                    await groups.reassert(held, self._hub.channel)
                    metrics.groups_reasserted.labels(cause=cause).inc(len(held))
            await asyncio.sleep(0)

    # -- what was left half done -------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave what the layer did not let this process leave before."""
        await self._leave(self._hub.unfinished())
        if self._hub.left_undone:
            await self._leave_for_the_gone()
        for connection in tuple(self._hub.connections.values()):
            if len(connection.joined) > len(connection.groups) and not connection.changing.locked():
                await self._settle(connection)

    async def _leave(self, names: Sequence[str]) -> None:
        """Leave these groups; a layer that answers without waiting must not stop the event loop meanwhile."""
        for number, group in enumerate(names, start=1):
            await self._hub.leave(group)
            if number % BATCH == 0:
                await asyncio.sleep(0)

    async def _leave_for_the_gone(self) -> None:
        """Connections ended while the layer failed; no round need tell this process of them."""
        goes_on = True
        while goes_on:
            self._hub.left_undone = False
            try:
                async with asyncio.timeout(groups.CALL_TIMEOUT):
                    owed = await self._hub.ledger.call(connection_rows.leftovers, self._hub.process)
            except (DatabaseFailure, TimeoutError):
                self._hub.left_undone = True
                return
            await self._leave(tuple({each.group for each in owed}))
            is_written = await self._write_left(
                [Join(each.connection_id, each.process_id, each.group) for each in owed]
            )
            # Without the rows of this batch the next one would be the same.
            goes_on = is_written and len(owed) >= connection_rows.BATCH
            self._hub.left_undone = self._hub.left_undone or not is_written

    async def _settle(self, connection: Connection) -> None:
        """A living connection left these groups, and the layer failed: their rows are still to do."""
        async with connection.changing:
            names = tuple(connection.joined - connection.groups)
            for first in range(0, len(names), BATCH):
                if connection.gone:
                    return
                some = names[first : first + BATCH]
                await self._leave(some)
                connection.joined.difference_update(some)
                await self._write_left([Join(connection.id, self._hub.process, group) for group in some])

    async def _write_left(self, joins: Sequence[Join]) -> bool:
        """Write these memberships off; False when that takes too long, although it is done in the end."""
        # Not waited for longer than the layer is: the write goes on, and this process has to look on.
        try:
            async with asyncio.timeout(groups.CALL_TIMEOUT):
                await self._hub.ledger.leave(joins)
        except TimeoutError:
            return False
        return True


#: The healer of each channel layer, by event loop.
_healers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Healer]] = (
    weakref.WeakKeyDictionary()
)


async def require_hearing(alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Find out whether this layer takes messages, and carries to this process what it is sent.

    Raises:
        LayerUnavailable: It does not.
    """
    await groups.check(alias)
    healer = _healers.get(asyncio.get_running_loop(), {}).get(alias)
    # Without a hub nothing looks after the connection, so it is tried out.
    if not (await _hears(alias) if healer is None else healer.hears):
        raise LayerUnavailable("This process does not hear what it sends to itself.")


async def _hears(alias: str) -> bool:
    mailbox = await Mailbox.open(groups.new_control(alias))
    try:
        return await mailbox.hears_itself(HEARING_TIMEOUT)
    finally:
        await mailbox.close()
