"""The one door to the server's `send`.

Whatever the server does with a message - take it, raise, suspend, drop it in silence - ends here. `write`
never blocks and never raises; what goes wrong is told once, to `on_failure`, with the reason to evict for.
"""

import asyncio
import functools
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from realtime.closing import CloseReason

logger = logging.getLogger("realtime.transport")

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Coroutine[Any, Any, None]]
OnFailure = Callable[[CloseReason, BaseException | None], object]

#: Servers whose `send` finishes at its first step, or suspends only while the peer is not reading.
#: Channels' test client is an asyncio.Queue.
_PROMPT_MODULES = ("daphne.", "uvicorn.", "asyncio.queues")


class AsgiTransport:
    """Writes through the public ASGI `send`, on any server.

    A `send` known to finish at its first step is driven by hand, in the connection's own context, which
    costs no task. When it suspends, or where the server is unknown, messages wait in a queue, bounded in
    bytes, behind one writer task.
    """

    def __init__(self, send: Send, *, max_unsent: int, send_timeout: float, on_failure: OnFailure) -> None:
        self._send = send
        self._prompt = finishes_at_once(send)
        self._max_unsent = max_unsent
        self._send_timeout = send_timeout
        self._on_failure = on_failure
        self._context = copy_context()
        self._queue: deque[tuple[Callable[[], Awaitable[None]], int]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.unsent = 0
        """Bytes that wait in this queue; what the server has taken and not yet sent, ASGI does not tell."""
        self.accepted = False
        self.closed = False

    async def accept(self, event: Event, first: Event | None = None) -> None:
        """Complete the handshake, then send `first`, then what was written meanwhile. Raises what the server
        raises. After `close` or `abandon` nothing is left to accept.
        """
        if self.closed:
            return
        await self._send(event)
        self.accepted = True
        if self._queue and first is not None:
            self._queue.appendleft((functools.partial(self._send, first), 0))
        elif first is not None:
            self.write(first, len(first["text"]))
        if self._queue:
            self._start_writer()

    def write(self, event: Event, size: int) -> None:
        """Hand over one `websocket.send` event of `size` bytes; before `accept` it waits, after `close` it is
        dropped.
        """
        if self.closed:
            return
        if self._queue or not self.accepted or not self._prompt:
            self._enqueue(functools.partial(self._send, event), size)
            return
        sending = self._send(event)
        try:
            waits_for = self._context.run(sending.send, None)
        except StopIteration:
            return
        except Exception as error:
            # Daphne: autobahn's Disconnected, between a close and the disconnect event (channels#1820).
            # uvicorn: ClientDisconnected, an OSError, before that event. Others raise RuntimeError. None of
            # them is the handler's.
            self._fail(CloseReason.SEND_FAILED, error)
            return
        self._enqueue(functools.partial(_resume, sending, waits_for), size)

    async def drained(self) -> None:
        """Wait until nothing waits here: how a handler feels the back-pressure of a server that has any."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def close(self, event: Event, last_words: Event | None = None) -> None:
        """Send `last_words` and this close event, without waiting; everything later is dropped.

        A handshake that was not accepted is refused by this.
        """
        if self.closed:
            return
        self.abandon()
        ending = self._end(event, last_words if self.accepted else None)
        if self._prompt:
            try:
                waits_for = self._context.run(ending.send, None)
            except StopIteration:
                return
            ending = _resume(ending, waits_for)
        # A middleware may await something before it passes the close on.
        finishing = self._finish(ending)
        self._closing = asyncio.get_running_loop().create_task(finishing, context=self._context)

    def abandon(self) -> None:
        """The peer is gone: nothing more is sent."""
        self.closed = True
        self._queue.clear()
        self.unsent = 0
        if self._writer is not None and self._writer is not asyncio.current_task():
            self._writer.cancel()

    async def _end(self, event: Event, last_words: Event | None) -> None:
        if last_words is not None:
            await self._try(last_words)
        if not await self._try(event) and event.get("code") is not None:
            # Daphne refuses codes other than 1000 and 3000-4999 with an exception that leaves the socket
            # open.
            await self._try({"type": "websocket.close"})

    async def _try(self, event: Event) -> bool:
        """False when the server raised."""
        try:
            await self._send(event)
        except Exception as error:
            logger.debug("The server refused %s: %r", event["type"], error)
            return False
        return True

    async def _finish(self, ending: Awaitable[None]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._send_timeout):
                await ending

    def _enqueue(self, send: Callable[[], Awaitable[None]], size: int) -> None:
        self._queue.append((send, size))
        self.unsent += size
        if self.unsent > self._max_unsent:
            self._fail(CloseReason.SLOW_CONSUMER, None)
        elif self.accepted:
            self._start_writer()

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_queue(), context=self._context)

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                send, size = self._queue[0]
                async with asyncio.timeout(self._send_timeout):
                    await send()
                # Only now, so that whatever is written meanwhile queues up behind this one.
                self._queue.popleft()
                self.unsent -= size
        except TimeoutError as error:
            self._fail(CloseReason.SLOW_CONSUMER, error)
        except Exception as error:
            self._fail(CloseReason.SEND_FAILED, error)
        finally:
            self._writer = None

    def _fail(self, reason: CloseReason, error: BaseException | None) -> None:
        if not self.closed:
            self._on_failure(reason, error)


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Let a task go on with a coroutine whose first step was driven by hand and suspended on `waits_for`."""
    while True:
        try:
            sent = yield waits_for
        except BaseException as error:
            step = functools.partial(coroutine.throw, error)
        else:
            step = functools.partial(coroutine.send, sent)
        try:
            waits_for = step()
        except StopIteration:
            return


def finishes_at_once(send: Send) -> bool:
    """Whether this `send` belongs to a server that is known to finish at the first step, seen through
    Channels' wrapper.
    """
    return _module(send).startswith(_PROMPT_MODULES)


def is_test_client(send: Send) -> bool:
    """Whether this `send` belongs to Channels' test client, which is an asyncio.Queue."""
    return _module(send) == "asyncio.queues"


def _module(send: Send) -> str:
    target: Any = send
    while (wrapper := getattr(target, "__self__", None)) is not None and hasattr(wrapper, "real_send"):
        target = wrapper.real_send
    while isinstance(target, functools.partial):
        target = target.func
    return str(getattr(target, "__module__", ""))
