"""The base of the transports that know the server behind ASGI.

Such a transport knows how much the server has buffered and what the kernel knows of the socket. It stops
waiting for a peer that does not read.
"""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from realtime.closing import CloseReason
from realtime.transports import tcp
from realtime.transports.asgi import STOPPED_READING, AsgiTransport, Event, Shared

#: The longest time, in seconds, between two checks that a client that is being closed still reads.
LOOK_AT_CLOSE = 0.5


class AbortingTransport(AsgiTransport):
    """A transport that aborts a connection if its peer does not read.

    Servers flush their buffers before they close a connection, and wait for ever for a peer that does not
    read.
    """

    __slots__ = ()

    @property
    def unsent(self) -> int:
        """The bytes that wait in this process, queued here or buffered by the server."""
        return self._queued + self._buffered()

    def write_shared(self, shared: Shared) -> None:
        """Send messages that many connections are sent. If they must wait, they count as one message.

        A client that reads may be sent one message above the cap, and fan-out writes many at once.
        """
        if self._prompt or len(shared.events) == 1:
            super().write_shared(shared)
        elif not self.closed:
            self._enqueue(functools.partial(self._send_in_turn, shared), shared.size)

    async def _send_in_turn(self, shared: Shared) -> None:
        for event, _ in shared.events:
            await self._room()
            await self._send(event)

    def line(self) -> tcp.Line | None:
        """Return the line as the kernel knows it, plus the unsent bytes of this process."""
        connection = self._socket()
        line = tcp.look(connection) if connection is not None else None
        return None if line is None else line._replace(waiting=line.waiting + self.unsent)

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        """Close as on any server, and abort the connection if its peer does not read.

        A client that has stopped reading is aborted immediately if the server has buffered anything for it,
        otherwise after CLOSE_TIMEOUT. Any other client gets up to CLOSE_LIMIT to read the rest.
        """
        if self.closed:
            return
        # After a failed write the queue says nothing: a middleware may have raised.
        failed = event.get("code") == CloseReason.SEND_FAILED.code
        backlog = self._buffered() > 0 or (self._queued > 0 and not failed)
        super().close(event, goodbye)
        if not self.accepted:
            return
        if event.get("code") not in STOPPED_READING:
            self._cut_off_later(self._options.close_limit)
        elif backlog:
            self.abort()
        else:
            # The client's kernel may have taken everything, although the client reads nothing.
            self._cut_off_later(self._options.close_timeout, even_if_held_back=True)

    def stop_reading(self) -> bool:
        """Abort the connection after CLOSE_TIMEOUT. Until then, the client may read why it was closed."""
        if not self._is_over():
            self._cut_off_later(self._options.close_timeout, even_if_held_back=True)
        return True

    def abandon(self) -> None:
        """Drop everything that waits. If the server has buffered anything, abort the connection later."""
        super().abandon()
        if self.accepted and self._buffered():
            self._cut_off_later(self._options.close_limit)

    def _cut_off_later(self, limit: float, *, even_if_held_back: bool = False) -> None:
        """Abort the connection when the peer has taken nothing for CLOSE_TIMEOUT, or after `limit` seconds.

        A peer that has taken everything is not aborted before the limit, because a RST would discard bytes
        that it has not read yet.

        Args:
            limit: Seconds.
            even_if_held_back: Abort also if a middleware has not passed the close on. By default, the
                connection is then the middleware's: it may serve others on the same socket.
        """
        loop = asyncio.get_running_loop()
        # The time starts in the next iteration of the loop, which writes the close frames of this one. A stop
        # closes thousands of connections in one iteration.
        loop.call_soon(self._begin_to_look, loop, limit, even_if_held_back)

    def _begin_to_look(self, loop: asyncio.AbstractEventLoop, limit: float, even_if_held_back: bool) -> None:
        if self._is_over():
            self._ended()
            return
        now = loop.time()
        self._look_again(loop, now + limit, now, self._waiting(), even_if_held_back)

    def _look_again(
        self,
        loop: asyncio.AbstractEventLoop,
        until: float,
        moved_at: float,
        waiting: int,
        even_if_held_back: bool,
    ) -> None:
        every = min(LOOK_AT_CLOSE, self._options.close_timeout / 4)
        loop.call_later(every, self._look_at_close, loop, until, moved_at, waiting, even_if_held_back)

    def _look_at_close(
        self,
        loop: asyncio.AbstractEventLoop,
        until: float,
        moved_at: float,
        last: int,
        even_if_held_back: bool,
    ) -> None:
        """Abort the connection if its time is up, otherwise look again later.

        Args:
            loop: The running event loop.
            until: The loop's time at which the connection is aborted in any case.
            moved_at: The loop's time at which the peer last took bytes.
            last: The bytes that waited at the last look.
            even_if_held_back: See `_cut_off_later`.
        """
        if self._is_over():
            self._ended()
            return
        now, waiting = loop.time(), self._waiting()
        if not even_if_held_back and self._is_held_back():
            if now < until:
                self._look_again(loop, until, now, waiting, even_if_held_back)
            return
        # Nothing more is written, so the waiting bytes only shrink, and only if the peer takes them.
        if waiting < last:
            moved_at = now
        stuck = waiting > 0 and now - moved_at >= self._options.close_timeout
        if stuck or now >= until:
            self.abort()
        else:
            self._look_again(loop, until, moved_at, waiting, even_if_held_back)

    def _waiting(self) -> int:
        """Return the bytes that the peer has not acknowledged. If that is unknown, return the unsent ones."""
        line = self.line()
        return self.unsent if line is None else line.waiting

    @asynccontextmanager
    async def _send_limit(self) -> AsyncIterator[None]:
        """Raise TimeoutError if a write is suspended for too long while the client reads nothing."""
        loop, allowed = asyncio.get_running_loop(), self._options.send_timeout
        handle: asyncio.TimerHandle | None = None

        def look(last: tcp.Line | None) -> None:
            nonlocal handle
            line = self.line()
            if line is not None and last is not None and line.acknowledged > last.acknowledged:
                limit.reschedule(loop.time() + allowed)
            handle = loop.call_later(allowed / 4, look, line)

        async with asyncio.timeout(allowed) as limit:
            look(None)
            try:
                yield
            finally:
                if handle is not None:
                    handle.cancel()

    def abort(self) -> None:
        """End the connection with a RST and drop what is buffered. If it has ended, nothing happens."""
        raise NotImplementedError

    def _buffered(self) -> int:
        """Return the bytes that the server has accepted and the kernel has not."""
        raise NotImplementedError

    def _socket(self) -> Any:
        """Return the socket of the connection; None if it is not available."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Return True if the connection has ended."""
        raise NotImplementedError

    def _ended(self) -> None:
        """Forget what this transport still needed of its connection, which was closed and has ended."""

    def _is_held_back(self) -> bool:
        """Return True if a middleware has not passed the close on to the server."""
        return False
