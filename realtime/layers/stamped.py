"""What a hub needs of a channel layer beyond Channels.

A message in a channel layer does not say which group it was sent to, and a hub, which has one channel for
all its groups, must know. `group_send` therefore stamps the group's name on the message, and `receive`
takes the stamp off again, so that all other code sees plain Channels; only a hub reads stamps, through
`receive_stamped`. And a hub has to find out whether what it relies on still holds, and put it right (see
`realtime.hub.healing`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime.layers import messages
from realtime.layers.contents import Contents
from realtime.layers.messages import MARK, MESSAGE

#: What a layer raises when it cannot do its work now.
LAYER_ERRORS = (RedisError, OSError, ChannelFull, TimeoutError)

#: The key under which a group message carries the name of its group.
STAMP = "realtime.group"

#: A full queue drops group messages silently, and the queue is one for a whole process (channels_redis#181).
CAPACITY = 10_000

Message = dict[str, Any]


class Layer(Protocol):
    """What the rest of `realtime` uses of a channel layer."""

    async def new_channel(self, prefix: str = ...) -> str: ...
    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def receive_stamped(self, channel: str) -> Message: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...
    async def forget_channel(self, channel: str) -> None: ...
    async def close_channel(self, channel: str) -> None: ...

    group_expiry: float
    on_back: set[Callable[[], None]]

    async def open_channel(self, channel: str) -> None: ...
    async def echo(self, channels: Sequence[str], number: int) -> int: ...
    def heard(self, channels: Sequence[str]) -> Sequence[int]: ...
    async def rebuild(self, parts: Collection[int]) -> None: ...
    async def holds(self, group: str, channel: str) -> bool: ...
    async def reassert(self, groups: Collection[str], channel: str) -> None: ...
    async def contents(self) -> Contents: ...


class ForHubs:
    """What a hub needs: stamps of groups, and ways to find out whether the layer carries what it should.

    `group_send` stamps the group on what is sent, and the stamp is taken off for every receiver but a hub.
    What hubs say to each other through a group they alone receive: any other consumer in that group (one of
    plain Channels, a synchronous one) would end with an exception.
    """

    group_expiry = math.inf
    """Seconds after which the layer forgets a membership that was not asserted again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_back: set[Callable[[], None]] = set()
        """Called when the layer receives again after an outage in which it may have lost memberships."""

    async def group_send(self, group: str, message: Message) -> None:
        await super().group_send(group, {**message, STAMP: group})  # type: ignore[misc]

    async def receive(self, channel: str) -> Message:
        while True:
            message = await self.receive_stamped(channel)
            if message.pop(STAMP, None) is None or message.get("type") not in (MESSAGE, MARK):
                return message

    async def receive_stamped(self, channel: str) -> Message:
        """The next message on the channel, with `STAMP` in it where it was sent to a group."""
        message: Message = await super().receive(channel)  # type: ignore[misc]
        # A copy, because the core layer hands one and the same object to all receivers of a process.
        return {**message}

    async def forget_channel(self, channel: str) -> None:
        """Remove what the layer stores for the channel of a process that is gone."""

    async def close_channel(self, channel: str) -> None:
        """Undo `new_channel` for a channel that nobody receives from."""

    async def open_channel(self, channel: str) -> None:
        """Make a channel of this name, as `new_channel` does for one that it names."""

    async def echo(self, channels: Sequence[str], number: int) -> int:
        """Send the parts of echo `number` to this process, which receives these channels.

        Returns:
            How many parts, counted from 0, are to come back: one for each connection on which the channels
            are received.
        """
        for part, channel in enumerate(channels):
            await self.send(channel, messages.encode(messages.EchoPart(number, part)))  # type: ignore[attr-defined]
        return len(channels)

    def heard(self, channels: Sequence[str]) -> Sequence[int]:
        """How much has come in so far over the connection of each part of such an echo."""
        return [0] * len(channels)

    async def rebuild(self, parts: Collection[int]) -> None:
        """Give up the connections on which these parts of an echo should have come, and receive on new ones;
        `on_back` tells when that is done.
        """

    async def holds(self, group: str, channel: str) -> bool:
        """False when the channel is certainly no member of the group any more."""
        return True

    async def reassert(self, groups: Collection[str], channel: str) -> None:
        """`group_add` for all of these, of which the channel should be a member already, in one go."""

    def _tell_back(self) -> None:
        for tell in tuple(self.on_back):
            tell()
