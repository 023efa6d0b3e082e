"""The demo page in Chromium, served by a real server, with a real Redis behind it."""

import asyncio
import re
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Response,
    WebSocketRoute,
    expect,
)

from realtime import closing
from realtime.closing import CloseReason
from realtime.wire import frames
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 20_000.0  # milliseconds that a busy machine may take for a step that usually takes a few
PHONE = {"width": 390, "height": 844}
HISTORY = {"public.short": {"size": 1, "ttl": 300}, "public.*": {"size": 300, "ttl": 300}}
#: The visible texts and labels of a page that a translator would translate.
TRANSLATABLE = """() => {
    const found = [document.title];
    for (const each of document.querySelectorAll("[aria-label], [title]")) {
        if (each.translate) found.push(each.getAttribute("aria-label") ?? "", each.title);
    }
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        if (walker.currentNode.parentElement.translate) found.push(walker.currentNode.data);
    }
    return found.map((each) => each.trim()).filter(Boolean);
}"""
#: Latin letters on a Chinese page: names of things, ids, groups, the codes of errors, tags in <noscript>.
NAMES = re.compile(
    r"<[^>]+>|\b(ping|JSON|JavaScript|Redis|realtime)\b|[0-9a-f-]{12,}|(public|staff)\.\w+|\(\w+\)"
)

#: Creates a user with each of the `names`, and prints a session of each.
LOG_IN = """
from django.contrib.auth.models import User
from django.test import Client
for name in names:
    client = Client()
    client.force_login(User.objects.create_user(name))
    print(client.session.session_key)
"""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    # A page that sleeps is closed after 3.5 s. A user who has gone is here for another second.
    return start_shared_site(
        pairing, PING_INTERVAL=2.0, PONG_TIMEOUT=1.5, PRESENCE_GRACE=1.0, HISTORY=HISTORY
    )


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


async def untranslated(page: Page) -> list[str]:
    texts: list[str] = await page.evaluate(TRANSLATABLE)
    return [each for each in texts if re.search("[A-Za-z]", NAMES.sub("", each))]


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
    await expect(page.locator("#here-stale")).to_contain_text("Not current")
    server.start()
    await expect(page.locator("#state")).to_have_text("Open", timeout=3 * PATIENCE)
    await expect(page.locator("#here-stale")).to_be_empty()
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
        """() => [...document.querySelectorAll("button, input:not([type=hidden]), textarea")]
            .filter((each) => !each.labels?.length && !each.textContent.trim() && !each.ariaLabel)
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []


async def join(page: Page, group: str) -> None:
    await page.fill("#join-group", group)
    await page.keyboard.press("Enter")
    await expect(page.locator(f'#groups [data-group="{group}"]')).to_be_visible()


async def fall_asleep(page: Page) -> str:
    """Send the page to sleep, and return the id of its connection."""
    # The test wakes it. On a busy machine, the page would wake too early with the times that it offers.
    await page.locator("[name=seconds]:checked").evaluate("each => { each.value = '60'; }")
    await page.click("#sleep-button")
    await expect(page.locator("#state")).to_have_attribute("data-state", "asleep")
    return await page.locator("#connection-id").inner_text()


async def closed_as(site: Site, connection: str) -> str:
    """Wait until the server has closed a connection, and return the reason."""
    async with asyncio.timeout(PATIENCE / 1000):
        while not (reason := site.close_reason(connection)):
            await asyncio.sleep(0.1)
    return reason


async def test_a_page_that_slept_too_long_shows_what_it_recovered(page: Page, site: Site) -> None:
    complaints = Complaints(page)
    await open_page(page)
    await join(page, "public.short")
    other = await page.context.new_page()
    await open_page(other)
    slept = await fall_asleep(page)
    await expect(page.locator("#here-stale")).to_contain_text("Not current")
    assert await closed_as(site, slept) == "ping_timeout"
    for group, data in [("lobby", "one"), ("short", "lost"), ("lobby", "two"), ("short", "kept")]:
        await publish(other, f"public.{group}", data)
        await expect(other.locator("#publish-feedback")).to_contain_text("Published")
    await expect(page.locator("#log pre")).to_have_count(0)
    await page.click("#sleep-button")
    await expect(page.locator("#sleep-report")).to_have_text(
        re.compile(
            r"Slept \d+ s\. The server closed the connection after \d+ s\. "
            r"2 messages were recovered in \d+\.\d+ s\. Messages of public\.short are lost\."
        )
    )
    await expect(page.locator("#log .recovered pre")).to_have_text(["two", "one"])
    await expect(page.locator("#log .recovered .mark")).to_have_text(["recovered", "recovered"])
    await expect(page.locator('#groups [data-group="public.lobby"] dl')).to_contain_text("2 messages")
    await expect(page.locator('#groups [data-group="public.short"] dl')).to_contain_text(
        "what this page missed is no longer kept"
    )
    await expect(page.locator("#sleep-button")).to_be_focused()
    await publish(page, "public.lobby", "live")
    await expect(page.locator("#log pre")).to_have_text(["live", "two", "one"])
    await expect(page.locator("#log .recovered")).to_have_count(2)
    await expect(page.locator("#here-stale")).to_be_empty()
    assert complaints.seen == []


async def test_a_page_that_is_loaded_again_recovers(page: Page) -> None:
    await open_page(page)
    other = await page.context.new_page()
    await open_page(other)
    await page.goto("about:blank")
    await publish(other, "public.lobby", "meanwhile")
    await expect(other.locator("#publish-feedback")).to_contain_text("Published")
    await open_page(page)
    await expect(page.locator("#log .recovered pre")).to_have_text(["meanwhile"])


async def log_in(site: Site, *names: str) -> list[str]:
    """Create users, and return a session of each."""
    done = await site.amanage("shell", "--verbosity=0", "-c", f"names = {names!r}\n{LOG_IN}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


async def test_the_page_shows_who_is_here(chromium: Browser, server: WebServer, site: Site) -> None:
    async def visit(session: str | None, locale: str) -> Page:
        context = await chromium.new_context(base_url=server.http(), locale=locale)
        contexts.append(context)
        if session:
            await context.add_cookies([{"name": "sessionid", "value": session, "url": server.http()}])
        page = await context.new_page()
        complaints.append(Complaints(page))
        await open_page(page)
        return page

    markup = "<img src=x onerror=alert(1)>"
    complaints: list[Complaints] = []
    contexts: list[BrowserContext] = []
    sessions = await log_in(site, "anne", markup)
    try:
        anne = await visit(sessions[0], "en")
        here, numbers = anne.locator("#here-groups li"), anne.locator("#here-groups p").first
        await expect(here).to_have_text(["anne (you)"])
        await visit(sessions[1], "en")
        await expect(here).to_have_text(["anne (you)", markup])
        await expect(anne.locator("#log li", has_text="came")).to_contain_text(f"{markup} came")
        stranger = await visit(None, "zh-CN")
        await expect(stranger.locator("#here-groups li")).to_have_text(["anne", markup])
        await expect(stranger.locator("#here-groups p").first).to_have_text(
            re.compile("共 3.2 位用户.1 位未登录的访客.您")
        )
        await expect(numbers).to_have_text("3 in all: 2 users, 1 visitor not signed in")
        await contexts[1].close()
        await expect(here).to_have_text(["anne (you)"])
        await expect(anne.locator("#log li", has_text="left")).to_contain_text(f"{markup} left")
        await expect(stranger.locator("#log li", has_text="离开")).to_contain_text(f"{markup} 离开了")
        assert await untranslated(stranger) == []
        assert [each.seen for each in complaints] == [[], [], []]
    finally:
        for context in contexts:
            await context.close()


async def test_the_language_is_chosen_by_the_browser_or_by_a_button(page: Page) -> None:
    complaints = Complaints(page)
    await open_page(page)
    await expect(page.locator("html")).to_have_attribute("lang", "en")
    await page.get_by_role("button", name="简体中文").click()
    await expect(page.locator("html")).to_have_attribute("lang", "zh-hans")
    await expect(page.locator("#state-text")).to_have_text("已连接")
    await page.reload()
    await expect(page.locator("#connection-title")).to_have_text("连接")
    await page.get_by_role("button", name="English").click()
    await expect(page.locator("#connection-title")).to_have_text("Connection")
    assert complaints.seen == []


async def test_the_chinese_page_has_no_english_text(chromium: Browser, server: WebServer) -> None:
    context = await chromium.new_context(base_url=server.http(), locale="zh-CN")
    try:
        page = await context.new_page()
        complaints = Complaints(page)
        await open_page(page)
        await expect(page.locator("#round-trip")).to_contain_text("毫秒")
        await expect(page.locator("#last-ping")).to_contain_text("应答于")
        await page.fill("#join-group", "staff.news")
        await page.keyboard.press("Enter")
        await expect(page.locator("#join-feedback")).to_contain_text("您没有权限")
        await publish(page, "public.lobby", "{not JSON")
        await expect(page.locator("#log pre")).to_have_text(["{not JSON"])
        assert await untranslated(page) == []
        await fall_asleep(page)
        assert await untranslated(page) == []
        await page.click("#sleep-button")
        await expect(page.locator("#sleep-report")).to_contain_text("休眠了")
        await page.click("#disconnect")
        await expect(page.locator("#state-text")).to_have_text("已关闭")
        assert await untranslated(page) == []
        assert complaints.seen == []
    finally:
        await context.close()


class Talkative:
    """The server of one page. The test may speak and close in its name."""

    def __init__(self) -> None:
        self._routes: list[WebSocketRoute] = []
        #: While it is not set, new sockets wait.
        self.takes = asyncio.Event()
        self.takes.set()

    async def stand_before(self, page: Page) -> None:
        await page.route_web_socket(re.compile("/ws/"), self._take)

    async def _take(self, route: WebSocketRoute) -> None:
        await self.takes.wait()
        route.connect_to_server()
        self._routes.append(route)

    def says(self, frame: frames.ServerFrame) -> None:
        self._routes[-1].send(frames.build(frame))

    async def ends(self, reason: CloseReason) -> None:
        self.says(frames.Goodbye(reason.value, closing.may_reconnect(reason.code)))
        await self._routes[-1].close(code=reason.code, reason=reason.value)


#: What the page says, in English and in Chinese, when the server ends the connection for a reason.
ENDINGS = {
    CloseReason.NOT_AUTHENTICATED: ("You are signed out. Sign in", "您已退出登录。 登录"),
    CloseReason.FORBIDDEN: ("You may not use this connection any more.", "您不能再使用此连接。"),
    CloseReason.RATE_LIMITED: ("This page sent more than it may.", "本页发送的数据超出限制"),
    CloseReason.TOO_MANY_CONNECTIONS: ("There are too many connections", "连接太多"),
}


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
@pytest.mark.parametrize("reason", list(ENDINGS), ids=lambda reason: reason.value)
async def test_the_page_says_why_its_connection_ended(
    chromium: Browser, server: WebServer, reason: CloseReason, locale: str
) -> None:
    context = await chromium.new_context(base_url=server.http(), locale=locale)
    try:
        page = await context.new_page()
        complaints, talkative = Complaints(page), Talkative()
        await talkative.stand_before(page)
        await open_page(page)
        await expect(page.locator("#rights")).to_be_empty()
        talkative.takes.clear()
        await talkative.ends(reason)
        await expect(page.locator("#rights")).to_contain_text(ENDINGS[reason][locale == "zh-CN"])
        if locale == "zh-CN":
            assert await untranslated(page) == []
        talkative.takes.set()
        if closing.may_reconnect(reason.code):
            await expect(page.locator("#state")).to_have_attribute("data-state", "open")
            await expect(page.locator("#rights")).to_be_empty()
        else:
            await expect(page.locator("#state")).to_have_attribute("data-state", "closed")
        links = await page.locator("#rights a").count()
        assert links == (1 if reason is CloseReason.NOT_AUTHENTICATED else 0)
        assert complaints.seen == []
    finally:
        await context.close()


async def test_the_page_says_that_it_was_removed_from_a_group(page: Page) -> None:
    complaints, talkative = Complaints(page), Talkative()
    await talkative.stand_before(page)
    await open_page(page)
    await join(page, "public.other")
    talkative.says(frames.Refresh(within=30.0))
    await expect(page.locator("#log li").first).to_contain_text("The session ends in 30 s")
    talkative.says(frames.Removed("public.other", "forbidden"))
    await expect(page.locator("#join-feedback")).to_have_text("Removed from public.other: not allowed")
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])
    await expect(page.locator('#here-groups [data-group="public.other"]')).to_have_count(0)
    # A reason of a newer server is shown as text.
    talkative.says(frames.Removed("public.lobby", "<b>some_other</b>"))
    await expect(page.locator("#log li").first).to_contain_text("<b>some other</b>")
    assert complaints.seen == []


async def test_a_page_that_is_signed_out_shows_no_users(
    chromium: Browser, server: WebServer, site: Site
) -> None:
    (session,) = await log_in(site, "leaver")
    context = await chromium.new_context(base_url=server.http())
    try:
        await context.add_cookies([{"name": "sessionid", "value": session, "url": server.http()}])
        page = await context.new_page()
        talkative = Talkative()
        await talkative.stand_before(page)
        await open_page(page)
        await expect(page.locator("#here-groups li")).to_have_text(["leaver (you)"])
        await talkative.ends(CloseReason.NOT_AUTHENTICATED)
        await expect(page.locator("#here-groups li")).to_have_count(0)
        await expect(page.locator("#account")).to_have_text("Sign in")
        # The session is still there, so a new page has the user again.
        await page.click("#connect")
        await expect(page.locator("#here-groups li")).to_have_text(["leaver (you)"])
        await expect(page.locator("#account")).to_contain_text("leaver")
    finally:
        await context.close()
