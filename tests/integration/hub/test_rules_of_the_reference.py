"""A client that only follows the rules in the reference below "A client that recovers".

Its group is in the URL, so live messages arrive before it has asked for those that it missed.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from channels.routing import URLRouter

from realtime import apublish
from realtime.routing import websocket_urlpatterns
from realtime.testing import Client, connect

GROUP = "public.g"
PATH = f"/ws/{GROUP}/"
APPLICATION = URLRouter(websocket_urlpatterns)


@pytest.fixture(autouse=True)
def history(db: None, realtime_settings: Callable[..., None]) -> None:
    realtime_settings(HISTORY={"public.*": {"size": 40, "ttl": 60}})


class Rules:
    """The state of a client in one group, and the rules for each frame."""

    def __init__(self) -> None:
        self.since: dict[str, Any] | None = None
        self.known: list[int] = []
        """Offsets in the order in which their messages were processed, or loaded with the state."""
        self.loads = self.holds = 0
        self.asked = False
        self.held: list[dict[str, Any]] = []
        self.held_until: int | None = None

    async def begin(self, client: Client) -> None:
        """Begin on a new socket."""
        assert client.welcome is not None
        self.asked, self.held, self.held_until = self.since is not None, [], None
        if self.since is not None:
            await client.send({"type": "join", "group": GROUP, "ref": 1, "since": self.since})
        else:
            self.load(client.welcome["positions"][GROUP])

    def expects_frames(self, published: int) -> bool:
        """Return True if an answer or a message is still to come."""
        return self.asked or self.held_until is not None or len(self.known) < published

    def load(self, position: dict[str, Any]) -> None:
        first = self.since["offset"] + 1 if self.since is not None else 1
        self.known += range(first, position["offset"] + 1)
        self.since = {"epoch": position["epoch"], "offset": position["offset"]}
        self.loads += 1

    def handle(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"type": "message"} if self.asked:
                self.held.append(frame)
                self.holds += 1
            case {"type": "message"}:
                self.process(frame)
            case {"type": "joined", "recovered": True, "offset": offset}:
                self.asked, self.held_until = False, offset
            case {"type": "joined", "offset": offset}:
                self.asked, self.held_until = False, offset
                self.load(frame)
            case {"type": "reset"}:
                self.held, self.held_until = [], None
                self.load(frame)
        if self.held_until is not None and self.since is not None and self.since["offset"] >= self.held_until:
            held, self.held = [each for each in self.held if each["offset"] > self.held_until], []
            self.held_until = None
            for each in held:
                self.process(each)

    def process(self, frame: dict[str, Any]) -> None:
        assert self.since is not None
        if frame["epoch"] == self.since["epoch"]:
            if frame["offset"] <= self.since["offset"]:
                return
            assert frame["offset"] == self.since["offset"] + 1, "a gap"
        assert frame["data"] == frame["offset"], "as it was published"
        self.known.append(frame["offset"])
        self.since = {"epoch": frame["epoch"], "offset": frame["offset"]}


@pytest.mark.parametrize("seed", range(2))
async def test_each_message_is_processed_once_or_loaded(seed: int) -> None:
    chance = random.Random(seed)
    rules, published = Rules(), 0

    async def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            published += 1
            await apublish(GROUP, published)
            if chance.random() < 0.3:
                await asyncio.sleep(0)

    async with connect(APPLICATION, PATH):
        for _ in range(30):
            async with connect(APPLICATION, PATH) as client:
                await publish(chance.randrange(4))
                await rules.begin(client)
                # The process answers the join meanwhile.
                await publish(chance.randrange(12))
                # It leaves after any number of frames, also in the middle of its recovery.
                for _ in range(chance.randrange(25)):
                    if not rules.expects_frames(published):
                        break
                    rules.handle(await client.receive_frame())
            # Now and then it misses more than the group keeps.
            await publish(chance.choice((2, 2, 2, 2, 45)))
        async with connect(APPLICATION, PATH) as client:
            await rules.begin(client)
            while rules.expects_frames(published):
                rules.handle(await client.receive_frame())
    assert rules.known == list(range(1, published + 1))
    assert rules.holds > 0
    assert rules.loads > 1
