"""Run one connection of a consumer from its first event to its last.

The runner brings events to the handlers and sends what they write. It is apart from the consumer, because the
consumer of an application may have methods and attributes of any name.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Protocol

from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable, TooManyGroups
from realtime.hub.connection import Connection
from realtime.layers import groups
from realtime.limits import admission, handshakes, refusals
from realtime.process import old_connections, stepping, tasks
from realtime.process.stepping import Suspended
from realtime.records.transactions import prepare_test
from realtime.rights.authorization import NEEDS_TICKET
from realtime.serving import handlers, lifecycle
from realtime.serving.handlers import Target
from realtime.serving.inbox import Inbox, is_for_handlers, rest
from realtime.transports import transport_for
from realtime.transports.asgi import Event, Options, Receive, Send, Watcher, is_test_client
from realtime.transports.inflow import Turn
from realtime.wire import client_id, frames

logger = logging.getLogger("realtime.serving")

#: Unknown types of events that are remembered as logged. Further types are not logged.
MAX_UNKNOWN_TYPES = 1000

_logged: set[tuple[type, str]] = set()


class Consumer(Protocol):
    """The attributes of a consumer that the runner uses."""

    channel_layer_alias: str
    own_channel: bool
    closes_old_connections: bool
    client_parameter: str | None
    takes_notifications: bool
    takes_refresh: bool
    asks_policy: bool
    channel_layer: Any
    channel_name: str

    async def dispatch(self, message: Event) -> None: ...


class Borrower:
    """Calls handlers of a consumer that was lent to it."""

    __slots__ = ()

    async def rest(self) -> None:
        """Wait for the handlers that were called, and raise their exception."""

    def settling(self) -> Coroutine[Any, Any, None] | None:
        """Return a coroutine that waits until the client has read; None if nothing was sent."""


@dataclass(frozen=True, slots=True)
class Times:
    """The time limits of a runner that are not settings, in seconds."""

    server_report: float = 2.0
    """For the server to report that a connection has ended. Then `disconnect` runs without the report."""
    cleanup: float = 5.0
    """For a consumer to wait for its own clean-up. Then the clean-up goes on without it."""
    cleanup_at_least: float = 0.5
    """The same after handlers that took the whole DISCONNECT_TIMEOUT."""
    thread: float = 3.0
    """For a thread to become free for a synchronous `disconnect`. Then the consumer ends without waiting."""


class Runner(Watcher):
    """The runner of one connection.

    It reads the socket all the time, so a pong is seen while a handler runs. Events reach the handlers one at
    a time.

    Args:
        consumer: Has the handlers.
        scope: The ASGI scope.
        send: The server's `send`.

    Attributes:
        times: The time limits of every runner.
        connection: The connection.
        closed_old_connections: True while a handler is called for which the hub has closed stale database
            connections already.
        waits_for_thread: True while a synchronous handler waits for a free thread.
    """

    times = Times()

    __slots__ = (
        "_at_the_end",
        "_begun",
        "_consumer",
        "_context",
        "_disconnect_owed",
        "_failure",
        "_handler_limit",
        "_idle_task",
        "_inbox",
        "_over_since",
        "_raises",
        "_readers",
        "_settings",
        "closed_old_connections",
        "connection",
        "waits_for_thread",
    )

    def __init__(self, consumer: Consumer, scope: dict[str, Any], send: Send) -> None:
        self._consumer = consumer
        self._settings = conf.get()
        self._handler_limit: asyncio.Timeout | None = None
        self._over_since = 0.0
        """The loop time at which the connection ended."""
        self._disconnect_owed = False
        self._at_the_end = False
        """True from the call of `disconnect` on."""
        self._failure: Exception | None = None
        self._readers: list[asyncio.Task[None]] = []
        """The tasks that read the socket and the connection's own channel."""
        self.waits_for_thread = False
        self._raises = is_test_client(send)
        self._context = copy_context()
        """All handlers run in it, so that each sees the context variables that earlier ones have set."""
        self._idle_task: asyncio.Task[Any] | None = None
        """The task that serves the connection, while it waits for an event."""
        self._begun: Suspended | BaseException | Borrower | None = None
        """The rest of a handler that another task called: the connection's own task goes on with it."""
        self.closed_old_connections = False
        self.connection = Connection(scope, self.queue, consumer.channel_layer_alias)
        self.connection.takes_notifications = consumer.takes_notifications
        self.connection.takes_refresh = consumer.takes_refresh
        self.connection.asks_policy = consumer.asks_policy
        self.connection.hears_rights = handlers.target(type(consumer), "rights.changed") is Target.HANDLER
        if not old_connections.has_own_thread(self._context):
            self.connection.on_group_event = self._take_group_event
            self.connection.closes_old_connections = consumer.closes_old_connections
        self._inbox = Inbox(self.connection, self._settings)
        options = Options(
            max_unsent=self._settings.MAX_UNSENT_BYTES,
            send_timeout=self._settings.SEND_TIMEOUT,
            close_timeout=self._settings.CLOSE_TIMEOUT,
            close_limit=self._settings.CLOSE_LIMIT,
            rest=rest(self._settings),
        )
        self.connection.transport = transport_for(
            send, options, self, scope=scope, direct=self._settings.DIRECT_WRITES
        )

    async def run(self, receive: Receive) -> None:
        """Serve the connection until it has ended and its handlers are done.

        Raises:
            Exception: The exception of a handler, but only if the client is Channels' test client, because
                its users expect that.
            RecordsUnavailable: A test holds a transaction that its connection cannot be recorded in.
        """
        if self._raises:
            await prepare_test()
        if (task := asyncio.current_task()) is not None:
            lifecycle.track_consumer(task)
        self._start_reader(self._inbox.read(receive))
        try:
            await stepping.in_context(self._context, self._handle_events())
        finally:
            # Every ending comes through here, including a cancellation. `disconnect()` alone would miss most
            # of them (channels#1466). If the connection was evicted before, that reason stays.
            eviction = lifecycle.evict(self.connection, CloseReason.CANCELLED)
            last = [eviction, *self._readers]
            for reader in self._readers:
                reader.cancel()
            self._readers.clear()
            if self._disconnect_owed:
                # In a task of its own: a server that cancels may cancel again while `disconnect` runs.
                last.append(tasks.start(self._tell_disconnect(self._report()), context=self._context))
            rest = max(self._time_left(at_the_end=True), self.times.cleanup_at_least)
            _, unfinished = await asyncio.wait(last, timeout=min(self.times.cleanup, rest))
            if not unfinished:
                self._break_cycles()
        if self._failure is not None and self._raises:
            if (task := asyncio.current_task()) is not None:
                # It was logged already. Without this, asyncio would log it again if the test does not await.
                task.add_done_callback(tasks.retrieve_exception)
            raise self._failure

    def _break_cycles(self) -> None:
        """Break the cycles of references when nothing is handled any more.

        Each cycle would keep about ten kilobytes until the garbage collector checks old objects.
        """
        del self._consumer
        self.connection.on_event = self.connection.on_group_event = _ignore_event

    async def refuse(self, reason: CloseReason) -> None:
        """Accept the handshake, say goodbye, and close; see `RealtimeConsumer.refuse`."""
        metrics.refused.labels(reason=reason.value).inc()
        with suppress(Exception):
            await self.connection.transport.accept(self._accept_event({"type": "websocket.accept"}))
        lifecycle.evict(self.connection, reason)

    # -- reading ------------------------------------------------------------------------------------

    async def _open_channel(self) -> bool:
        """Give the connection its channel name, and read its channel if it has one of its own.

        Returns:
            False if the layer is down. Then the connection has ended.
        """
        consumer, alias = self._consumer, self._consumer.channel_layer_alias
        layer = get_channel_layer(alias)
        consumer.channel_layer = None if layer is None else _LayerOfConsumer(layer, self.connection)
        consumer.channel_name = self.connection.channel_name
        if layer is None:
            # As in Channels, the handlers run and fail. Their errors do not say what to set.
            self._log_missing_layer(alias)
        if layer is None or not consumer.own_channel:
            return True
        try:
            consumer.channel_name = self.connection.channel_name = await groups.new_channel(alias)
        except LayerUnavailable as error:
            await self._unavailable(error)
            return False
        self._start_reader(self._read_channel())
        return True

    def _log_missing_layer(self, alias: str) -> None:
        try:
            groups.layer(alias)
        except LayerUnavailable as error:
            logger.warning("A connection cannot be served: %s", error, extra=self.connection.log_fields())

    def _start_reader(self, reading: Coroutine[Any, Any, None]) -> None:
        reader = tasks.create(reading)
        reader.add_done_callback(self._reader_ended)
        self._readers.append(reader)

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        """End the connection if a reader failed: otherwise it would receive nothing more."""
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            logger.error("Reading failed", exc_info=error, extra=self.connection.log_fields())
            lifecycle.evict(self.connection, CloseReason.SERVER_UNAVAILABLE)

    async def _read_channel(self) -> None:
        layer = groups.layer(self._consumer.channel_layer_alias)
        while True:
            self.queue(await layer.receive(self._consumer.channel_name))

    def queue(self, event: Event) -> None:
        """Queue an event of the layer, or the news of the eviction."""
        if self.connection.gone and event.get("type") == "realtime.evicted":
            # A running handler may finish, but must not keep the consumer of a dead connection for ever.
            self._over_since = asyncio.get_running_loop().time()
            if self._handler_limit is not None and not self._handler_limit.expired():
                self._handler_limit.reschedule(self._over_since + self._time_left())
        if not self._is_for_handlers(event) or not self._inbox.put(event):
            ignore(type(self._consumer), event.get("type"))

    def _is_for_handlers(self, event: Event) -> bool:
        """Return False for an event of the channel layer that must not come to `dispatch`.

        Decided here and not in `dispatch`, because base classes of other packages may override that.
        """
        return is_for_handlers(event) and handlers.admits(self._consumer, event["type"])

    # -- handling ----------------------------------------------------------------------------------

    async def _handle_events(self) -> None:
        """Handle one event at a time, in order of arrival, until `disconnect` has run."""
        going_on = True
        while going_on:
            # Awaited here and not in a method: each coroutine that waits stays in memory with its connection.
            while going_on and self._inbox.empty:
                self._idle_task, cancelled = asyncio.current_task(), None
                try:
                    await self._inbox.arrival()
                except asyncio.CancelledError as error:
                    cancelled = error
                self._idle_task = None
                if self._begun is not None or cancelled is not None:
                    going_on = await self._go_on_with_begun(cancelled)
            if not going_on:
                break
            event = self._inbox.take()
            match event["type"]:
                case "websocket.disconnect":
                    break
                case "websocket.connect":
                    if self.connection.gone:
                        break
                    if not handshakes.admits(self.connection.scope):
                        # Not accepted, because that would cost more: the server answers 403.
                        lifecycle.evict(self.connection, CloseReason.RATE_LIMITED)
                        break
                    if self._lacks_ticket():
                        lifecycle.evict(self.connection, CloseReason.FORBIDDEN)
                        break
                    if (ending := lifecycle.ending()) is not None:
                        # Not 403: that tells the client neither the reason nor when to come back.
                        await self.refuse(ending)
                        break
                    if not self._read_client_id():
                        await self.refuse(CloseReason.PROTOCOL_ERROR)
                        break
                    if not await self._is_within_limits() or not await self._open_channel():
                        break
                    self._disconnect_owed = True
                case "realtime.evicted" if not self._is_over():
                    continue
            going_on = not self._is_over() and await self._handle(self._consumer.dispatch(event))
        if self._disconnect_owed:
            await self._tell_disconnect(await self._disconnect_event(event))

    def _lacks_ticket(self) -> bool:
        """Return True if the connection may only be served with a ticket, and no middleware verified one."""
        connection = self.connection
        authorization = connection.authorization
        if not connection.scope.get(NEEDS_TICKET) or (authorization is not None and authorization.is_ticket):
            return False
        logger.warning(
            "A client without an Origin presents a ticket, and no middleware verifies it: put "
            "realtime.auth.AuthMiddlewareStack or TicketMiddleware in front of the consumer",
            extra=connection.log_fields(),
        )
        return True

    def _read_client_id(self) -> bool:
        """Read the id that the client gives itself in the URL. Return False if it is malformed."""
        connection, parameter = self.connection, self._consumer.client_parameter
        if parameter is not None:
            try:
                connection.client_id = client_id.find(connection.scope.get("query_string", b""), parameter)
            except ValueError as error:
                logger.warning("A connection is refused: %s", error, extra=connection.log_fields())
                return False
        return True

    async def _is_within_limits(self) -> bool:
        """Count the connection. Return False if it has ended, or if it is refused because of a limit."""
        try:
            limit = await admission.here().admit(self.connection)
        except Exception as error:
            # The user in the scope comes from a middleware of the application.
            logger.exception("A connection could not be counted", extra=self.connection.log_fields())
            self._failure = error
            await self._give_up(CloseReason.HANDLER_ERROR)
            return False
        if limit is not None and not self.connection.gone:
            unavailable = limit == admission.WITHOUT_REDIS
            await self.refuse(
                CloseReason.SERVER_UNAVAILABLE if unavailable else CloseReason.TOO_MANY_CONNECTIONS
            )
        return not self.connection.gone

    def _take_group_event(self, event: Event) -> None:
        """Call the handler of a group event if the consumer is idle. Otherwise queue the event.

        Few handlers ever suspend. A handler that does not is done when this returns, and has cost neither a
        task switch nor a timer. The connection's own task goes on with one that suspends or raises.
        """
        task = self._idle_task
        if task is None or not self._inbox.empty or self.connection.gone or not self._is_for_handlers(event):
            self.queue(event)
            return
        self._idle_task, self.closed_old_connections = None, True
        self._begin(task, self._consumer.dispatch(event))
        self.closed_old_connections = False
        self._leave_to(task)

    def _begin(self, task: "asyncio.Task[Any]", work: Coroutine[Any, Any, None]) -> None:
        """Take the first step of a coroutine in the place of the connection's own task."""
        try:
            self._begun = stepping.step_as(task, self._context, work)
        except BaseException as error:
            self._begun = error

    def _leave_to(self, task: "asyncio.Task[Any]") -> None:
        """Have the connection's own task go on with what was begun; if nothing is left, it is idle again."""
        if self._begun is None:
            self._idle_task = task
        else:
            self._inbox.wake()

    async def _go_on_with_begun(self, cancelled: asyncio.CancelledError | None) -> bool:
        """Go on with what `_take_group_event` began. Return True if the next event may be handled.

        Args:
            cancelled: The exception if this task was cancelled before it could go on.
        """
        begun, self._begun = self._begun, None
        if isinstance(begun, Suspended):
            rest = stepping.finish(begun) if cancelled is None else stepping.cancel(begun, cancelled)
            return await self._handle(rest)
        going_on = not isinstance(begun, BaseException) or await self._handle(_raise(begun))
        if cancelled is not None:
            raise cancelled
        if isinstance(begun, Borrower):
            return await self._handle(begun.rest())
        return going_on

    # -- lending -----------------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """The context of all handlers."""
        return self._context

    @property
    def lent_to(self) -> object:
        """The borrower, while the consumer is lent and its task waits for an event."""
        return self._begun

    def wake(self) -> None:
        """Wake the task of the connection, which waits for an event, to go on with the borrower."""
        self._inbox.wake()

    def accepts(self, event: Event) -> bool:
        """Return True if a group event has a handler, and nothing waits before it."""
        if not self._inbox.empty or self.connection.gone or not is_for_handlers(event):
            return False
        consumer: type = type(self._consumer)
        return handlers.target(consumer, event["type"]) is Target.HANDLER

    def lend(self, borrower: "Borrower", event: Event) -> "asyncio.Task[Any] | None":
        """Lend the consumer to a caller of its handlers. If it is busy, queue the event.

        Args:
            borrower: Calls the handler of the event, and gives the consumer back. Until then, no other
                handler runs.
            event: A group event.

        Returns:
            The task of the connection, for `take_back`; None if the event was queued.
        """
        task = self._idle_task
        if task is None or not self.accepts(event):
            self.queue(event)
            return None
        self._idle_task, self._begun, self.waits_for_thread = None, borrower, True
        return task

    def take_back(self, borrower: "Borrower", task: "asyncio.Task[Any]", error: BaseException | None) -> bool:
        """Take the consumer back from a borrower.

        Args:
            borrower: The borrower.
            task: The task that `lend` returned.
            error: The exception of a handler.

        Returns:
            False if the task waits for the borrower or has ended. Then the exception is left to the borrower.
        """
        if self._begun is not borrower:
            return False
        self._begun, self.waits_for_thread = error, False
        if error is None and (settling := borrower.settling()) is not None:
            self._begin(task, settling)
        self._leave_to(task)
        return True

    def _is_over(self) -> bool:
        """Return True if the events that still wait are skipped.

        What a client sent before it closed is handled for a while: it may have sent a message and left.
        """
        if self.connection.reason in (CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_LOST):
            return self._time_left() <= 0
        return self.connection.gone

    def _time_left(self, *, at_the_end: bool = False) -> float:
        """Return the seconds that handlers have after the end of the connection, or that `disconnect` has.

        The whole is bounded, because a server kills a consumer that goes on for too long: Daphne after 10 s.
        The last quarter is kept for `disconnect`. A handler that waits for a hung Redis or database in
        `group_add` is answered within the rest.
        """
        budget = self._settings.DISCONNECT_TIMEOUT
        if not at_the_end:
            budget *= 0.75
        return max(0.0, self._over_since + budget - asyncio.get_running_loop().time())

    async def _disconnect_event(self, event: Event) -> Event:
        """Return the server's report that the connection is over, or a report in its place.

        All events before it are skipped.
        """
        if self._raises and self._failure is not None:
            # The test client waits for the exception and sends no report.
            return self._report()
        with suppress(TimeoutError):
            patience = min(self.times.server_report, self._settings.DISCONNECT_TIMEOUT / 2)
            async with asyncio.timeout_at(self._over_since + patience):
                while event["type"] != "websocket.disconnect":
                    while self._inbox.empty:
                        await self._inbox.arrival()
                    event = self._inbox.take()
                return event
        return self._report()

    def _report(self) -> Event:
        return {"type": "websocket.disconnect", "code": self.connection.close_code}

    async def _tell_disconnect(self, event: Event) -> None:
        self._disconnect_owed, self._at_the_end = False, True
        await self._handle(self._consumer.dispatch(event))

    async def _handle(self, handling: Awaitable[None]) -> bool:
        """Await the handling of an event; return True if the next event may be handled."""
        try:
            async with asyncio.timeout(self._time_allowed()) as self._handler_limit:
                try:
                    await handling
                except asyncio.CancelledError as error:
                    if _is_being_cancelled():
                        raise
                    raise RuntimeError("Something that a handler waited for was cancelled.") from error
                finally:
                    limit, self._handler_limit = self._handler_limit, None
                    never_began, self.waits_for_thread = self.waits_for_thread, False
        except StopConsumer:
            lifecycle.evict(self.connection, CloseReason.APPLICATION_CLOSED)
        except ConnectionGone:
            return True
        except (LayerUnavailable, RecordsUnavailable) as error:
            await self._unavailable(error)
        except TooManyGroups as error:
            client = refusals.client_in_words(self.connection.address)
            refusals.note("MAX_GROUPS", client, f"Its consumer did not catch the exception: {error}")
            self._failure = self._failure or error
            await self._give_up(CloseReason.RATE_LIMITED)
        except Exception as error:
            timed_out = isinstance(error, TimeoutError) and limit.expired()
            if timed_out and never_began:
                # The connection has ended, and no thread became free for what its client had sent.
                return False
            reason = CloseReason.HANDLER_TIMEOUT if timed_out else CloseReason.HANDLER_ERROR
            # Logged and not raised: an exception that leaves the application can end Daphne's own watchdog
            # for good.
            logger.exception("A handler failed (%s)", reason.value, extra=self.connection.log_fields())
            self._failure = self._failure or (None if timed_out else error)
            await self._give_up(reason)
        else:
            return True
        return False

    def _time_allowed(self) -> float | None:
        """Return the seconds for a handler that begins now; None for no limit."""
        if self.connection.gone:
            return self._time_left(at_the_end=self._at_the_end)
        return None if self.waits_for_thread else self._settings.HANDLER_TIMEOUT

    def wait_for_thread(self, *, without_limit: bool) -> None:
        """Stop the clock of the running handler, because it waits until a thread is free.

        Args:
            without_limit: Stop it even if the connection has ended.
        """
        self.waits_for_thread = True
        if self._handler_limit is not None and (without_limit or not self.connection.gone):
            self._handler_limit.reschedule(None)

    @property
    def patience_for_thread(self) -> float:
        """The seconds that a synchronous `disconnect` waits for a free thread, within its budget."""
        return min(self.times.thread, self._time_left(at_the_end=True))

    @property
    def is_limited(self) -> bool:
        """True if the time of the running handler is limited."""
        return self.connection.gone or self._settings.HANDLER_TIMEOUT is not None

    def limit_handler(self) -> None:
        """Start the clock of the running handler, because its thread has begun."""
        allowed = self._time_allowed()
        limit = self._handler_limit
        if limit is not None and not limit.expired() and allowed is not None:
            limit.reschedule(asyncio.get_running_loop().time() + allowed)

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
        """Take an ASGI event of the application: Channels' `accept`, `send` and `close` call this."""
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
                positions={
                    group: frames.Since(at.epoch, at.offset) for group, at in connection.positions.items()
                },
            )
            welcome = {"type": "websocket.send", "text": frames.build(frame)}
        await connection.transport.accept(event, welcome)
        lifecycle.accepted(connection)

    def _accept_event(self, event: Event) -> Event:
        """Return the author's accept event, with a subprotocol.

        If the author chose none and the client offers `realtime.v1`, that is chosen.
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
        return connection.hub.heartbeat.ponged(connection, n)

    @property
    def is_busy(self) -> bool:
        return self._idle_task is None or self._inbox.has_frames

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        return self._inbox.arrived(frames, size, waiting)

    def is_behind(self) -> None:
        if self.connection.hub is not None and not self.connection.gone:
            self.connection.hub.heartbeat.is_behind(self.connection)


async def _raise(error: BaseException) -> None:
    raise error


def _ignore_event(event: Event) -> None:
    """Drop an event that arrives after the consumer is gone."""


def _is_being_cancelled() -> bool:
    """Return True if this task is cancelled, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def ignore(consumer: type, kind: object) -> None:
    """Log once that this class of consumers has no handler for events of this type."""
    known = (consumer, str(kind))
    if known not in _logged and len(_logged) < MAX_UNKNOWN_TYPES:
        _logged.add(known)
        logger.warning("%s has no handler for events of type %r", consumer.__name__, kind)


class _LayerOfConsumer:
    """The channel layer as a consumer sees it.

    Adding and discarding the consumer's own channel goes through the lifecycle.
    """

    def __init__(self, layer: Any, connection: Connection) -> None:
        self._layer = layer
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    async def group_add(self, group: str, channel: str) -> None:
        if channel == self._connection.channel_name:
            await self._on_the_loop(lifecycle.group_add, group)
        else:
            await self._layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        if channel == self._connection.channel_name:
            await self._on_the_loop(lifecycle.group_discard, group)
        else:
            await self._layer.group_discard(group, channel)

    async def _on_the_loop(
        self, change: Callable[[Connection, str], Coroutine[Any, Any, object]], group: str
    ) -> None:
        """Change a group on the loop of the connection.

        In a thread that an author started, `async_to_sync` runs another loop.
        """
        changing = change(self._connection, group)
        if asyncio.get_running_loop() is self._loop:
            await changing
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(changing, self._loop))
