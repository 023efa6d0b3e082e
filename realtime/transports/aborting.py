"""What is added to a transport where the server behind ASGI is known: how much it has buffered, what the
kernel knows of the socket, and an end to waiting for a peer that does not read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from realtime.transports import tcp
from realtime.transports.asgi import STOPPED_READING, AsgiTransport, Event

#: Seconds between two looks whether a client that is being closed still reads, at most.
LOOK_AT_CLOSE = 0.5


class AbortingTransport(AsgiTransport):
    """Servers flush before they close, and wait for ever for a peer that does not read; this one does not."""

    __slots__ = ()

    @property
    def unsent(self) -> int:
        return self._queued + self._buffered()

    def line(self) -> tcp.Line | None:
        connection = self._socket()
        line = tcp.look(connection) if connection is not None else None
        return None if line is None else line._replace(waiting=line.waiting + self.unsent)

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        if self.closed:
            return
        backlog = self._buffered() > 0
        super().close(event, goodbye)
        if not self.accepted:
            return
        if event.get("code") not in STOPPED_READING:
            self._cut_off_later(self._options.close_limit)
        elif backlog:
            self.abort()
        else:
            # Its kernel may have taken everything, and still nobody reads that.
            self._cut_off_later(self._options.close_timeout)

    def abandon(self) -> None:
        super().abandon()
        if self.accepted and self._buffered():
            self._cut_off_later(self._options.close_limit)

    def _cut_off_later(self, limit: float) -> None:
        """Abort the connection when its peer has taken nothing for CLOSE_TIMEOUT, or after `limit` seconds.

        A peer that has everything is not aborted before the limit: a RST would take from it what it has not
        read yet.
        """
        loop = asyncio.get_running_loop()
        # From the next turn of the loop on, which writes what this one closes: thousands at a stop.
        loop.call_soon(self._begin_to_look, loop, limit)

    def _begin_to_look(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        if self._is_over():
            return
        now = loop.time()
        self._look_again(loop, now + limit, now, self._waiting())

    def _look_again(
        self, loop: asyncio.AbstractEventLoop, until: float, moved_at: float, waiting: int
    ) -> None:
        every = min(LOOK_AT_CLOSE, self._options.close_timeout / 4)
        loop.call_later(every, self._look_at_close, loop, until, moved_at, waiting)

    def _look_at_close(
        self, loop: asyncio.AbstractEventLoop, until: float, moved_at: float, last: int
    ) -> None:
        if self._is_over():
            return
        now, waiting = loop.time(), self._waiting()
        # Nothing is written any more, so what waits shrinks if the peer takes it.
        if waiting < last:
            moved_at = now
        stuck = waiting > 0 and now - moved_at >= self._options.close_timeout
        if stuck or now >= until:
            self.abort()
        else:
            self._look_again(loop, until, moved_at, waiting)

    def _waiting(self) -> int:
        """Bytes that the peer has not acknowledged; where the kernel tells nothing, those in this process."""
        line = self.line()
        return self.unsent if line is None else line.waiting

    @asynccontextmanager
    async def _send_limit(self) -> AsyncIterator[None]:
        """Raise TimeoutError when a write is suspended for too long while the client reads nothing."""
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
        """End the connection with a RST, and drop what is buffered; nothing happens when it has ended."""
        raise NotImplementedError

    def _buffered(self) -> int:
        """Bytes that the server has taken and the kernel has not."""
        raise NotImplementedError

    def _socket(self) -> Any:
        """The socket of the connection; None where it cannot be had."""
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Return true if the connection has ended."""
        raise NotImplementedError
