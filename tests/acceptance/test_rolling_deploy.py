"""One step from plain Channels to `realtime`, one process after the other: both run side by side.

The processes from before run Channels' consumers on the layers of channels_redis. Nothing that `realtime`
sends may end them.
"""

import asyncio
import itertools
import json
import random

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.scrape import scrape
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

APPLICATION = "tests.support.applications.drop_in:application"
PATIENCE = 10.0  # seconds
STEPS = 24


@pytest.fixture(scope="module", params=["pubsub", "core"])
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    return start_shared_site(Pairing(request.param, "daphne", "sqlite"))


@pytest.fixture(scope="module")
def before(site: Site) -> WebServer:
    return site.serve(application=APPLICATION, LIBRARY_LAYER="1")


@pytest.fixture(scope="module")
def after(site: Site) -> WebServer:
    return site.serve(application=APPLICATION)


_rooms = itertools.count(1)


@pytest.fixture
def room() -> str:
    return f"room{next(_rooms)}"


class Member:
    """A member of the tutorial's chat: it keeps each text that it receives."""

    def __init__(self, socket: ClientConnection, *, ours: bool) -> None:
        self.ours = ours
        self.received: list[str] = []
        self.expected: list[str] = []
        self._socket = socket
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def join(cls, server: WebServer, prefix: str, room: str) -> "Member":
        url = server.websocket(f"/{prefix}/ws/chat/{room}/")
        return cls(await connect(url, proxy=None), ours=prefix == "ours")

    async def _read(self) -> None:
        try:
            while True:
                self.received.append(json.loads(await self._socket.recv()).get("message", "published"))
        except ConnectionClosed:
            pass

    async def say(self, text: str) -> None:
        await self._socket.send(json.dumps({"message": text}))

    async def leave(self) -> None:
        await self._socket.close()
        await self._reading

    @property
    def close_code(self) -> int | None:
        return self._socket.close_code


async def say_and_check(sender: Member, members: list[Member], text: str, *, lost: bool) -> None:
    """Send a text to all, and wait until it has arrived wherever it must.

    Args:
        sender: The member that sends it.
        members: All members of the room.
        text: The text.
        lost: Our members receive nothing from a sender that is none of ours.
    """
    for member in members:
        if not (lost and member.ours and not sender.ours):
            member.expected.append(text)
    await sender.say(text)
    try:
        await eventually_async(
            lambda: all(each.received == each.expected for each in members), within=PATIENCE
        )
    except AssertionError:
        pytest.fail(
            "\n".join(
                f"ours={each.ours} code={each.close_code} received={each.received[-3:]} "
                f"expected={each.expected[-3:]}"
                for each in members
            )
        )


@pytest.mark.parametrize("order", [["before", "after"], ["after", "before"]], ids="-then-".join)
async def test_a_plain_member_outlives_the_joins_and_leaves_of_ours(
    site: Site, before: WebServer, after: WebServer, room: str, order: list[str]
) -> None:
    lost = site.pairing.layer == "core"
    joins = {"before": (before, "plain", room), "after": (after, "ours", room)}
    members: list[Member] = []
    for number, name in enumerate(order * 2):
        members.append(await Member.join(*joins[name]))
        for sender in members:
            await say_and_check(sender, members, f"{number} {len(sender.expected)}", lost=lost)
    for member in [each for each in members if each.ours]:
        await member.leave()
        members.remove(member)
        await say_and_check(members[0], members, "one of ours has left", lost=lost)
    # The group of this process was left, and is joined again.
    members.append(await Member.join(*joins["after"]))
    for sender in members:
        await say_and_check(sender, members, f"again {sender.ours}", lost=lost)
    assert {each.close_code for each in members} == {None}
    for member in members:
        await member.leave()


async def test_members_join_and_leave_in_any_order(
    site: Site, before: WebServer, after: WebServer, room: str
) -> None:
    lost = site.pairing.layer == "core"
    chance = random.Random(12)
    members: list[Member] = []
    for number in range(STEPS):
        if len(members) > 2 and chance.random() < 0.4:
            await members.pop(chance.randrange(len(members))).leave()
        else:
            server, prefix = chance.choice([(before, "plain"), (after, "ours")])
            members.append(await Member.join(server, prefix, room))
        await say_and_check(chance.choice(members), members, str(number), lost=lost)
    assert {each.close_code for each in members} == {None}
    for member in members:
        await member.leave()


async def test_what_the_core_layer_loses_during_the_deploy_is_counted(
    site: Site, before: WebServer, after: WebServer, room: str
) -> None:
    unstamped = int(site.pairing.layer == "core")
    plain, ours = await Member.join(before, "plain", room), await Member.join(after, "ours", room)
    first = (await asyncio.to_thread(scrape, after)).value("realtime_events_unstamped_total")
    await say_and_check(plain, [plain, ours], "from before", lost=bool(unstamped))
    await say_and_check(ours, [plain, ours], "from after", lost=bool(unstamped))
    now = (await asyncio.to_thread(scrape, after)).value("realtime_events_unstamped_total")
    assert now - first == unstamped
    assert ("did not say which group" in after.log_text()) is bool(unstamped)
    for member in (plain, ours):
        await member.leave()


async def test_publish_ends_members_on_the_layers_of_channels_redis(
    site: Site, before: WebServer, after: WebServer, room: str
) -> None:
    """The documentation says: publish only when every process has the new base classes."""
    plain, ours = await Member.join(before, "plain", room), await Member.join(after, "ours", room)
    await site.amanage("publish", f"chat_{room}", "1")
    await eventually_async(lambda: plain.close_code == 1011, within=PATIENCE)
    assert ours.close_code is None
    await ours.leave()
