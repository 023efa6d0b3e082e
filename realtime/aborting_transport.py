"""What is added to a transport where the server behind ASGI is known: how much it has buffered, and an end to
waiting for that to be read.
"""

import asyncio

from realtime.closing import CloseReason
from realtime.transport import AsgiTransport, Event

#: Seconds for a peer to read the rest and answer the close frame, before the connection is aborted.
CLOSE_GRACE = 2.0

#: Who is closed with these did not read what was sent, and is not going to read the rest.
_READS_NO_MORE = frozenset(
    reason.code for reason in (CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED, CloseReason.SLOW_CONSUMER)
)


class AbortingTransport(AsgiTransport):
    """Servers flush before they close, and wait for ever for a peer that does not read; this one does not."""

    __slots__ = ()

    @property
    def unsent(self) -> int:
        return self._queued + self._buffered()

    def close(self, event: Event, last_words: Event | None = None) -> None:
        if self.closed:
            return
        backlog = self._buffered() > 0
        super().close(event, last_words)
        if not self.accepted:
            return
        if backlog and event.get("code") in _READS_NO_MORE:
            self.abort()
        else:
            self._abort_soon()

    def abandon(self) -> None:
        super().abandon()
        if self.accepted and self._buffered():
            self._abort_soon()

    def _abort_soon(self) -> None:
        # From the next turn of the loop on, which writes what this one closes: thousands at a stop.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_later, CLOSE_GRACE, self.abort)

    def abort(self) -> None:
        """End the connection with a RST, and drop what is buffered; nothing happens when it has ended."""
        raise NotImplementedError

    def _buffered(self) -> int:
        """Bytes that the server has taken and the kernel has not."""
        raise NotImplementedError
