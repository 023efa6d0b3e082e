"""Run the handlers of synchronous consumers in threads, and take what they send.

By default the handlers run in the thread that all synchronous code of the process shares, as in Channels.
With the setting THREADS they run in a pool of threads. A handler sends without waiting for the event loop:
its frames wait in an outbox, and the loop is woken once for all of them.

Private: docs/reference.md lists the public names.
"""

import asyncio
import functools
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, async_to_sync
from channels.db import DatabaseSyncToAsync
from channels.exceptions import StopConsumer

from realtime import conf
from realtime.closing import CloseReason
from realtime.errors import ConnectionGone
from realtime.hub.connection import Connection
from realtime.process import old_connections, tasks
from realtime.serving import lifecycle, visits
from realtime.serving.runner import Runner
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.serving")

#: Bytes that one call of a handler may send before it waits until the client has read. A quarter of
#: MAX_UNSENT_BYTES if that is less: with more, a client that reads would be evicted as slow.
MOST_AHEAD = 256 * 1024
#: Bytes that a frame counts on top of its payload, for its event in the outbox.
PER_FRAME = 200

Result = TypeVar("Result")


# -- threads ---------------------------------------------------------------------------------------


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="realtime-handler")


# The threads of a parent do not run in its child.
os.register_at_fork(after_in_child=_pool.cache_clear)


def pool(thread_sensitive: bool) -> ThreadPoolExecutor | None:
    """Return the pool for handlers; None for the thread that all synchronous code shares.

    Args:
        thread_sensitive: True keeps the handlers in that thread even if the setting THREADS is not None.
    """
    threads = conf.get().THREADS
    return None if threads is None or thread_sensitive else _pool(threads)


def call(
    loop: asyncio.AbstractEventLoop, function: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any
) -> Result:
    """Call a coroutine function on an event loop and wait for it, in any thread but that of a loop.

    Raises:
        RuntimeError: This thread runs an event loop, which would wait for itself.
        ConnectionGone: The loop is closed, and with it every connection.
    """
    if getattr(SyncToAsync.threadlocal, "main_event_loop", None) is loop:
        # The thread of a handler. Meanwhile it runs synchronous code that the coroutine waits for.
        result: Result = async_to_sync(function)(*arguments)
        return result
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("A synchronous consumer was called on an event loop. Call it in a thread.")
    coroutine = function(*arguments)
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise ConnectionGone from None
    return future.result()


async def handle(consumer: Any, runner: Runner, handler: Callable[[Event], object], event: Event) -> None:
    """Call the handler of an event in a thread, and wait for it and for what it sent.

    The time until a thread is free counts against no limit.

    Args:
        consumer: Its attributes choose the thread, and say if stale database connections are closed there.
        runner: The runner of the consumer.
        handler: The handler.
        event: Its argument.
    """
    hop = DatabaseSyncToAsync if consumer.closes_old_connections else SyncToAsync
    executor = pool(consumer.thread_sensitive)
    work = functools.partial(_begin, runner, asyncio.get_running_loop(), handler)
    calling = hop(work, thread_sensitive=executor is None, executor=executor)(event)
    is_last = event["type"] == "websocket.disconnect"
    runner.wait_for_thread(without_limit=is_last)
    if is_last:
        error = await _call_surely(runner, calling)
    else:
        error = await calling
        await consumer.base_send.settled()
    if error is not None:
        try:
            raise error
        finally:
            # Otherwise the exception and this frame keep each other, and the consumer.
            del error


def _begin(
    runner: Runner, loop: asyncio.AbstractEventLoop, handler: Callable[[Event], object], event: Event
) -> Exception | None:
    """Call the handler, in its thread.

    Returns:
        The exception of the handler. It is not raised, because asgiref's frame would keep it.
    """
    runner.waits_for_thread = False
    if runner.is_limited:
        loop.call_soon_threadsafe(runner.limit_handler)
    try:
        handler(event)
    except (StopConsumer, ConnectionGone) as error:
        # The usual end of a connection. Without the traceback: its frames keep each other and the consumer
        # until the garbage collector runs.
        return type(error)()
    except Exception as error:
        return error
    return None


async def _call_surely(runner: Runner, calling: Coroutine[Any, Any, Exception | None]) -> Exception | None:
    """Call `disconnect`, also if this is cancelled or no thread is free for long.

    If no thread is free, the caller goes on, because servers kill an application that does not end.
    """
    # If a handler was cancelled, this context may still refer to its thread, which waits no more.
    task = tasks.start(calling, context=tasks.outliving())
    try:
        await asyncio.wait([task], timeout=runner.patience_for_thread)
        if task.done() or not runner.waits_for_thread:
            return await asyncio.shield(task)
    finally:
        if not task.done():
            logger.info("`disconnect` goes on by itself", extra=runner.connection.log_fields())
            lifecycle.track_consumer(task)
            task.add_done_callback(functools.partial(_log_failure, runner.connection))
    return None


def _log_failure(connection: Connection, task: "asyncio.Task[Exception | None]") -> None:
    error = None if task.cancelled() else task.result()
    if error is not None and not isinstance(error, StopConsumer):
        logger.error("A handler failed", exc_info=error, extra=connection.log_fields())


def prepare(consumer: Any, runner: Runner, *, shares_visits: bool) -> "Sender":
    """Prepare a synchronous consumer; return its `base_send`.

    Args:
        consumer: The consumer.
        runner: Its runner.
        shares_visits: True if handlers of group events may be called without `dispatch`.
    """
    connection, settings = runner.connection, conf.get()
    # Each visit to a thread closes them.
    connection.closes_old_connections = False
    # With a limit, each handler has a clock of its own.
    if (
        shares_visits
        and settings.HANDLER_TIMEOUT is None
        and not old_connections.has_own_thread(runner.context)
        and visits.is_possible()
    ):
        executor = pool(consumer.thread_sensitive)
        threads = 1 if executor is None else settings.THREADS or 1
        kind = visits.visits_for(executor, threads, consumer.closes_old_connections)
        connection.on_group_event = visits.GroupHandlers(runner, consumer, kind).take
    return Sender(runner)


# -- sending ---------------------------------------------------------------------------------------


class Outbox:
    """The frames that threads have sent, on their way to the connections of one event loop.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: deque[tuple[Connection, Event]] = deque()
        self._woken = False
        # Empty: a frame must not be written in the context of the handler that sent another one.
        self._context = Context()

    def put(self, connection: Connection, event: Event) -> None:
        """Queue a frame, in any thread."""
        self._waiting.append((connection, event))
        # In this order. If the loop sees the flag before this thread does, it takes the frame as well.
        if not self._woken:
            self._woken = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self.deliver, context=self._context)
            except RuntimeError:
                # The loop is closed, and with it every connection.
                self._waiting.clear()

    def deliver(self) -> None:
        """Write the frames that wait, on the event loop."""
        self._woken = False
        for _ in range(len(self._waiting)):
            connection, event = self._waiting.popleft()
            if connection.gone:
                continue
            try:
                lifecycle.send(connection, event)
            except Exception:
                # The frames behind it belong to other connections.
                logger.exception("A frame could not be sent", extra=connection.log_fields())
                lifecycle.evict(connection, CloseReason.HANDLER_ERROR)


_outboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = weakref.WeakKeyDictionary()


class Sender:
    """The `base_send` of a synchronous consumer. Any thread may call it.

    Args:
        runner: The runner of the consumer, on the running event loop.
    """

    __slots__ = ("_ahead", "_most_ahead", "_outbox", "_runner", "loop")

    def __init__(self, runner: Runner) -> None:
        self.loop = loop = asyncio.get_running_loop()
        if loop not in _outboxes:
            _outboxes[loop] = Outbox(loop)
        self._outbox = _outboxes[loop]
        self._runner = runner
        self._most_ahead = min(MOST_AHEAD, conf.get().MAX_UNSENT_BYTES // 4)
        self._ahead = 0
        """The bytes that were sent since the client was last seen to have read."""

    def __call__(self, event: Event) -> None:
        """Take an ASGI event of the application: Channels' `accept`, `send` and `close` call this.

        `accept` and `close` wait until they are done, and raise as in an asynchronous consumer.
        """
        connection, kind = self._runner.connection, event["type"]
        if kind != "websocket.send":
            if connection.gone and kind == "websocket.close":
                return
            call(self.loop, self._send_in_order, event)
            return
        text = event.get("text")
        # Raises here, in the author's code, if this is no text.
        size = len(event.get("bytes") or b"") if text is None else len(text.encode())
        if connection.gone:
            return
        if self.is_full and asyncio._get_running_loop() is None:
            call(self.loop, self._wait_for_client)
        self._ahead += size + PER_FRAME
        self._outbox.put(connection, event)

    @property
    def is_ahead(self) -> bool:
        """True if a handler has sent something since the last `settled`."""
        return self._ahead > 0

    @property
    def is_full(self) -> bool:
        """True if the next frame waits until the client has read."""
        return self._ahead > self._most_ahead

    async def settled(self) -> None:
        """Wait until the client has read most of what the last handler sent."""
        if self._ahead:
            self._ahead = 0
            await lifecycle.drained(self._runner.connection)

    async def _wait_for_client(self) -> None:
        self._outbox.deliver()
        await self.settled()

    async def _send_in_order(self, event: Event) -> None:
        self._outbox.deliver()
        await self._runner.send(event)
