"""The base classes for consumers with plain methods, which run in threads.

Private: docs/reference.md lists the public names.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, JsonWebsocketConsumer, WebsocketConsumer

from realtime.closing import CloseReason
from realtime.consumers.asynchronous import RealtimeMixin
from realtime.consumers.served import HANDLERS, Served, warn_of_methods
from realtime.history.positions import Joined, Position
from realtime.presence import Presence
from realtime.serving import lifecycle, refreshing, seeing, threads

Result = TypeVar("Result")


class SyncRealtimeMixin(Served, SyncConsumer):
    """The mixin for a `SyncConsumer` that speaks WebSocket and is no `WebsocketConsumer`.

    Write `class Chat(SyncRealtimeMixin, TheirConsumer)`. Its connection is served as that of a
    `SyncRealtimeConsumer`.
    """

    #: True runs the handlers in the thread that all synchronous code of the process shares, even if the
    #: setting THREADS is not None.
    thread_sensitive = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, (AsyncWebsocketConsumer, RealtimeMixin)):
            raise TypeError(
                f"{cls.__name__} mixes a synchronous base class of realtime with an asynchronous consumer: "
                "use RealtimeConsumer for `async def` methods, and SyncRealtimeConsumer for plain ones."
            )
        warn_of_methods(
            cls,
            HANDLERS,
            False,
            "{} is `async def`, and SyncRealtimeConsumer does not await it. RealtimeConsumer does.",
        )

    def group_add(self, group: str, *, since: Position | None = None) -> Joined | None:
        """Join a group. The connection receives what is sent to the group from when this returns.

        `RealtimeConsumer.group_add` says what `since` does.

        Args:
            group: The name of the group.
            since: The last message that the client has, if the group keeps history.

        Returns:
            The outcome, if the group keeps history; otherwise None.

        Raises:
            BadGroup: No group can have this name.
            LayerUnavailable: The channel layer is down. It ends the connection unless the handler catches it.
            RecordsUnavailable: The database is down. It ends the connection unless the handler catches it.
        """
        connection = self._Served__serving.connection
        return self.__call_on_loop(lifecycle.group_add, connection, group, since)

    def group_discard(self, group: str) -> None:
        """Leave a group. The connection receives nothing more from it from the moment of the call."""
        self.__call_on_loop(lifecycle.group_discard, self._Served__serving.connection, group)

    def presence(self, group: str) -> Presence:
        """Return who is in a group, and have `presence_changed` called; see `RealtimeConsumer.presence`.

        Args:
            group: The name of the group.

        Raises:
            BadGroup: No group can have this name.
            NoPresence: No pattern in PRESENCE matches the group.
            RecordsUnavailable: The database is down.
        """
        connection = self._Served__serving.connection
        return self.__call_on_loop(seeing.see, connection, type(self), group)

    def refresh(self, ticket: str | None = None) -> float | None:
        """Renew the right to this connection before it ends; see `RealtimeConsumer.refresh`.

        Args:
            ticket: A new ticket of the same user. None reads again when the session of the connection ends.

        Returns:
            Seconds until the right ends; None if it does not end by itself.

        Raises:
            BadTicket: The ticket gives no right to this connection.
            LayerUnavailable: Redis cannot say if the ticket was used before.
        """
        return self.__call_on_loop(refreshing.refresh, self._Served__serving.connection, ticket)

    def refuse(self, reason: CloseReason) -> None:
        """Accept the handshake, say goodbye, and close. No record is made.

        Use it instead of `close()` before `accept()`: for that, a server answers 403, which a browser sees as
        1006, and its client reconnects for ever.

        Args:
            reason: Gives the close code, and the text of the goodbye frame.
        """
        self.__call_on_loop(self._Served__serving.refuse, reason)

    def __call_on_loop(self, function: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any) -> Result:
        sender = cast(threads.Sender, self.base_send)
        return threads.call(sender.loop, function, *arguments)


class SyncRealtimeConsumer(SyncRealtimeMixin, WebsocketConsumer):
    """A `WebsocketConsumer` that treats every ending of a connection alike.

    Write `connect`, `disconnect`, `receive` and event handlers as in Channels. They run in a thread, and the
    event loop reads and pings the socket meanwhile. `self.send` does not wait for the event loop, and it may
    be called in any thread. `RealtimeConsumer` says what holds for both.
    """


class SyncRealtimeJsonConsumer(SyncRealtimeConsumer, JsonWebsocketConsumer):
    """A `SyncRealtimeConsumer` with `receive_json` and `send_json`, as in `JsonWebsocketConsumer`."""
