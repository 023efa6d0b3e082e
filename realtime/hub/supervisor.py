"""The hubs of one event loop, one for each channel layer: from the first connection to the stop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from realtime import conf
from realtime.closing import CloseReason
from realtime.errors import RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.hub import Hub
from realtime.process import drain, tasks
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.hubs")

Evict = Callable[[Connection, CloseReason], object]
Kick = Callable[[Hub, Event], Coroutine[Any, Any, None]]


class Supervisor:
    """Starts, replaces and stops hubs, of which it is the owner.

    `evict` ends a connection; `kick` is what a hub does that another process kicks.
    """

    def __init__(self, *, evict: Evict, kick: Kick) -> None:
        self._evict = evict
        self._kick = kick
        self._by_alias: dict[str, asyncio.Task[Hub]] = {}
        # Hubs that were replaced, and the task that ends each.
        self._retiring: dict[Hub, asyncio.Task[None]] = {}
        self.ending: CloseReason | None = None
        """Set when nobody is taken in any more: why."""
        self.consumers: set[asyncio.Task[Any]] = set()
        """Whoever serves a connection: a planned stop waits for what its handlers do at the end."""
        # Before anything is waited for: a process may be told to stop while its first hub starts.
        drain.prepare(self._drain)

    async def get(self, alias: str) -> Hub:
        """The hub for the layer of this alias, started when first asked for.

        Raises LayerUnavailable, RecordsUnavailable.
        """
        starting = self._by_alias.get(alias)
        if starting is None or (
            starting.done() and (starting.cancelled() or starting.exception() is not None)
        ):
            starting = self._by_alias[alias] = tasks.start(Hub.start(alias, self))
        home = await asyncio.shield(starting)
        # One that was being started when the stop began takes nobody in.
        home.ending = home.ending or self.ending
        return home

    def evict(self, connection: Connection, reason: CloseReason) -> None:
        self._evict(connection, reason)

    async def kick(self, hub: Hub, event: Event) -> None:
        await self._kick(hub, event)

    def hub_is_lost(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_LOST, "This process was declared lost")

    def hub_is_deaf(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_UNAVAILABLE, "This process stays deaf")

    def hub_is_broken(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_LOST, "A part of this process has failed")

    def _replace(self, old: Hub, reason: CloseReason, why: str) -> None:
        """Have a new hub in the place of this one, with a new channel and a new row.

        The connections of the old hub end, spread over RECONNECT_WINDOW, and come back to the new one or to
        another process. The old hub stays until its evictions have left the groups under the old channel.
        """
        if old.ending is not None:
            # It hears so again and again until it has stopped.
            return
        logger.error("%s; it closes %d connections and starts anew", why, len(old.connections))
        for alias, starting in tuple(self._by_alias.items()):
            if starting.done() and not starting.exception() and starting.result() is old:
                del self._by_alias[alias]
        old.end(reason)
        self._retiring[old] = tasks.start(self._evict_and_retire(old, reason))

    async def _evict_and_retire(self, old: Hub, reason: CloseReason) -> None:
        # Not in one instant: clients that do not speak `realtime.v1` are told no time at which to come back.
        await self._evict_spread(old, reason, conf.get().RECONNECT_WINDOW)
        await self._retire(old)

    async def _evict_spread(self, old: Hub, reason: CloseReason, window: float) -> None:
        clock = asyncio.get_running_loop().time
        connections, began = old.held(), clock()
        for position, connection in enumerate(connections):
            until = began + window * position / len(connections)
            if (early := until - clock()) > 0:
                await asyncio.sleep(early)
            self._evict(connection, reason)

    async def stop(self) -> None:
        """End all hubs as planned: evict every connection, then record that the process has stopped.

        Whoever asks for a hub later starts a new one.
        """
        self._evict_all(CloseReason.SERVER_RESTART)
        await self._record_stop(patience=None)
        self.ending = None

    def _drain(self) -> Coroutine[Any, Any, None]:
        """`stop` for good: every connection is evicted when this returns; what it returns records it, and
        waits for the consumers.
        """
        self._evict_all(CloseReason.SERVER_RESTART)
        return self._drained()

    async def _drained(self) -> None:
        # The rows are written even where what the layer is to do hangs.
        await self._record_stop(patience=conf.get().DRAIN_TIMEOUT / 2)
        # Last, because their handlers are not ours.
        if self.consumers:
            await asyncio.wait(tuple(self.consumers))

    def _evict_all(self, reason: CloseReason) -> None:
        self.ending = reason
        for old in self._running():
            # Those whose record is being written now have to end with the others, or they would outlive the
            # hub.
            for connection in old.held():
                try:
                    self._evict(connection, reason)
                except Exception:
                    # The process ends for all others, too.
                    logger.exception("A connection was not evicted", extra=connection.log_fields())
            old.end(reason)

    async def _record_stop(self, patience: float | None) -> None:
        ends = [self._retire_started(starting, patience) for starting in self._by_alias.values()]
        for old, replacing in self._retiring.items():
            # Everything that it would evict one by one has been evicted.
            replacing.cancel()
            ends.append(self._retire(old, patience))
        await asyncio.gather(*ends)
        self._by_alias.clear()

    async def _retire_started(self, starting: asyncio.Task[Hub], patience: float | None) -> None:
        # One that is being started would outlive the stop.
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await self._retire(starting.result(), patience)

    def _running(self) -> set[Hub]:
        """Hubs that have started, also those that were replaced and are not done yet."""
        started = [each for each in self._by_alias.values() if each.done() and not each.cancelled()]
        return {each.result() for each in started if each.exception() is None} | self._retiring.keys()

    async def _retire(self, old: Hub, patience: float | None = None) -> None:
        """Wait for the evictions, `patience` seconds at most, then record the end and stop the hub."""
        old.end(CloseReason.SERVER_RESTART)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                # Also those that began to end before: their writes need the ledger.
                while old.evictions:
                    await asyncio.wait(tuple(old.evictions))
        try:
            await old.ledger.stop_process(old.process)
        except RecordsUnavailable as error:
            logger.warning("The end of this process was not recorded; rounds will find it lost: %s", error)
        # What hangs even now is on the to-do list, and the next round does it.
        for step in tuple(old.cleanups):
            step.cancel()
        await old.stop()
        self._retiring.pop(old, None)
