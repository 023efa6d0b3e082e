"""Numbers that are published all the time through the layer itself, and their arrival at clients."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from channels.layers import get_channel_layer
from django.test import override_settings

from realtime import apublish
from realtime.errors import LayerUnavailable
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.websocket import PATIENCE, Client
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

BACKENDS = {"core": "realtime.layers.CoreLayer", "pubsub": "realtime.layers.PubSubLayer"}


@contextlib.contextmanager
def same_layer(site: Site) -> Iterator[None]:
    """Let the process of the test publish through the site's Redis, like one more server process."""
    layer = {"BACKEND": BACKENDS[site.pairing.layer], "CONFIG": {"hosts": site.redis.hosts}}
    with override_settings(CHANNEL_LAYERS={"default": layer}):
        yield


@dataclass(frozen=True, slots=True)
class Attempt:
    """One number: the times of the monotonic clock when publishing began and ended, and the error, if any."""

    number: int
    began: float
    ended: float
    error: BaseException | None


class Numbers(Repeating):
    """Publishes 0, 1, 2 … to some groups, for use within `same_layer`. Each client is in one of the groups.

    If a number could not be sent to a group, it is kept as a failure, and the next number follows.

    Args:
        names: The groups.
        every: Seconds between two numbers.
    """

    def __init__(self, *names: str, every: float = 0.05) -> None:
        self.groups = names
        self.every = every
        self.attempts: list[Attempt] = []

    async def __aexit__(self, *exception: object) -> None:
        await super().__aexit__(*exception)
        layer = get_channel_layer()
        # Not its `flush`, which would empty Redis for all other processes as well.
        await (layer.close_pools() if hasattr(layer, "close_pools") else layer.flush())

    @property
    def sent(self) -> list[int]:
        """The numbers that the layer took."""
        return [attempt.number for attempt in self.attempts if attempt.error is None]

    @property
    def failed(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.error is not None]

    def received(self, client: Client) -> list[int]:
        return [frame["data"] for frame in client.messages if frame["group"] in self.groups]

    def back_after(self, client: Client, moment: float) -> float | None:
        """Return the seconds from `moment` until the client got a number that was published after it.

        Returns:
            None if no such number has arrived yet.
        """
        later = {attempt.number for attempt in self.attempts if attempt.began > moment}
        for each in client.received:
            frame = each.frame
            if frame["type"] == "message" and frame["group"] in self.groups and frame["data"] in later:
                return each.at - moment
        return None

    async def all_back_after(self, clients: list[Client], moment: float, *, within: float) -> float:
        """Wait until every client has got a number that was published after `moment`.

        Returns:
            The seconds from `moment` until the last client got one.
        """
        await eventually_async(
            lambda: all(self.back_after(client, moment) is not None for client in clients), within=within
        )
        return max(back for client in clients if (back := self.back_after(client, moment)) is not None)

    async def arrive(self, clients: list[Client], *, within: float = PATIENCE) -> None:
        """Wait until every client got the last number. No number may be under way any more."""
        last = self.sent[-1]
        await asyncio.gather(
            *(client.seen(lambda frame: frame.get("data") == last, within=within) for client in clients)
        )

    def nothing_lost_after(self, client: Client, moment: float) -> bool:
        """True if the client got each number that was published after `moment`, once and in order.

        No number may be under way any more.

        Raises:
            AssertionError: A number was lost, doubled or out of order.
        """
        expected = [each.number for each in self.attempts if each.began > moment and each.error is None]
        received = self.received(client)
        assert expected, "nothing was published after that"
        assert received == sorted(set(received)), f"doubled or out of order: {received}"
        missing = {*expected} - {*received}
        assert not missing, f"lost: {sorted(missing)}"
        return True

    async def step(self) -> None:
        number, began = len(self.attempts), time.monotonic()
        outcomes = await asyncio.gather(
            *(apublish(group, number) for group in self.groups), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if unexpected := [error for error in errors if not isinstance(error, LayerUnavailable)]:
            raise unexpected[0]
        error = errors[0] if errors else None
        self.attempts.append(Attempt(number, began, time.monotonic(), error))
        await asyncio.sleep(self.every)
