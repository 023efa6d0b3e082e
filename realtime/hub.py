"""This process's connections and groups.

Each process has one channel in the channel layer, and is a member of a group there while it has a local
member of that group. A group message is received once per process and written to each local member's
transport.
"""

import asyncio
import copy
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from django.db import Error as DatabaseFailure

from realtime import autobahn_log, collector, conf, differences, groups, metrics, pids, process_records, sweep
from realtime.closing import CloseReason
from realtime.connection import Connection
from realtime.fanout import Fanout
from realtime.healing import Healer
from realtime.layers import STAMP
from realtime.ledger import Ledger, RecordsUnavailable
from realtime.ledger import make as make_ledger
from realtime.pulse import Pulse
from realtime.transport import Event

logger = logging.getLogger("realtime.hub")

#: Seconds to wait for the first mark of a group: a SUBSCRIBE that was written is not yet one that is active.
MARK_TIMEOUT = 1.0
#: Seconds until the hub goes on after an event that it could not take.
PAUSE_AFTER_ERROR = 0.05
#: Names of connections and groups in one message that says what this process holds.
NAMES_PER_PAGE = 1000
#: Connections of the hub's records are touched, for display, at most once in this many seconds.
TOUCH_INTERVAL = 60.0


class Hub:
    """One per process, event loop and channel layer; made by `Hub.start`. `channel` is its address."""

    def __init__(self, channel: str, process: uuid.UUID, ledger: Ledger, pulse: Pulse) -> None:
        self.channel = channel
        self.process = process
        self.ledger = ledger
        self.pulse = pulse
        self.ending: CloseReason | None = None
        """Set when this hub takes nobody in any more: why its connections end."""
        self.admitting: set[Connection] = set()
        """Connections whose record is being written."""
        self.evictions: set[asyncio.Task[None]] = set()
        """Evictions under way; the hub outlives them."""
        self.cleanups: set[asyncio.Task[None]] = set()
        """Clean-up steps under way; what hangs when the hub stops is left to a round."""
        self.connections: dict[uuid.UUID, Connection] = {}
        # A dict of its members for each group: ordered, and safe to ask while others leave.
        self.groups: dict[str, dict[Connection, None]] = {}
        self.fanout = Fanout(self.groups, pulse, conf.get().COALESCE_WINDOW)
        # Groups of which the layer may have this process as a member: from before it is asked to add until a
        # discard has returned.
        self._in_layer: set[str] = set()
        self.left_undone = False
        """Whether the layer failed to let this process leave a group, so that memberships are still to do."""
        self.events_taken = 0
        self.taking = False
        """Whether an event is being taken now; fan-out makes it wait while it is behind."""
        self.healer = Healer(self, conf.get().ROUND_INTERVAL)
        self._locks: dict[str, _Lock] = {}
        self._marks: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._touched_at = self._loop.time()
        self._ignored: set[str] = set()
        self.on_kick: Callable[[Event], Coroutine[Any, Any, None]]
        self.on_lost: Callable[[], None]

    @classmethod
    async def start(
        cls,
        alias: str,
        *,
        evict: Callable[[Connection, CloseReason], object],
        on_kick: Callable[["Hub", Event], Coroutine[Any, Any, None]],
        on_lost: Callable[["Hub"], None],
    ) -> "Hub":
        """Open a channel in the layer of this alias, record the process, and listen.

        Raises LayerUnavailable, RecordsUnavailable.
        """
        channel = await groups.new_address(alias)
        ledger = make_ledger()
        if ledger.shared:
            # Not in a test suite, whose process is not ours.
            collector.settle(conf.get().GC_THRESHOLD)
            autobahn_log.format_later()
        try:
            process = await ledger.start_process(channel, pids.own())
        except BaseException:
            # Each client that is turned away while the database is down would leave one open.
            with suppress(groups.LayerUnavailable):
                await groups.close_channel(channel)
            ledger.shut()
            raise
        hub = cls(channel, process, ledger, Pulse(conf.get().limits(), evict))
        hub.on_kick = lambda event: on_kick(hub, event)
        hub.on_lost = lambda: on_lost(hub)
        # One long-lived task reads the channel, never under a timeout: one that times out deletes a pub/sub
        # channel.
        hub._tasks = [
            hub._loop.create_task(hub._listen()),
            hub._loop.create_task(hub.fanout.run()),
            hub._loop.create_task(hub.pulse.run()),
            hub._loop.create_task(hub.healer.run()),
            hub._loop.create_task(hub._hear_the_verdict()),
        ]
        if ledger.shared:
            # Beside the connection that started the hub: what its predecessors held must not keep it waiting.
            hub._spawn(sweep.predecessors())
        return hub

    async def stop(self) -> None:
        """Stop listening; the records are the business of whoever stops it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.ledger.shut()

    # -- connections -------------------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        self.connections[connection.id] = connection
        metrics.connections.inc()

    def remove(self, connection: Connection) -> None:
        """Take the connection out of everything that is written to: at once, without waiting for anything."""
        if self.connections.pop(connection.id, None) is not None:
            metrics.connections.dec()
        self._remove_from_groups(connection)
        self.pulse.forget(connection)

    def held(self) -> set[Connection]:
        """Every connection that has a record because of this hub, or may get one."""
        return {*self.connections.values(), *self.admitting}

    def end(self, reason: CloseReason) -> None:
        """Take nobody in any more, and write to nobody what comes from the layer; the first reason counts."""
        self.ending = self.ending or reason
        for connection in self.connections.values():
            self._remove_from_groups(connection)

    # -- membership --------------------------------------------------------------------------------

    async def add_member(self, connection: Connection, group: str) -> None:
        """Returns when the connection receives what is sent to the group. Raises LayerUnavailable."""
        async with self.locked(group):
            if connection.gone:
                # Its eviction may have been here before, to leave the group.
                return
            if not self.groups.get(group):
                self._in_layer.add(group)
                await groups.add(group, self.channel)
                await self._confirm(group)
            if connection.gone or self.ending is not None:
                # It ended while the layer was at work; its eviction waits for this lock to leave the group.
                return
            if group not in self.groups:
                self.groups[group] = {}
                metrics.groups.inc()
            self.groups[group][connection] = None
            connection.groups.add(group)
            # Again: whoever left the group before, and had its turn until now, took it out.
            connection.joined.add(group)

    def remove_member(self, connection: Connection, group: str) -> None:
        """Write nothing more to this member; the layer is told by `leave`."""
        connection.groups.discard(group)
        members = self.groups.get(group)
        if members is not None:
            members.pop(connection, None)
            if not members:
                del self.groups[group]
                metrics.groups.dec()

    def _remove_from_groups(self, connection: Connection) -> None:
        """Remove the connection from all of its groups without waiting; they may be thousands."""
        emptied = 0
        for group in connection.groups:
            members = self.groups.get(group)
            if members is not None:
                members.pop(connection, None)
                if not members:
                    del self.groups[group]
                    emptied += 1
        connection.groups.clear()
        metrics.groups.dec(emptied)

    async def leave(self, group: str) -> None:
        """Leave the layer's group unless it has a local member. Raises LayerUnavailable."""
        try:
            async with self.locked(group):
                # Counted again under the lock: somebody may have joined while the lock was waited for, and of
                # many that end at once the first leaves for all.
                if not self.groups.get(group) and group in self._in_layer:
                    await groups.discard(group, self.channel)
                    self._in_layer.discard(group)
        except groups.LayerUnavailable:
            self.left_undone = True
            raise

    def unfinished(self) -> list[str]:
        """Groups that the layer failed to let this process leave, and that nobody is changing now."""
        return [group for group in self._in_layer - self.groups.keys() if group not in self._locks]

    async def _confirm(self, group: str) -> None:
        number = next(self._numbers)
        mark = self._marks[number] = self._loop.create_future()
        try:
            await groups.mark(group, number, self.channel)
            async with asyncio.timeout(MARK_TIMEOUT):
                await mark
        except TimeoutError:
            metrics.subscribe_unconfirmed.inc()
            logger.warning("A mark sent to group %s did not come back within %s s", group, MARK_TIMEOUT)
        finally:
            del self._marks[number]

    @asynccontextmanager
    async def locked(self, group: str) -> AsyncIterator[None]:
        """One lock per group, for as long as somebody holds it or waits for it.

        Raises LayerUnavailable when the layer keeps those before from getting done.
        """
        lock = self._locks.setdefault(group, _Lock())
        lock.users += 1
        try:
            try:
                # Nobody else has it: there is nothing to wait for, and a timer costs more than the lock.
                async with nullcontext() if lock.users == 1 else asyncio.timeout(groups.CALL_TIMEOUT):
                    await lock.acquire()
            except TimeoutError as error:
                raise groups.LayerUnavailable(
                    f"Others wait for the channel layer to change group {group}."
                ) from error
            try:
                yield
            finally:
                lock.release()
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[group]

    # -- what comes in -----------------------------------------------------------------------------

    async def _listen(self) -> None:
        layer, channel = groups.at(self.channel)
        while True:
            try:
                event = await layer.receive_stamped(channel)
                self.events_taken += 1
                self.taking = True
                metrics.events.labels(type=event.get("type", "")).inc()
                await self._take(event)
            except Exception:
                # Neither an event that cannot be handled nor a layer that fails makes the process deaf to all
                # that follow; the pause keeps a layer that fails at once from filling the log.
                logger.exception("The hub could not take an event")
                await asyncio.sleep(PAUSE_AFTER_ERROR)
            finally:
                self.taking = False

    async def _take(self, event: Event) -> None:
        group = event.pop(STAMP, None)
        match event.get("type"):
            case groups.MESSAGE if group is not None:
                await self.fanout.put(group, event["text"])
            case groups.MARK:
                mark = self._marks.get(event["number"]) if event["channel"] == self.channel else None
                if mark is not None and not mark.done():
                    mark.set_result(None)
            case groups.ECHO:
                self.healer.returned(event["number"], event["part"])
            case groups.ASK:
                self._spawn(self._answer(event["round"], event["reply_to"]))
            case groups.EXPLAIN:
                self._spawn(self._explain(event["request"], event["reply_to"]))
            case groups.HEAL:
                self._spawn(self._heal(event["stray"]))
            case groups.KICK:
                self._spawn(self.on_kick(event))
            case _ if group is not None:
                for connection in tuple(self.groups.get(group, ())):
                    # To its last part: a handler may change what it is given.
                    connection.on_event(copy.deepcopy(event))
            case kind:
                # Sent by a layer that is not ours, or by somebody who wrote to our channel: to whom it
                # should go is unknown.
                metrics.unstamped.inc()
                self._log_once(
                    f"An event of type {kind!r} did not say which group it was sent to; is every process "
                    "that sends configured with a layer of realtime.layers?"
                )

    def write(self, connection: Connection, event: Event, size: int) -> None:
        """Hand one frame of `size` bytes to a connection, after what waits for it from its groups; what is
        written has to be acknowledged by a later pong.
        """
        self.fanout.flush(connection)
        self.pulse.wrote(connection, size)
        connection.transport.write(event, size)

    # -- rounds ------------------------------------------------------------------------------------

    async def _hear_the_verdict(self) -> None:
        """Find out that this process was declared lost while it could not hear; rounds ask it no more then.

        A process that was stopped and goes on looks at once, because its pause is over.
        """
        while True:
            await asyncio.sleep(conf.get().ROUND_INTERVAL)
            try:
                if not await self.ledger.call(process_records.is_running, self.process):
                    self.on_lost()
            except DatabaseFailure as error:
                logger.warning("Whether this process was declared lost is not known: %s", error)

    async def _answer(self, number: int, reply_to: str) -> None:
        """Answer a round twice: a process that lost only its database, or only its layer, is not a lost
        process.
        """
        try:
            await groups.answer(reply_to, number, str(self.process))
        except groups.LayerUnavailable as error:
            logger.warning("Round %d could not be answered through the channel layer: %s", number, error)
        if number == 0:
            return
        try:
            running = await self.ledger.answer_round(
                self.process, number, len(self.connections), self.pulse.lag
            )
            if not running:
                self.on_lost()
            elif self._loop.time() - self._touched_at >= TOUCH_INTERVAL:
                self._touched_at = self._loop.time()
                await self.ledger.touch(tuple(self.connections))
        except RecordsUnavailable as error:
            logger.warning("Round %d could not be answered in the database: %s", number, error)

    async def _explain(self, request: str, reply_to: str) -> None:
        """Say what this process holds."""
        held = [(str(connection.id), sorted(connection.groups)) for connection in self.held()]
        parts = list(differences.pages(held, NAMES_PER_PAGE))
        try:
            for number, part in enumerate(parts):
                page = {"request": request, "process": str(self.process), "connections": part}
                await groups.holdings(reply_to, {**page, "page": number, "pages": len(parts)})
        except groups.LayerUnavailable as error:
            logger.warning("What this process holds could not be said: %s", error)

    async def _heal(self, stray: list[str]) -> None:
        """Somebody found that the layer does not have this process in its groups, or in others, too."""
        self._in_layer.update(group for group in stray if group not in self.groups)
        self.healer.assert_all("told")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _log_once(self, sentence: str) -> None:
        if sentence not in self._ignored:
            self._ignored.add(sentence)
            logger.error(sentence)


class _Lock(asyncio.Lock):
    """A lock that counts who holds it or waits for it."""

    users = 0
