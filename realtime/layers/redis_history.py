"""The history of groups, for the layers on Redis: messages of a layer to and from the streams in Redis."""

from collections.abc import Collection, Iterable
from typing import Any

from realtime import conf
from realtime.history.positions import Log, Position
from realtime.history.retention import POSITION_TTL, Retention
from realtime.history.streams import IN_SCRIPTS, Streams
from realtime.layers.redis_pool import NamedRefusals
from realtime.layers.stamped import Message

_refusals = NamedRefusals(IN_SCRIPTS)


class RedisHistory:
    """The history of the groups of one channel layer.

    Args:
        prefix: The prefix of the layer.
        serializer: Encodes and decodes the messages. It encrypts them if the layer does.
    """

    def __init__(self, prefix: str, serializer: Any) -> None:
        self._streams = Streams(prefix)
        self._serializer = serializer

    async def append(
        self, client: Any, group: str, message: Message, keep: Retention, once: str | None, channel: str = ""
    ) -> tuple[Position, bool]:
        """Append a message, and publish it to this channel of Redis if there is one."""
        content = self._serializer.serialize(message)
        with _refusals:
            return await self._streams.append(client, group, content, keep, once, channel)

    async def read(
        self, client: Any, group: str, after: int | None, keep: Retention, limit: int, max_bytes: int
    ) -> Log:
        """Read messages of a group."""
        with _refusals:
            return await self._streams.read(client, group, after, keep, limit, max_bytes, self._text)

    async def distrust(self, client: Any, group: str, keep: Retention, epoch: str) -> None:
        """Begin an epoch of a group that trusts no earlier one."""
        with _refusals:
            await self._streams.distrust(client, group, keep, epoch)

    async def positions(self, by_client: Iterable[tuple[Any, Collection[str]]]) -> dict[str, Log]:
        """Return the histories without messages of groups, which are given by the client of their Redis."""
        found: dict[str, Log] = {}
        for client, groups in by_client:
            with _refusals:
                found |= await self._streams.positions(client, {each: lifetime(each) for each in groups})
        return found

    def _text(self, content: bytes) -> str:
        text: str = self._serializer.deserialize(content)["text"]
        return text


def lifetime(group: str) -> float:
    """Return the seconds for which the position of a group is kept."""
    keep = conf.get().retention(group)
    return keep.position_ttl if keep is not None else POSITION_TTL
