"""Chromium for the tests in this folder, driven through Playwright."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.scripted import Client
from tests.support.clients.browsers import CHROMIUM_ARGUMENTS
from tests.support.fixtures import databases, start_shared_site

__all__ = ["databases", "start_shared_site"]

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def chromium_path() -> str:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    return str(CHROMIUM)


# Neither for the whole session nor through Playwright's synchronous interface: both would leave an event loop
# running under all other tests.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(chromium_path: str) -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM_ARGUMENTS)
        yield browser
        await browser.close()


# For the tests of realtime.js; other modules have a `page` of their own.
@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Browser) -> AsyncGenerator[Page]:
    context = await chromium.new_context()
    page = await context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    await context.close()
    assert failures == [], "an exception or a rejection was not handled"


@pytest_asyncio.fixture(loop_scope="module")
async def client(page: Page) -> Client:
    return await Client(page).start()
