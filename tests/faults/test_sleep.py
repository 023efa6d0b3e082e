"""A browser sleeps until the server has dropped its page. After it wakes up, the page has missed nothing.

It sleeps in one of two ways. `stopped`: the processes that run the page and its connections are stopped, like
those of a phone in a pocket. `cut-off`: the link of the browser is down, like that of a phone in a tunnel. In
this case the page notices it too, and tries in vain to connect again.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
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

pytestmark = [pytest.mark.faults, pytest.mark.browser]

GROUP = "public.news"
SIZE = 50  # messages that the history of the group keeps
PING_INTERVAL, PONG_TIMEOUT, MAX_SILENCE = 1.5, 1.0, 4.0
DROPPED_WITHIN = PING_INTERVAL + PONG_TIMEOUT + 5.0  # seconds; the last ones are for a busy machine
CURRENT_WITHIN = 10.0  # seconds; a machine that has nothing else to do needs less than 2
PATIENCE = 30.0  # seconds for everything that is not measured
PAIRING = PAIRINGS[0]

BROWSERS: dict[str, type[SleepingBrowser]] = {"webkit": WebKit, "chromium": Chromium, "firefox": Firefox}
WAYS = ("stopped", "cut-off")


def cases(*everyday: str, ways: tuple[str, ...] = WAYS) -> pytest.MarkDecorator:
    """Run a test with every browser and way to sleep. Cases that are not named have the mark `matrix`."""
    found = {f"{name}-{way}": (browser, way) for name, browser in BROWSERS.items() for way in ways}
    assert set(everyday) <= set(found), everyday
    return pytest.mark.parametrize(
        ("browser", "way"),
        [
            pytest.param(*case, id=name, marks=() if name in everyday else pytest.mark.matrix)
            for name, case in found.items()
        ],
    )


class Scene:
    """A browser with the page that lists the messages of a group, and a client that never sleeps."""

    def __init__(
        self, site: Site, url: str, browser: SleepingBrowser, network: NetworkNamespace | None, awake: Client
    ) -> None:
        self.site = site
        self.url = url
        self.browser = browser
        self.network = network
        self.awake = awake
        self.published: list[int] = []
        self._publisher = site.publisher(GROUP)

    async def publish(self, count: int) -> list[int]:
        """Publish the next numbers, wait until the client that never sleeps has them, and return them."""
        first = len(self.published) + 1
        numbers = [*range(first, first + count)]
        for number in numbers:
            self._publisher.send(str(number))
        await self.awake.seen(lambda frame: frame.get("data") == numbers[-1], within=PATIENCE)
        self.published += numbers
        return numbers

    async def shown(self, kind: str = "li") -> list[int]:
        """Return the numbers that the page shows, from top to bottom; `.recovered` for the missed ones."""
        return list(await self.browser.value(f"shown({kind!r})"))

    async def page(self) -> dict[str, Any]:
        """Return the state of the page."""
        return dict(await self.browser.value("page"))

    async def until(
        self, check: Callable[[], Awaitable[bool]], *, within: float = PATIENCE, since: float | None = None
    ) -> float:
        """Ask the page until the answer is true, and return the seconds since then, or since now.

        Each question takes a driver some milliseconds, so there is no pause between two.
        """
        began = time.monotonic() if since is None else since
        while not await check():
            assert time.monotonic() < began + within, f"{await self.page()} {await self.shown()}"
        return time.monotonic() - began

    async def open(self) -> None:
        """Load the page, and wait until it is in its group."""
        await self.browser.open(self.url)
        await self.until(self.is_member)

    async def is_member(self) -> bool:
        page = await self.page()
        return page["state"] == "open" and page["groups"] == [GROUP]

    async def shows(self, number: int) -> None:
        """Wait until the page shows this number."""
        await self.until(lambda: self.has_shown(number))

    async def has_shown(self, number: int) -> bool:
        return number in await self.shown()

    def fall_asleep(self) -> None:
        if self.network is None:
            self.browser.asleep()
        else:
            self.network.cut()

    async def dropped(self) -> None:
        """Wait until the server has dropped the page, and a page that can has noticed it."""
        await eventually_async(
            lambda: self.site.close_reasons() == {"ping_timeout": 1}, within=DROPPED_WITHIN
        )
        if self.network:
            await self.until(self._failed_three_times)

    async def _failed_three_times(self) -> bool:
        return (await self.page())["failures"] >= 3

    async def wake_up(self, m: SimpleNamespace, check: Callable[[], Awaitable[bool]]) -> None:
        """Wake the browser, and measure the time until the page gives a true answer."""
        if self.network is None:
            self.browser.awake()
        else:
            self.network.mend()
        woken_at, moment = time.monotonic(), time.time()
        m.current_after = await self.until(check, within=CURRENT_WITHIN, since=woken_at)
        if self.network and (online_at := (await self.page())["online_at"]):
            m.told_that_it_is_online_after = online_at - moment

    async def was_told_reset(self) -> bool:
        return bool((await self.page())["resets"])


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
        history = {"public.*": {"size": SIZE, "ttl": 300}}
        times = {"PING_INTERVAL": PING_INTERVAL, "PONG_TIMEOUT": PONG_TIMEOUT, "MAX_SILENCE": MAX_SILENCE}
        site = start_site(PAIRING, HISTORY=history, **times)
        server = site.serve(
            interface=network.host_address if network else "127.0.0.1",
            application="tests.support.applications.listing:application",
        )
        url = server.http(f"/listing/?group={GROUP}&remember=1")
        async with (
            Client(server.websocket(f"/ws/{GROUP}/")) as awake,
            browser(folder, network.prefix if network else ()) as opened,
        ):
            made = Scene(site, url, opened, network, awake)
            await made.open()
            yield made


@cases("webkit-stopped")
async def test_a_page_that_slept_misses_nothing(
    browser: type[SleepingBrowser], way: str, start_site: StartSite, tmp_path: Path
) -> None:
    async with scene(browser, way, start_site, tmp_path) as made:
        await made.shows((await made.publish(3))[-1])

        with measuring(f"asleep, {browser.__name__}, {way}", PAIRING) as m:
            made.fall_asleep()
            # The server writes these to a socket that is still open: the kernel may keep them for the page.
            await made.publish(5)
            await made.dropped()
            missed = await made.publish(30)
            await made.wake_up(m, lambda: made.has_shown(missed[-1]))
            m.recovered = (await made.page())["recovered"]

        await made.shows((await made.publish(3))[-1])
        assert await made.shown() == made.published
        page = await made.page()
        assert page["resets"] == 0
        recovered = await made.shown(".recovered")
        assert len(recovered) == page["recovered"]
        assert set(missed) <= set(recovered) <= set(made.published[3:-3])


@cases("chromium-stopped")
async def test_a_page_that_slept_too_long_is_told_so_once(
    browser: type[SleepingBrowser], way: str, start_site: StartSite, tmp_path: Path
) -> None:
    async with scene(browser, way, start_site, tmp_path) as made:
        before = await made.publish(3)
        await made.shows(before[-1])

        made.fall_asleep()
        await made.dropped()
        await made.publish(SIZE + 1)
        with measuring(f"asleep too long, {browser.__name__}, {way}", PAIRING) as m:
            await made.wake_up(m, made.was_told_reset)

        after = await made.publish(3)
        await made.shows(after[-1])
        assert await made.shown() == before + after
        page = await made.page()
        assert (page["resets"], page["recovered"]) == (1, 0)


@cases(ways=("reloaded",))
async def test_a_page_that_is_loaded_again_misses_nothing(
    browser: type[SleepingBrowser], way: str, start_site: StartSite, tmp_path: Path
) -> None:
    async with scene(browser, way, start_site, tmp_path) as made:
        await made.shows((await made.publish(3))[-1])
        await made.browser.open("about:blank")
        missed = await made.publish(10)
        await made.open()
        await made.shows(missed[-1])
        after = await made.publish(3)
        await made.shows(after[-1])
        assert await made.shown() == missed + after
        assert await made.shown(".recovered") == missed
        assert (await made.page())["resets"] == 0
