"""This process's connections and groups.

Each process has one channel in the channel layer, and is a member of a group there while it has a local
member of that group. A group message is received once per process and written to each local member's
transport. What other processes say to this one comes to its mailbox.
"""

import asyncio
import copy
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, Protocol

from django.db import Error as DatabaseFailure

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, RecordsUnavailable
from realtime.fleet import differences, sweep
from realtime.fleet.mailbox import Mailbox
from realtime.hub.connection import Connection
from realtime.hub.fanout import Fanout
from realtime.hub.healing import Healer
from realtime.hub.heartbeat import Heartbeat
from realtime.layers import STAMP, groups
from realtime.process import autobahn_log, collector, pids, tasks
from realtime.records import process_rows
from realtime.records.ledger import Ledger
from realtime.records.ledger import make as make_ledger
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.hub")

#: Seconds to wait for the first mark of a group: a SUBSCRIBE that was written is not yet one that is active.
MARK_TIMEOUT = 1.0
#: Seconds within which a process that starts has to hear what it sends to itself.
HEARING_TIMEOUT = 2.0
#: Seconds until the hub goes on after an event that it could not take.
PAUSE_AFTER_ERROR = 0.05
#: Names of connections and groups in one message that says what this process holds.
NAMES_PER_PAGE = 1000
#: Connections of the hub's records are touched, for display, at most once in this many seconds.
TOUCH_INTERVAL = 60.0


class Owner(Protocol):
    """All calls of a hub that run upward, to what ends connections and replaces hubs."""

    def evict(self, connection: Connection, reason: CloseReason) -> object:
        """End a connection that proved to be dead, slow or idle."""

    async def kick(self, hub: "Hub", event: Event) -> None:
        """Carry out a KICK of another process."""

    def hub_is_lost(self, hub: "Hub") -> None:
        """This process was declared lost, and its rows were closed, while it could not answer."""

    def hub_is_deaf(self, hub: "Hub") -> None:
        """What is published does not reach the clients of this hub, and others may hear."""

    def hub_is_broken(self, hub: "Hub") -> None:
        """A task of the hub ended, by a fault of this package or of a library."""


class Hub:
    """One per process, event loop and channel layer; made by `Hub.start`. `channel` is its address."""

    def __init__(self, mailbox: Mailbox, process: uuid.UUID, ledger: Ledger, owner: Owner) -> None:
        self.channel = mailbox.address
        self.mailbox = mailbox
        self.process = process
        self.ledger = ledger
        self.pulse = Heartbeat(conf.get().limits(), conf.get().MAX_UNSENT_TOTAL_BYTES, owner.evict)
        self._owner = owner
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
        self.fanout = Fanout(self.groups, self.pulse, conf.get().COALESCE_WINDOW)
        # Groups of which the layer may have this process as a member: from before it is asked to add until a
        # discard has returned.
        self._in_layer: set[str] = set()
        self.left_undone = False
        """Whether the layer failed to let this process leave a group, so that memberships are still to do."""
        self.taking = False
        """Whether an event is being taken now; fan-out makes it wait while it is behind."""
        self._look_every = _look_every()
        self._rounds_are_closer = asyncio.Event()
        """Set when the next look for rounds has to come earlier than was planned."""
        self._answered = 0
        """The last round that this process answered in the database."""
        self._answered_at = 0.0
        self.healer = Healer(self, conf.get().ROUND_INTERVAL)
        self._locks: dict[str, _Lock] = {}
        self._marks: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._touched_at = self._loop.time()
        self._ignored: set[str] = set()

    @classmethod
    async def start(cls, alias: str, owner: Owner) -> "Hub":
        """Open a channel in the layer of this alias, record the process, and listen.

        Raises:
            LayerUnavailable: The layer takes nothing, or what this process sends to itself does not arrive.
            RecordsUnavailable: The database took no record of the process.
        """
        channel = await groups.new_address(alias)
        ledger = make_ledger()
        if ledger.shared:
            # Not in a test suite, whose process is not ours.
            collector.settle(conf.get().GC_THRESHOLD)
            autobahn_log.format_later()
        mailbox: Mailbox | None = None
        try:
            mailbox = await Mailbox.open(channel)
            if not await mailbox.hears_itself(HEARING_TIMEOUT):
                # Clients would be let in to a process that receives nothing for them.
                metrics.deaf.labels(layer=alias).set(1)
                raise LayerUnavailable("This process does not hear what it sends to itself.")
            process = await ledger.start_process(channel, pids.own(), _look_every())
        except BaseException:
            # Each client that is turned away while the database is down would leave one open.
            if mailbox is not None:
                await mailbox.close()
            with suppress(LayerUnavailable):
                await groups.close_channel(channel)
            ledger.shut()
            raise
        hub = cls(mailbox, process, ledger, owner)
        # One long-lived task reads the channel, never under a timeout: one that times out deletes a pub/sub
        # channel.
        hub._watch("messages", hub._listen())
        hub._watch("fan-out", hub.fanout.run())
        hub._watch("pings", hub.pulse.run())
        hub._watch("healing", hub.healer.run())
        hub._watch("mailbox", hub._read_mailbox())
        if ledger.shared:
            # Nobody else sees what a test suite writes inline.
            hub._watch("rounds", hub._follow_rounds())
            # Beside the connection that started the hub: what its predecessors held must not keep it waiting.
            hub._spawn(sweep.predecessors())
        mailbox.reading.add_done_callback(hub._task_ended)
        return hub

    async def stop(self) -> None:
        """Stop listening; the records are the business of whoever stops it."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.mailbox.close(), return_exceptions=True)
        self.ledger.shut()

    def _watch(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that runs until the hub stops."""
        task = tasks.create(work, name=f"realtime {name}")
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        """Without one of its tasks this process is deaf, or pings nobody, and nothing else would tell."""
        if self._stopping or (task.cancelled() and task.cancelling()):
            # The second is a loop that ends with all its tasks.
            return
        error = None if task.cancelled() else task.exception()
        logger.error("The task %s ended by itself", task.get_name(), exc_info=error)
        self._owner.hub_is_broken(self)

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
        except LayerUnavailable:
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
                raise LayerUnavailable(
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

    async def _read_mailbox(self) -> None:
        while True:
            event = await self.mailbox.next()
            metrics.events.labels(type=event.get("type", "")).inc()
            try:
                self._take_control(event)
            except Exception:
                logger.exception("The hub could not take an event of another process")

    def _take_control(self, event: Event) -> None:
        match event.get("type"):
            case groups.ASK:
                self._spawn(self._answer(event["round"], event["reply_to"], event.get("interval", 0.0)))
            case groups.EXPLAIN:
                self._spawn(self._explain(event["request"], event["reply_to"]))
            case groups.HEAL:
                self._spawn(self._heal(event["stray"]))
            case groups.KICK:
                self._spawn(self._owner.kick(self, event))
            case kind:
                self._log_once(f"Another process sent an event of type {kind!r}, which is not known here.")

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
                self.mailbox.returned(event)
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
        to_ask = self.pulse.wrote(connection, size)
        connection.transport.write(event, size)
        if to_ask:
            self.pulse.ask(connection)

    def give_up(self) -> None:
        """Have the connections of this hub come back to a process that hears; called by the healer."""
        self._owner.hub_is_deaf(self)

    # -- rounds ------------------------------------------------------------------------------------

    async def _follow_rounds(self) -> None:
        """Look in the database for rounds that this process was not asked, and whether it was declared lost.

        A question may not arrive: this process alone cannot reach Redis, or its connection there carries
        nothing. A process that was stopped and goes on looks immediately, because its pause is over.
        """
        while True:
            self._rounds_are_closer.clear()
            with suppress(TimeoutError):
                # Twice in the time that is promised, so that a look that is a little late still keeps it.
                async with asyncio.timeout(self._look_every / 2):
                    await self._rounds_are_closer.wait()
            try:
                found = await self.ledger.look_for_rounds(self.process)
                self._look_every = _look_every(found.interval)
                if not found.running:
                    self._owner.hub_is_lost(self)
                elif found.number > self._answered:
                    await self._answer_in_database(found.number)
                elif self.healer.hears and self._loop.time() - self._answered_at > conf.get().ROUND_INTERVAL:
                    self._answered_at = self._loop.time()
                    await self.ledger.call(process_rows.note_heard, self.process)
            except (RecordsUnavailable, DatabaseFailure) as error:
                logger.warning("It is not known whether this process was declared lost: %s", error)

    async def _answer(self, number: int, reply_to: str, interval: float) -> None:
        """Answer a round twice: a process that lost only its database, or only its layer, is not a lost
        process.
        """
        if (look_every := _look_every(interval)) < self._look_every:
            # Before the answer, which promises it.
            self._look_every = look_every
            self._rounds_are_closer.set()
        try:
            await groups.answer(reply_to, number, str(self.process))
        except LayerUnavailable as error:
            logger.warning("Round %d could not be answered through the channel layer: %s", number, error)
        if number == 0:
            return
        try:
            await self._answer_in_database(number)
        except RecordsUnavailable as error:
            logger.warning("Round %d could not be answered in the database: %s", number, error)

    async def _answer_in_database(self, number: int) -> None:
        running = await self.ledger.answer_round(
            self.process,
            number,
            connections=len(self.connections),
            loop_lag=self.pulse.lag,
            look_every=self._look_every,
            hears=self.healer.hears,
        )
        if not running:
            self._owner.hub_is_lost(self)
            return
        self._answered, self._answered_at = max(self._answered, number), self._loop.time()
        if self._answered_at - self._touched_at >= TOUCH_INTERVAL:
            self._touched_at = self._answered_at
            await self.ledger.touch(tuple(self.connections))

    async def _explain(self, request: str, reply_to: str) -> None:
        """Say what this process holds."""
        held = [(str(connection.id), sorted(connection.groups)) for connection in self.held()]
        parts = list(differences.pages(held, NAMES_PER_PAGE))
        try:
            for number, part in enumerate(parts):
                page = {"request": request, "process": str(self.process), "connections": part}
                await groups.holdings(reply_to, {**page, "page": number, "pages": len(parts)})
        except LayerUnavailable as error:
            logger.warning("What this process holds could not be said: %s", error)

    async def _heal(self, stray: list[str]) -> None:
        """Somebody found that the layer does not have this process in its groups, or in others, too."""
        self._in_layer.update(group for group in stray if group not in self.groups)
        self.healer.assert_all("told")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = tasks.create(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _log_once(self, sentence: str) -> None:
        if sentence not in self._ignored:
            self._ignored.add(sentence)
            logger.error(sentence)


def _look_every(interval: float = 0.0) -> float:
    """Seconds within which a process looks for rounds, where a reaper has them so far apart."""
    shortest = min(interval or conf.get().ROUND_INTERVAL, conf.get().ROUND_INTERVAL)
    # A process that was asked in vain has looked before the next round is judged.
    return shortest / 2


class _Lock(asyncio.Lock):
    """A lock that counts who holds it or waits for it."""

    users = 0
