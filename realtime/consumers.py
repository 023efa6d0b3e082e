"""The consumers: `RealtimeConsumer`, the base class for an application's own, and `GroupConsumer`, which
speaks the JSON protocol.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, ClassVar

from channels.db import aclose_old_connections
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer

from realtime import conf, frames, groups, lifecycle, metrics, policy
from realtime.closing import CloseReason
from realtime.connection import Connection
from realtime.inbox import Inbox
from realtime.ledger import RecordsUnavailable
from realtime.transport import AsgiTransport, Event, Receive, Send

logger = logging.getLogger("realtime.consumers")

#: Seconds for the server to report the end of a connection that was closed here, before handlers are told
#: without it.
DISCONNECT_TIMEOUT = 2.0
#: Seconds for which a handler that runs when its connection ends may go on.
HANDLER_GRACE = 10.0
#: Seconds for which a consumer waits for its own clean-up, which goes on without it.
CLEANUP_WAIT = 5.0


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

    _unknown_events: ClassVar[set[tuple[type, str]]] = set()

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        # At start, so that settings that cannot work stop the server and not every single connection.
        conf.get()
        return super().as_asgi(**initkwargs)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        self.base_send = self._send_event
        self._settings = conf.get()
        self._handler_limit: asyncio.Timeout | None = None
        self.connection = connection = Connection(scope, self._take_event)
        self._inbox = Inbox(connection, self._settings)
        connection.transport = AsgiTransport(
            send,
            max_unsent=self._settings.MAX_UNSENT_BYTES,
            send_timeout=self._settings.SEND_TIMEOUT,
            on_failure=self._send_failed,
        )
        self._disconnect_owed = False
        tasks = [self._start_reader(self._inbox.read(receive))]
        try:
            if await self._open_channel():
                tasks.append(self._start_reader(self._read_channel()))
            await self._handle_events()
        finally:
            # Every ending comes through here, cancellation included: `disconnect()` alone would miss most
            # of them (channels#1466). Whatever ended the connection first has evicted it already, and its
            # reason stays.
            eviction = lifecycle.evict(connection, CloseReason.CANCELLED)
            for reader in tasks:
                reader.cancel()
            if self._disconnect_owed:
                # A task of its own, because a server that cancels does so again while `disconnect` runs.
                tasks.append(asyncio.create_task(self._tell_disconnect(self._report())))
            await asyncio.wait([eviction, *tasks], timeout=CLEANUP_WAIT)

    async def group_add(self, group: str) -> None:
        """Receive what is sent to the group, from the moment that this returns.

        Raises BadGroup, and LayerUnavailable or RecordsUnavailable, which end the connection when they are
        not caught.
        """
        await lifecycle.group_add(self.connection, group)

    async def group_discard(self, group: str) -> None:
        """Receive nothing more from the group, from the moment of the call."""
        await lifecycle.group_discard(self.connection, group)

    async def refuse(self, reason: CloseReason) -> None:
        """Accept, say why not, and close; no record is made.

        Before accept Daphne can only answer 403, which a browser sees as 1006, so that it comes back for
        ever.
        """
        connection = self.connection
        metrics.refused.labels(reason=reason.value).inc()
        with suppress(Exception):
            await connection.transport.accept(self._accept_event({"type": "websocket.accept"}))
        lifecycle.evict(connection, reason)

    # -- reading ------------------------------------------------------------------------------------

    async def _open_channel(self) -> bool:
        """Give the connection its channel name; returns whether there is a channel behind it to read."""
        layer = get_channel_layer(self.channel_layer_alias)
        self.channel_layer = None if layer is None else _LayerOfConsumer(layer, self)
        self.channel_name = self.connection.channel_name
        if layer is None or not self.own_channel:
            return False
        try:
            self.channel_name = await groups.new_channel(self.channel_layer_alias)
        except groups.LayerUnavailable as error:
            self._log_unavailable(error)
            await self.refuse(CloseReason.SERVER_UNAVAILABLE)
            return False
        return True

    def _start_reader(self, reading: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        reader = asyncio.create_task(reading)
        reader.add_done_callback(self._reader_ended)
        return reader

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        """A connection of which one half is no longer read would be deaf, so it ends."""
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            logger.error("Reading failed", exc_info=error, extra=self.connection.log_fields())
            lifecycle.evict(self.connection, CloseReason.SERVER_UNAVAILABLE)

    async def _read_channel(self) -> None:
        layer = groups.layer(self.channel_layer_alias)
        while True:
            self._take_event(await layer.receive(self.channel_name))

    # -- handling ----------------------------------------------------------------------------------

    async def _handle_events(self) -> None:
        """One event at a time, in order of arrival, until it has ended and `disconnect` has run."""
        while True:
            event = await self._inbox.next()
            if self.connection.gone:
                break
            self._disconnect_owed = self._disconnect_owed or event["type"] == "websocket.connect"
            if not await self._handle(event):
                break
        if self._disconnect_owed:
            await self._tell_disconnect(await self._disconnect_event(event))

    async def _disconnect_event(self, event: Event) -> Event:
        """The server's report that the connection is over, or one in its place; the rest is passed over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCONNECT_TIMEOUT):
                while event["type"] != "websocket.disconnect":
                    event = await self._inbox.next()
                return event
        return self._report()

    def _report(self) -> Event:
        return {"type": "websocket.disconnect", "code": self.connection.close_code}

    async def _tell_disconnect(self, event: Event) -> None:
        self._disconnect_owed = False
        await self._handle(event)

    async def _handle(self, event: Event) -> bool:
        """Let a handler have the event; returns whether the consumer goes on."""
        allowed = HANDLER_GRACE if self.connection.gone else self._settings.HANDLER_TIMEOUT
        try:
            async with asyncio.timeout(allowed) as self._handler_limit:
                try:
                    await self.dispatch(event)
                finally:
                    limit, self._handler_limit = self._handler_limit, None
        except StopConsumer:
            lifecycle.evict(self.connection, CloseReason.APPLICATION_CLOSED)
        except lifecycle.ConnectionGone:
            pass
        except (groups.LayerUnavailable, RecordsUnavailable) as error:
            self._log_unavailable(error)
            await self._give_up(CloseReason.SERVER_UNAVAILABLE)
        except Exception as error:
            timed_out = isinstance(error, TimeoutError) and limit.expired()
            reason = CloseReason.HANDLER_TIMEOUT if timed_out else CloseReason.HANDLER_ERROR
            # Logged here and not raised: an exception that leaves `__call__` can end Daphne's own watchdog
            # for good.
            logger.exception("A handler failed (%s)", reason.value, extra=self.connection.log_fields())
            await self._give_up(reason)
        return not self.connection.gone

    def _take_event(self, event: Event) -> None:
        """Queue what does not come from the server: events of the layer, and the news of the eviction."""
        if event.get("type") == "realtime.evicted" and self._handler_limit is not None:
            # A handler may finish what it has begun, but not keep a dead connection's consumer for ever.
            self._handler_limit.reschedule(asyncio.get_running_loop().time() + HANDLER_GRACE)
        if not self._inbox.put(event):
            self._ignore(event["type"])

    async def _give_up(self, reason: CloseReason) -> None:
        if self.connection.transport.accepted or self.connection.gone:
            lifecycle.evict(self.connection, reason)
        else:
            await self.refuse(reason)

    async def dispatch(self, message: Event) -> None:
        """Call the handler of an event.

        For events of the channel layer this is a public coroutine method that the application defined; any
        other type is logged once and ignored, where Channels would end every member of the group (a rolling
        deploy, a typo), or let whoever can write to Redis call any method.
        """
        kind = str(message.get("type", ""))
        name = kind.replace(".", "_")
        from_server = kind.startswith("websocket.")
        handler = getattr(self, name, None) if from_server or self._is_event_handler(name) else None
        if handler is None:
            self._ignore(kind)
            return
        if self.closes_old_connections:
            await aclose_old_connections()
        await handler(message)

    def _ignore(self, kind: str) -> None:
        if (type(self), kind) not in self._unknown_events:
            self._unknown_events.add((type(self), kind))
            logger.warning("%s has no handler for events of type %r", type(self).__name__, kind)

    def _is_event_handler(self, name: str) -> bool:
        if name.startswith("_") or hasattr(RealtimeConsumer, name):
            return False
        own = type(self).__mro__[: type(self).__mro__.index(RealtimeConsumer)]
        return any(inspect.iscoroutinefunction(vars(cls).get(name)) for cls in own)

    # -- sending -----------------------------------------------------------------------------------

    async def _send_event(self, event: Event) -> None:
        """What Channels' own `accept`, `send` and `close` call with their ASGI event."""
        connection = self.connection
        match event["type"]:
            case "websocket.accept":
                await self._accept(event)
            case "websocket.close":
                lifecycle.evict(connection, CloseReason.APPLICATION_CLOSED, event)
            case "websocket.send":
                lifecycle.send(connection, event)
                await connection.transport.drained()
            case kind:
                raise ValueError(f"A WebSocket consumer cannot send an event of type {kind!r}.")

    async def _accept(self, event: Event) -> None:
        connection = self.connection
        event = self._accept_event(event)
        await lifecycle.admit(connection)
        welcome = None
        if connection.speaks_v1:
            frame = frames.Welcome(
                connection=str(connection.id),
                max_silence=self._settings.MAX_SILENCE,
                groups=sorted(connection.groups),
            )
            welcome = {"type": "websocket.send", "text": frames.build(frame)}
        await connection.transport.accept(event, welcome)
        lifecycle.accepted(connection)

    def _accept_event(self, event: Event) -> Event:
        """The author's accept event; it chooses `realtime.v1` where the client offers it and the author chose
        nothing.
        """
        offered = frames.SUBPROTOCOL in self.scope.get("subprotocols", ())
        if event.get("subprotocol") is None and offered:
            event = {**event, "subprotocol": frames.SUBPROTOCOL}
        self.connection.subprotocol = event.get("subprotocol") or ""
        return event

    def write_frame(self, frame: frames.ServerFrame) -> None:
        """Write a frame of the protocol, without waiting."""
        lifecycle.write(self.connection, frame)

    def _send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        logger.debug("A send failed: %r", error, extra=self.connection.log_fields())
        lifecycle.evict(self.connection, reason)

    def _log_unavailable(self, error: Exception) -> None:
        logger.warning("A connection could not be served: %s", error, extra=self.connection.log_fields())


class _LayerOfConsumer:
    """The channel layer as a consumer sees it: adding and discarding its own channel goes through the
    lifecycle.
    """

    def __init__(self, layer: Any, consumer: RealtimeConsumer) -> None:
        self._layer = layer
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    async def group_add(self, group: str, channel: str) -> None:
        if channel == self._consumer.channel_name:
            await self._consumer.group_add(group)
        else:
            await self._layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        if channel == self._consumer.channel_name:
            await self._consumer.group_discard(group)
        else:
            await self._layer.group_discard(group, channel)


class GroupConsumer(RealtimeConsumer):
    """The JSON protocol: clients join, leave and publish by frames, as far as the policy lets them.

    Mounted at a path with a `group`, it joins that group at connect.
    """

    own_channel = False
    closes_old_connections = False

    #: More error frames than this in a minute end the connection.
    MAX_ERRORS_PER_MINUTE = 10

    async def connect(self) -> None:
        self._error_times: deque[float] = deque(maxlen=self.MAX_ERRORS_PER_MINUTE + 1)
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
        except frames.BadFrame as bad:
            self._refuse_frame(bad.code, bad.detail, bad.ref)
            return
        match frame:
            case frames.Join():
                await self._join(frame)
            case frames.Leave():
                await self._leave(frame)
            case frames.Publish():
                await self._publish(frame)
            case frames.ClientPing():
                # Those of `realtime.v1` were answered in the inbox; nobody else is sent a pong.
                detail = "Offer the subprotocol realtime.v1 to be answered pings."
                self._refuse_frame(frames.ErrorCode.UNKNOWN_TYPE, detail, None)

    async def _join(self, frame: frames.Join) -> None:
        if not await policy.allows(self.scope, "join", frame.group):
            self._refuse_frame(frames.ErrorCode.FORBIDDEN, f"You may not join {frame.group}.", frame.ref)
            return
        await self.group_add(frame.group)
        self.write_frame(frames.Joined(ref=frame.ref, group=frame.group))

    async def _leave(self, frame: frames.Leave) -> None:
        if frame.group not in self.connection.groups:
            self._refuse_frame(frames.ErrorCode.NOT_JOINED, f"You are not in {frame.group}.", frame.ref)
            return
        await self.group_discard(frame.group)
        self.write_frame(frames.Left(ref=frame.ref, group=frame.group))

    async def _publish(self, frame: frames.Publish) -> None:
        if not await policy.allows(self.scope, "publish", frame.group):
            self._refuse_frame(
                frames.ErrorCode.FORBIDDEN, f"You may not publish to {frame.group}.", frame.ref
            )
            return
        try:
            await groups.apublish(frame.group, frame.data, sender=self.connection.user_id or None)
        except groups.LayerUnavailable as error:
            self._log_unavailable(error)
            self._refuse_frame(
                frames.ErrorCode.INTERNAL, "The message was not published; try again.", frame.ref
            )
            return
        self.write_frame(frames.Published(ref=frame.ref, group=frame.group))

    def _refuse_frame(self, code: frames.ErrorCode, detail: str, ref: frames.Ref | None) -> None:
        """Answer with an error frame; a client that goes on like this is closed."""
        self.write_frame(frames.Error(code=code, detail=detail, ref=ref))
        now = asyncio.get_running_loop().time()
        self._error_times.append(now)
        if len(self._error_times) > self.MAX_ERRORS_PER_MINUTE and now - self._error_times[0] < 60:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
