"""The admin in Chromium: a user disconnects a page of another server process."""

import re
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.test_page import PATIENCE, PHONE, Complaints, open_page
from tests.support.assertions.eventually import eventually_async
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

USER = {
    "DJANGO_SUPERUSER_USERNAME": "ada",
    "DJANGO_SUPERUSER_PASSWORD": "lovelace",
    "DJANGO_SUPERUSER_EMAIL": "ada@example.com",
}


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    site = start_shared_site(pairing)
    done = site.manage("createsuperuser", "--noinput", **USER)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def servers(site: Site) -> tuple[WebServer, WebServer]:
    """Start a server that holds connections, and one that serves the admin."""
    return site.serve(), site.serve()


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Browser, servers: tuple[WebServer, WebServer]) -> AsyncGenerator[Page]:
    async for page in _page_of(chromium, servers[0]):
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def admin(chromium: Browser, servers: tuple[WebServer, WebServer]) -> AsyncGenerator[Page]:
    async for page in _page_of(chromium, servers[1]):
        await page.goto("/admin/login/?next=/admin/realtime/connection/")
        await page.fill("#id_username", USER["DJANGO_SUPERUSER_USERNAME"])
        await page.fill("#id_password", USER["DJANGO_SUPERUSER_PASSWORD"])
        await page.click("[type=submit]")
        yield page


async def _page_of(chromium: Browser, server: WebServer) -> AsyncGenerator[Page]:
    context = await chromium.new_context(base_url=server.http())
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    await context.close()


async def id_of(page: Page) -> str:
    return await page.locator("#connection-id").inner_text()


async def test_a_page_is_disconnected_from_the_admin_and_stays_so(
    page: Page, admin: Page, site: Site
) -> None:
    complaints = Complaints(admin)
    await open_page(page)
    id = await id_of(page)
    await admin.goto(f"/admin/realtime/connection/?q={id}")
    row = admin.locator("#result_list tbody tr")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text("open")
    await expect(row).to_contain_text("public.lobby")
    await row.get_by_role("checkbox").check()
    await admin.select_option("[name=action]", "disconnect_selected")
    await admin.get_by_role("button", name="Go").click()
    await expect(admin.locator("#content")).to_contain_text(f"{id} anonymous on /ws/")
    await admin.get_by_role("button", name="Disconnect 1").click()
    await expect(admin.locator(".messagelist")).to_have_text(
        re.compile(r"Asked 1 process to disconnect 1 connection\.")
    )

    await expect(page.locator("#state")).to_have_text("Closed")
    await expect(page.locator("#last-close")).to_contain_text("4504, closed by an administrator")
    await expect(page.locator("#groups li")).to_have_count(0)

    # The record is closed after the client has been told.
    kicked = "SELECT count(*) AS number FROM realtime_connection WHERE close_reason = 'kicked'"
    await eventually_async(lambda: site.database.value(kicked) == 1, within=PATIENCE / 1000)
    await admin.goto(f"/admin/realtime/connection/{id}/change/")
    await expect(admin.locator(".rt-timeline .rt-closed")).to_contain_text("Closed kicked, code 4504")
    await expect(admin.get_by_role("button", name="Disconnect")).to_have_count(0)
    assert complaints.seen == []


async def test_the_list_and_the_pages_fit_a_phone(page: Page, admin: Page) -> None:
    await open_page(page)
    await open_page(await admin.context.new_page())  # of the user whom the list shows
    await admin.goto("/admin/realtime/presentuser/")
    user = await admin.locator("#result_list .field-user a").get_attribute("href")
    await admin.set_viewport_size(PHONE)
    for address in (
        "connection/?state=open",
        f"connection/{await id_of(page)}/change/",
        "process/",
        "presentuser/",
        user.removeprefix("/admin/realtime/"),
    ):
        await admin.goto(f"/admin/realtime/{address}")
        scrolled = await admin.evaluate("document.scrollingElement.scrollWidth")
        assert scrolled <= await admin.evaluate("innerWidth"), address
    await admin.goto("/admin/realtime/connection/")
    await admin.locator(".rt-pick summary").filter(has_text="State").click()
    await admin.locator(".rt-pick a").filter(has_text="open").click()
    await expect(admin).to_have_url(re.compile(r"\?state=open$"))
    await admin.check("#action-toggle")
    await expect(admin.locator("tr.selected")).to_have_count(2)


async def test_a_user_is_disconnected_from_the_admin(admin: Page, site: Site) -> None:
    complaints = Complaints(admin)
    phone = await admin.context.new_page()
    await open_page(phone)  # the same user in a second tab
    await admin.goto("/admin/realtime/presentuser/")
    await admin.locator("#result_list .field-user a").click()
    await admin.get_by_role("button", name="Disconnect").click()
    await expect(admin.locator("#content")).to_contain_text("asked to disconnect 1 open connection.")
    await admin.get_by_role("button", name="Disconnect 1").click()
    await expect(admin.locator(".messagelist")).to_have_text(
        re.compile(r"Asked 1 process to disconnect 1 connection\.")
    )
    await expect(phone.locator("#last-close")).to_contain_text("4504, closed by an administrator")
    assert complaints.seen == []


async def test_no_page_breaks_the_content_security_policy(page: Page, admin: Page) -> None:
    complaints = Complaints(admin)
    await open_page(page)
    await open_page(await admin.context.new_page())
    process = await _first_link(admin, "process/")
    user = await _first_link(admin, "presentuser/")
    for address in (
        "/",
        "/admin/",
        "/admin/realtime/",
        "/admin/realtime/connection/?state=open&group=public.lobby",
        "/admin/realtime/connection/?q=/ws/",
        f"/admin/realtime/connection/{await id_of(page)}/change/",
        f"/admin/realtime/connection/{await id_of(page)}/history/",
        "/admin/realtime/process/",
        process,
        "/admin/realtime/presentuser/",
        user,
        "/admin/password_change/",
    ):
        answer = await admin.goto(address)
        assert answer is not None
        assert "'unsafe-inline'" not in answer.headers["content-security-policy"], address
        await admin.wait_for_load_state()
        # The policy is in force: a script inside of the page does not run.
        assert complaints.seen == [], address
        assert await admin.evaluate(INLINE) == ["script-src-elem", "style-src-attr"], address
        complaints.seen.clear()
    for kind, row in (("connection", "disconnect_selected"), ("presentuser", "disconnect_selected")):
        await admin.goto(f"/admin/realtime/{kind}/?state={'open' if kind == 'connection' else 'online'}")
        await admin.check("#action-toggle")
        await admin.select_option("[name=action]", row)
        await admin.get_by_role("button", name="Go").click()
        await expect(admin.locator("#content")).to_contain_text("will be asked to disconnect")
    assert complaints.seen == []


INLINE = """async () => {
  const violated = [];
  addEventListener("securitypolicyviolation", (event) => violated.push(event.effectiveDirective));
  const script = document.createElement("script");
  script.textContent = "window.inlineRan = true";
  document.body.append(script);
  const text = document.createElement("p");
  text.setAttribute("style", "color: red");
  document.body.append(text);
  for (let turn = 0; violated.length < 2 && turn < 100; turn++) {
    await new Promise((resume) => setTimeout(resume, 20));
  }
  return window.inlineRan ? ["it ran"] : violated.sort();
}"""


async def _first_link(admin: Page, model: str) -> str:
    """Return the address of the page of the first row in the list of a model."""
    await admin.goto(f"/admin/realtime/{model}")
    address = await admin.locator(f"#result_list a[href*='/realtime/{model}']").first.get_attribute("href")
    assert address is not None
    return address
