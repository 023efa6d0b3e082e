"""The demo page in Chromium when rights end, because the user logs out or an operator takes them away."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser.test_page import PATIENCE, Complaints, join, open_page
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "a password of the test"


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing, REFRESH_BEFORE=3.0, MAX_CONNECTIONS_PER_USER=3)


@pytest.fixture(scope="module")
def servers(site: Site) -> tuple[WebServer, WebServer]:
    """Start a server that holds connections, and one that serves the admin."""
    return site.serve(), site.serve()


@pytest_asyncio.fixture(loop_scope="module")
async def context(chromium: Browser, site: Site) -> AsyncGenerator[BrowserContext]:
    """A browser, for the user ada, who may do everything."""
    script = (
        "from django.contrib.auth.models import User\n"
        "User.objects.filter(username='ada').delete()\n"
        f"User.objects.create_superuser('ada', password={PASSWORD!r})"
    )
    await run(site, script)
    context = await chromium.new_context()
    context.set_default_timeout(PATIENCE)
    yield context
    await context.close()


async def run(site: Site, script: str) -> None:
    done = await site.amanage("shell", "--verbosity=0", "-c", script)
    assert done.returncode == 0, done.stderr


async def logged_in(context: BrowserContext, server: WebServer) -> Page:
    """Log in, and return the tab, which shows the admin."""
    tab = await context.new_page()
    await tab.goto(server.http("/admin/"))
    await tab.fill("#id_username", "ada")
    await tab.fill("#id_password", PASSWORD)
    await tab.click("[type=submit]")
    await expect(tab.locator("#logout-form")).to_be_visible()
    return tab


async def demo(context: BrowserContext, server: WebServer) -> Page:
    page = await context.new_page()
    # The cookies are those of the host, with any port.
    await page.goto(server.http())
    await expect(page.locator("#state")).to_have_attribute("data-state", "open")
    await expect(page.locator("#account")).to_have_text("ada")
    return page


async def test_a_logout_in_another_tab_ends_each_page_of_the_user(
    context: BrowserContext, servers: tuple[WebServer, WebServer], chromium: Browser
) -> None:
    admin = await logged_in(context, servers[1])
    pages = [await demo(context, server) for server in (*servers, servers[0])]
    complaints = [Complaints(page) for page in pages]
    stranger = await chromium.new_context(base_url=servers[0].http())
    try:
        other = await stranger.new_page()
        await open_page(other)
        await admin.locator("#logout-form button").click()
        for page in pages:
            await expect(page.locator("#rights")).to_have_text("You are signed out. Sign in")
            await expect(page.locator("#state")).to_have_attribute("data-state", "closed")
            await expect(page.locator("#last-close")).to_contain_text("4501, not signed in")
            await expect(page.locator("#account")).to_have_text("Sign in")
            await expect(page.locator("#here-groups li")).to_have_count(0)
        await expect(other.locator("#state")).to_have_attribute("data-state", "open")
        assert [each.seen for each in complaints] == [[], [], []]
        # The link leads back to this page, as the user.
        await pages[0].locator("#rights a").click()
        await pages[0].fill("#id_username", "ada")
        await pages[0].fill("#id_password", PASSWORD)
        await pages[0].click("[type=submit]")
        await expect(pages[0].locator("#account")).to_have_text("ada")
        await expect(pages[0].locator("#state")).to_have_attribute("data-state", "open")
        await expect(pages[0].locator("#rights")).to_be_empty()
    finally:
        await stranger.close()


async def test_a_user_who_is_no_staff_any_more_leaves_the_group(
    context: BrowserContext, servers: tuple[WebServer, WebServer], site: Site
) -> None:
    await logged_in(context, servers[1])
    page = await demo(context, servers[0])
    await join(page, "staff.news")
    await run(
        site,
        "from django.contrib.auth.models import User\n"
        "user = User.objects.get(username='ada')\n"
        "user.is_staff = False\n"
        "user.save()",
    )
    await expect(page.locator("#join-feedback")).to_have_text("Removed from staff.news: not allowed")
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])
    await expect(page.locator('#here-groups [data-group="staff.news"]')).to_have_count(0)
    await expect(page.locator("#state")).to_have_attribute("data-state", "open")
    done = await site.amanage("publish", "staff.news", '"secret"')
    assert done.returncode == 0, done.stderr
    done = await site.amanage("publish", "public.lobby", '"public"')
    assert done.returncode == 0, done.stderr
    await expect(page.locator("#log pre")).to_have_text(["public"])


async def test_a_user_who_is_deactivated_may_not_come_back(
    context: BrowserContext, servers: tuple[WebServer, WebServer], site: Site
) -> None:
    await logged_in(context, servers[1])
    page = await demo(context, servers[0])
    await run(
        site,
        "from django.contrib.auth.models import User\n"
        "user = User.objects.get(username='ada')\n"
        "user.is_active = False\n"
        "user.save()",
    )
    await expect(page.locator("#rights")).to_have_text("You may not use this connection any more.")
    await expect(page.locator("#last-close")).to_contain_text("4503, not allowed")


async def test_a_session_that_expires_is_announced_and_ends_the_page(
    context: BrowserContext, servers: tuple[WebServer, WebServer], site: Site
) -> None:
    await logged_in(context, servers[1])
    await run(
        site,
        "from datetime import timedelta\n"
        "from django.contrib.sessions.models import Session\n"
        "from django.utils import timezone\n"
        "Session.objects.update(expire_date=timezone.now() + timedelta(seconds=8))",
    )
    page = await demo(context, servers[0])
    await expect(page.locator("#log li", has_text="The session ends in 3 s")).to_have_count(1)
    await expect(page.locator("#rights")).to_have_text("You are signed out. Sign in")
    # The server has answered the refresh of the page.
    await expect(page.locator("#log .bad")).to_have_count(0)


async def test_a_page_above_the_limit_of_its_user_waits_for_a_place(
    context: BrowserContext, servers: tuple[WebServer, WebServer]
) -> None:
    await logged_in(context, servers[1])
    pages = [await demo(context, server) for server in (*servers, servers[0])]
    page = await context.new_page()
    await page.goto(servers[1].http())
    await expect(page.locator("#rights")).to_contain_text("There are too many connections")
    await expect(page.locator("#last-close")).to_contain_text("4030, too many connections")
    await expect(page.locator("#state")).not_to_have_attribute("data-state", "open")
    await pages[0].close()
    await expect(page.locator("#state")).to_have_attribute("data-state", "open", timeout=3 * PATIENCE)
    await expect(page.locator("#rights")).to_be_empty()
