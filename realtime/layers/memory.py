"""Channels' in-memory layer, with the additions that a hub needs."""

import asyncio
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, Self

from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer

from realtime.history.memory import Memory
from realtime.history.positions import Log, Position
from realtime.history.retention import Retention
from realtime.layers import messages
from realtime.layers.contents import StoredMembers
from realtime.layers.redis_history import lifetime
from realtime.layers.stamped import CAPACITY, STAMP, Message, StampedLayer
from realtime.scripts import Argument, KeyScript


class MemoryLayer(StampedLayer, InMemoryChannelLayer):
    """Channels' in-memory layer: for tests, and for one process to which no other process publishes.

    A queue belongs to the event loop that waits on it. A message from another loop, such as that of
    synchronous code that publishes, is handed over to this loop.

    Test suites put locks around the methods of Channels' layer. Therefore no method waits for another event
    loop, whose thread may wait for such a lock, and what this class adds calls none of the public methods.
    """

    ends_with_process = True

    def __init__(self, *, capacity: int = CAPACITY, **options: Any) -> None:
        super().__init__(capacity=capacity, **options)
        self._loops: dict[str, asyncio.AbstractEventLoop] = {}
        self._history = Memory()
        self._store: dict[str, Any] = {}
        """What scripts about single keys have stored."""
        self._lock = threading.Lock()

    async def group_send(self, group: str, message: Message) -> None:
        # Anything that is no dict is left to Channels, which raises.
        stamped = _Stamped(message, group) if isinstance(message, dict) else message
        await super().group_send(group, stamped)

    async def send(self, channel: str, message: Message) -> None:
        home = self._loops.get(channel)
        if home is None or home is asyncio.get_running_loop() or home.is_closed():
            await super().send(channel, message)
        else:
            self._hand_over(home, channel, message)

    async def append(
        self, group: str, message: Message, keep: Retention, once: str | None
    ) -> tuple[Position, bool]:
        position, repeated = self._history.append(group, message["text"], keep, once, time.monotonic())
        if not repeated:
            self._clean_expired()
            sent = _Stamped({**message, "epoch": position.epoch, "offset": position.offset}, group)
            for channel in tuple(self.groups.get(group, ())):
                # As in `group_send`, a full queue drops the message.
                with suppress(ChannelFull):
                    self._deliver(channel, sent)
        return position, repeated

    def _deliver(self, channel: str, message: Message) -> None:
        home = self._loops.get(channel)
        if home is None or home is asyncio.get_running_loop() or home.is_closed():
            self._put(channel, message)
        else:
            self._hand_over(home, channel, message)

    async def read(self, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int) -> Log:
        return self._history.read(group, after, keep, limit, max_bytes, time.monotonic())

    async def positions(self, groups: Collection[str]) -> dict[str, Log]:
        return self._history.positions({group: lifetime(group) for group in groups}, time.monotonic())

    async def run_script(self, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any:
        with self._lock:
            return script.in_memory(self._store, key, arguments, time.monotonic())

    async def run_script_everywhere(
        self, script: KeyScript, key: str, arguments: Sequence[Argument]
    ) -> list[Any]:
        with self._lock:
            return [script.in_memory(self._store, key, arguments, time.monotonic())]

    async def flush(self) -> None:
        await super().flush()
        self._history.clear()
        self._store.clear()

    def _hand_over(self, home: asyncio.AbstractEventLoop, channel: str, message: Message) -> None:
        """Queue a message in the event loop that reads the channel, without waiting for that loop.

        Raises:
            ChannelFull: The queue of the channel is full.
        """
        assert isinstance(message, dict), "message is not a dict"  # noqa: S101 - as in Channels
        self.require_valid_channel_name(channel)
        queue = self.channels.get(channel)
        if queue is not None and queue.full():
            raise ChannelFull(channel)
        with suppress(RuntimeError):
            # If the loop was closed meanwhile, there is no receiver.
            home.call_soon_threadsafe(self._put_if_room, channel, deepcopy(message))

    def _put(self, channel: str, message: Message) -> None:
        queue = self.channels.setdefault(channel, asyncio.Queue(maxsize=self.get_capacity(channel)))
        try:
            queue.put_nowait((time.time() + self.expiry, message))
        except asyncio.QueueFull:
            raise ChannelFull(channel) from None

    def _put_if_room(self, channel: str, message: Message) -> None:
        # The sender found room and has gone on. If other messages came first, this one is dropped.
        with suppress(ChannelFull):
            self._put(channel, message)

    def add_now(self, group: str, channel: str) -> None:
        self.groups.setdefault(group, {})[channel] = time.time()

    async def open_channel(self, channel: str) -> None:
        self._loops[channel] = asyncio.get_running_loop()

    async def receive_stamped(self, channel: str) -> Message:
        self._loops[channel] = asyncio.get_running_loop()
        try:
            message = await InMemoryChannelLayer.receive(self, channel)
        except asyncio.CancelledError:
            # As with the other layers, a receiver that stops is gone.
            self._loops.pop(channel, None)
            raise
        stamped: Message = {**message}
        if isinstance(message, _Stamped):
            stamped[STAMP] = message.group
        return stamped

    async def echo(self, channels: Collection[str], number: int) -> int:
        for part, channel in enumerate(channels):
            self._put(channel, messages.encode(messages.EchoPart(number, part)))
        return len(channels)

    async def holds(self, group: str, channel: str) -> bool:
        return channel in self.groups.get(group, ())

    async def re_add(self, groups: Collection[str], channel: str) -> None:
        for group in groups:
            self.add_now(group, channel)

    async def contents(self) -> StoredMembers:
        return StoredMembers(
            frozenset((group, channel) for group, channels in self.groups.items() for channel in channels)
        )


class _Stamped(dict[str, Any]):
    """A message that knows the group it was sent to, and otherwise equals the message of the sender.

    The stamp is no key: test suites compare what this layer holds and what a mocked `send` is called with.
    """

    __slots__ = ("group",)

    def __init__(self, message: Message, group: str) -> None:
        super().__init__(message)
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(deepcopy(dict(self), memo), self.group)
