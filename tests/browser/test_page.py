"""The demo page in Chromium, served by a real server, with a real Redis behind it."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Response, expect

from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 20_000.0  # milliseconds that a busy machine may take for a step that usually takes a few
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing, PING_INTERVAL=1.5, PONG_TIMEOUT=1.0)


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


class Complaints:
    """The complaints of a page, as a visitor would find them in the developer tools."""

    def __init__(self, page: Page) -> None:
        self.seen: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.seen.append(str(error)))
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.seen.append(message.text)

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.seen.append(f"{response.status} for {response.url}")


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Browser, server: WebServer) -> AsyncGenerator[Page]:
    context = await chromium.new_context(base_url=server.http())
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    await context.close()


async def open_page(page: Page) -> None:
    """Open the page, and wait until it has connected and joined its group by itself."""
    await page.goto("/")
    await expect(page.locator("#state")).to_have_attribute("data-state", "open")
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])


async def publish(page: Page, group: str, data: str) -> None:
    await page.fill("#publish-group", group)
    await page.fill("#publish-data", data)
    await page.click("#publish")


async def test_the_page_connects_joins_and_measures_by_itself(page: Page) -> None:
    complaints = Complaints(page)
    await open_page(page)
    connection = await page.locator("#connection-id").inner_text()
    await expect(page.locator("#log li").last).to_contain_text(f"Connected as {connection}")
    await expect(page.locator("#round-trip")).to_contain_text("ms")
    await expect(page.locator("#last-ping")).to_contain_text("answered at")
    assert complaints.seen == []


async def test_messages_of_the_page_come_back_as_json_or_as_text(page: Page) -> None:
    complaints = Complaints(page)
    await open_page(page)
    await publish(page, "public.lobby", '{"from": "the page"}')
    await expect(page.locator("#log pre").first).to_have_text('{"from":"the page"}')
    await expect(page.locator("#publish-feedback")).to_contain_text("Published")
    await publish(page, "public.lobby", "{not JSON")
    await expect(page.locator("#log pre").first).to_have_text("{not JSON")
    await expect(page.locator("#log li").first).to_contain_text("from an anonymous user")
    assert complaints.seen == []


async def test_a_message_of_the_command_arrives(page: Page, site: Site) -> None:
    await open_page(page)
    done = await site.amanage("publish", "public.lobby", '{"hello": 1}')
    assert done.returncode == 0, done.stderr
    await expect(page.locator("#log pre").first).to_have_text('{"hello":1}')
    await expect(page.locator("#log li").first).to_contain_text("from the server")


async def test_text_that_looks_like_html_stays_text(page: Page) -> None:
    await open_page(page)
    await publish(page, "public.lobby", "<img src=x onerror=alert(1)>")
    await expect(page.locator("#log pre").first).to_have_text("<img src=x onerror=alert(1)>")
    await expect(page.locator("#log img")).to_have_count(0)


async def test_groups_are_joined_left_and_refused(page: Page) -> None:
    await open_page(page)
    await page.fill("#join-group", "public.other")
    await page.keyboard.press("Enter")
    await expect(page.locator("#groups span")).to_have_text(["public.lobby", "public.other"])
    await page.get_by_role("button", name="Leave public.lobby").click()
    await expect(page.locator("#groups span")).to_have_text(["public.other"])
    await page.fill("#join-group", "staff.news")
    await page.keyboard.press("Enter")
    await expect(page.locator("#join-feedback")).to_contain_text("forbidden")
    await expect(page.locator("#groups span")).to_have_text(["public.other"])


async def test_disconnect_is_final_and_connect_joins_the_groups_again(page: Page) -> None:
    await open_page(page)
    await page.click("#disconnect")
    await expect(page.locator("#state")).to_have_text("Closed")
    await expect(page.locator("#groups li")).to_have_count(0)
    await page.click("#connect")
    await expect(page.locator("#state")).to_have_text("Open")
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])


async def test_a_killed_server_is_noticed_and_its_successor_found(
    page: Page, site: Site, server: WebServer
) -> None:
    await open_page(page)
    before = await page.locator("#connection-id").inner_text()
    server.kill()
    await expect(page.locator("#state-text")).to_have_text("Reconnecting")
    await expect(page.locator("#last-close")).to_contain_text("1006")
    await expect(page.locator("#publish")).to_be_disabled()
    server.start()
    await expect(page.locator("#state")).to_have_text("Open", timeout=3 * PATIENCE)
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])
    assert await page.locator("#connection-id").inner_text() != before
    done = await site.amanage("publish", "public.lobby", '"after the restart"')
    assert done.returncode == 0, done.stderr
    await expect(page.locator("#log pre").first).to_have_text("after the restart")


async def test_nothing_overflows_on_a_phone(page: Page) -> None:
    await page.set_viewport_size(PHONE)
    await open_page(page)
    await publish(page, "public.lobby", "w" * 300)
    await expect(page.locator("#log pre").first).to_have_text("w" * 300)
    group = "public." + "g" * 92
    await page.fill("#join-group", group)
    await page.keyboard.press("Enter")
    await expect(page.locator("#groups li")).to_have_count(2)
    scrolled = await page.evaluate("document.scrollingElement.scrollWidth")
    assert scrolled <= await page.evaluate("innerWidth")


async def test_the_page_runs_only_its_own_code(page: Page) -> None:
    await open_page(page)
    await page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.text = "window.stranger = 1";
            document.body.append(script);
        }"""
    )
    assert await page.evaluate("window.stranger") is None


async def test_every_control_has_a_name(page: Page) -> None:
    await open_page(page)
    nameless = await page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")]
            .filter((each) => !each.labels?.length && !each.textContent.trim() && !each.ariaLabel)
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
