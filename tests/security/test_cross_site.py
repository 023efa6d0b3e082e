"""Pages of other origins in Chromium, with the cookies of a user who is logged in at the site.

Cookies know no ports: a page of the same host and another port is "same site", and Chromium sends the
cookies of the user with its handshakes, also those with `SameSite=Strict`. A page of another host is "cross
site", and Chromium withholds the cookies. The site must refuse both.
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Response

from tests.support.clients.sessions import logged_in
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.pages import OtherSite
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 20_000.0  # milliseconds

#: Connects, joins the group of the user, and returns what the page has learned.
CONNECT = """([address, user, ticket]) => new Promise((resolve) => {
    const protocols = ["realtime.v1", ...(ticket ? [`realtime.ticket.${ticket}`] : [])];
    const learned = { opened: false, frames: [], code: null };
    const done = () => resolve(learned);
    try {
        const socket = new WebSocket(address, protocols);
        socket.onopen = () => {
            learned.opened = true;
            socket.send(JSON.stringify({ type: "join", group: `user.${user}`, ref: 1 }));
        };
        socket.onmessage = ({ data }) => {
            const frame = JSON.parse(data);
            learned.frames.push(frame.type);
            if (frame.ref === 1) done(socket.close());
        };
        socket.onclose = ({ code }) => {
            learned.code ??= code;
            done();
        };
    } catch (error) {
        learned.error = String(error);
        done();
    }
})"""
HOSTS = ("127.0.0.1", "localhost")
REFUSED = {"opened": False, "frames": [], "code": 1006}

#: Asks for a ticket in each way that a page has, and returns what the page could read of the answers.
STEAL = """async (address) => {
    const read = {};
    for (const mode of ["cors", "no-cors"]) {
        for (const method of ["POST", "GET"]) {
            try {
                const answer = await fetch(address, { method, mode, credentials: "include" });
                read[`${mode} ${method}`] = [answer.type, answer.status, await answer.text()];
            } catch (error) {
                read[`${mode} ${method}`] = error.name;
            }
        }
    }
    try {
        const headers = { "X-CSRFToken": "guessed", "Content-Type": "application/json" };
        const answer = await fetch(address, { method: "POST", credentials: "include", headers, body: "{}" });
        read.preflight = await answer.text();
    } catch (error) {
        read.preflight = error.name;
    }
    return read;
}"""
UNREAD = {
    "cors POST": "TypeError",
    "cors GET": "TypeError",
    "no-cors POST": ["opaque", 0, ""],
    "no-cors GET": ["opaque", 0, ""],
    "preflight": "TypeError",
}

#: Runs a function in a sandboxed frame. Its origin is "null".
IN_SANDBOX = """([source, argument]) => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts allow-forms";
    window.addEventListener("message", ({ data }) => resolve(data), { once: true });
    const call = `(${source})(${JSON.stringify(argument)})`;
    const tell = "(learned) => parent.postMessage([origin, learned], '*')";
    frame.srcdoc = `<script>Promise.resolve(${call}).then(${tell})</` + "script>";
    document.body.append(frame);
})"""


class Sites:
    """The site under attack, an allowed page of another origin, and a page of an attacker."""

    def __init__(self, site: Site, allowed: OtherSite, attacker: OtherSite) -> None:
        self.site = site
        self.allowed = {host: allowed.origin(host) for host in HOSTS}
        self.attackers = {host: attacker.origin(host) for host in HOSTS}
        self.server = site.serve()

    def careless(self) -> WebServer:
        """Start a server that takes the pages of the attacker for its own."""
        return self.site.serve(CSRF_TRUSTED_ORIGINS=",".join(self.attackers.values()))


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def sites(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Iterator[Sites]:
    pairing: Pairing = request.param
    with OtherSite() as allowed, OtherSite() as attacker:
        site = start_shared_site(
            pairing, ALLOWED_ORIGINS=[*map(allowed.origin, HOSTS)], ALLOW_MISSING_ORIGIN=False
        )
        yield Sites(site, allowed, attacker)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user(sites: Sites) -> tuple[int, str]:
    """A user who is logged in: the id and the session."""
    return await logged_in(sites.site, "victim")


@pytest_asyncio.fixture(loop_scope="module")
async def context(chromium: Browser, sites: Sites, user: tuple[int, str]) -> AsyncGenerator[BrowserContext]:
    """A browser with the session of the user."""
    context = await chromium.new_context()
    context.set_default_timeout(PATIENCE)
    for name, value in {"sessionid": user[1], "csrftoken": "c" * 32}.items():
        cookie: Any = {"name": name, "value": value, "url": sites.server.http(), "sameSite": "Strict"}
        await context.add_cookies([cookie])
    yield context
    await context.close()


async def page_of(context: BrowserContext, origin: str) -> Page:
    page = await context.new_page()
    await page.goto(origin)
    assert await page.evaluate("origin") == origin
    return page


async def connects(page: Page, server: WebServer, user: tuple[int, str], ticket: str = "") -> Any:
    return await page.evaluate(CONNECT, [server.websocket(), str(user[0]), ticket])


async def tickets(site: Site, user: tuple[int, str], number: int) -> list[str]:
    """Return tickets that a back end with the key of the site has made."""
    script = (
        "from django.contrib.auth.models import User\n"
        "from realtime.tickets import ticket\n"
        f"user = User.objects.get(pk={user[0]})\n"
        f"for _ in range({number}): print(ticket(user))"
    )
    done = await site.amanage("shell", "--verbosity=0", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ATTACKERS = pytest.mark.parametrize("host", HOSTS)
WELCOME = {"opened": True, "frames": ["welcome", "joined"], "code": None}
#: The site takes the client for an anonymous one.
UNKNOWN = {"opened": True, "frames": ["welcome", "error"], "code": None}


@ATTACKERS
async def test_a_page_of_another_origin_cannot_connect(
    context: BrowserContext, sites: Sites, user: tuple[int, str], host: str
) -> None:
    page = await page_of(context, sites.attackers[host])
    assert await connects(page, sites.server, user) == REFUSED


@ATTACKERS
async def test_without_the_origin_check_the_attack_would_work(
    context: BrowserContext, sites: Sites, user: tuple[int, str], host: str
) -> None:
    """The handshakes do arrive, so the test above shows the check and not the browser."""
    page = await page_of(context, sites.attackers[host])
    learned = await connects(page, sites.careless(), user)
    assert learned == (WELCOME if host == "127.0.0.1" else UNKNOWN)


@ATTACKERS
async def test_a_sandboxed_frame_cannot_connect(
    context: BrowserContext, sites: Sites, user: tuple[int, str], host: str
) -> None:
    page = await page_of(context, sites.attackers[host])
    argument = [sites.server.websocket(), str(user[0]), ""]
    assert await page.evaluate(IN_SANDBOX, [CONNECT, argument]) == ["null", REFUSED]


async def test_a_sandboxed_frame_of_an_allowed_page_cannot_connect(
    context: BrowserContext, sites: Sites, user: tuple[int, str]
) -> None:
    page = await page_of(context, sites.allowed["127.0.0.1"])
    argument = [sites.server.websocket(), str(user[0]), ""]
    assert await page.evaluate(IN_SANDBOX, [CONNECT, argument]) == ["null", REFUSED]


@ATTACKERS
async def test_a_page_of_another_origin_gets_no_ticket(
    context: BrowserContext, sites: Sites, host: str
) -> None:
    answers: list[Response] = []
    page = await page_of(context, sites.attackers[host])
    page.on("response", lambda answer: answers.append(answer))
    address = sites.server.http("/realtime/ticket")
    assert await page.evaluate(STEAL, address) == UNREAD
    assert await page.evaluate(IN_SANDBOX, [STEAL, address]) == ["null", UNREAD]
    # None was made either: the site asks for a CSRF token before it looks who asks.
    seen = [(each.request.method, each.status) for each in answers if each.url == address]
    assert seen, "no request reached the site"
    assert [(method, status) for method, status in seen if method == "POST" and status != 403] == []
    assert [(method, status) for method, status in seen if status < 400 and method != "OPTIONS"] == []


@ATTACKERS
async def test_a_form_of_another_origin_gets_no_ticket(
    context: BrowserContext, sites: Sites, host: str
) -> None:
    page = await page_of(context, sites.attackers[host])
    address = sites.server.http("/realtime/ticket")
    async with page.expect_navigation() as navigation:
        await page.evaluate(
            """(address) => {
                const form = document.createElement("form");
                Object.assign(form, { method: "post", action: address });
                document.body.append(form);
                form.submit();
            }""",
            address,
        )
    answer = await navigation.value
    assert answer is not None
    assert answer.status == 403
    assert "expires_in" not in await page.content()


@ATTACKERS
async def test_a_page_of_another_origin_cannot_look_into_the_site(
    context: BrowserContext, sites: Sites, host: str
) -> None:
    page = await page_of(context, sites.attackers[host])
    read = await page.evaluate(
        """(address) => new Promise((resolve) => {
            const frame = document.createElement("iframe");
            frame.onload = () => {
                try {
                    resolve(frame.contentWindow.document.body.innerText);
                } catch (error) {
                    resolve(error.name);
                }
            };
            frame.src = address;
            document.body.append(frame);
        })""",
        sites.server.http(),
    )
    assert read == "SecurityError"


async def test_the_sites_own_page_connects_and_gets_tickets(
    context: BrowserContext, sites: Sites, user: tuple[int, str]
) -> None:
    page = await page_of(context, sites.server.http().rstrip("/"))
    assert await connects(page, sites.server, user) == WELCOME
    token = await page.locator("[name=csrfmiddlewaretoken]").first.input_value()
    answer = await page.evaluate(
        """async ([address, token]) => {
            const headers = { "X-CSRFToken": token };
            const answer = await fetch(address, { method: "POST", headers });
            return [answer.status, answer.headers.get("Cache-Control"), await answer.json()];
        }""",
        [sites.server.http("/realtime/ticket"), token],
    )
    status, cached, body = answer
    assert (status, sorted(body)) == (200, ["expires_in", "ticket"])
    assert "no-store" in cached
    stranger = await context.browser.new_context()  # type: ignore[union-attr]
    try:
        # The ticket alone says who the user is.
        page = await page_of(stranger, sites.server.http().rstrip("/"))
        assert await connects(page, sites.server, user, body["ticket"]) == WELCOME
        assert (await connects(page, sites.server, user, body["ticket"]))["frames"] == ["goodbye"]
    finally:
        await stranger.close()


async def test_a_page_of_an_allowed_origin_connects(
    context: BrowserContext, sites: Sites, user: tuple[int, str]
) -> None:
    page = await page_of(context, sites.allowed["127.0.0.1"])
    assert await connects(page, sites.server, user) == WELCOME


async def test_a_ticket_does_not_replace_an_allowed_origin(
    chromium: Browser, sites: Sites, user: tuple[int, str]
) -> None:
    """The back end of another site has tickets. Only pages of origins that the site allows may use them."""
    context = await chromium.new_context()
    try:
        (ticket,) = await tickets(sites.site, user, 1)
        for origin in sites.attackers.values():
            page = await page_of(context, origin)
            assert await connects(page, sites.server, user, ticket) == REFUSED
        # The refused attempts have not used it up.
        page = await page_of(context, sites.allowed["localhost"])
        assert await connects(page, sites.server, user, ticket) == WELCOME
    finally:
        await context.close()


async def test_the_client_connects_from_another_origin_with_tickets(
    chromium: Browser, sites: Sites, user: tuple[int, str]
) -> None:
    context = await chromium.new_context()
    try:
        page = await page_of(context, sites.allowed["localhost"])
        await page.evaluate(
            """async ([address, user, tickets]) => {
                const { RealtimeConnection } = await import("/realtime.js");
                window.connection = new RealtimeConnection(address, { ticket: async () => tickets.shift() });
                connection.connect();
                await connection.join(`user.${user}`);
                // The first ticket is used up, so this takes another one.
                connection.close();
                connection.connect();
                await connection.join(`user.${user}`);
            }""",
            [sites.server.websocket(), str(user[0]), await tickets(sites.site, user, 2)],
        )
        assert await page.evaluate("connection.groups") == [f"user.{user[0]}"]
        # Nothing of a ticket is in the log of the server.
        assert "realtime.ticket" not in sites.server.log_text()
    finally:
        await context.close()
