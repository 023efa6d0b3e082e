"""Call the handlers of group events of many synchronous consumers in one visit to a thread.

A visit costs about as much as a hundred small handlers. So an event for a thousand members is not handled by
a thousand visits, but by one that goes from member to member. A member that is busy, or that has events in
its inbox, gets the event through its inbox, as any other event.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

from asgiref import sync
from channels import db
from channels.exceptions import StopConsumer

from realtime.errors import ConnectionGone
from realtime.process import tasks
from realtime.serving import handlers
from realtime.serving.runner import Borrower, Runner
from realtime.transports.asgi import Event

logger = logging.getLogger("realtime.serving")

#: Seconds of handlers after which a visit ends. Other synchronous code may wait for the same thread.
SLICE = 0.02
#: Events that may wait for one consumer here. Further ones wait in its inbox.
MAX_EVENTS = 100

#: Makes the context variables of another thread those of this one, as `sync_to_async` does. It is private to
#: asgiref. Without it, each handler has a visit of its own.
_restore_context: Any = getattr(sync, "_restore_context", None)


def is_possible() -> bool:
    """Return True if this version of asgiref has what shared visits need."""
    return _restore_context is not None


class Visits:
    """The group events that wait for threads of one kind, on one event loop.

    Args:
        executor: The pool; None for the thread that all synchronous code shares.
        threads: The number of its threads.
        closes_old_connections: True closes stale database connections around each handler.
    """

    def __init__(
        self, executor: ThreadPoolExecutor | None, threads: int, closes_old_connections: bool
    ) -> None:
        self.closes_old_connections = closes_old_connections
        self._visit = sync.SyncToAsync(
            self._call_handlers, thread_sensitive=executor is None, executor=executor
        )
        self._threads = threads
        self._visiting = 0
        self._waiting: deque[GroupHandlers] = deque()

    def put(self, member: "GroupHandlers") -> None:
        """Queue a member with its events, on the event loop."""
        self._waiting.append(member)
        if self._visiting < self._threads:
            self._visiting += 1
            # In an empty context: no handler may see the context variables of another connection.
            tasks.start(self._make_visits(), context=Context())

    async def _make_visits(self) -> None:
        try:
            while self._waiting:
                for member in await self._visit():
                    _finish(member)
        except Exception as error:
            # The pool takes nothing any more, because the process exits.
            while self._waiting:
                _finish(self._waiting.popleft(), error)
        finally:
            self._visiting -= 1

    def _call_handlers(self) -> "list[GroupHandlers]":
        """Call the handlers of members that wait, in a thread; return these members."""
        done: list[GroupHandlers] = []
        until = time.monotonic() + SLICE
        if self.closes_old_connections:
            db.close_old_connections()
        while not done or time.monotonic() < until:
            try:
                # Other threads of the pool take members from the same queue.
                member = self._waiting.popleft()
            except IndexError:
                break
            member.call()
            done.append(member)
        return done


def _finish(member: "GroupHandlers", error: Exception | None = None) -> None:
    try:
        member.finish(error)
    except Exception:
        # The other members of the visit must not wait for ever.
        logger.exception("A visit to a thread could not be finished")


class GroupHandlers(Borrower):
    """The handlers of group events of one synchronous consumer.

    Args:
        runner: The runner of the consumer.
        consumer: The consumer. No class between it and ours overrides `dispatch`.
        visits: Calls the handlers.
    """

    __slots__ = (
        "_consumer",
        "_context",
        "_error",
        "_events",
        "_finished",
        "_runner",
        "_task",
        "_visits",
        "_waiter",
    )

    def __init__(self, runner: Runner, consumer: Any, visits: Visits) -> None:
        self._runner = runner
        self._consumer = consumer
        self._visits = visits
        # Not a deque: an empty one takes as much memory as ten of these objects.
        self._events: list[Event] = []
        self._context: Context | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task[Any] | None = None
        """The connection's own task, while its consumer is lent to this."""
        self._finished = False
        """True if a visit has ended, and the connection's own task is to go on."""
        self._waiter: asyncio.Future[None] | None = None
        """Set while the connection's own task waits for the handlers."""

    def take(self, event: Event) -> None:
        """Handle a group event in the next visit. If the consumer is busy, queue the event in its inbox."""
        runner = self._runner
        if runner.lent_to is self and len(self._events) < MAX_EVENTS and runner.accepts(event):
            self._events.append(event)
        elif (task := runner.lend(self, event)) is not None:
            self._task = task
            self._events.append(event)
            self._visits.put(self)

    def call(self) -> None:
        """Call the handlers of the events that wait, in a thread."""
        self._runner.waits_for_thread = False
        self._context = self._runner.context.copy()
        self._context.run(self._call_in_context, self._context)

    def _call_in_context(self, context: Context) -> None:
        _restore_context(context)
        connection, sender = self._runner.connection, self._consumer.base_send
        # Events that arrive meanwhile wait for the next visit: other members wait for the thread, too.
        for _ in range(len(self._events)):
            if connection.gone or self._error is not None or sender.is_full:
                break
            event = self._events.pop(0)
            try:
                getattr(self._consumer, handlers.name_of(event["type"]))(event)
            except (StopConsumer, ConnectionGone) as error:
                # A new exception, as in `threads`.
                self._error = type(error)()
            except BaseException as error:
                self._error = error
            if self._visits.closes_old_connections:
                # By the name that test suites replace, as those of Channels do.
                db.close_old_connections()

    def finish(self, error: Exception | None = None) -> None:
        """Give the consumer back to the runner, on the event loop."""
        runner, context = self._runner, self._context
        if context is not None:
            # The next handler sees what these have set.
            runner.context.run(_restore_context, context)
            self._context = None
        self._error = self._error or error
        if self._error is not None or runner.connection.gone:
            self._events.clear()
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif not self._events:
            self._give_back()
        elif self._consumer.base_send.is_full and runner.lent_to is self:
            # The connection's own task waits until the client has read, and then for the rest of the events.
            self._finished = True
            runner.wake()
        else:
            self._visits.put(self)

    def _give_back(self) -> None:
        runner, task, error = self._runner, self._task, self._error
        self._task = self._error = None
        taken = task is not None and runner.take_back(self, task, error)
        if not taken and not isinstance(error, StopConsumer | ConnectionGone | None):
            # The connection ended meanwhile, and its task with it.
            logger.error("A handler failed", exc_info=error, extra=runner.connection.log_fields())

    async def rest(self) -> None:
        """Wait for the handlers of all events that wait, in the connection's own task."""
        while True:
            if not self._finished:
                await self._wait_for_visit()
            self._finished = False
            error, self._error = self._error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error
            await self._consumer.base_send.settled()
            if not self._events:
                return
            self._visits.put(self)

    async def _wait_for_visit(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def settling(self) -> Coroutine[Any, Any, None] | None:
        """Return a coroutine that waits until the client has read; None if nothing was sent."""
        sender = self._consumer.base_send
        return sender.settled() if sender.is_ahead else None


_by_loop: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, bool], Visits]]"
_by_loop = weakref.WeakKeyDictionary()


def visits_for(executor: ThreadPoolExecutor | None, threads: int, closes_old_connections: bool) -> Visits:
    """Return the visits of the running loop for threads of this kind."""
    found = _by_loop.setdefault(asyncio.get_running_loop(), {})
    key = executor, closes_old_connections
    if key not in found:
        found[key] = Visits(executor, threads, closes_old_connections)
    return found[key]
