"""Start, replace and stop the hubs of one event loop. Each channel layer has one hub."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from realtime import conf
from realtime.closing import CloseReason
from realtime.errors import RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.hub import Hub
from realtime.layers import messages
from realtime.limits import admission
from realtime.process import drain, tasks

logger = logging.getLogger("realtime.hub")

#: Seconds for which a stop waits for the receivers of the ends that were recorded last.
ENDINGS_TIMEOUT = 1.0

Evict = Callable[[Connection, CloseReason], object]
Kick = Callable[[Hub, messages.Kick], Coroutine[Any, Any, None]]
AskForRefresh = Callable[[Connection, float], bool]


class Recheck(Protocol):
    """Asks the policy again about groups of a connection."""

    def __call__(
        self, connection: Connection, groups: Collection[str] | None, *, tell_consumer: bool
    ) -> Coroutine[Any, Any, bool]: ...


class Supervisor:
    """The owner of the hubs of one event loop.

    Args:
        evict: Ends a connection.
        kick: Carries out a `Kick` that another process sent to a hub.
        recheck: Asks the policy again.
        ask_for_refresh: Asks a client to renew its right within some seconds.
    """

    def __init__(self, *, evict: Evict, kick: Kick, recheck: Recheck, ask_for_refresh: AskForRefresh) -> None:
        self._evict = evict
        self._kick = kick
        self._recheck = recheck
        self._ask_for_refresh = ask_for_refresh
        self._by_alias: dict[str, asyncio.Task[Hub]] = {}
        # The hubs that were replaced, each with the task that ends it.
        self._retiring: dict[Hub, asyncio.Task[None]] = {}
        self.ending: CloseReason | None = None
        """The reason of the planned stop, once it has begun: no hub takes connections any more."""
        self.consumers: set[asyncio.Task[Any]] = set()
        """The tasks that serve connections. A planned stop waits until their handlers are done."""
        # Prepared before the first await: a process may be told to stop while its first hub starts.
        drain.prepare(self._drain)

    async def get(self, alias: str) -> Hub:
        """Return the hub for the layer of this alias. The first call starts it.

        Raises:
            LayerUnavailable: The layer is down, or has no layer of this alias.
            RecordsUnavailable: The database is down.
        """
        starting = self._by_alias.get(alias)
        if starting is None or (
            starting.done() and (starting.cancelled() or starting.exception() is not None)
        ):
            starting = self._by_alias[alias] = tasks.start(Hub.start(alias, self))
        home = await asyncio.shield(starting)
        if self.ending is not None:
            # The hub was starting when the stop began.
            home.end(self.ending)
        return home

    def evict(self, connection: Connection, reason: CloseReason) -> None:
        self._evict(connection, reason)

    async def kick(self, hub: Hub, kick: messages.Kick) -> None:
        await self._kick(hub, kick)

    async def recheck(
        self, connection: Connection, groups: Collection[str] | None, *, tell_consumer: bool
    ) -> bool:
        return await self._recheck(connection, groups, tell_consumer=tell_consumer)

    def ask_for_refresh(self, connection: Connection, within: float) -> bool:
        return self._ask_for_refresh(connection, within)

    def hub_is_lost(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_LOST, "This process was declared lost")

    def hub_is_deaf(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_UNAVAILABLE, "This process stays deaf")

    def hub_is_broken(self, hub: Hub) -> None:
        self._replace(hub, CloseReason.SERVER_LOST, "A part of this process has failed")

    def _replace(self, old: Hub, reason: CloseReason, why: str) -> None:
        """Let the next connection start a new hub, with a new channel and a new row.

        The connections of the old hub end, spread over RECONNECT_WINDOW, and come back to the new hub or to
        another process. The old hub stays until its evictions have left the groups under the old channel.
        """
        if old.ending is not None:
            # The hub reports its loss repeatedly until it has stopped.
            return
        logger.error("%s; it closes %d connections and starts again", why, len(old.connections))
        for alias, starting in tuple(self._by_alias.items()):
            if starting.done() and not starting.exception() and starting.result() is old:
                del self._by_alias[alias]
        old.end(reason)
        self._retiring[old] = tasks.start(self._evict_and_retire(old, reason))

    async def _evict_and_retire(self, old: Hub, reason: CloseReason) -> None:
        # Spread in time, because clients without `realtime.v1` are not told when to come back.
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

        A later `get` starts a new hub.
        """
        self._evict_all(CloseReason.SERVER_RESTART)
        await self._record_stop(patience=None)
        self.ending = None

    def _drain(self) -> Coroutine[Any, Any, None]:
        """Stop for good: evict every connection.

        Returns:
            A coroutine that records the stop and waits for the consumers.
        """
        self._evict_all(CloseReason.SERVER_RESTART)
        return self._drained()

    async def _drained(self) -> None:
        # A layer that hangs must not keep the rows from being written, hence the bound.
        await self._record_stop(patience=conf.get().DRAIN_TIMEOUT / 2)
        # Last, because their handlers belong to the application.
        if self.consumers:
            await asyncio.wait(tuple(self.consumers))

    def _evict_all(self, reason: CloseReason) -> None:
        self.ending = reason
        for old in self._running():
            # `held` includes connections during the write of their record. Otherwise they would outlive the
            # hub.
            for connection in old.held():
                try:
                    self._evict(connection, reason)
                except Exception:
                    # Go on: the other connections must end, too.
                    logger.exception("A connection was not evicted", extra=connection.log_fields())
            old.end(reason)

    async def _record_stop(self, patience: float | None) -> None:
        # The clients come back soon, and to other processes.
        ends = [admission.here().leave()]
        ends += [self._retire_started(starting, patience) for starting in self._by_alias.values()]
        for old, replacing in self._retiring.items():
            # All of its connections are evicted by now.
            replacing.cancel()
            ends.append(self._retire(old, patience))
        await asyncio.gather(*ends)
        self._by_alias.clear()

    async def _retire_started(self, starting: asyncio.Task[Hub], patience: float | None) -> None:
        # Wait for a hub that is starting: it would outlive the stop.
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await self._retire(starting.result(), patience)

    def _running(self) -> set[Hub]:
        """Return the hubs that have started, including replaced ones that are not done yet."""
        started = [each for each in self._by_alias.values() if each.done() and not each.cancelled()]
        return {each.result() for each in started if each.exception() is None} | self._retiring.keys()

    async def _retire(self, old: Hub, patience: float | None = None) -> None:
        """Wait for the evictions, then record the end and stop the hub.

        Args:
            old: The hub.
            patience: Seconds to wait for the evictions at most; None waits for all.
        """
        old.end(CloseReason.SERVER_RESTART)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                # Including evictions that began earlier: their writes need the ledger.
                while old.evictions:
                    await asyncio.wait(tuple(old.evictions))
        try:
            await old.ledger.stop_process(old.process)
        except RecordsUnavailable as error:
            logger.warning("The end of this process was not recorded; rounds will find it lost: %s", error)
        else:
            # The records are closed by now, because the ledger writes in order. Their receivers are told yet.
            if old.endings:
                await asyncio.wait(tuple(old.endings), timeout=ENDINGS_TIMEOUT)
        # A step that still hangs is on the to-do list, and the next round does it.
        for step in tuple(old.cleanups):
            step.cancel()
        await old.stop()
        self._retiring.pop(old, None)
