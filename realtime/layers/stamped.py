"""The additions to Channels' channel layers that a hub needs.

A message in a channel layer does not say which group it was sent to. A hub has one channel for all its groups
and must know. Therefore a message of a group carries a stamp, the name of its group. The pub/sub layer stamps
what it receives. The core layer and the in-memory layer stamp what they send. `receive` takes the stamp off,
so that all other code sees plain Channels. Only a hub reads stamps, through `receive_stamped`.

A group may keep history (`append`, `read`, `positions`). Then an event also carries its position.

A hub must also find out if its memberships still hold, and repair them (see `realtime.hub.healing`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime.history.positions import Log, Position
from realtime.history.retention import Retention
from realtime.layers import messages
from realtime.layers.contents import Contents
from realtime.layers.messages import MARK, MESSAGE
from realtime.scripts import Argument, KeyScript

#: The exceptions of a layer that cannot do its work now.
LAYER_ERRORS = (RedisError, OSError, ChannelFull, TimeoutError)

#: The key under which a group message carries the name of its group.
STAMP = "realtime.group"

#: Messages in a queue of the core and the in-memory layer. A full queue drops group messages silently, and a
#: whole process has one queue (channels_redis#181).
CAPACITY = 10_000

Message = dict[str, Any]


class Layer(Protocol):
    """The part of a channel layer that the rest of `realtime` uses. `StampedLayer` describes the methods."""

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

    ends_with_process: bool

    def add_now(self, group: str, channel: str) -> None: ...
    async def open_channel(self, channel: str) -> None: ...
    async def echo(self, channels: Sequence[str], number: int) -> int: ...
    def received(self, channels: Sequence[str]) -> Sequence[int]: ...
    async def rebuild(self, parts: Collection[int]) -> None: ...
    async def holds(self, group: str, channel: str) -> bool: ...
    async def re_add(self, groups: Collection[str], channel: str) -> None: ...
    async def contents(self) -> Contents: ...

    async def append(
        self, group: str, message: Message, keep: Retention, once: str | None
    ) -> tuple[Position, bool]: ...
    async def read(
        self, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int
    ) -> Log: ...
    async def distrust(self, group: str, keep: Retention, epoch: str) -> None: ...
    async def positions(self, groups: Collection[str]) -> dict[str, Log]: ...

    async def run_script(self, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any: ...
    async def run_script_everywhere(
        self, script: KeyScript, key: str, arguments: Sequence[Argument]
    ) -> list[Any]: ...


class KeptUnsent(Exception):
    """A message is in the history of its group, but was not sent. The hubs read it within a round.

    The cause of the exception is the error of the layer.

    Args:
        group: The name of the group.
        position: The position of the message.
    """

    def __init__(self, group: str, position: Position) -> None:
        super().__init__(f"A message to the group {group} was kept at {position}, but not sent.")
        self.group = group
        self.position = position


class StampedLayer:
    """Mixin for a channel layer of Channels that adds stamps of groups and the checks that a hub needs.

    `MESSAGE` events in groups are delivered to hubs only, and so are the `MARK` events of older versions. Any
    other consumer in the group, such as one of plain Channels, has no handler for them and would end with an
    exception.
    """

    group_expiry = math.inf
    """Seconds after which the layer forgets a membership that was not added again."""

    ends_with_process = False
    """True if the layer is in the memory of this process: then it has `add_now`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_back: set[Callable[[], None]] = set()
        """Called when the layer receives again after an outage that may have cost memberships."""

    async def receive(self, channel: str) -> Message:
        while True:
            message = await self.receive_stamped(channel)
            if not isinstance(message, dict):
                # The pub/sub layer carries anything that can be encoded, as in channels_redis.
                return message
            if message.pop(STAMP, None) is None or message.get("type") not in (MESSAGE, MARK):
                return message

    async def receive_stamped(self, channel: str) -> Message:
        """Wait for the next message on the channel. If it was sent to a group, it carries `STAMP`."""
        raise NotImplementedError

    def add_now(self, group: str, channel: str) -> None:
        """Add the channel to the group without waiting."""
        raise NotImplementedError

    async def forget_channel(self, channel: str) -> None:
        """Remove what the layer stores for the channel of a process that no longer exists."""

    async def close_channel(self, channel: str) -> None:
        """Undo `new_channel` for a channel from which no task receives."""

    async def open_channel(self, channel: str) -> None:
        """Open a channel of this name, as `new_channel` opens one that it names itself."""

    async def echo(self, channels: Sequence[str], number: int) -> int:
        """Send an echo to this process: one part for each connection that brings it messages.

        Args:
            channels: Channels from which this process receives.
            number: The number of the echo.

        Returns:
            The number of parts, which are counted from 0.
        """
        for part, channel in enumerate(channels):
            await self.send(channel, messages.encode(messages.EchoPart(number, part)))  # type: ignore[attr-defined]
        return len(channels)

    def received(self, channels: Sequence[str]) -> Sequence[int]:
        """Return, for each part of an echo to these channels, the number of messages that its connection
        brought so far.
        """
        return [0] * len(channels)

    async def rebuild(self, parts: Collection[int]) -> None:
        """Replace the connections on which these parts of an echo are missing.

        `on_back` is called when the layer receives on the new connections.
        """

    async def holds(self, group: str, channel: str) -> bool:
        """Return False if the layer has certainly lost the channel as a member of the group."""
        return True

    async def re_add(self, groups: Collection[str], channel: str) -> None:
        """Call `group_add` for all these groups together. The channel should be in them already."""

    async def append(
        self, group: str, message: Message, keep: Retention, once: str | None
    ) -> tuple[Position, bool]:
        """Append a `GroupMessage` to the history of the group, and send it to the group with its position.

        Args:
            group: The name of the group.
            message: The message as a dict, without a position.
            keep: The part of its history that the group keeps.
            once: An id. If a message with this id was appended within `keep.ttl`, nothing is done.

        Returns:
            The position of the message, and True if it was appended by an earlier call.

        Raises:
            KeptUnsent: The message was appended, but not sent.
        """
        raise NotImplementedError

    async def read(self, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int) -> Log:
        """Read messages from the history of the group, oldest first.

        Args:
            group: The name of the group.
            after: The offset after which to read; None for the newest messages.
            keep: The part of its history that the group keeps.
            limit: The largest number of messages.
            max_bytes: About the largest number of bytes. One message is read even if it is larger.
        """
        raise NotImplementedError

    async def distrust(self, group: str, keep: Retention, epoch: str) -> None:
        """Begin an epoch that trusts no earlier one, because messages were lost at a fork of this epoch.

        The in-memory layer never forks, so it need not do anything.

        Args:
            group: The name of the group.
            keep: The part of its history that the group keeps.
            epoch: The current epoch. If it is another one, nothing is done.
        """

    async def positions(self, groups: Collection[str]) -> dict[str, Log]:
        """Return the histories of all these groups, without messages.

        The layer keeps the position of a group as long as this is called at least once a day.
        """
        raise NotImplementedError

    async def run_script(self, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any:
        """Run a script about a key, in the Redis that stores this key.

        Args:
            script: The script.
            key: The key, without the prefix of the layer.
            arguments: The arguments of the script.

        Returns:
            What the script returns.
        """
        raise NotImplementedError

    async def run_script_everywhere(
        self, script: KeyScript, key: str, arguments: Sequence[Argument]
    ) -> list[Any]:
        """Run a script about a key in every Redis of the layer, and return what each returns."""
        raise NotImplementedError

    def _call_on_back(self) -> None:
        for call in tuple(self.on_back):
            call()
