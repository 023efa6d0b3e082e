"""One connection of a consumer from its first event to its last: how events reach the handlers, how what
they send leaves, and how it ends.

It is apart from the consumer, because an application's consumer may have methods and attributes of any name.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.layers import groups
from realtime.process import tasks
from realtime.serving import lifecycle
from realtime.serving.inbox import Inbox
from realtime.transports import transport_for
from realtime.transports.asgi import Event, Options, Receive, Send, Watcher, is_test_client
from realtime.wire import frames

logger = logging.getLogger("realtime.consumers")

#: Seconds for the server to report the end of a connection that was closed here, before handlers are told
#: without it.
DISCONNECT_TIMEOUT = 2.0
#: Seconds for which a handler that runs when its connection ends may go on.
HANDLER_GRACE = 10.0
#: Seconds for which a consumer waits for its own clean-up, which goes on without it.
CLEANUP_WAIT = 5.0
#: Unknown types of events that are remembered as logged; beyond these nothing is logged.
MAX_UNKNOWN_TYPES = 1000

_logged: set[tuple[type, str]] = set()


class Consumer(Protocol):
    """What is asked of a consumer here."""

    channel_layer_alias: str
    own_channel: bool
    channel_layer: Any
    channel_name: str

    async def dispatch(self, message: Event) -> None: ...


class Runner(Watcher):
    """The socket is read all the time, so a pong is seen while a handler runs; events reach the handlers one
    at a time.
    """

    __slots__ = (
        "_consumer",
        "_disconnect_owed",
        "_failure",
        "_handler_limit",
        "_handlers_until",
        "_inbox",
        "_raises",
        "_settings",
        "connection",
    )

    def __init__(self, consumer: Consumer, scope: dict[str, Any], send: Send) -> None:
        self._consumer = consumer
        self._settings = conf.get()
        self._handler_limit: asyncio.Timeout | None = None
        self._handlers_until = 0.0
        """Set when the connection has ended: the time (of the event loop) to which it handles what waits."""
        self._disconnect_owed = False
        self._failure: Exception | None = None
        self._raises = is_test_client(send)
        self.connection = Connection(scope, self._take_event, consumer.channel_layer_alias)
        self._inbox = Inbox(self.connection, self._settings)
        options = Options(
            max_unsent=self._settings.MAX_UNSENT_BYTES,
            send_timeout=self._settings.SEND_TIMEOUT,
            close_timeout=self._settings.CLOSE_TIMEOUT,
            close_limit=self._settings.CLOSE_LIMIT,
        )
        self.connection.transport = transport_for(send, options, self, direct=self._settings.DIRECT_WRITES)

    async def run(self, receive: Receive) -> None:
        """Returns when the connection has ended and its handlers are done.

        Raises what a handler raised when the other end is Channels' test client, whose users expect it.
        """
        if (task := asyncio.current_task()) is not None:
            lifecycle.track_consumer(task)
        readers = [self._start_reader(self._inbox.read(receive))]
        try:
            if await self._open_channel():
                readers.append(self._start_reader(self._read_channel()))
            await self._handle_events()
        finally:
            # Every ending comes through here, cancellation included: `disconnect()` alone would miss most
            # of them (channels#1466). Whatever ended the connection first has evicted it already, and its
            # reason stays.
            eviction = lifecycle.evict(self.connection, CloseReason.CANCELLED)
            for reader in readers:
                reader.cancel()
            if self._disconnect_owed:
                # A task of its own, because a server that cancels does so again while `disconnect` runs.
                readers.append(tasks.start(self._tell_disconnect(self._report())))
            _, unfinished = await asyncio.wait([eviction, *readers], timeout=CLEANUP_WAIT)
            if not unfinished:
                self._let_go()
        if self._failure is not None and self._raises:
            if (task := asyncio.current_task()) is not None:
                # It was logged; asyncio would do so again where the test does not ask.
                task.add_done_callback(tasks.retrieve_exception)
            raise self._failure

    def _let_go(self) -> None:
        """Nothing is handled any more: leave no circle of references behind, because each would keep some ten
        kilobytes until the garbage collector looks at old objects, which is seldom.
        """
        del self._consumer
        self.connection.on_event = _nobody_listens

    async def refuse(self, reason: CloseReason) -> None:
        """Accept, say why not, and close; no record is made.

        Before accept Daphne can only answer 403, which a browser sees as 1006, so that it comes back for
        ever.
        """
        metrics.refused.labels(reason=reason.value).inc()
        with suppress(Exception):
            await self.connection.transport.accept(self._accept_event({"type": "websocket.accept"}))
        lifecycle.evict(self.connection, reason)

    # -- reading ------------------------------------------------------------------------------------

    async def _open_channel(self) -> bool:
        """Give the connection its channel name; returns whether there is a channel behind it to read."""
        consumer, alias = self._consumer, self._consumer.channel_layer_alias
        layer = get_channel_layer(alias)
        consumer.channel_layer = None if layer is None else _LayerOfConsumer(layer, self.connection)
        consumer.channel_name = self.connection.channel_name
        if layer is None or not consumer.own_channel:
            return False
        try:
            consumer.channel_name = self.connection.channel_name = await groups.new_channel(alias)
        except LayerUnavailable as error:
            await self._unavailable(error)
            return False
        return True

    def _start_reader(self, reading: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        reader = tasks.create(reading)
        reader.add_done_callback(self._reader_ended)
        return reader

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        """A connection of which one half is no longer read would be deaf, so it ends."""
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            logger.error("Reading failed", exc_info=error, extra=self.connection.log_fields())
            lifecycle.evict(self.connection, CloseReason.SERVER_UNAVAILABLE)

    async def _read_channel(self) -> None:
        layer = groups.layer(self._consumer.channel_layer_alias)
        while True:
            self._take_event(await layer.receive(self._consumer.channel_name))

    def _take_event(self, event: Event) -> None:
        """Queue what does not come from the server: events of the layer, and the news of the eviction."""
        if self.connection.gone and event.get("type") == "realtime.evicted":
            # A handler may finish what it has begun, but not keep a dead connection's consumer for ever.
            self._handlers_until = asyncio.get_running_loop().time() + HANDLER_GRACE
            if self._handler_limit is not None:
                self._handler_limit.reschedule(self._handlers_until)
        if not self._inbox.put(event):
            ignore(type(self._consumer), event.get("type"))

    # -- handling ----------------------------------------------------------------------------------

    async def _handle_events(self) -> None:
        """One event at a time, in order of arrival, until it has ended and `disconnect` has run."""
        while True:
            # Waited for here, because each coroutine in which a connection waits stays in memory with it.
            while self._inbox.empty:
                await self._inbox.arrival()
            event = self._inbox.take()
            match event["type"]:
                case "websocket.disconnect":
                    break
                case "websocket.connect":
                    if self.connection.gone:
                        break
                    if (ending := lifecycle.ending()) is not None:
                        # Not 403, after which nobody knows why, nor when to come back.
                        await self.refuse(ending)
                        break
                    self._disconnect_owed = True
                case "realtime.evicted" if not self._is_over():
                    continue
            if self._is_over() or not await self._handle(event):
                break
        if self._disconnect_owed:
            await self._tell_disconnect(await self._disconnect_event(event))

    def _is_over(self) -> bool:
        """Whether what still waits in the inbox is passed over.

        What a client sent before it closed is handled, for a while: it may have said something and left.
        """
        if self.connection.reason in (CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_LOST):
            return asyncio.get_running_loop().time() > self._handlers_until
        return self.connection.gone

    async def _disconnect_event(self, event: Event) -> Event:
        """The server's report that the connection is over, or one in its place; the rest is passed over."""
        if self._raises and self._failure is not None:
            # Whoever waits for the exception sends no report.
            return self._report()
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCONNECT_TIMEOUT):
                while event["type"] != "websocket.disconnect":
                    while self._inbox.empty:
                        await self._inbox.arrival()
                    event = self._inbox.take()
                return event
        return self._report()

    def _report(self) -> Event:
        return {"type": "websocket.disconnect", "code": self.connection.close_code}

    async def _tell_disconnect(self, event: Event) -> None:
        self._disconnect_owed = False
        await self._handle(event)

    async def _handle(self, event: Event) -> bool:
        """Let a handler have the event; returns whether the next one may have its own."""
        allowed = HANDLER_GRACE if self.connection.gone else self._settings.HANDLER_TIMEOUT
        try:
            async with asyncio.timeout(allowed) as self._handler_limit:
                try:
                    await self._consumer.dispatch(event)
                except asyncio.CancelledError as error:
                    if _is_being_cancelled():
                        raise
                    raise RuntimeError("Something that a handler waited for was cancelled.") from error
                finally:
                    limit, self._handler_limit = self._handler_limit, None
        except StopConsumer:
            lifecycle.evict(self.connection, CloseReason.APPLICATION_CLOSED)
        except ConnectionGone:
            return True
        except (LayerUnavailable, RecordsUnavailable) as error:
            await self._unavailable(error)
        except Exception as error:
            timed_out = isinstance(error, TimeoutError) and limit.expired()
            reason = CloseReason.HANDLER_TIMEOUT if timed_out else CloseReason.HANDLER_ERROR
            # Logged here and not raised: an exception that leaves the application can end Daphne's own
            # watchdog for good.
            logger.exception("A handler failed (%s)", reason.value, extra=self.connection.log_fields())
            self._failure = self._failure or (None if timed_out else error)
            await self._give_up(reason)
        else:
            return True
        return False

    async def _unavailable(self, error: Exception) -> None:
        logger.warning("A connection could not be served: %s", error, extra=self.connection.log_fields())
        self._failure = self._failure or error
        await self._give_up(CloseReason.SERVER_UNAVAILABLE)

    async def _give_up(self, reason: CloseReason) -> None:
        if self.connection.transport.accepted or self.connection.gone:
            lifecycle.evict(self.connection, reason)
        else:
            await self.refuse(reason)

    # -- sending -----------------------------------------------------------------------------------

    async def send(self, event: Event) -> None:
        """What Channels' own `accept`, `send` and `close` call with their ASGI event."""
        connection = self.connection
        match event["type"]:
            case "websocket.accept":
                await self._accept(event)
            case "websocket.close":
                lifecycle.evict(connection, CloseReason.APPLICATION_CLOSED, event)
            case "websocket.send":
                lifecycle.send(connection, event)
                await lifecycle.drained(connection)
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
        offered = frames.SUBPROTOCOL in self.connection.scope.get("subprotocols", ())
        if event.get("subprotocol") is None and offered:
            event = {**event, "subprotocol": frames.SUBPROTOCOL}
        self.connection.subprotocol = event.get("subprotocol") or ""
        return event

    def send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        logger.debug("A send failed: %r", error, extra=self.connection.log_fields())
        lifecycle.evict(self.connection, reason)

    def ponged(self, n: int, *, v1: bool) -> bool:
        connection = self.connection
        if connection.hub is None or connection.speaks_v1 is not v1:
            return False
        connection.hub.heartbeat.ponged(connection, n)
        return True

    def is_behind(self) -> None:
        if self.connection.hub is not None and not self.connection.gone:
            self.connection.hub.heartbeat.is_behind(self.connection)


def _nobody_listens(event: Event) -> None:
    """For what still comes in for a connection whose consumer is gone."""


def _is_being_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def ignore(consumer: type, kind: object) -> None:
    """Log once that this class of consumers has no handler for this type of events."""
    known = (consumer, str(kind))
    if known not in _logged and len(_logged) < MAX_UNKNOWN_TYPES:
        _logged.add(known)
        logger.warning("%s has no handler for events of type %r", consumer.__name__, kind)


class _LayerOfConsumer:
    """The channel layer as a consumer sees it: adding and discarding its own channel goes through the
    lifecycle.
    """

    def __init__(self, layer: Any, connection: Connection) -> None:
        self._layer = layer
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    async def group_add(self, group: str, channel: str) -> None:
        if channel == self._connection.channel_name:
            await lifecycle.group_add(self._connection, group)
        else:
            await self._layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        if channel == self._connection.channel_name:
            await lifecycle.group_discard(self._connection, group)
        else:
            await self._layer.group_discard(group, channel)
