"""The queue of messages between the socket of Redis and the task that reads a channel, bounded in bytes.

Redis cuts off a subscriber that does not read, and drops everything that waits for it. Therefore the socket
is read all the time. Messages that come faster than they can be taken wait in this process, up to a limit.
Above the limit, the oldest messages are dropped.
"""

import asyncio
import logging
import weakref
from typing import NamedTuple

from realtime import metrics
from realtime.history.positions import Position

logger = logging.getLogger("realtime.layers")

#: Bytes that a waiting message takes in addition to its content: the objects, and the name of its group.
OVERHEAD = 192


class Received(NamedTuple):
    """A message as Redis brought it."""

    group: str | None
    """The group that it was sent to; None for a message to a channel."""
    content: bytes
    position: Position | None = None
    """The position of a message of a group that keeps history."""


class BoundedQueue(asyncio.Queue[Received]):
    """An `asyncio.Queue` of messages that holds at most `max_bytes`, but always at least one message.

    Args:
        max_bytes: The limit in bytes, counted with `OVERHEAD` for each message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._dropped = 0
        """The number of messages dropped since the queue last kept up."""
        super().__init__()
        _all.add(self)

    @property
    def held(self) -> int:
        """The bytes of memory that the waiting messages take."""
        return self._bytes

    def _put(self, item: Received) -> None:
        super()._put(item)
        self._bytes += len(item.content) + OVERHEAD
        while self._bytes > self._max_bytes and self.qsize() > 1:
            self._take()
            metrics.messages_dropped.inc()
            self._dropped += 1
            if self._dropped == 1:
                logger.error(
                    "This process cannot keep up: more than %d bytes of messages wait (MAX_QUEUED_BYTES); "
                    "the oldest are dropped",
                    self._max_bytes,
                )

    def _get(self) -> Received:
        item = self._take()
        if self._dropped and self._bytes < self._max_bytes / 2:
            logger.error("This process keeps up again; %d messages were dropped", self._dropped)
            self._dropped = 0
        return item

    def _take(self) -> Received:
        item: Received = super()._get()
        self._bytes -= len(item.content) + OVERHEAD
        return item


_all: weakref.WeakSet[BoundedQueue] = weakref.WeakSet()

# Added up when the metrics are read, so that a message costs nothing.
metrics.queued_bytes.set_function(lambda: sum(queue.held for queue in tuple(_all)))
