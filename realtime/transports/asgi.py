"""Write to a client through the server's `send`, on any ASGI server.

No other module calls `send`. The server may accept a message, raise, suspend, or drop the message silently.
`write` never blocks and never raises. If a write fails, the `Watcher` is told once, with the reason to evict
for.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from realtime.closing import CloseReason, of_disconnect
from realtime.process import stepping, tasks
from realtime.process.stepping import Suspended
from realtime.transports import tcp
from realtime.transports.inflow import Turn
from realtime.wire import frames, rfc6455

logger = logging.getLogger("realtime.transports")

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Coroutine[Any, Any, None]]

#: Close codes of clients that have stopped reading: what is buffered for them will never be read.
STOPPED_READING = frozenset(
    reason.code for reason in (CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER)
)

#: Modules of servers with a `send` that finishes at its first step, or suspends only while the peer does not
#: read. Channels' test client is an asyncio.Queue.
_PROMPT_MODULES = ("daphne.", "uvicorn.", "asyncio.queues")


class Watcher:
    """The calls that a transport makes to its owner. This class ignores them, as a closed transport needs."""

    __slots__ = ()

    def send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        """Evict the connection for this reason: a write failed, or too much waits.

        Args:
            reason: SEND_FAILED, SLOW_CONSUMER, or the reason for which the server ended the connection.
            error: The exception of the server's `send`, if there was one.
        """

    def ponged(self, n: int, *, v1: bool) -> bool:
        """Note that the client answered ping `n`.

        Args:
            n: The number in the pong.
            v1: True for a pong frame of `realtime.v1`, False for one of RFC 6455.

        Returns:
            False if this connection is pinged in the other way, or no such ping is unanswered. Then the frame
            belongs to the application, and counts as one that the client sent unasked.
        """
        return False

    @property
    def is_busy(self) -> bool:
        """True if frames of the client are at its handlers, or wait for them."""
        return False

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        """Count frames before they are parsed, and say when they are to be parsed.

        Args:
            frames: The number of frames that begin in what was read.
            size: The bytes of their payload.
            waiting: The bytes of this client that were read and are not parsed yet.
        """
        return Turn.NOW

    def is_behind(self) -> None:
        """Note that written bytes wait in this process until the client reads."""


_UNWATCHED = Watcher()


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of a transport: the bytes that it keeps, the seconds that it waits."""

    max_unsent: int
    """The setting MAX_UNSENT_BYTES."""
    send_timeout: float
    """The setting SEND_TIMEOUT."""
    close_timeout: float = 2.0
    """The setting CLOSE_TIMEOUT."""
    close_limit: float = 60.0
    """The setting CLOSE_LIMIT."""
    rest: float = 1.0
    """For which nothing is read from a client that sends more than it may."""


class Ping:
    """A ping: a frame of `realtime.v1`, or a ping of RFC 6455.

    The pong to a frame of `realtime.v1` proves that the page itself runs.

    Args:
        n: The number of the ping.
        speaks_v1: True if the client negotiated `realtime.v1`.
    """

    __slots__ = ("event", "size", "wire")

    def __init__(self, n: int, speaks_v1: bool) -> None:
        self.event: Event | None = None
        """The ASGI event that carries the ping; None for a ping of RFC 6455, which ASGI does not have."""
        payload = str(n).encode()
        if speaks_v1:
            text = frames.build(frames.Ping(n=n))
            self.event = {"type": "websocket.send", "text": text}
            payload = text.encode()
        self.size = len(payload)
        self.wire = rfc6455.frame(rfc6455.TEXT if speaks_v1 else rfc6455.PING, payload)
        """The bytes of its WebSocket frame."""


#: Pings by number and kind, because thousands of connections of the same age are sent the same pings.
ping_for = functools.lru_cache(maxsize=4096)(Ping)


class Shared:
    """Messages for several connections, encoded once for all. They are sent in order and together."""

    __slots__ = ("events", "size", "wire")

    def __init__(self, texts: Sequence[str]) -> None:
        payloads = [text.encode() for text in texts]
        self.events: list[tuple[Event, int]] = [
            ({"type": "websocket.send", "text": text}, len(payload))
            for text, payload in zip(texts, payloads, strict=True)
        ]
        """Each message as an ASGI event, with its size in bytes."""
        self.size = sum(map(len, payloads))
        """The payload of all messages, in bytes."""
        self.wire = b"".join([rfc6455.frame(rfc6455.TEXT, payload) for payload in payloads])
        """The WebSocket frames of all messages."""


class AsgiTransport:
    """Writes through the public ASGI `send`, on any server.

    A `send` that is known to finish at its first step is driven by hand, in the connection's own context.
    This costs no task. If it suspends, or if the server is unknown, messages wait in a queue for one writer
    task. The queue is bounded in bytes.

    Args:
        send: The ASGI `send` of the connection.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
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

    def __init__(self, send: Send, options: Options, watcher: Watcher) -> None:
        self._send = send
        self._prompt = finishes_in_one_step(send)
        self._options = options
        self._watcher = watcher
        self._context = copy_context()
        # Created when a message first waits: an empty deque takes as much memory as the rest of this object.
        self._queue: deque[tuple[Callable[[], Awaitable[None]], int]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._queued = 0
        """The bytes of the messages in the queue."""
        self.accepted = False
        self.closed = False

    @property
    def can_ping(self) -> bool:
        """True if pings of RFC 6455 can be sent, and their pongs come back. It is set after `accept`."""
        return False

    @property
    def server_pings(self) -> bool:
        """True if the server itself pings its clients, and ends the connection if no pong comes back."""
        return False

    @property
    def unsent(self) -> int:
        """The bytes that wait in this process. ASGI does not tell what the server itself has buffered."""
        return self._queued

    async def accept(self, event: Event, first: Event | None = None) -> None:
        """Complete the handshake, then send `first`, then all that was written meanwhile.

        After `close` or `abandon` nothing happens.

        Args:
            event: The `websocket.accept` event.
            first: A `websocket.send` event with a text.

        Raises:
            Exception: The server's `send` raised it.
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
        """Run after the handshake, before anything is sent."""

    def write(self, event: Event, size: int) -> None:
        """Send one message without blocking. Before `accept` it waits; after `close` it is dropped.

        Args:
            event: The `websocket.send` event.
            size: Its payload in bytes.
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
            # Daphne raises autobahn's Disconnected between a close and the disconnect event (channels#1820).
            # uvicorn raises ClientDisconnected, an OSError, before that event. Others raise RuntimeError.
            # None is an error of the handler.
            self._fail(CloseReason.SEND_FAILED, error)
            return
        self._enqueue(functools.partial(stepping.finish, Suspended(sending, waits_for)), size)

    def write_shared(self, shared: Shared) -> None:
        """Send messages that many connections are sent, as `write` does."""
        for event, size in shared.events:
            self.write(event, size)

    def hold(self) -> None:
        """Keep small writes back until `release`, so that they leave together. A transport may ignore it."""

    def release(self) -> None:
        """Write what was kept back."""

    def ping(self, ping: Ping) -> None:
        """Send a ping.

        Raises:
            NotImplementedError: It is a ping of RFC 6455, and `can_ping` is False.
        """
        if ping.event is None:
            raise NotImplementedError("ASGI has no pings.")
        self.write(ping.event, ping.size)

    def line(self) -> tcp.Line | None:
        """Return the bytes on their way to the client, in this process and in the kernel; None if unknown."""
        return None

    async def drained(self) -> None:
        """Wait until the queue is empty. This passes the back-pressure of a server on to a handler."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def handed_over(self) -> None:
        """Wait until the server has been given all messages that were written so far, or has refused one.

        It also returns when the connection ends. Messages that are written meanwhile are not waited for.
        """
        if self._writer is None or not self._queue:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def reach() -> None:
            if not reached.done():
                reached.set_result(None)

        self._queue.append((reach, 0))
        await asyncio.wait([reached, self._writer], return_when=asyncio.FIRST_COMPLETED)

    @property
    def counts_frames(self) -> bool:
        """True if the watcher is told of frames by `arrived`. Otherwise they are counted when they come."""
        return False

    def pause_reading(self) -> None:
        """Read nothing from the client until `resume_reading`.

        Most servers stop reading when they are not asked for the next event. On these, this does nothing.
        """

    def resume_reading(self) -> None:
        """Read from the client again."""

    def stop_reading(self) -> bool:
        """Read nothing more of a client that was closed, and end its socket soon, as far as that is possible.

        Returns:
            True if the server may be asked for further events. Otherwise it would go on reading.
        """
        return True

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        """Send a last message and the close event, without blocking. Later messages are dropped.

        If the handshake was not accepted, the close event refuses it, and the message is not sent.

        Args:
            event: The `websocket.close` event.
            goodbye: A `websocket.send` event to send before it.
        """
        if self.closed:
            return
        if self._queue and self.accepted and event.get("code") not in STOPPED_READING:
            # The client may read slowly, but it reads. So the queue is sent before the close.
            self._close_for_writes()
            self._queue.append((functools.partial(self._end, event, goodbye), 0))
            return
        self.abandon()
        rest: Awaitable[None]
        rest = ending = self._end(event, goodbye if self.accepted else None)
        # The writer runs in this context already, and a context cannot be entered twice.
        in_writer = self._writer is not None and self._writer is asyncio.current_task()
        if self._prompt and not in_writer:
            try:
                waits_for = self._context.run(ending.send, None)
            except StopIteration:
                return
            rest = stepping.finish(Suspended(ending, waits_for))
        # A middleware may suspend before it passes the close on.
        # A client that has stopped reading will not read the close frame either.
        stopped = event.get("code") in STOPPED_READING
        limit = self._options.close_timeout if stopped else self._options.close_limit
        finishing = self._finish(rest, limit)
        self._closing = tasks.create(finishing, context=self._context)

    def abandon(self) -> None:
        """Drop everything that waits, and send nothing more, because the peer is gone."""
        self._close_for_writes()
        if self._queue:
            self._queue.clear()
        self._queued = 0
        if self._writer is not None and self._writer is not asyncio.current_task():
            self._writer.cancel()

    def _close_for_writes(self) -> None:
        self.closed = True
        # No failure is reported from now on. The watcher refers to this transport, so this breaks a cycle.
        self._watcher = _UNWATCHED

    def ended_by(self, report: Event) -> CloseReason:
        """Return the reason for which the connection ended.

        Args:
            report: The server's `websocket.disconnect` event.
        """
        code = report.get("code")
        return self._end_seen(code) or of_disconnect(code)

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        """Return the reason for which the connection ended, if more is known than ASGI tells; otherwise None.

        Args:
            reported: The code in the server's `websocket.disconnect` event; None before that event.
        """
        return None

    async def _end(self, event: Event, goodbye: Event | None) -> None:
        if goodbye is not None:
            await self._try(goodbye)
        if not await self._try(event) and event.get("code") is not None:
            # Daphne accepts only the codes 1000 and 3000-4999. For others it raises, and the socket stays
            # open.
            await self._try({"type": "websocket.close"})

    async def _try(self, event: Event) -> bool:
        """Send an event. Return False if the server raised."""
        try:
            await self._send(event)
        except Exception as error:
            logger.debug("The server refused %s: %r", event["type"], error)
            return False
        return True

    async def _finish(self, ending: Awaitable[None], limit: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await ending

    def _enqueue(self, send: Callable[[], Awaitable[None]], size: int) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append((send, size))
        self._queued += size
        self._watcher.is_behind()
        # The message that is being sent does not count: a client that reads may be sent one above the cap.
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
                await self._room()
                async with self._send_limit():
                    await send()
                # Only now, so that messages written meanwhile queue behind this one.
                self._queue.popleft()
                self._queued -= size
        except TimeoutError as error:
            self._fail(CloseReason.SLOW_CONSUMER, error)
        except Exception as error:
            self._fail(CloseReason.SEND_FAILED, error)
        finally:
            self._writer = None

    async def _room(self) -> None:
        """Wait until the server may be given the next message. Most servers say so by suspending `send`."""

    @asynccontextmanager
    async def _send_limit(self) -> AsyncIterator[None]:
        """Raise TimeoutError if the server keeps a write suspended for too long."""
        async with asyncio.timeout(self._options.send_timeout):
            yield

    def _fail(self, reason: CloseReason, error: BaseException | None) -> None:
        if self.closed:
            return
        if reason is CloseReason.SEND_FAILED:
            # If the connection had ended before, for another reason, the failed write only noticed it.
            seen = self._end_seen()
            reason = reason if seen is None or seen is CloseReason.CLIENT_LOST else seen
        self._watcher.send_failed(reason, error)


def finishes_in_one_step(send: Send) -> bool:
    """Return True if this `send` belongs to a server that is known to finish at the first step.

    Channels' wrappers around the `send` are looked through.
    """
    return _module(send).startswith(_PROMPT_MODULES)


def is_test_client(send: Send) -> bool:
    """Return True if this `send` belongs to Channels' test client, which is an asyncio.Queue."""
    return _module(send) == "asyncio.queues"


def _module(send: Send) -> str:
    target: Any = send
    while (wrapper := getattr(target, "__self__", None)) is not None and hasattr(wrapper, "real_send"):
        target = wrapper.real_send
    while isinstance(target, functools.partial):
        target = target.func
    if hasattr(target, "__wrapped__"):
        # A middleware's wrapper that looks like the server's `send`, by functools.wraps.
        return ""
    return str(getattr(target, "__module__", ""))
