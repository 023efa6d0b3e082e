"""The base classes for consumers with `async def` methods.

Private: docs/reference.md lists the public names.
"""

from typing import Any

from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer

from realtime.closing import CloseReason
from realtime.consumers.served import HANDLERS, Served, warn_of_methods
from realtime.history.positions import Joined, Position
from realtime.presence import Presence
from realtime.serving import lifecycle, refreshing, seeing


class RealtimeMixin(Served):
    """The mixin for an `AsyncConsumer` that speaks WebSocket and is no `AsyncWebsocketConsumer`.

    Write `class Chat(RealtimeMixin, TheirConsumer)`. Its connection is served as that of a
    `RealtimeConsumer`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, SyncConsumer):
            raise TypeError(
                f"{cls.__name__} mixes an asynchronous base class of realtime with a synchronous consumer: "
                "use SyncRealtimeConsumer, or write its methods as `async def` with `database_sync_to_async` "
                "around the ORM."
            )
        warn_of_methods(
            cls,
            HANDLERS,
            True,
            "{} is not `async def`, and RealtimeConsumer awaits it. SyncRealtimeConsumer calls plain ones.",
        )

    async def group_add(self, group: str, *, since: Position | None = None) -> Joined | None:
        """Join a group. The connection receives what is sent to the group from when this returns.

        In a group that keeps history, the client can catch up: it is sent every message after `since`, in
        order, and then what is sent from now on. Or it is sent nothing of that, and `recovered` is False:
        then send the client its whole state.

        Args:
            group: The name of the group.
            since: The last message that the client has. Its frame had this `epoch` and `offset`.

        Returns:
            The outcome, if the group keeps history; otherwise None. The messages that were missed are written
            before this returns. If the handshake is not complete yet, they are written after that.

        Raises:
            BadGroup: No group can have this name.
            LayerUnavailable: The channel layer is down. It ends the connection unless the handler catches it.
            RecordsUnavailable: The database is down. It ends the connection unless the handler catches it.
        """
        return await lifecycle.group_add(self._Served__serving.connection, group, since)

    async def group_discard(self, group: str) -> None:
        """Leave a group. The connection receives nothing more from it from the moment of the call."""
        await lifecycle.group_discard(self._Served__serving.connection, group)

    async def presence(self, group: str) -> Presence:
        """Return who is in a group.

        If the connection is a member of the group and the consumer has a handler `presence_changed`, the
        handler is called from now on when users come or leave, at most once a second. Its event has `group`,
        `joined` and `left` (lists of primary keys as text), `anonymous` and `total`. A change may repeat what
        this method has returned.

        Args:
            group: The name of the group.

        Returns:
            The users, at most the first 1,000, and the numbers of all users and anonymous connections.

        Raises:
            BadGroup: No group can have this name.
            NoPresence: No pattern in PRESENCE matches the group.
            RecordsUnavailable: The database is down.
        """
        return await seeing.see(self._Served__serving.connection, type(self), group)

    async def refresh(self, ticket: str | None = None) -> float | None:
        """Renew the right to this connection before it ends.

        Args:
            ticket: A new ticket of the same user. None reads again when the session of the connection ends.

        Returns:
            Seconds until the right ends; None if it does not end by itself.

        Raises:
            BadTicket: The ticket gives no right to this connection.
            LayerUnavailable: Redis cannot say if the ticket was used before.
        """
        return await refreshing.refresh(self._Served__serving.connection, ticket)

    async def refuse(self, reason: CloseReason) -> None:
        """Accept the handshake, say goodbye, and close. No record is made.

        Use it instead of `close()` before `accept()`: for that, a server answers 403, which a browser sees as
        1006, and its client reconnects for ever.

        Args:
            reason: Gives the close code, and the text of the goodbye frame.
        """
        await self._Served__serving.refuse(reason)


class RealtimeConsumer(RealtimeMixin, AsyncWebsocketConsumer):
    """An `AsyncWebsocketConsumer` that treats every ending of a connection alike.

    Write `connect`, `disconnect`, `receive` and event handlers as in Channels. `disconnect` runs after every
    ending, including those for which Channels skips it: an exception, a cancellation, a dead peer. The socket
    is read all the time, so the server sees a pong while a handler runs. Events reach the handlers one at a
    time. The client receives only the frames that the author sends, unless it offers the subprotocol
    `realtime.v1`: then it also receives `welcome`, `ping`, `pong` and `goodbye`.
    """


class RealtimeJsonConsumer(RealtimeConsumer, AsyncJsonWebsocketConsumer):
    """A `RealtimeConsumer` with `receive_json` and `send_json`, as in `AsyncJsonWebsocketConsumer`."""
