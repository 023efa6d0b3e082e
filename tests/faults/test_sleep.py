"""A browser sleeps until the server has dropped its page. After it wakes up, the page has missed nothing.

It sleeps in one of two ways. `stopped`: the processes that run the page and its connections are stopped, like
those of a phone in a pocket. `cut-off`: the link of the browser is down, like that of a phone in a tunnel.
"""

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measuring
from tests.support.clients.browsers import Chromium, Firefox, SleepingBrowser, WebKit
from tests.support.clients.websocket import Client
from tests.support.faults.network import NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import PAIRINGS
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.faults]

GROUP = "public.news"
TIMES = {"PING_INTERVAL": 1.5, "PONG_TIMEOUT": 1.0}
DROPPED_WITHIN = 2.5 + 6.0  # seconds: both times, and the record on a busy machine
AWAKE_WITHIN = 10.0  # seconds; a machine that has nothing else to do needs less than 2
PATIENCE = 30.0
PAIRING = PAIRINGS[0]

BROWSERS: dict[str, type[SleepingBrowser]] = {"webkit": WebKit, "chromium": Chromium, "firefox": Firefox}
WAYS = ("stopped", "cut-off")


def cases(*everyday: str) -> pytest.MarkDecorator:
    """Run a test with every browser and way to sleep. Those that are not named have the mark `matrix`."""
    found = {f"{name}-{way}": (browser, way) for name, browser in BROWSERS.items() for way in WAYS}
    assert set(everyday) <= set(found), everyday
    return pytest.mark.parametrize(
        ("browser", "way"),
        [
            pytest.param(*case, id=name, marks=() if name in everyday else pytest.mark.matrix)
            for name, case in found.items()
        ],
    )


class Scene:
    """One page that lists the messages of a group, and a client that is always awake."""

    def __init__(
        self, site: Site, browser: SleepingBrowser, network: NetworkNamespace | None, awake: Client
    ) -> None:
        self.site = site
        self.browser = browser
        self.network = network
        self.awake = awake
        self.published = 0
        self._publisher = site.publisher(GROUP)

    async def publish(self, count: int) -> list[int]:
        """Publish the next numbers, wait until the client that is awake has them, and return them."""
        numbers = [*range(self.published + 1, self.published + count + 1)]
        self.published += count
        for number in numbers:
            self._publisher.send(str(number))
        await self.awake.seen(lambda frame: frame.get("data") == numbers[-1], within=PATIENCE)
        return numbers

    async def shown(self) -> list[int]:
        """Return the numbers that the page shows, from top to bottom."""
        return list(await self.browser.value("shown()"))

    async def page(self) -> dict[str, Any]:
        """Return the state of the page."""
        return dict(await self.browser.value("page"))

    async def shows(self, number: int, *, within: float = PATIENCE) -> None:
        """Wait until the page shows this number."""
        deadline = time.monotonic() + within
        while number not in await self.shown():
            assert time.monotonic() < deadline, f"{number} is missing: {await self.page()}"

    async def is_open(self, *, within: float = PATIENCE) -> None:
        """Wait until the page is connected and in its group."""
        deadline = time.monotonic() + within
        while (page := await self.page())["state"] != "open" or page["joined"] != 1:
            assert time.monotonic() < deadline, page

    def fall_asleep(self) -> None:
        if self.network is None:
            self.browser.asleep()
        else:
            self.network.cut()

    async def dropped(self) -> None:
        """Wait until the server has dropped the page, and no other connection."""
        await eventually_async(
            lambda: self.site.close_reasons() == {"ping_timeout": 1}, within=DROPPED_WITHIN
        )

    def wake_up(self) -> float:
        """Return the time of the monotonic clock."""
        if self.network is None:
            self.browser.awake()
        else:
            self.network.mend()
        return time.monotonic()


@asynccontextmanager
async def scene(
    browser: type[SleepingBrowser], way: str, start_site: StartSite, folder: Path, **realtime: object
) -> AsyncIterator[Scene]:
    """Open the page in this browser, and wait until it is in its group."""
    browser.require()
    with contextlib.ExitStack() as running:
        network = None
        if way == "cut-off":
            require_namespaces()
            network = running.enter_context(NetworkNamespace())
            network.lead_out()
        site = start_site(PAIRING, **TIMES, **realtime)
        server = site.serve(
            interface=network.host_address if network else "127.0.0.1",
            application="tests.support.applications.listing:application",
        )
        async with (
            Client(server.websocket(f"/ws/{GROUP}/")) as awake,
            browser(folder, network.prefix if network else ()) as opened,
        ):
            made = Scene(site, opened, network, awake)
            await opened.open(server.http(f"/listing/?group={GROUP}"))
            await made.is_open()
            yield made


@cases("webkit-stopped")
async def test_a_page_that_slept_is_back_soon(
    browser: type[SleepingBrowser], way: str, start_site: StartSite, tmp_path: Path
) -> None:
    async with scene(browser, way, start_site, tmp_path) as made:
        before = await made.publish(3)
        await made.shows(before[-1])
        with measuring(f"asleep, {browser.__name__}, {way}", PAIRING) as m:
            made.fall_asleep()
            await made.dropped()
            await made.publish(5)
            woken_at = made.wake_up()
            while (page := await made.page())["connections"] != 2 or page["joined"] != 1:
                assert time.monotonic() < woken_at + AWAKE_WITHIN, page
            m.back_after = time.monotonic() - woken_at
        after = await made.publish(1)
        await made.shows(after[-1])
