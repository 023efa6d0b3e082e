"""Numbers published all the time through the layer itself: when they fail, when clients get them again."""

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
    """The test's own process publishes through the site's Redis, like one more server process."""
    layer = {"BACKEND": BACKENDS[site.pairing.layer], "CONFIG": {"hosts": [site.redis.url]}}
    with override_settings(CHANNEL_LAYERS={"default": layer}):
        yield


@dataclass(frozen=True, slots=True)
class Attempt:
    """One number: when its publication began and ended (monotonic clock), and what failed, if anything."""

    number: int
    began: float
    ended: float
    error: BaseException | None


class Numbers(Repeating):
    """Publishes 0, 1, 2 ... to each of these groups, `every` so many seconds; a number that a group could not
    be sent is kept as a failure, and the next one follows. Each client is in one of the groups. For use
    inside `same_layer`.
    """

    def __init__(self, *names: str, every: float = 0.05) -> None:
        self.groups = names
        self.every = every
        self.attempts: list[Attempt] = []

    async def __aexit__(self, *exception: object) -> None:
        await super().__aexit__(*exception)
        layer = get_channel_layer()
        # Not its `flush`, which would empty Redis under everybody else.
        await (layer.close_pools() if hasattr(layer, "close_pools") else layer.flush())

    @property
    def sent(self) -> list[int]:
        """Those that the layer took."""
        return [attempt.number for attempt in self.attempts if attempt.error is None]

    @property
    def failed(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.error is not None]

    def received(self, client: Client) -> list[int]:
        return [frame["data"] for frame in client.messages if frame["group"] in self.groups]

    def back_after(self, client: Client, moment: float) -> float | None:
        """How long after `moment` the client got the first number that was published after it; None if none
        came yet.
        """
        later = {attempt.number for attempt in self.attempts if attempt.began > moment}
        for each in client.received:
            frame = each.frame
            if frame["type"] == "message" and frame["group"] in self.groups and frame["data"] in later:
                return each.at - moment
        return None

    async def all_back_after(self, clients: list[Client], moment: float, *, within: float) -> float:
        """Wait until every client gets numbers that were published after `moment`; return how long after it
        the last one did.
        """
        await eventually_async(
            lambda: all(self.back_after(client, moment) is not None for client in clients), within=within
        )
        return max(back for client in clients if (back := self.back_after(client, moment)) is not None)

    async def arrive(self, clients: list[Client], *, within: float = PATIENCE) -> None:
        """Wait until every client got the last number; for a time at which none is under way any more."""
        last = self.sent[-1]
        await asyncio.gather(
            *(client.seen(lambda frame: frame.get("data") == last, within=within) for client in clients)
        )

    def nothing_lost_after(self, client: Client, moment: float) -> bool:
        """True when the client got each number that was published after `moment`, once, and all in order; for
        a time at which none is under way any more. Raises AssertionError with what is wrong.
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
