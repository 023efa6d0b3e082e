"""Channels' in-memory layer, with the additions that a hub needs."""

import asyncio
from collections.abc import Collection
from typing import Any

from channels.layers import InMemoryChannelLayer

from realtime.layers.contents import StoredMembers
from realtime.layers.stamped import CAPACITY, Message, StampedLayer


class MemoryLayer(StampedLayer, InMemoryChannelLayer):
    """Channels' in-memory layer: for tests, and for one process to which no other process publishes.

    A queue belongs to the event loop that waits on it. A message from another loop, such as that of
    synchronous code that publishes, is handed over to this loop.
    """

    def __init__(self, *, capacity: int = CAPACITY, **options: Any) -> None:
        super().__init__(capacity=capacity, **options)
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}

    async def send(self, channel: str, message: Message) -> None:
        home, here = self._loops.get(channel), asyncio.get_running_loop()
        if home is None or home is here or home.is_closed():
            await super().send(channel, message)
        else:
            sending = asyncio.run_coroutine_threadsafe(super().send(channel, message), home)
            await asyncio.wrap_future(sending)

    async def open_channel(self, channel: str) -> None:
        self._loops[channel] = asyncio.get_running_loop()

    async def receive_stamped(self, channel: str) -> Message:
        self._loops[channel] = asyncio.get_running_loop()
        try:
            return await super().receive_stamped(channel)
        except asyncio.CancelledError:
            # As with the other layers, a receiver that stops is gone.
            self._loops.pop(channel, None)
            raise

    async def holds(self, group: str, channel: str) -> bool:
        return channel in self.groups.get(group, ())

    async def re_add(self, groups: Collection[str], channel: str) -> None:
        for group in groups:
            await self.group_add(group, channel)

    async def contents(self) -> StoredMembers:
        return StoredMembers(
            frozenset((group, channel) for group, channels in self.groups.items() for channel in channels)
        )
