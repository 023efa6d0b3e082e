"""The one door to the server's `send`.

Whatever the server does with a message - take it, raise, suspend, drop it in silence - ends here. `write`
never blocks and never raises; what goes wrong is told once, to the `Watcher`, with the reason to evict for.
"""

import asyncio
import functools
import logging
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from realtime.closing import CloseReason, of_disconnect
from realtime.process import tasks
from realtime.transports import tcp
from realtime.wire import frames, rfc6455

logger = logging.getLogger("realtime.transport")

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Coroutine[Any, Any, None]]

#: Clients that are closed with these did not read what was sent, and are not going to read the rest.
STOPPED_READING = frozenset(
    reason.code for reason in (CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER)
)

#: Servers whose `send` finishes at its first step, or suspends only while the peer is not reading.
#: Channels' test client is an asyncio.Queue.
_PROMPT_MODULES = ("daphne.", "uvicorn.", "asyncio.queues")


class Watcher:
    """The calls of a transport that run upward; this one ignores them, as is right for one that is closed."""

    __slots__ = ()

    def send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        """A write failed, or too much waits: the connection has to be evicted for this reason."""

    def ponged(self, n: int, *, v1: bool) -> bool:
        """The client answered ping `n`, by a frame of `realtime.v1` or by RFC 6455.

        Returns:
            False when pings are not sent in this way, so that the frame is not for us.
        """
        return False

    def is_behind(self) -> None:
        """Something that was written waits in this process until the client reads."""


_UNWATCHED = Watcher()


@dataclass(frozen=True, slots=True)
class Options:
    """How much a transport keeps and how long it waits; sizes in bytes, times in seconds."""

    max_unsent: int
    """The setting MAX_UNSENT_BYTES."""
    send_timeout: float
    """The setting SEND_TIMEOUT."""
    close_timeout: float = 2.0
    """The setting CLOSE_TIMEOUT."""
    close_limit: float = 60.0
    """The setting CLOSE_LIMIT."""


class Ping:
    """One ping, by a frame of `realtime.v1`, which proves that the page itself runs, or by RFC 6455."""

    __slots__ = ("event", "size", "wire")

    def __init__(self, n: int, speaks_v1: bool) -> None:
        self.event: Event | None = None
        """The ASGI event that carries it; None for a ping that ASGI does not have."""
        payload = str(n).encode()
        if speaks_v1:
            text = frames.build(frames.Ping(n=n))
            self.event = {"type": "websocket.send", "text": text}
            payload = text.encode()
        self.size = len(payload)
        self.wire = rfc6455.frame(rfc6455.TEXT if speaks_v1 else rfc6455.PING, payload)
        """The bytes of its WebSocket frame."""


#: Pings by number and kind: thousands of connections of one age are sent the same ones.
ping_for = functools.lru_cache(maxsize=4096)(Ping)


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
        "_options",
        "_prompt",
        "_queue",
        "_queued",
        "_send",
        "_watcher",
        "_writer",
        "accepted",
        "closed",
    )

    can_ping = False
    """Whether `ping` reaches the client, and its pongs come back."""

    def __init__(self, send: Send, options: Options, watcher: Watcher) -> None:
        self._send = send
        self._prompt = finishes_in_one_step(send)
        self._options = options
        self._watcher = watcher
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

    def ping(self, ping: Ping) -> None:
        """Send a ping; one of RFC 6455 only where `can_ping`."""
        if ping.event is None:
            raise NotImplementedError("ASGI has no pings.")
        self.write(ping.event, ping.size)

    def line(self) -> tcp.Line | None:
        """The bytes on their way to the client, in this process and in the kernel; None where it is not
        known.
        """
        return None

    async def drained(self) -> None:
        """Wait until nothing waits here: how a handler feels the back-pressure of a server that has any."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        """Send `goodbye` and this close event, without waiting; everything later is dropped.

        A handshake that was not accepted is refused by this.
        """
        if self.closed:
            return
        if self._queue and self.accepted and event.get("code") not in STOPPED_READING:
            # What was written before the close goes before it: the client may read slowly, but it reads.
            self._close_for_writes()
            self._queue.append((functools.partial(self._end, event, goodbye), 0))
            return
        self.abandon()
        ending = self._end(event, goodbye if self.accepted else None)
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
        self._closing = tasks.create(finishing, context=self._context)

    def abandon(self) -> None:
        """The peer is gone: nothing more is sent."""
        self._close_for_writes()
        if self._queue:
            self._queue.clear()
        self._queued = 0
        if self._writer is not None and self._writer is not asyncio.current_task():
            self._writer.cancel()

    def _close_for_writes(self) -> None:
        self.closed = True
        # Nothing fails any more, and the watcher holds on to this transport.
        self._watcher = _UNWATCHED

    def ended_by(self, report: Event) -> CloseReason:
        """Why the connection is over, of which the server's report is this `websocket.disconnect` event."""
        code = report.get("code")
        return self._end_seen(code) or of_disconnect(code)

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        """Why the server ended the connection, or saw it end, where more is known of it than ASGI tells;
        `reported` is the code that it tells, None before it does.
        """
        return None

    async def _end(self, event: Event, goodbye: Event | None) -> None:
        if goodbye is not None:
            await self._try(goodbye)
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
            async with asyncio.timeout(self._options.close_limit):
                await ending

    def _enqueue(self, send: Callable[[], Awaitable[None]], size: int) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append((send, size))
        self._queued += size
        self._watcher.is_behind()
        # The message under way does not count: one that is larger than the cap may be sent to whoever reads.
        under_way = self._queue[0][1] if self.accepted else 0
        if self._queued - under_way > self._options.max_unsent:
            self._fail(CloseReason.SLOW_CONSUMER, None)
        elif self.accepted:
            self._start_writer()

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = tasks.create(self._write_queue(), context=self._context)

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                send, size = self._queue[0]
                async with self._send_limit():
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

    @asynccontextmanager
    async def _send_limit(self) -> AsyncIterator[None]:
        """Raises TimeoutError when the server keeps a write suspended for too long."""
        async with asyncio.timeout(self._options.send_timeout):
            yield

    def _fail(self, reason: CloseReason, error: BaseException | None) -> None:
        if self.closed:
            return
        if reason is CloseReason.SEND_FAILED:
            # The write was only the first to notice that somebody had closed the connection.
            seen = self._end_seen()
            reason = reason if seen is None or seen is CloseReason.CLIENT_LOST else seen
        self._watcher.send_failed(reason, error)


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


def finishes_in_one_step(send: Send) -> bool:
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
