"""Put the parts of one process together: its connections, its groups, and what other processes ask of it.

Each process has one channel in the channel layer. It receives a group message once and writes it to each
local member's transport. What other processes say to this one comes to its mailbox.
"""

import asyncio
import logging
import uuid
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.fleet import differences, sweep
from realtime.fleet.announcements import STOP_TIMEOUT, Announcements
from realtime.fleet.database import OwnThread
from realtime.fleet.mailbox import HEARING_TIMEOUT, Mailbox
from realtime.fleet.stays import Stays
from realtime.hub.answers import Answers, look_every
from realtime.hub.connection import Connection
from realtime.hub.events import Events
from realtime.hub.fanout import Fanout
from realtime.hub.healing import Healer
from realtime.hub.heartbeat import Heartbeat
from realtime.hub.lanes import Lanes
from realtime.hub.memberships import Memberships
from realtime.hub.notifications import Notifications
from realtime.hub.recovery import Recovery
from realtime.hub.rights import SLICE, Rights
from realtime.hub.superseding import Superseding
from realtime.hub.watches import Watches
from realtime.layers import groups, messages
from realtime.process import pids, tasks, tuning
from realtime.records.entries import Changes, Stay
from realtime.records.ledger import Ledger
from realtime.records.ledger import make as make_ledger
from realtime.rights import users
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.hub")

#: Names of connections and groups in one message that says what this process holds.
NAMES_PER_PAGE = 1000


class Owner(Protocol):
    """All calls of a hub that run upward, to the code that ends connections and replaces hubs."""

    def evict(self, connection: Connection, reason: CloseReason) -> object:
        """End a connection that proved to be dead, slow or idle."""

    async def kick(self, hub: "Hub", kick: messages.Kick) -> None:
        """Carry out a `Kick` of another process."""

    async def recheck(
        self, connection: Connection, groups: Collection[str] | None, *, tell_consumer: bool
    ) -> bool:
        """Ask the policy again about groups of a connection. Return False if that must be tried again."""

    def ask_for_refresh(self, connection: Connection, within: float) -> bool:
        """Ask a client to renew its right within some seconds."""

    def hub_is_lost(self, hub: "Hub") -> None:
        """Replace the hub: its process was declared lost, and its rows were closed."""

    def hub_is_deaf(self, hub: "Hub") -> None:
        """Replace the hub: what is published does not reach its clients, and other processes may hear."""

    def hub_is_broken(self, hub: "Hub") -> None:
        """Replace the hub: one of its tasks ended by a fault of this package or of a library."""


class Hub:
    """The connections of one process, event loop and channel layer; `Hub.start` makes it.

    Attributes:
        channel: Its address in the layer.
        process: The id of its row.
        connections: The admitted connections, by id.
        admitting: Connections during the write of their record.
        ending: The reason for which its connections end, once it takes no more.
        evictions: Evictions under way. The hub outlives them.
        endings: The clean-up steps that close a record and announce its end.
        cleanups: Clean-up steps under way. A step that hangs when the hub stops is left to a round.
        names_per_page: Names of connections and groups in one message that says what this process holds.
    """

    def __init__(self, mailbox: Mailbox, process: uuid.UUID, ledger: Ledger, owner: Owner) -> None:
        settings = conf.get()
        self.channel = mailbox.address
        self.process = process
        self.ledger = ledger
        self.mailbox = mailbox
        self.ending: CloseReason | None = None
        self.connections: dict[uuid.UUID, Connection] = {}
        self.admitting: set[Connection] = set()
        self.evictions: set[asyncio.Task[None]] = set()
        self.endings: set[asyncio.Task[None]] = set()
        self.cleanups: set[asyncio.Task[None]] = set()
        self.names_per_page = NAMES_PER_PAGE
        self._owner = owner
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.heartbeat = Heartbeat(settings.limits(), settings.MAX_UNSENT_TOTAL_BYTES, owner.evict)
        self.memberships = Memberships(
            self.channel,
            joined=lambda group: self.recovery.joined_layer(group),
            emptied=lambda group: self.recovery.emptied(group),
        )
        self.fanout = Fanout(self.memberships.groups, self.heartbeat, settings.COALESCE_WINDOW)
        self.recovery = Recovery(
            self.channel,
            self.memberships.groups,
            self.fanout,
            drained=self.heartbeat.drained,
            evict=owner.evict,
            interval=settings.ROUND_INTERVAL,
            max_size=settings.HISTORY_TAIL_BYTES,
        )
        self.watches = Watches(process, ledger, self.fanout, interval=settings.ROUND_INTERVAL)
        self.announcements = Announcements(own_thread=False)
        self.stays = Stays(
            ledger.call,
            self.announcements,
            # What a test suite writes inline is seen by no other process, and others leave nothing behind.
            interval=settings.ROUND_INTERVAL if ledger.shared else inf,
            address=self.channel,
            take=self.watches.take,
        )
        ledger.on_changes = self._take_changes
        self.superseding = Superseding(
            process,
            self.channel,
            ledger,
            self.connections,
            announcements=self.announcements,
            evict=owner.evict,
            departed=self.stays.departed,
            interval=settings.ROUND_INTERVAL,
        )
        self.notifications = Notifications(process, self.connections, self.fanout, self.heartbeat)
        # A thread of its own: while the table of users is locked, records are written nevertheless.
        self._rights_thread = OwnThread("realtime-rights") if ledger.shared else None
        self.rights = Rights(
            self._rights_thread or ledger.call,
            self.memberships.groups,
            owner,
            interval=settings.ROUND_INTERVAL,
            checks=ledger.shared and not users.are_in_memory(),
        )
        self.lanes = Lanes(self.memberships.groups, settings.COALESCE_WINDOW)
        self.events = Events(self.channel, self.fanout, self.recovery, self.lanes, mailbox)
        self.healer = Healer(
            self.memberships,
            mailbox,
            ledger,
            process,
            self.connections,
            busy=lambda: self.events.taking,
            give_up=lambda: owner.hub_is_deaf(self),
            interval=settings.ROUND_INTERVAL,
        )
        self.answers = Answers(
            process,
            ledger,
            self.connections,
            self.heartbeat,
            self.healer,
            lost=lambda: owner.hub_is_lost(self),
        )

    @classmethod
    async def start(cls, alias: str, owner: Owner, *, hearing_timeout: float = HEARING_TIMEOUT) -> "Hub":
        """Open a channel in a layer, record the process, and listen.

        Args:
            alias: The alias of the layer in CHANNEL_LAYERS.
            owner: Ends connections and replaces the hub.
            hearing_timeout: Seconds within which the process must hear what it sends to itself.

        Raises:
            LayerUnavailable: The layer takes nothing, or what this process sends to itself does not arrive.
            RecordsUnavailable: The database took no record of the process.
        """
        channel = await groups.new_address(alias)
        ledger = make_ledger()
        if ledger.shared:
            # Not in a test suite: that process belongs to the application.
            tuning.tune_gc(conf.get().GC_THRESHOLD)
            tuning.format_autobahn_log_lazily()
        mailbox: Mailbox | None = None
        try:
            mailbox = await Mailbox.open(channel)
            if not await mailbox.hears_itself(hearing_timeout):
                # Otherwise the process would admit clients and receive nothing for them.
                metrics.deaf.labels(layer=alias).set(1)
                raise LayerUnavailable("This process does not hear what it sends to itself.")
            process = await ledger.start_process(channel, pids.own(), look_every())
        except BaseException:
            # Close both: while the database is down, each client that is turned away would leave one open.
            if mailbox is not None:
                await mailbox.close()
            with suppress(LayerUnavailable):
                await groups.close_channel(channel)
            ledger.shut()
            raise
        hub = cls(mailbox, process, ledger, owner)
        hub._watch("messages", hub.events.run())
        hub._watch("fan-out", hub.fanout.run())
        for lane in hub.lanes:
            hub._watch("handlers", lane.run())
        hub._watch("pings", hub.heartbeat.run())
        hub._watch("healing", hub.healer.run())
        hub._watch("positions", hub.recovery.run())
        hub._watch("departures", hub.stays.run())
        hub._watch("presence", hub.watches.run())
        hub._watch("comparison of presence", hub.watches.check())
        hub._watch("rights", hub.rights.run())
        hub._watch("ends of rights", hub.rights.expire())
        mailbox.listen(hub._take_control)
        if ledger.shared:
            # No other process sees what a test suite writes inline.
            hub._watch("rounds", hub.answers.follow_rounds())
            hub._watch("superseded connections", hub.superseding.look())
            hub._watch("comparison of rights", hub.rights.check())
            # In a task: the connection that started the hub must not wait for what earlier processes left.
            hub._spawn(sweep.sweep_predecessors())
        mailbox.reading.add_done_callback(hub._task_ended)
        return hub

    async def stop(self) -> None:
        """Stop listening. The caller has recorded the end of the process."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.mailbox.close(), return_exceptions=True)
        await self.stays.finish(STOP_TIMEOUT)
        await self.announcements.finish(STOP_TIMEOUT)
        self.ledger.shut()
        if self._rights_thread is not None:
            self._rights_thread.shut()

    def _watch(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that runs until the hub stops."""
        task = tasks.create(work, name=f"realtime {name}")
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that ends by itself."""
        task = tasks.create(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        """Report a task that ended too early: without it the process hears nothing, or pings no client."""
        if self._stopping or (task.cancelled() and task.cancelling()):
            # If the task was cancelled from outside, its event loop ends with all tasks.
            return
        error = None if task.cancelled() else task.exception()
        logger.error("The task %s ended by itself", task.get_name(), exc_info=error)
        self._owner.hub_is_broken(self)

    # -- connections -------------------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """Hold an admitted connection."""
        self.connections[connection.id] = connection
        metrics.connections.inc()

    def remove(self, connection: Connection) -> None:
        """Stop writing to the connection. Nothing is waited for."""
        if self.connections.pop(connection.id, None) is not None:
            metrics.connections.dec()
        self.rights.removed(connection)
        self.watches.removed(connection)
        self.memberships.remove_from_all(connection)
        self.recovery.removed(connection)
        self.heartbeat.forget(connection)

    def held(self) -> set[Connection]:
        """Return every connection that has a record because of this hub, or may get one."""
        return {*self.connections.values(), *self.admitting}

    def end(self, reason: CloseReason) -> None:
        """Take no more connections, and write nothing from the layer. The first reason counts."""
        self.ending = self.ending or reason
        self.memberships.close(self.connections.values())

    def write(self, connection: Connection, event: Event, size: int) -> None:
        """Hand one frame to a connection, after the group messages that wait for it.

        Args:
            connection: The client must acknowledge by a later pong what is written to it.
            event: The ASGI event `websocket.send`.
            size: Bytes of the payload.
        """
        self.fanout.flush(connection)
        ping_follows = self.heartbeat.wrote(connection, size)
        connection.transport.write(event, size)
        if ping_follows:
            self.heartbeat.ask(connection)

    # -- presence ----------------------------------------------------------------------------------

    def _take_changes(self, changes: Changes) -> None:
        """Take what a batch of this process has changed in presence."""
        self.watches.take(changes)
        self.stays.tell(changes)
        if changes.departed:
            self.stays.departed()

    # -- what other processes say --------------------------------------------------------------------

    def _take_control(self, message: messages.Control) -> None:
        match message:
            case messages.Ask(number, reply_to, interval):
                self._spawn(self.answers.answer(number, reply_to, interval))
            case messages.Explain(request, reply_to):
                self._spawn(self._explain(request, reply_to))
            case messages.Heal(stray):
                self._heal(stray)
            case messages.PresenceChanges(began, ended):
                self.watches.note([Stay(*each) for each in began], [Stay(*each) for each in ended])
            case messages.Revoke():
                self._spawn(self._revoke(message))
            case messages.Recheck():
                self.rights.recheck(message)
            case messages.Notify():
                self._spawn(self.notifications.deliver(message))
            case messages.Kick():
                self._spawn(self._owner.kick(self, message))

    async def _explain(self, request: str, reply_to: str) -> None:
        """Say what this process holds, in pages."""
        held = [(str(connection.id), sorted(connection.groups)) for connection in self.held()]
        parts = list(differences.pages(held, self.names_per_page))
        try:
            for number, part in enumerate(parts):
                page = messages.Holdings(request, str(self.process), part, number, len(parts))
                await groups.tell(reply_to, page)
        except LayerUnavailable as error:
            logger.warning("What this process holds could not be said: %s", error)

    async def _revoke(self, revoke: messages.Revoke) -> None:
        """Evict the connections that rely on a session that has ended."""
        for number, connection in enumerate(self.rights.revoke(revoke), start=1):
            self._owner.evict(connection, CloseReason.NOT_AUTHENTICATED)
            if number % SLICE == 0:
                await asyncio.sleep(0)

    def _heal(self, stray: Sequence[str]) -> None:
        """Repair memberships: the layer lost this process in its groups, or has it in others."""
        self.memberships.note_strays(stray)
        self.healer.re_add_all("told")
