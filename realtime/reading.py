"""Read the recent messages of a group, from synchronous and asynchronous code."""

import json
from dataclasses import dataclass
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from msgspec import UnsetType

from realtime import conf
from realtime.errors import NoHistory
from realtime.history.positions import Entry, Log, Position
from realtime.history.retention import Retention
from realtime.layers import groups
from realtime.layers.stamped import LAYER_ERRORS, Layer
from realtime.process import background_loop
from realtime.wire import frames

__all__ = ["History", "HistoryMessage", "ahistory", "history"]

#: About the largest number of bytes of messages in one reading.
MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """One message in the history of a group.

    Attributes:
        position: Its place in the history.
        data: The data that was published.
        sender: The user of the client that published it, or None if that client is anonymous. For data of the
            server, it is `msgspec.UNSET`.
        frame: The frame that clients are sent.
    """

    position: Position
    data: Any
    sender: str | UnsetType | None
    frame: str


@dataclass(frozen=True, slots=True)
class History:
    """The history of a group as one reading found it.

    Attributes:
        position: The place of the latest message of the group, also if it is not among `messages`.
        recovered: True if every message after `since` is kept; False if not. None if no `since` was given.
        messages: Messages, oldest first. There are none if `recovered` is False.
    """

    position: Position
    recovered: bool | None
    messages: tuple[HistoryMessage, ...]


async def ahistory(
    group: str, since: Position | None = None, limit: int = 100, *, alias: str = DEFAULT_CHANNEL_LAYER
) -> History:
    """Read messages from the history of a group.

    Args:
        group: The name of the group.
        since: Read the messages after this position, the oldest of them first. None reads the newest.
        limit: The largest number of messages. Fewer are read if they are larger than 16 MiB together.
        alias: The alias of the channel layer in CHANNEL_LAYERS.

    Raises:
        BadGroup: No group can have this name.
        NoHistory: The group keeps no history.
        LayerUnavailable: The channel layer did not answer.
    """
    reading = _reading(group, since, limit, alias)
    return _found(await groups.call("read a history", reading.read()), since)


def history(
    group: str, since: Position | None = None, limit: int = 100, *, alias: str = DEFAULT_CHANNEL_LAYER
) -> History:
    """Read messages from the history of a group, from synchronous code.

    Args:
        group: The name of the group.
        since: Read the messages after this position, the oldest of them first. None reads the newest.
        limit: The largest number of messages. Fewer are read if they are larger than 16 MiB together.
        alias: The alias of the channel layer in CHANNEL_LAYERS.

    Raises:
        BadGroup: No group can have this name.
        NoHistory: The group keeps no history.
        LayerUnavailable: The channel layer did not answer.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    background_loop.require_blocking("history", "ahistory")
    reading = _reading(group, since, limit, alias)
    try:
        return _found(background_loop.shared.run(groups.bounded(reading.read())), since)
    except LAYER_ERRORS as error:
        raise groups.unavailable("read a history", error) from error


@dataclass(frozen=True, slots=True)
class _Reading:
    """A question to the layer."""

    home: Layer
    group: str
    after: int | None
    keep: Retention
    limit: int

    async def read(self) -> Log:
        """Make the call to the layer."""
        return await self.home.read(self.group, self.after, self.keep, self.limit, MAX_BYTES)


def _reading(group: str, since: Position | None, limit: int, alias: str) -> _Reading:
    groups.require_valid(group)
    keep = conf.get().retention(group)
    if keep is None:
        raise NoHistory(group)
    if limit < 1:
        raise ValueError(f"limit is {limit}; set 1 or more.")
    after = max(0, since.offset) if since is not None else None
    return _Reading(groups.layer(alias), group, after, keep, limit)


def _found(log: Log, since: Position | None) -> History:
    recovered = None if since is None else log.reaches(since)
    entries = () if recovered is False else log.entries
    return History(log.position, recovered, tuple(_message(log, entry) for entry in entries))


def _message(log: Log, entry: Entry) -> HistoryMessage:
    # A position before the fork of an epoch is one of this epoch too.
    position = Position(log.epoch, entry.offset)
    frame = frames.parse_server(entry.text)
    assert isinstance(frame, frames.Message), "only messages are appended"  # noqa: S101
    text = frames.with_position(entry.text, position)
    return HistoryMessage(position, json.loads(bytes(frame.data)), frame.from_, text)
