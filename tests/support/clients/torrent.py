"""More messages than a process can write to its members, at a constant rate."""

import asyncio
import time
from typing import Self

from channels.layers import get_channel_layer

from realtime.layers import messages
from realtime.layers.stamped import STAMP
from realtime.wire import frames
from realtime.wire.payload import encode_data
from tests.support.clients.numbers import same_layer
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

#: Seconds between two bursts.
BURST = 0.01
#: Messages in one burst, at most.
MOST_AT_ONCE = 2000


class Torrent(Repeating):
    """Publishes [tag, 0, …], [tag, 1, …] and so on to some groups in turn.

    On the pub/sub layer one connection carries all messages, many in one packet. So they keep the order of
    the numbers, and the publisher is faster than any subscriber. On the core layer one message follows the
    other.

    Args:
        names: The groups.
        per_second: Messages in one second, over all groups.
        size: Bytes of a message.
        tag: The first item of each message.
    """

    def __init__(self, site: Site, *names: str, per_second: float, size: int, tag: int | str = 0) -> None:
        self.groups = names
        self.tag = tag
        self.per_second = per_second
        self.filler = "x" * size
        self.published = 0
        """The number of messages that each group was sent."""
        self._redis = site.redis.client()
        with same_layer(site):
            # It does not depend on connections, so it is the same for all of them.
            self._layer = get_channel_layer()
        self._core = site.pairing.layer == "core"

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        return await super().__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        try:
            await super().__aexit__(*exception)
        finally:
            self._redis.close()
            if self._core:
                await self._layer.close_pools()

    async def step(self) -> None:
        due = (time.monotonic() - self._began) * self.per_second / len(self.groups)
        if self._core:
            until = time.monotonic() + BURST
            while self.published < due and time.monotonic() < until:
                for group in self.groups:
                    await self._layer.group_send(group, self._event(group))
                self.published += 1
        else:
            pipe = self._redis.pipeline(transaction=False)
            first = self.published
            # A publisher that cannot keep up becomes slower: ever larger steps would stop the event loop.
            while self.published < min(due, first + MOST_AT_ONCE):
                for group in self.groups:
                    pipe.publish(f"asgi__group__{group}", self._layer.serialize(self._event(group)))
                self.published += 1
            if self.published > first:
                await asyncio.to_thread(pipe.execute)
        await asyncio.sleep(BURST)

    def _event(self, group: str) -> dict[str, str]:
        data = encode_data([self.tag, self.published, self.filler])
        text = frames.build(frames.Message(group=group, data=data))
        return {"type": messages.MESSAGE, "text": text, STAMP: group}
