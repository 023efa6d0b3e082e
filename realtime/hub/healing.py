"""Find out that this process has become deaf, and repair its memberships, before a client notices.

Once in an interval the process sends itself an echo. If two echoes in a row do not come back, a connection is
up and carries nothing, as after a firewall forgot it; the healer replaces it. Then it probes one of its
memberships, a different one each time. If the layer does not have it, Redis lost its memory (FLUSHALL,
eviction, a failover), and the healer re-adds all. Otherwise it re-adds the next slice, so that every
membership is refreshed before `group_expiry`. When the layer is back after an outage, it re-adds all
immediately.

A process that stays deaf says so. After `MAX_ECHOES_MISSED` missed echoes in a row it gives its clients up,
so that they come back to another process. If it cannot reach Redis at all, it does so only if another
process hears: otherwise an outage of Redis would close every connection without need.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from math import ceil
from uuid import UUID

from channels import DEFAULT_CHANNEL_LAYER
from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.errors import LayerUnavailable
from realtime.fleet.mailbox import Mailbox
from realtime.hub.connection import Connection
from realtime.hub.memberships import Memberships
from realtime.layers import groups
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Join
from realtime.records.ledger import Ledger

logger = logging.getLogger("realtime.hub")

#: Missed echoes in a row after which connections are replaced.
ECHOES = 2
#: The part of an interval for which the healer waits for an echo. With at most half of it, two echoes are
#: judged within two intervals after any fault. If intervals are short, a busy machine gets the longer part.
ECHO_WAIT, LONGEST_ECHO_WAIT = 0.3, 0.5
#: Attempts per interval to send an echo before a process gives its clients up.
TRIES = 20
#: Redis counts as up for others if another process heard itself within this many intervals.
OTHERS_WITHIN = 3.0
#: Seconds for which the healer waits for an echo at least, unless `LONGEST_ECHO_WAIT` is less.
SHORTEST_WAIT = 0.5
#: Memberships that are re-added together, with their groups locked. Between two batches the loop gets a turn.
BATCH = 100
#: A process with at most this number of groups re-adds all of them in each interval.
SMALLEST_SLICE = 200
#: All memberships are re-added once in this many seconds, and four times in the layer's `group_expiry`.
LONGEST_CYCLE = 600.0


class Healer:
    """Keeps the memberships of one process true in its channel layer.

    Args:
        memberships: The groups of the process.
        mailbox: Sends the echoes and hears them.
        ledger: Writes that memberships are left.
        process: The id of the process's row.
        connections: The connections that it holds, by id.
        busy: Returns True while an event is being taken; an echo then waits behind it.
        give_up: Called when the process stays deaf.
        interval: Seconds between two looks.
    """

    def __init__(
        self,
        memberships: Memberships,
        mailbox: Mailbox,
        ledger: Ledger,
        process: UUID,
        connections: Mapping[UUID, Connection],
        *,
        busy: Callable[[], bool],
        give_up: Callable[[], None],
        interval: float,
    ) -> None:
        self._memberships = memberships
        self._address = memberships.address
        self._mailbox = mailbox
        self._ledger = ledger
        self._process = process
        self._connections = connections
        self._busy = busy
        self._give_up = give_up
        self._interval = interval
        self._parts_out: set[int] = set()
        self._missed = 0
        """Echoes in a row that did not come back, or could not be sent."""
        self.hears = True
        """False while what this process sends to itself does not arrive."""
        self._wake = asyncio.Event()
        self._times_back = 0
        """The number of times that the layer reported the end of an outage."""
        self._re_add_cause: str | None = None
        """Set when all memberships must be re-added: the label of the metric."""
        self._probe_index = 0
        self._slice_start = 0

    async def run(self) -> None:
        """Look once in each interval, and immediately when the layer is back, until cancelled."""
        layer, _ = groups.at(self._address)
        loop = asyncio.get_running_loop()
        here = _healers.setdefault(loop, {})
        alias = groups.alias_of(self._address)
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
                    # Nothing can be healed in a layer that is down. It calls `on_back` when it is up again.
                    logger.warning("The memberships of this process could not be checked: %s", error)
                except Exception:
                    # Go on after any error: a process that stops looking may stay deaf for ever.
                    logger.exception("The memberships of this process could not be checked")
        finally:
            layer.on_back.discard(self._layer_is_back)
            if here.get(alias) is self:
                # The entry of a hub that was replaced belongs to its successor.
                del here[alias]

    def re_add_all(self, cause: str) -> None:
        """Re-add all memberships now.

        Args:
            cause: The label of the metric `realtime_groups_reasserted_total`.
        """
        self._re_add_cause = cause
        self._wake.set()

    def _layer_is_back(self) -> None:
        self._times_back += 1
        self.re_add_all("layer_back")

    async def _look(self) -> None:
        self._wake.clear()
        if self._re_add_cause is None and not await self._is_heard():
            metrics.layer_rebuilds.inc()
            logger.error(
                "%d echoes in a row did not come back: this process receives nothing from the channel layer; "
                "it opens new connections",
                self._missed,
            )
            # The layer calls `on_back` when it receives again; then all memberships are re-added.
            await groups.rebuild(self._address, self._parts_out)
            return
        await self._probe_one()
        if (cause := self._re_add_cause) is None:
            await self._re_add(self._next_slice(), "in_turn")
        else:
            await self._re_add(tuple(self._memberships.groups), cause)
            # Reset only now, so that a failure half-way is repeated.
            self._re_add_cause = None
        await self._finish()
        if cause is not None and self._missed:
            # If Redis goes and comes, the next look may fall into an outage again.
            await self._is_heard()

    # -- echo --------------------------------------------------------------------------------------

    async def _is_heard(self) -> bool:
        """Send echoes to this process itself.

        Returns:
            False if no echo came back, although the layer was up all the time.

        Raises:
            LayerUnavailable: No echo could be sent, so it is unknown whether one would arrive.
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
                # The echo went to a Redis that has restarted since, so it does not count.
                continue
            missed += 1
            metrics.echoes_missed.inc()
            await self._misses(1, sent=True)
        return missed < ECHOES

    async def _echo(self) -> bool:
        shortest = min(SHORTEST_WAIT, LONGEST_ECHO_WAIT * self._interval)
        patience = max(shortest, ECHO_WAIT * self._interval)
        missing = await self._mailbox.missing_parts(self._address, patience=patience, busy=self._busy)
        self._parts_out = missing
        return not missing

    def _hears(self) -> None:
        if self._missed:
            logger.warning("This process hears itself again, after %d missed echoes", self._missed)
        self._missed, self.hears = 0, True
        metrics.deaf.labels(layer=groups.alias_of(self._address)).set(0)

    async def _misses(self, echoes: int, *, sent: bool) -> None:
        """Count missed echoes. If the process stays deaf, give its clients up.

        Args:
            echoes: The number of echoes that were missed now.
            sent: False if the layer did not even take them.
        """
        self._missed += echoes
        if self._missed < ECHOES:
            return
        self.hears = False
        metrics.deaf.labels(layer=groups.alias_of(self._address)).set(1)
        most = conf.get().MAX_ECHOES_MISSED
        if most is None or self._missed < most:
            return
        if sent or (await self._others_hear() and not await self._is_reached()):
            self._give_up()

    async def _is_reached(self) -> bool:
        """Try for a whole interval to send an echo; return True if the layer took one.

        A Redis that goes and comes may be down at each look of this process and up for others.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._interval
        while loop.time() < until:
            await asyncio.sleep(self._interval / TRIES)
            with suppress(LayerUnavailable):
                await self._mailbox.echo(self._address)
                return True
        return False

    async def _others_hear(self) -> bool:
        """Return True if another process can reach the Redis that this process cannot reach."""
        try:
            async with asyncio.timeout(groups.CALL_TIMEOUT):
                # A process that hears says so once in an interval.
                return await self._ledger.call(
                    process_rows.others_hear, self._process, OTHERS_WITHIN * self._interval
                )
        except (DatabaseFailure, TimeoutError):
            return False

    # -- memberships -------------------------------------------------------------------------------

    async def _probe_one(self) -> None:
        """Check that the layer still has one membership. If that one is lost, re-add all."""
        names = tuple(self._memberships.groups)
        if self._re_add_cause is not None or not names:
            return
        self._probe_index += 1
        group = names[self._probe_index % len(names)]
        # Under the lock: otherwise a group that is left at this moment would look lost.
        async with self._memberships.locked(group):
            if group not in self._memberships.groups or await groups.holds(group, self._address):
                return
        logger.error(
            "The channel layer has lost the membership in group %s; all %d are added again",
            group,
            len(names),
        )
        self._re_add_cause = "lost"

    def _next_slice(self) -> Sequence[str]:
        names = tuple(self._memberships.groups)
        layer, _ = groups.at(self._address)
        cycle = min(LONGEST_CYCLE, layer.group_expiry / 4)
        size = max(SMALLEST_SLICE, ceil(len(names) * self._interval / cycle))
        start = self._slice_start if self._slice_start < len(names) else 0
        self._slice_start = start + size
        return names[start : start + size]

    async def _re_add(self, names: Sequence[str], cause: str) -> None:
        for first in range(0, len(names), BATCH):
            async with AsyncExitStack() as locks:
                held = [group for group in names[first : first + BATCH] if group in self._memberships.groups]
                for group in held:
                    # Under the lock: a group that is left at this moment must not be re-added after that.
                    await locks.enter_async_context(self._memberships.locked(group))
                held = [group for group in held if group in self._memberships.groups]
                if held:
                    await groups.re_add(held, self._address)
                    metrics.groups_reasserted.labels(cause=cause).inc(len(held))
            await asyncio.sleep(0)

    # -- what was left half done -------------------------------------------------------------------

    async def _finish(self) -> None:
        """Leave the groups that the layer did not let this process leave before."""
        await self._leave(self._memberships.unfinished())
        if self._memberships.leave_failed:
            await self._leave_for_gone_connections()
        for connection in tuple(self._connections.values()):
            if len(connection.joined) > len(connection.groups) and not connection.changing.locked():
                await self._finish_leaving(connection)

    async def _leave(self, names: Sequence[str]) -> None:
        """Leave these groups."""
        for number, group in enumerate(names, start=1):
            await self._memberships.leave(group)
            if number % BATCH == 0:
                # A layer that answers without waiting would otherwise stall the event loop.
                await asyncio.sleep(0)

    async def _leave_for_gone_connections(self) -> None:
        """Leave the groups of connections that ended while the layer failed, before a round asks for it."""
        goes_on = True
        while goes_on:
            self._memberships.leave_failed = False
            try:
                async with asyncio.timeout(groups.CALL_TIMEOUT):
                    owed = await self._ledger.call(connection_rows.leftovers, self._process)
            except (DatabaseFailure, TimeoutError):
                self._memberships.leave_failed = True
                return
            await self._leave(tuple({each.group for each in owed}))
            is_written = await self._write_left(
                [Join(each.connection_id, each.process_id, each.group) for each in owed]
            )
            # If the rows of this batch are not written, the next batch would be the same.
            goes_on = is_written and len(owed) >= connection_rows.BATCH
            self._memberships.leave_failed = self._memberships.leave_failed or not is_written

    async def _finish_leaving(self, connection: Connection) -> None:
        """Leave the groups that a living connection left while the layer failed, and close their rows."""
        async with connection.changing:
            names = tuple(connection.joined - connection.groups)
            for first in range(0, len(names), BATCH):
                if connection.gone:
                    return
                some = names[first : first + BATCH]
                await self._leave(some)
                connection.joined.difference_update(some)
                await self._write_left([Join(connection.id, self._process, group) for group in some])

    async def _write_left(self, joins: Sequence[Join]) -> bool:
        """Write that these memberships are left.

        Returns:
            False if the write takes too long. It goes on, but the healer must go on, too.
        """
        try:
            async with asyncio.timeout(groups.CALL_TIMEOUT):
                await self._ledger.leave(joins)
        except TimeoutError:
            return False
        return True


#: The healer of each channel layer, by event loop.
_healers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Healer]] = (
    weakref.WeakKeyDictionary()
)


async def require_hearing(alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Check that a layer takes messages and carries to this process what is sent to it.

    Args:
        alias: The alias of the layer in CHANNEL_LAYERS.

    Raises:
        LayerUnavailable: It does not.
    """
    await groups.check(alias)
    healer = _healers.get(asyncio.get_running_loop(), {}).get(alias)
    # Without a hub no healer checks the connection, so this sends an echo itself.
    if not (await _hears(alias) if healer is None else healer.hears):
        raise LayerUnavailable("This process does not hear what it sends to itself.")


async def _hears(alias: str) -> bool:
    mailbox = await Mailbox.open(groups.new_control(alias))
    try:
        return await mailbox.hears_itself()
    finally:
        await mailbox.close()
