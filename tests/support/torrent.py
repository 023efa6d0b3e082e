"""More messages than a process can write to its members, at a rate that is kept whatever becomes of them."""

import asyncio
import time
from typing import Self

from channels.layers import get_channel_layer

from realtime import frames, groups
from realtime.layers import STAMP
from tests.support.numbers import same_layer
from tests.support.repeating import Repeating
from tests.support.site import Site

#: Seconds between two bursts.
BURST = 0.01


class Torrent(Repeating):
    """Publishes [0, 0, …], [0, 1, …] and so on to each of these groups in turn, on the pub/sub layer:
    `per_second` messages in all, of `size` bytes each.

    One connection carries all of them, many in one packet. So they keep the order of the numbers, and the
    publisher is faster than any subscriber.
    """

    def __init__(self, site: Site, *names: str, per_second: float, size: int) -> None:
        self.groups = names
        self.per_second = per_second
        self.filler = "x" * size
        self.published = 0
        """How many numbers each group was sent."""
        self._redis = site.redis.client()
        with same_layer(site):
            # It knows nothing of connections, and stays the same for any.
            self._layer = get_channel_layer()

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        return await super().__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        await super().__aexit__(*exception)
        self._redis.close()

    async def step(self) -> None:
        due = (time.monotonic() - self._began) * self.per_second / len(self.groups)
        pipe = self._redis.pipeline(transaction=False)
        while self.published < due:
            for group in self.groups:
                data = frames.encode_data([0, self.published, self.filler])
                text = frames.build(frames.Message(group=group, data=data))
                event = {"type": groups.MESSAGE, "text": text, STAMP: group}
                pipe.publish(f"asgi__group__{group}", self._layer.serialize(event))
            self.published += 1
        if pipe.command_stack:
            await asyncio.to_thread(pipe.execute)
        await asyncio.sleep(BURST)
