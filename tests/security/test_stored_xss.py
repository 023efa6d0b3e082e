"""Stored XSS in Chromium: the demo page and each page of the admin show what clients send as text.

Each text would load an image and call `planted` if a page took it for markup. A page that is only saved by
its Content-Security-Policy fails too: the violation is reported, and so is the request for the image.
"""

import json
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.support.assertions.eventually import eventually_async
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 20_000.0  # milliseconds

GROUP = "public.__proto__"


def hostile(field: str) -> str:
    """Return a text that is at most 64 characters long, as some columns are."""
    return f"\"'><img src=/planted/{field} onerror=planted()>"


#: All ways into a page that are known here, for the fields that have room.
LONG = (
    hostile("long")
    + "<script>planted()</script></title></textarea></script><svg onload=planted()>"
    + "<iframe srcdoc='<script>parent.planted()</script>'></iframe>"
    + "{{ 7|add:7 }}${planted()}javascript:planted()"
)

#: Prepares the database, and prints the sessions of a superuser and of a user, and the keys of rows.
PREPARE = """
import json, os, uuid
from datetime import timedelta
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from realtime.models import Connection, Membership, PresentUser, Process

texts = json.loads(os.environ["TEXTS"])
now = timezone.now()
ada = User.objects.create_superuser(texts["admin"])
eve = User.objects.create_user(texts["user"], first_name=texts["user"])
sessions = []
for user in (ada, eve):
    client = Client()
    client.force_login(user)
    sessions.append(client.session.session_key)
process = Process.objects.create(
    host=texts["host"], pid=1, channel_name=texts["channel"], pid_namespace=texts["namespace"],
    started_at=now - timedelta(hours=1), stopped_at=now,
)
closed = Connection.objects.create(
    process=process, user_id=texts["key"], path=texts["path"], remote_address=texts["address"],
    user_agent=texts["agent"], subprotocol=texts["protocol"], client_id=texts["client"], opened_at=now,
    last_seen_at=now, closed_at=now, close_reason="client_lost", close_code=1006,
)
Membership.objects.create(
    connection=closed, process=process, group=texts["group"], user_id=texts["key"], joined_at=now, left_at=now
)
stays = [
    PresentUser.objects.create(group=group, user_id=texts["key"], since=now, stamp=uuid.uuid4())
    for group in ("", texts["group"])
]
print(json.dumps([*sessions, str(process.pk), str(closed.pk), stays[0].pk, eve.pk]))
"""
#: Changes the record of the connection that is open, as if it had come by a path and from an address.
CHANGE = """
import json, os
from realtime.models import Connection
texts = json.loads(os.environ["TEXTS"])
Connection.objects.open().update(
    path=texts["path"], remote_address=texts["address"], subprotocol=texts["protocol"]
)
"""
FIELDS = ("host", "channel", "namespace", "key", "path", "address", "agent", "protocol", "client", "group")
TEXTS = {field: hostile(field) for field in FIELDS} | {
    "admin": hostile("admin"),
    "user": hostile("user"),
    "agent": LONG[:512],
}


class Prepared:
    """The rows that `PREPARE` has made, and the server of the site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        done = site.manage("shell", "--verbosity=0", "-c", PREPARE, TEXTS=json.dumps(TEXTS))  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout.strip().splitlines()[-1])
        self.admin, self.user, self.process, self.closed, self.stay, self.user_id = made
        self.server: WebServer = site.serve()


class Watch:
    """Everything by which a page shows that a text of a client was more than text."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def over(self, context: BrowserContext) -> None:
        await context.expose_function("planted", lambda *_: self.seen.append("a script ran"))
        await context.expose_function("violated", lambda what: self.seen.append(f"CSP stopped {what}"))
        await context.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) =>"
            " violated(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`))"
        )
        context.on("request", lambda request: self._asked(request.url))
        context.on("dialog", lambda dialog: self.seen.append(f"a dialog: {dialog.message}"))
        context.on("weberror", lambda error: self.seen.append(str(error.error)))

    def _asked(self, url: str) -> None:
        if urlsplit(url).path.startswith("/planted/"):
            self.seen.append(f"an image was loaded: {url}")


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def prepared(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Prepared:
    pairing: Pairing = request.param
    return Prepared(start_shared_site(pairing, TRUSTED_PROXIES=["127.0.0.1"]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(prepared: Prepared) -> AsyncGenerator[Client]:
    """An open connection that sends as many hostile texts as a client can."""
    # A client id must fit a pattern, and a header has no line breaks.
    path = f"/ws/{GROUP}/?room=%3Cscript%3Eplanted()%3C/script%3E&client=a.client-of-the-test"
    headers = {
        "User-Agent": TEXTS["agent"],
        "X-Forwarded-For": hostile("forwarded"),
        "X-Forwarded-Host": hostile("forwarded"),
        "Cookie": f"sessionid={prepared.user}",
        "Origin": prepared.server.http("").rstrip("/"),
    }
    client = await Client(prepared.server.websocket(path), headers=headers).open()
    try:
        await client.welcomed()
        done = await prepared.site.amanage("shell", "--verbosity=0", "-c", CHANGE, TEXTS=json.dumps(TEXTS))
        assert done.returncode == 0, done.stderr
        yield client
    finally:
        await client.close()


@pytest_asyncio.fixture(loop_scope="module")
async def watch() -> Watch:
    return Watch()


async def context_of(chromium: Browser, prepared: Prepared, watch: Watch, session: str) -> BrowserContext:
    context = await chromium.new_context(base_url=prepared.server.http())
    context.set_default_timeout(PATIENCE)
    await watch.over(context)
    await context.add_cookies([{"name": "sessionid", "value": session, "url": prepared.server.http()}])
    return context


@pytest_asyncio.fixture(loop_scope="module")
async def admin(chromium: Browser, prepared: Prepared, opened: Client, watch: Watch) -> AsyncGenerator[Page]:
    """A page of the admin. Nothing has shown itself at the end of the test."""
    context = await context_of(chromium, prepared, watch, prepared.admin)
    yield await context.new_page()
    await context.close()
    assert watch.seen == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Browser, prepared: Prepared, watch: Watch) -> AsyncGenerator[Page]:
    """The demo page of a user with a hostile name. Nothing has shown itself at the end of the test."""
    context = await context_of(chromium, prepared, watch, prepared.user)
    page = await context.new_page()
    await page.goto("/")
    await expect(page.locator("#state")).to_have_attribute("data-state", "open")
    yield page
    await context.close()
    assert watch.seen == []


async def shown(page: Page) -> str:
    """Return all text of a page, with its titles and the values of its fields, as a visitor can read it."""
    return str(
        await page.evaluate(
            """() => {
                const more = [...document.querySelectorAll("[title], input")];
                const said = more.map(({ title, value }) => `${title} ${value}`);
                return [document.title, document.body.textContent, ...said].join(" ");
            }"""
        )
    )


async def shows(page: Page, address: str, *fields: str) -> None:
    """Open a page of the admin, and check that it shows these hostile texts as they are."""
    answer = await page.goto(f"/admin/realtime/{address}")
    assert answer is not None
    assert answer.status == 200
    await page.wait_for_load_state("networkidle")
    text = await shown(page)
    assert [field for field in fields if TEXTS[field] not in text] == []


async def test_a_page_that_takes_text_for_markup_is_found(
    chromium: Browser, prepared: Prepared, watch: Watch
) -> None:
    """Otherwise the tests below would show nothing."""
    context = await context_of(chromium, prepared, watch, prepared.user)
    try:
        page = await context.new_page()
        await page.goto("/")
        await page.evaluate("(text) => document.body.insertAdjacentHTML('beforeend', text)", hostile("here"))

        def found() -> bool:
            text = " ".join(watch.seen)
            return "an image was loaded" in text and "CSP stopped script-src" in text

        await eventually_async(found, within=PATIENCE / 1000)
        # Without a policy, the script itself runs.
        await context.route("**/bare", lambda route: route.fulfill(body=LONG, content_type="text/html"))
        await page.goto("/bare")
        await eventually_async(lambda: "a script ran" in watch.seen, within=PATIENCE / 1000)
    finally:
        await context.close()


async def test_the_list_of_connections_shows_text(admin: Page) -> None:
    await shows(admin, "connection/", "admin", "user", "path", "address", "agent", "host", "key")
    await shows(admin, "connection/?state=closed", "path", "address", "agent", "host", "key")


async def test_the_page_of_a_connection_shows_text(admin: Page, prepared: Prepared, opened: Client) -> None:
    id = (await opened.welcomed())["connection"]
    await shows(admin, f"connection/{id}/change/", "user", "path", "address", "agent", "protocol")
    await shows(
        admin,
        f"connection/{prepared.closed}/change/",
        *("key", "path", "address", "agent", "protocol", "host", "group"),
    )


async def test_the_confirmation_of_a_disconnect_shows_text(admin: Page, opened: Client) -> None:
    id = (await opened.welcomed())["connection"]
    await shows(admin, f"connection/?q={id}", "user", "path")
    await admin.locator("#result_list tbody").get_by_role("checkbox").first.check()
    await admin.select_option("[name=action]", "disconnect_selected")
    await admin.get_by_role("button", name="Go").click()
    await expect(admin.locator("#content")).to_contain_text(TEXTS["path"])
    await expect(admin.locator("#content")).to_contain_text(TEXTS["user"])


async def test_the_pages_of_processes_show_text(admin: Page, prepared: Prepared) -> None:
    await shows(admin, "process/", "host")
    await shows(admin, f"process/{prepared.process}/change/", "host", "channel")


async def test_the_pages_of_users_online_show_text(admin: Page, prepared: Prepared) -> None:
    await shows(admin, "presentuser/", "key", "user", "group")
    await shows(admin, f"presentuser/{prepared.stay}/change/", "key", "group")
    await admin.goto("/admin/realtime/presentuser/")
    await admin.locator("#result_list .field-user a", has_text=TEXTS["user"]).click()
    await expect(admin.locator("#content")).to_contain_text(TEXTS["path"])
    text = await shown(admin)
    assert [field for field in ("user", "path", "address") if TEXTS[field] not in text] == []


@pytest.mark.parametrize(
    "address",
    [
        "connection/?group={}",
        "connection/?q={}",
        "connection/?state={}",
        "connection/?reason={}",
        "connection/?process={}",
        "connection/?{}={}",
        "process/?q={}",
        "presentuser/?group={}",
        "presentuser/?q={}",
        "connection/{}/change/",
        "process/{}/change/",
        "presentuser/{}/change/",
    ],
)
async def test_a_hostile_address_of_the_admin_shows_text(admin: Page, watch: Watch, address: str) -> None:
    text = (hostile("query") + LONG).replace("/", "%2F").replace("?", "%3F").replace("#", "%23")
    answer = await admin.goto(f"/admin/realtime/{address.replace('{}', text)}")
    assert answer is not None
    assert answer.status < 500
    await admin.wait_for_load_state("networkidle")
    if answer.status == 400:
        # With DEBUG, Django's own page of an error has inline styles and scripts, which the policy stops. A
        # script of the address that ran would still be seen.
        watch.seen[:] = [each for each in watch.seen if not each.startswith("CSP stopped")]


async def test_the_demo_page_shows_payloads_as_text(page: Page, opened: Client) -> None:
    await expect(page.locator("#groups span")).to_have_text(["public.lobby"])
    payloads = [LONG, {LONG: [LONG]}, {"__proto__": {"innerHTML": LONG}}, [hostile("list")], f'"{LONG}"']
    for payload in payloads:
        answer = await opened.publish("public.lobby", payload)
        assert answer["type"] == "published", answer
    await expect(page.locator("#log pre")).to_have_count(len(payloads))
    text = await shown(page)
    assert text.count(LONG) >= 2
    # The name of the sender, which looks like markup too.
    assert f"from user {TEXTS['user']}" in text
    assert await page.evaluate("({}).innerHTML") is None


async def test_the_demo_page_shows_names_and_groups_as_text(page: Page, prepared: Prepared) -> None:
    for group in (GROUP, "public.constructor"):
        await page.fill("#join-group", group)
        await page.keyboard.press("Enter")
    await expect(page.locator("#groups span")).to_have_text([GROUP, "public.constructor", "public.lobby"])
    await expect(page.locator("#account")).to_have_text(TEXTS["user"])
    here = page.locator(f'#here-groups [data-group="{GROUP}"] li')
    await expect(here.first).to_have_text(f"{TEXTS['user']} (you)")
    await page.fill("#publish-data", LONG)
    await page.fill("#publish-group", GROUP)
    await page.click("#publish")
    await expect(page.locator("#log pre").first).to_have_text(LONG)
    await page.reload()
    await expect(page.locator("#account")).to_have_text(TEXTS["user"])


async def test_the_names_of_users_are_data_and_not_a_page(page: Page, prepared: Prepared) -> None:
    """A browser that opens the address itself shows no markup of it."""
    answer = await page.goto(f"/names?group={GROUP}&id={prepared.user_id}&id={hostile('id')}")
    assert answer is not None
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    answer = await page.goto(f"/names?group={hostile('group')}&id=1")
    assert answer is not None
    assert answer.headers["content-type"] == "application/json"
