"""Let the new connections of clients take the place of their older ones, which any process may hold.

The record of an older connection is closed first. Then its process is told to evict it. If the process is not
told, because the channel layer was down, it finds the closed record itself.
"""

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from django.db import Error as DatabaseFailure

from realtime import metrics
from realtime.closing import CloseReason
from realtime.fleet import announcements as news
from realtime.fleet.announcements import Announcements
from realtime.hub.connection import Connection
from realtime.layers import groups, messages
from realtime.records import client_rows
from realtime.records.entries import Opening, Superseded
from realtime.records.ledger import Ledger

logger = logging.getLogger("realtime.hub")

#: The part of an interval between two looks for own connections that were superseded.
LOOK_EVERY = 0.5
#: Seconds by which the records of a look overlap those of the look before: a transaction of another process
#: may have taken that long.
OVERLAP = 10.0


class Superseding:
    """The new and the superseded connections of one process.

    Args:
        process: The id of its row.
        address: Its address.
        ledger: Closes the records.
        connections: The connections that it holds, by id.
        announcements: Sends `connection_closed`.
        evict: Ends a connection.
        departed: Called when users may have gone.
        interval: Seconds between two rounds.
    """

    def __init__(
        self,
        process: uuid.UUID,
        address: str,
        ledger: Ledger,
        connections: Mapping[uuid.UUID, Connection],
        *,
        announcements: Announcements,
        evict: Callable[[Connection, CloseReason], object],
        departed: Callable[[], None],
        interval: float,
    ) -> None:
        self._process = process
        self._address = address
        self._ledger = ledger
        self._connections = connections
        self._announcements = announcements
        self._evict = evict
        self._departed = departed
        self._interval = interval
        self._new: list[Opening] = []
        """The new connections. Their clients may have older ones."""

    def add(self, opening: Opening) -> bool:
        """Take a new connection of a client with an id.

        Returns:
            True if `run` must be called. Otherwise it was called for an earlier one and takes this one, too.
        """
        self._new.append(opening)
        return len(self._new) == 1

    async def run(self) -> None:
        """Close the older connections of the clients of all connections that were added."""
        # All connections of a batch of records are added in one turn of the loop.
        await asyncio.sleep(0)
        clients = client_rows.clients_of(self._new)
        self._new.clear()
        try:
            closed = await self._ledger.supersede(clients)
        except DatabaseFailure:
            logger.exception("The older connections of %d clients were not superseded", len(clients))
            return
        if not closed:
            return
        reason = CloseReason.SUPERSEDED
        metrics.closed.labels(reason=reason.value).inc(len(closed))
        self._announcements.add(news.closed(each.opening, reason) for each in closed)
        if any(each.opening.user_id for each in closed):
            self._departed()
        self._evict_all(each.opening.id for each in closed)
        await self._tell(closed)

    def _evict_all(self, ids: Iterable[uuid.UUID]) -> None:
        for connection_id in ids:
            if (connection := self._connections.get(connection_id)) is not None:
                self._evict(connection, CloseReason.SUPERSEDED)

    async def _tell(self, closed: Collection[Superseded]) -> None:
        """Tell the other processes which connections they have to evict."""
        by_address: dict[str, list[uuid.UUID]] = defaultdict(list)
        for each in closed:
            if each.address != self._address:
                by_address[each.address].append(each.opening.id)
        failed = await groups.tell_all(
            {
                address: messages.Kick(ids, [], CloseReason.SUPERSEDED.value)
                for address, ids in by_address.items()
            }
        )
        for address, error in failed.items():
            logger.warning(
                "%s was not told of superseded connections; it looks within a round: %s", address, error
            )

    async def look(self) -> None:
        """Evict superseded connections of which this process was not told, until cancelled."""
        clock = asyncio.get_running_loop().time
        looked_at = clock()
        while True:
            await asyncio.sleep(self._interval * LOOK_EVERY)
            now = clock()
            if not any(connection.client_id for connection in self._connections.values()):
                looked_at = now
                continue
            try:
                found = await self._ledger.call(
                    client_rows.superseded_of, self._process, now - looked_at + OVERLAP
                )
            except DatabaseFailure as error:
                logger.warning("Superseded connections could not be looked for: %s", error)
            else:
                looked_at = now
                self._evict_all(found)
