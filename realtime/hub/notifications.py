"""Write notifications to the connections of a user in this process, and say if one of them took it."""

import asyncio
import logging
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress

from realtime.errors import LayerUnavailable
from realtime.hub.connection import Connection
from realtime.hub.fanout import Fanout
from realtime.hub.heartbeat import Heartbeat
from realtime.layers import groups, messages
from realtime.process import tasks
from realtime.transports.asgi import Shared

logger = logging.getLogger("realtime.hub")

#: Connections that are written to before the loop gets a turn.
SLICE = 100


class Notifications:
    """The notifications to connections of one process.

    Args:
        process: The id of its row.
        connections: The connections that it holds, by id.
        fanout: Writes the frames, behind the messages of groups that wait for a connection.
        heartbeat: Asks the clients for a pong.
    """

    def __init__(
        self,
        process: uuid.UUID,
        connections: Mapping[uuid.UUID, Connection],
        fanout: Fanout,
        heartbeat: Heartbeat,
    ) -> None:
        self._process = process
        self._connections = connections
        self._fanout = fanout
        self._heartbeat = heartbeat

    async def deliver(self, notify: messages.Notify) -> None:
        """Write a notification to all of its connections that are here, and answer as soon as one took it."""
        taken = await self._is_taken(notify)
        try:
            await groups.tell(notify.reply_to, messages.Notified(notify.request, self._process, taken))
        except LayerUnavailable as error:
            logger.warning("It could not be said if a notification was taken: %s", error)

    async def _is_taken(self, notify: messages.Notify) -> bool:
        shared, written = Shared((notify.text,)), []
        for number, connection_id in enumerate(notify.connections, start=1):
            connection = self._connections.get(connection_id)
            # In its handshake, a client cannot answer a ping, and may yet be refused.
            if connection is not None and connection.takes_notifications and connection.liveness is not None:
                self._fanout.write(connection, shared, 1)
                written.append(connection)
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return await _any(
            [tasks.create(self._takes(connection, notify.confirm)) for connection in written], notify.within
        )

    async def _takes(self, connection: Connection, confirm: bool) -> bool:
        """Return True if a connection took what was written to it."""
        if not (confirm and connection.speaks_v1):
            # A ping of RFC 6455 would overtake the messages that wait in this process.
            await connection.transport.handed_over()
        if confirm:
            return await self._heartbeat.confirm(connection)
        return not connection.gone


async def _any(outcomes: Collection["asyncio.Task[bool]"], within: float) -> bool:
    """Wait for the first outcome that is True. Return False if there is none in time."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                for each in asyncio.as_completed(outcomes):
                    if await each:
                        return True
    finally:
        for task in outcomes:
            task.cancel()
    return False
