"""The page of docs/howto/use-the-client.md for plain HTML, opened in Chromium as it stands there."""

import json
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, Route

from tests.browser.scripted import MODULE, ORIGIN
from tests.support.applications.tutorial import HOWTO

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

GROUP = "public.orders"


class Orders:
    """The page, and the state that its server has."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.stored = [{"id": 1, "text": "loaded"}]

    async def open(self) -> None:
        await self.page.route(f"{ORIGIN}/**", self._serve)
        await self.page.add_init_script(path=Path(__file__).parent / "fake_websocket.js")
        await self.page.goto(f"{ORIGIN}/orders.html")
        await self.page.wait_for_function("WebSocket.all.length === 1")

    async def _serve(self, route: Route) -> None:
        path = route.request.url.removeprefix(ORIGIN)
        if path == "/orders.html":
            await route.fulfill(path=HOWTO / "client/orders.html", content_type="text/html")
        elif path == "/static/realtime/realtime.js":
            await route.fulfill(path=MODULE, content_type="text/javascript")
        else:
            assert path == "/orders.json"
            await route.fulfill(json=self.stored)

    async def accept(self) -> None:
        await self.page.evaluate("WebSocket.all.at(-1).accept()")
        welcome = {"type": "welcome", "connection": "c", "max_silence": 45, "groups": []}
        await self.says(welcome)

    async def says(self, *frames: dict[str, object]) -> None:
        # One task for each, as a browser delivers them.
        for frame in frames:
            await self.page.evaluate("(text) => WebSocket.all.at(-1).deliver(text)", json.dumps(frame))

    async def shows(self, *lines: str) -> None:
        shown = "[...document.querySelectorAll('li')].map((line) => line.className + line.textContent)"
        await self.page.wait_for_function(f"(lines) => {shown}.join() === lines", arg=",".join(lines))


@pytest_asyncio.fixture(loop_scope="module")
async def orders(page: Page) -> Orders:
    orders = Orders(page)
    await orders.open()
    await orders.accept()
    return orders


def joined(ref: int, offset: int, **fields: object) -> dict[str, object]:
    return {"type": "joined", "group": GROUP, "ref": ref, "epoch": "e", "offset": offset, **fields}


def message(offset: int, id_: int, text: str) -> dict[str, object]:
    data = {"id": id_, "text": text}
    return {"type": "message", "group": GROUP, "data": data, "epoch": "e", "offset": offset}


async def test_the_page_shows_the_state_and_what_happens_to_it(orders: Orders) -> None:
    await orders.says(joined(1, 3), message(4, 2, "new"))
    await orders.shows("loaded", "new")
    await orders.says(message(5, 1, "changed"))
    await orders.shows("new", "changed")
    assert await orders.page.text_content("#state") == "open"

    await orders.page.evaluate("WebSocket.all.at(-1).drop(1006)")
    await orders.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await orders.accept()
    await orders.says(joined(2, 6, recovered=True), message(6, 3, "missed"))
    await orders.shows("new", "changed", "latemissed")


async def test_the_page_loads_its_state_again_after_a_reset(orders: Orders) -> None:
    await orders.says(joined(1, 3), message(4, 2, "gone"))
    await orders.shows("loaded", "gone")
    orders.stored = [{"id": 7, "text": "other"}]
    await orders.says({"type": "reset", "group": GROUP, "epoch": "f", "offset": 0})
    await orders.shows("other")


async def test_a_page_that_was_removed_from_its_group_shows_nothing(orders: Orders) -> None:
    await orders.says(joined(1, 3), message(4, 2, "secret"))
    await orders.shows("loaded", "secret")
    await orders.says({"type": "removed", "group": GROUP, "reason": "forbidden"})
    await orders.shows()
