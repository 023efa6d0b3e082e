"""The one door to the server's `send`.

Whatever the server does with a message - take it, raise, suspend, drop it in silence - ends here. `write`
never blocks and never raises; what goes wrong is told once, to `on_failure`, with the reason to evict for.
"""

import asyncio
import functools
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from realtime import rfc6455
from realtime.closing import CloseReason, of_disconnect

logger = logging.getLogger("realtime.transport")

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Coroutine[Any, Any, None]]
OnFailure = Callable[[CloseReason, BaseException | None], object]

#: Servers whose `send` finishes at its first step, or suspends only while the peer is not reading.
#: Channels' test client is an asyncio.Queue.
_PROMPT_MODULES = ("daphne.", "uvicorn.", "asyncio.queues")


class Shared:
    """Messages that several connections are sent, in order and together, made ready once for all of them."""

    __slots__ = ("events", "size", "wire")

    def __init__(self, texts: Sequence[str]) -> None:
        payloads = [text.encode() for text in texts]
        self.events: list[tuple[Event, int]] = [
            ({"type": "websocket.send", "text": text}, len(payload))
            for text, payload in zip(texts, payloads, strict=True)
        ]
        """Each as an ASGI event, with its size in bytes."""
        self.size = sum(map(len, payloads))
        """Bytes of payload."""
        self.wire = b"".join([rfc6455.frame(rfc6455.TEXT, payload) for payload in payloads])
        """All of them as the bytes of WebSocket frames."""


class AsgiTransport:
    """Writes through the public ASGI `send`, on any server.

    A `send` known to finish at its first step is driven by hand, in the connection's own context, which
    costs no task. When it suspends, or where the server is unknown, messages wait in a queue, bounded in
    bytes, behind one writer task.
    """

    __slots__ = (
        "_closing",
        "_context",
        "_max_unsent",
        "_on_failure",
        "_prompt",
        "_queue",
        "_queued",
        "_send",
        "_send_timeout",
        "_writer",
        "accepted",
        "closed",
    )

    can_ping = False
    """Whether `ping` reaches the client, and its pongs come back."""

    def __init__(self, send: Send, *, max_unsent: int, send_timeout: float, on_failure: OnFailure) -> None:
        self._send = send
        self._prompt = finishes_at_once(send)
        self._max_unsent = max_unsent
        self._send_timeout = send_timeout
        self._on_failure = on_failure
        self._context = copy_context()
        # Made when something first waits: an empty one takes as much memory as all else here.
        self._queue: deque[tuple[Callable[[], Awaitable[None]], int]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._queued = 0
        """Bytes that wait in this queue."""
        self.accepted = False
        self.closed = False

    @property
    def unsent(self) -> int:
        """Bytes that wait in this process, as far as that is known: what the server has taken and not yet
        sent, ASGI does not tell.
        """
        return self._queued

    async def accept(self, event: Event, first: Event | None = None) -> None:
        """Complete the handshake, then send `first`, then what was written meanwhile. Raises what the server
        raises. After `close` or `abandon` nothing is left to accept.
        """
        if self.closed:
            return
        await self._send(event)
        self.accepted = True
        self._opened()
        if self._queue and first is not None:
            self._queue.appendleft((functools.partial(self._send, first), 0))
        elif first is not None:
            self.write(first, len(first["text"]))
        if self._queue:
            self._start_writer()

    def _opened(self) -> None:
        """The handshake is complete, and nothing is sent yet."""

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

    def write_shared(self, shared: Shared) -> None:
        """`write` for messages that many connections are sent."""
        for event, size in shared.events:
            self.write(event, size)

    def ping(self, payload: bytes) -> None:
        """Send an RFC 6455 ping with this payload (at most 125 bytes), where `can_ping`."""
        raise NotImplementedError("ASGI has no pings.")

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
        # The writer runs in this context already, and a context cannot be entered twice.
        in_writer = self._writer is not None and self._writer is asyncio.current_task()
        if self._prompt and not in_writer:
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
        if self._queue:
            self._queue.clear()
        self._queued = 0
        # Nothing fails any more, and whoever was to be told holds on to this transport.
        self._on_failure = _nobody_is_told
        if self._writer is not None and self._writer is not asyncio.current_task():
            self._writer.cancel()

    def ended_by(self, report: Event) -> CloseReason:
        """Why the connection is over, of which the server's report is this `websocket.disconnect` event."""
        code = report.get("code")
        return self._end_seen(code) or of_disconnect(code)

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        """Why the server ended the connection, or saw it end, where more is known of it than ASGI tells;
        `reported` is the code that it tells, None before it does.
        """
        return None

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
        if self._queue is None:
            self._queue = deque()
        self._queue.append((send, size))
        self._queued += size
        # The message under way does not count: one that is larger than the cap may be sent to whoever reads.
        under_way = self._queue[0][1] if self.accepted else 0
        if self._queued - under_way > self._max_unsent:
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
                self._queued -= size
        except TimeoutError as error:
            self._fail(CloseReason.SLOW_CONSUMER, error)
        except Exception as error:
            self._fail(CloseReason.SEND_FAILED, error)
        finally:
            self._writer = None

    def _fail(self, reason: CloseReason, error: BaseException | None) -> None:
        if self.closed:
            return
        if reason is CloseReason.SEND_FAILED:
            # The write was only the first to notice that somebody had closed the connection.
            seen = self._end_seen()
            reason = reason if seen is None or seen is CloseReason.CLIENT_LOST else seen
        self._on_failure(reason, error)


def _nobody_is_told(reason: CloseReason, error: BaseException | None) -> None:
    """For a transport that is closed."""


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
