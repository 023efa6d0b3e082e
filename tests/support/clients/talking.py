"""Publishers that repeat a publish with the same `id` until it has returned, for the judge."""

import asyncio
import contextlib
import json
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.test import override_settings

from realtime import apublish
from realtime.errors import LayerUnavailable
from realtime.history.positions import Position
from tests.support.assertions.judge import Publication
from tests.support.clients.numbers import BACKENDS
from tests.support.clients.recovering import RecoveringClient, Unanswered
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

#: Seconds until a publish is repeated that failed.
AGAIN = 0.1


@contextlib.asynccontextmanager
async def like_a_process_of(site: Site) -> AsyncIterator[None]:
    """Let the process of the test publish as one more process of the site, with the same settings."""
    layer: dict[str, Any] = {
        "BACKEND": BACKENDS[site.pairing.layer],
        "CONFIG": {"hosts": site.redis.hosts, **site.layer_config},
    }
    realtime = {**settings.REALTIME, **json.loads(site.environment["REALTIME_JSON"])}
    with override_settings(CHANNEL_LAYERS={"default": layer}, REALTIME=realtime):
        try:
            yield
        finally:
            home = get_channel_layer()
            # Not its `flush` on the core layer, which would empty Redis for all other processes as well.
            await (home.close_pools() if hasattr(home, "close_pools") else home.flush())


class Source(Repeating):
    """Publishes the numbers 0, 1, 2 … to some groups in turn, one after the other.

    Args:
        name: The source in the data of each message.
        groups: The groups.
        every: Seconds between two messages.
        filler: More data of each message.
    """

    def __init__(self, name: str, *groups: str, every: float = 0.05, filler: str = "") -> None:
        self.name = name
        self.groups = groups
        self.every = every
        self.filler = [filler] if filler else []
        self.publications: list[Publication] = []
        """The publishes that returned."""
        self.failures = 0
        """Calls that failed, and were repeated."""
        self._next = 0
        self._given_up = False

    async def step(self) -> None:
        began = time.monotonic()
        await self.publish()
        await asyncio.sleep(max(0.0, began + self.every - time.monotonic()))

    async def publish(self, *more: str) -> Publication | None:
        """Publish the next number, and repeat it until it has returned.

        Args:
            more: More data of this message.

        Returns:
            None if the source was told to give up.
        """
        number, self._next = self._next, self._next + 1
        group = self.groups[number % len(self.groups)]
        id = uuid.uuid4().hex
        attempts = 0
        while not self._given_up:
            attempts += 1
            try:
                position = await self._publish(group, [self.name, number, *self.filler, *more], id)
            except (LayerUnavailable, Unanswered):
                self.failures += 1
                await asyncio.sleep(AGAIN)
                continue
            returned = Publication(group, (self.name, number), position, time.monotonic(), attempts)
            self.publications.append(returned)
            return returned
        return None

    def give_up(self) -> None:
        """Do not repeat a publish any more. One that failed has not returned."""
        self._given_up = True

    @abstractmethod
    async def _publish(self, group: str, data: object, id: str) -> Position:
        """Publish once.

        Raises:
            LayerUnavailable: It failed.
            Unanswered: It failed.
        """


class ServerSource(Source):
    """A source that calls `apublish`, for use within `like_a_process_of`."""

    async def _publish(self, group: str, data: object, id: str) -> Position:
        position = await apublish(group, data, id=id)
        assert isinstance(position, Position), f"apublish returned {position!r}"
        return position


class ClientSource(Source):
    """A client that talks: it publishes over its connection."""

    def __init__(self, client: RecoveringClient, *groups: str, every: float = 0.5) -> None:
        super().__init__(client.name, *groups, every=every)
        self.client = client

    async def _publish(self, group: str, data: object, id: str) -> Position:
        return await self.client.publish(group, data, id)


@contextlib.asynccontextmanager
async def talking(sources: Sequence[Source]) -> AsyncIterator[None]:
    """Run all sources, and stop them at the end of the block."""
    async with contextlib.AsyncExitStack() as stack:
        for each in sources:
            await stack.enter_async_context(each)
        yield


async def all_stop(sources: Sequence[Source], *, within: float = 15.0) -> None:
    """Let each source finish the publish under way, and repeat it if it fails."""

    async def give_up_later() -> None:
        await asyncio.sleep(within)
        for each in sources:
            each.give_up()

    giving_up = asyncio.create_task(give_up_later())
    await asyncio.gather(*(each.stop() for each in sources))
    giving_up.cancel()


def publications(sources: Sequence[Source]) -> list[Publication]:
    """Return the publishes of all sources that returned."""
    return [each for source in sources for each in source.publications]
