"""The consumers: `RealtimeConsumer` and `RealtimeJsonConsumer`, base classes for an application's own, and
`GroupConsumer`, which speaks the JSON protocol.
"""

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
from channels.db import aclose_old_connections
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer

from realtime import conf, policy, publishing
from realtime.closing import CloseReason
from realtime.errors import BadFrame, LayerUnavailable
from realtime.hub.connection import Connection
from realtime.serving import lifecycle
from realtime.serving.inbox import SERVER_EVENTS
from realtime.serving.runner import Runner, ignore
from realtime.transports.asgi import Event, Receive, Send
from realtime.wire import frames

logger = logging.getLogger("realtime.consumers")

#: What an author overrides and Channels awaits.
_AWAITED = ("connect", "disconnect", "receive", "receive_json")


class RealtimeConsumer(AsyncWebsocketConsumer):
    """An `AsyncWebsocketConsumer` for which every ending is the same ending.

    Write `connect`, `disconnect`, `receive` and handlers of events as in Channels; `disconnect` runs after
    every ending, also where Channels leaves it out: an exception, a cancellation, a dead peer. The socket
    is read all the time, so a pong is seen while a handler runs; events reach the handlers one at a time.
    No frame goes on the wire that the author did not write, unless the client offered the subprotocol
    `realtime.v1`: then `welcome`, `ping`, `pong` and `goodbye` are spoken as well.
    """

    #: Whether the connection has a channel of its own in the layer, for
    #: `channel_layer.send(self.channel_name, …)`. It costs a subscription per connection; switch it off
    #: where nobody sends to single connections.
    own_channel = True

    #: Whether stale database connections are closed before each event, as Channels does, for handlers that
    #: use the async ORM. It costs a hop to the thread that all consumers share.
    closes_old_connections = True

    #: Set when the consumer is called; an author may use the name for something else.
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
        # Read at start, so that settings that cannot work stop the server and not every single connection.
        conf.get()

        # Neither this nor `__call__` is a coroutine of its own, which would stay with each connection.
        def app(scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
            return cls(**initkwargs)(scope, receive, send)

        return markcoroutinefunction(functools.update_wrapper(app, super().as_asgi(**initkwargs)))

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        self.scope = scope
        # Two underscores, because authors name their own attributes as they like.
        self.__serving = serving = Runner(self, scope, send)
        self.connection = serving.connection
        self.base_send = serving.send
        return serving.run(receive)

    async def group_add(self, group: str) -> None:
        """Receive what is sent to the group, from the moment that this returns.

        Raises BadGroup, and LayerUnavailable or RecordsUnavailable, which end the connection when they are
        not caught.
        """
        await lifecycle.group_add(self.__serving.connection, group)

    async def group_discard(self, group: str) -> None:
        """Receive nothing more from the group, from the moment of the call."""
        await lifecycle.group_discard(self.__serving.connection, group)

    async def refuse(self, reason: CloseReason) -> None:
        """Accept, say why not, and close; no record is made.

        Before accept Daphne can only answer 403, which a browser sees as 1006, so that it comes back for
        ever.
        """
        await self.__serving.refuse(reason)

    async def dispatch(self, message: Event) -> None:
        """Call the handler of an event.

        For events of the channel layer this is a public coroutine method that the application defined; any
        other type is logged once and ignored, where Channels would end every member of the group (a rolling
        deploy, a typo), or let whoever can write to Redis call any method.
        """
        kind = str(message["type"])
        name = kind.replace(".", "_")
        if kind not in SERVER_EVENTS and not _is_event_handler(type(self), name):
            ignore(type(self), kind)
            return
        handler = getattr(self, name)
        if self.closes_old_connections:
            await aclose_old_connections()
        await handler(message)


class RealtimeJsonConsumer(RealtimeConsumer, AsyncJsonWebsocketConsumer):
    """A `RealtimeConsumer` in place of an `AsyncJsonWebsocketConsumer`: `receive_json` and `send_json`."""


def _is_event_handler(consumer: type, name: str) -> bool:
    """Whether an application defined this as a handler of events; what Channels or this package defines is
    none.
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
    """Also where decorators or `database_sync_to_async` stand around it."""
    return bool(iscoroutinefunction(method) or iscoroutinefunction(inspect.unwrap(method)))


class GroupConsumer(RealtimeConsumer):
    """The JSON protocol: clients join, leave and publish by frames, as far as the policy lets them.

    Mounted at a path with a `group`, it joins that group at connect.
    """

    own_channel = False
    closes_old_connections = False

    #: More error frames than this in a minute end the connection.
    MAX_ERRORS_PER_MINUTE = 10

    _error_times: deque[float] | None = None
    """From the first error on: most clients make none, and an empty deque is not small."""

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
                self._refuse_frame(frames.ErrorCode.UNKNOWN_TYPE, detail, ref)
            case frames.ClientPing():
                # Those of `realtime.v1` were answered in the inbox; nobody else is sent a pong.
                detail = "Offer the subprotocol realtime.v1 to be answered pings."
                self._refuse_frame(frames.ErrorCode.UNKNOWN_TYPE, detail, None)

    async def _join(self, frame: frames.Join) -> None:
        if not await policy.allows(self.scope, "join", frame.group):
            self._refuse_frame(frames.ErrorCode.FORBIDDEN, f"You may not join {frame.group}.", frame.ref)
            return
        await self.group_add(frame.group)
        lifecycle.write(self.connection, frames.Joined(ref=frame.ref, group=frame.group))

    async def _leave(self, frame: frames.Leave) -> None:
        if frame.group not in self.connection.groups:
            self._refuse_frame(frames.ErrorCode.NOT_JOINED, f"You are not in {frame.group}.", frame.ref)
            return
        await self.group_discard(frame.group)
        lifecycle.write(self.connection, frames.Left(ref=frame.ref, group=frame.group))

    async def _publish(self, frame: frames.Publish) -> None:
        if not await policy.allows(self.scope, "publish", frame.group):
            self._refuse_frame(
                frames.ErrorCode.FORBIDDEN, f"You may not publish to {frame.group}.", frame.ref
            )
            return
        try:
            await publishing.apublish(
                frame.group,
                frame.data,
                alias=self.channel_layer_alias,
                sender=self.connection.user_id or None,
            )
        except LayerUnavailable as error:
            logger.warning("A publish failed: %s", error, extra=self.connection.log_fields())
            self._refuse_frame(
                frames.ErrorCode.INTERNAL, "The message was not published; try again.", frame.ref
            )
            return
        lifecycle.write(self.connection, frames.Published(ref=frame.ref, group=frame.group))

    def _refuse_frame(self, code: frames.ErrorCode, detail: str, ref: frames.Ref | None) -> None:
        """Answer with an error frame; a client that goes on like this is closed."""
        lifecycle.write(self.connection, frames.Error(code=code, detail=detail, ref=ref))
        now = asyncio.get_running_loop().time()
        if self._error_times is None:
            self._error_times = deque(maxlen=self.MAX_ERRORS_PER_MINUTE + 1)
        self._error_times.append(now)
        if len(self._error_times) > self.MAX_ERRORS_PER_MINUTE and now - self._error_times[0] < 60:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
