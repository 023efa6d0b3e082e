"""The consumers: two base classes for applications, and one consumer that speaks the JSON protocol."""

import asyncio
import functools
import inspect
import logging
import warnings
from collections import deque
from collections.abc import Coroutine
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer

from realtime import conf, policy, publishing
from realtime.closing import CloseReason
from realtime.errors import BadFrame, ErrorCode, LayerUnavailable
from realtime.hub.connection import Connection
from realtime.process import old_connections
from realtime.serving import lifecycle
from realtime.serving.inbox import SERVER_EVENTS
from realtime.serving.runner import Runner, ignore
from realtime.transports.asgi import Event, Receive, Send
from realtime.wire import frames

__all__ = ["GroupConsumer", "RealtimeConsumer", "RealtimeJsonConsumer"]

logger = logging.getLogger("realtime.consumers")

#: The methods that an author overrides and that Channels awaits.
_AWAITED = ("connect", "disconnect", "receive", "receive_json")


class RealtimeConsumer(AsyncWebsocketConsumer):
    """An `AsyncWebsocketConsumer` that treats every ending of a connection alike.

    Write `connect`, `disconnect`, `receive` and event handlers as in Channels. `disconnect` runs after every
    ending, including those for which Channels skips it: an exception, a cancellation, a dead peer. The socket
    is read all the time, so the server sees a pong while a handler runs. Events reach the handlers one at a
    time. The client receives only the frames that the author sends, unless it offers the subprotocol
    `realtime.v1`: then it also receives `welcome`, `ping`, `pong` and `goodbye`.
    """

    #: True gives the connection a channel of its own in the layer, for
    #: `channel_layer.send(self.channel_name, …)`. It costs a subscription per connection: set it to False if
    #: the application never sends to single connections.
    own_channel = True

    #: True closes stale database connections before each event, as Channels does, for handlers that use the
    #: async ORM. It costs a hop to the thread that all consumers share.
    closes_old_connections = True

    #: Set when the consumer is called. An author may use the name for another attribute.
    connection: Connection

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, SyncConsumer):
            raise TypeError(
                f"{cls.__name__} mixes RealtimeConsumer with a synchronous consumer, which is not supported: "
                "write its methods as `async def`, with `database_sync_to_async` around the ORM."
            )
        for name in _AWAITED:
            method = vars(cls).get(name)
            if inspect.isfunction(method) and not _is_async(method):
                warnings.warn(
                    f"{cls.__name__}.{name} is not `async def`, and RealtimeConsumer awaits it; "
                    "synchronous consumers are not supported.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        # Read at start, so that a wrong setting stops the server and not each single connection.
        conf.get()

        # Neither this nor `__call__` is a coroutine function: its frame would stay in memory as long as the
        # connection.
        def app(scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
            return cls(**initkwargs)(scope, receive, send)

        return markcoroutinefunction(functools.update_wrapper(app, super().as_asgi(**initkwargs)))

    # Marked as a coroutine function, so that asgiref takes an instance for an ASGI 3 application. Test suites
    # pass instances to `WebsocketCommunicator`.
    @markcoroutinefunction
    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        self.scope = scope
        # Two underscores, because authors name their own attributes as they like.
        self.__serving = serving = Runner(self, scope, send)
        self.connection = serving.connection
        self.base_send = serving.send
        return serving.run(receive)

    async def group_add(self, group: str) -> None:
        """Join a group. The connection receives what is sent to the group from when this returns.

        Raises:
            BadGroup: No group can have this name.
            LayerUnavailable: The channel layer is down. It ends the connection unless the handler catches it.
            RecordsUnavailable: The database is down. It ends the connection unless the handler catches it.
        """
        await lifecycle.group_add(self.__serving.connection, group)

    async def group_discard(self, group: str) -> None:
        """Leave a group. The connection receives nothing more from it from the moment of the call."""
        await lifecycle.group_discard(self.__serving.connection, group)

    async def refuse(self, reason: CloseReason) -> None:
        """Accept the handshake, say goodbye, and close. No record is made.

        Use it instead of `close()` before `accept()`: for that, a server answers 403, which a browser sees as
        1006, and its client reconnects for ever.

        Args:
            reason: Gives the close code, and the text of the goodbye frame.
        """
        await self.__serving.refuse(reason)

    async def dispatch(self, message: Event) -> None:
        """Call the handler of an event.

        The handler of an event of the channel layer is public, awaitable and defined by the application: a
        coroutine method, or an object with an `async def __call__`. An event of any other type is logged once
        and ignored. Channels would end every member of the group for it (after a rolling deploy or a typo),
        or let any program that can write to Redis call any method.
        """
        kind = str(message["type"])
        name = kind.replace(".", "_")
        if kind not in SERVER_EVENTS and not _is_event_handler(type(self), name):
            ignore(type(self), kind)
            return
        handler = getattr(self, name)
        if self.closes_old_connections and not self.__serving.closed_old_connections:
            await old_connections.close()
        await handler(message)


class RealtimeJsonConsumer(RealtimeConsumer, AsyncJsonWebsocketConsumer):
    """A `RealtimeConsumer` with `receive_json` and `send_json`, as in `AsyncJsonWebsocketConsumer`."""


def _is_event_handler(consumer: type, name: str) -> bool:
    """Return True if the application defines an event handler of this name.

    A method that Channels or this package defines is no event handler.
    """
    if name.startswith("_"):
        return False
    defined = [cls for cls in consumer.__mro__ if name in vars(cls)]
    if not defined or any(_is_frameworks(cls) for cls in defined):
        return False
    return _is_async(vars(defined[0])[name])


def _is_frameworks(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("channels", "realtime")


def _is_async(method: Any) -> bool:
    """Return True for a coroutine function, also under decorators or `database_sync_to_async`.

    Also return True for an object with an `async def __call__`, as decorators of other packages make.
    """
    candidates = (method, inspect.unwrap(method), type(method).__call__)
    return any(iscoroutinefunction(each) for each in candidates)


class GroupConsumer(RealtimeConsumer):
    """The JSON protocol: clients join, leave and publish by frames, as far as the policy allows.

    If the URL route has a `group`, the connection joins that group when it connects.
    """

    own_channel = False
    closes_old_connections = False

    #: More error frames than this in a minute end the connection.
    MAX_ERRORS_PER_MINUTE = 10

    _error_times: deque[float] | None = None
    """Made with the first error: most clients make none, and an empty deque is not small."""

    async def connect(self) -> None:
        group = self.scope.get("url_route", {}).get("kwargs", {}).get("group")
        if group is not None:
            if not frames.valid_group(group):
                await self.refuse(CloseReason.PROTOCOL_ERROR)
                return
            if not await policy.allows(self.scope, "join", group):
                known = bool(self.connection.user_id)
                await self.refuse(CloseReason.FORBIDDEN if known else CloseReason.NOT_AUTHENTICATED)
                return
            await self.group_add(group)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is None:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
            return
        try:
            frame = frames.parse(text_data)
        except BadFrame as bad:
            self._refuse_frame(bad.code, bad.detail, bad.ref)
            return
        match frame:
            case frames.Join():
                await self._join(frame)
            case frames.Leave():
                await self._leave(frame)
            case frames.Publish():
                await self._publish(frame)
            case frames.ClientPresence(ref=ref) | frames.ClientRefresh(ref=ref):
                detail = "This type is reserved for a later version."
                self._refuse_frame(ErrorCode.UNKNOWN_TYPE, detail, ref)
            case frames.ClientPing():
                # The inbox has answered the pings of `realtime.v1` already. Other clients get no pong.
                detail = "Offer the subprotocol realtime.v1 to be answered pings."
                self._refuse_frame(ErrorCode.UNKNOWN_TYPE, detail, None)

    async def _join(self, frame: frames.Join) -> None:
        if not await policy.allows(self.scope, "join", frame.group):
            self._refuse_frame(ErrorCode.FORBIDDEN, f"You may not join {frame.group}.", frame.ref)
            return
        await self.group_add(frame.group)
        lifecycle.write(self.connection, frames.Joined(ref=frame.ref, group=frame.group))

    async def _leave(self, frame: frames.Leave) -> None:
        if frame.group not in self.connection.groups:
            self._refuse_frame(ErrorCode.NOT_JOINED, f"You are not in {frame.group}.", frame.ref)
            return
        await self.group_discard(frame.group)
        lifecycle.write(self.connection, frames.Left(ref=frame.ref, group=frame.group))

    async def _publish(self, frame: frames.Publish) -> None:
        if not await policy.allows(self.scope, "publish", frame.group):
            self._refuse_frame(ErrorCode.FORBIDDEN, f"You may not publish to {frame.group}.", frame.ref)
            return
        try:
            await publishing.apublish(
                frame.group,
                frame.data,
                alias=self.channel_layer_alias,
                on_commit=False,
                sender=self.connection.user_id or None,
            )
        except LayerUnavailable as error:
            logger.warning("A publish failed: %s", error, extra=self.connection.log_fields())
            self._refuse_frame(ErrorCode.INTERNAL, "The message was not published; try again.", frame.ref)
            return
        lifecycle.write(self.connection, frames.Published(ref=frame.ref, group=frame.group))

    def _refuse_frame(self, code: ErrorCode, detail: str, ref: frames.Ref | None) -> None:
        """Answer with an error frame. If the client makes too many errors, close the connection."""
        lifecycle.write(self.connection, frames.Error(code=code, detail=detail, ref=ref))
        now = asyncio.get_running_loop().time()
        if self._error_times is None:
            self._error_times = deque(maxlen=self.MAX_ERRORS_PER_MINUTE + 1)
        self._error_times.append(now)
        if len(self._error_times) > self.MAX_ERRORS_PER_MINUTE and now - self._error_times[0] < 60:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
