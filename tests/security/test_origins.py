"""Handshakes from other sites, and from none, against a real server with the stack of the demo project.

Each has the session cookie of a user who is logged in, as a browser sends it from any page.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.assertions.scrape import scrape
from tests.support.clients.raw import RawClient
from tests.support.fixtures import StartSite
from tests.support.pairings import pairings
from tests.support.programs.actor import Actor
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

GONE = 4501
ALLOWED = ["https://app.example", "https://*.apps.example", "https://xn--bcher-kva.example"]
FEW = 3  # lines of the log for many refusals of one origin

#: What a page of another site, or a client that pretends to be one, may send. `{host}` is that of the server.
REFUSED: dict[str, list[str | bytes]] = {
    "another-site": ["http://evil.example"],
    "another-site-with-our-port": ["http://evil.example:{port}"],
    "null": ["null"],
    "null-in-upper-case": ["NULL"],
    "empty": [" "],
    "our-name-before-a-foreign-one": ["http://127.0.0.1.evil.example:{port}"],
    "our-name-as-a-user": ["http://{host}@evil.example"],
    "a-foreign-name-as-a-user": ["http://evil.example@{host}"],
    "ends-with-an-allowed-one": ["https://evilapp.example"],
    "begins-with-an-allowed-one": ["https://app.example.evil.example"],
    "subdomain-of-an-exact-one": ["https://a.app.example"],
    "ends-with-a-wildcard": ["https://evilapps.example"],
    "wildcard-as-a-path": ["https://evil.example/.apps.example"],
    "wildcard-as-a-query": ["https://evil.example?.apps.example"],
    "wildcard-as-a-fragment": ["https://evil.example#.apps.example"],
    "wildcard-behind-a-backslash": [r"https://evil.example\.apps.example"],
    "wildcard-behind-a-user": ["https://evil.example@a.apps.example"],
    "wildcard-with-a-port": ["https://a.apps.example:444"],
    "the-pattern-itself": ["https://*.apps.example"],
    "trailing-dot": ["https://app.example."],
    "scheme-https": ["https://{host}"],
    "scheme-ws": ["ws://{host}"],
    "scheme-of-an-allowed-one": ["http://app.example"],
    "no-scheme": ["{host}"],
    "another-port": ["http://127.0.0.1:1"],
    "no-port": ["http://127.0.0.1"],
    "default-port-of-an-allowed-one": ["https://app.example:443"],
    "another-name-of-this-machine": ["http://localhost:{port}"],
    "upper-case": ["HTTPS://APP.EXAMPLE"],
    "upper-case-under-a-wildcard": ["https://EVIL.APPS.EXAMPLE"],
    "path": ["http://{host}/"],
    "idn-unicode": ["https://b\u00fccher.example".encode()],
    "idn-latin-1": ["https://b\u00fccher.example".encode("latin-1")],
    "idn-homograph": ["https://\u0430pp.example".encode()],
    "idn-homograph-in-punycode": ["https://xn--pp-6kc.example"],
    "idn-fullwidth": ["https://\uff41pp.example".encode()],
    "twice-ours-first": ["http://{host}", "http://evil.example"],
    "twice-ours-last": ["http://evil.example", "http://{host}"],
    "twice-null-and-ours": ["null", "http://{host}"],
    "several-in-one": ["http://{host} http://evil.example"],
    "several-with-a-comma": ["http://{host},http://evil.example"],
    "on-a-second-line": ["http://evil.example\r\n http://{host}"],
    "very-long": ["http://" + "a" * 12_000 + ".example"],
    "very-long-under-a-wildcard": ["https://" + "a." * 6_000 + "evil.example"],
    "nul": ["http://{host}\0"],
    "nul-before-a-foreign-name": ["http://{host}\0.evil.example"],
    "tab": ["https://evil.example\t.apps.example"],
    "escape": ["http://\x1b[31m{host}"],
    "delete": ["http://{host}\x7f"],
    "no-utf-8": [b"http://\xff\xfe"],
    "broken-ipv6": ["http://[::1"],
    "only-a-wildcard": ["*"],
}
#: A server may refuse these itself, before it asks an application: with 400, or without an answer.
MALFORMED = {
    "broken-ipv6",
    "delete",
    "empty",
    "escape",
    "no-scheme",
    "nul",
    "nul-before-a-foreign-name",
    "only-a-wildcard",
    "several-in-one",
    "several-with-a-comma",
    "twice-null-and-ours",
    "twice-ours-first",
    "twice-ours-last",
    "very-long",
    "very-long-under-a-wildcard",
}


class Attacker:
    """Shakes hands with the cookie of a user.

    Args:
        server: The server.
        cookie: The header of the cookie.
    """

    def __init__(self, server: WebServer, cookie: str) -> None:
        self.server = server
        self._cookie = cookie

    async def shake_hands(self, *origins: str | bytes, query: str = "") -> RawClient:
        """Return the client after the answer; it has no Origin if none is given."""
        port = self.server.port
        # A name of a header has no case, and a dict keeps both.
        names = ("Origin", "origin")
        headers: list[tuple[str, str | bytes]] = [("Cookie", self._cookie)]
        for name, origin in zip(names, origins, strict=False):
            if isinstance(origin, str):
                origin = origin.replace("{host}", f"127.0.0.1:{port}").replace("{port}", str(port))
            headers.append((name, origin))
        target = f"/ws/public.x/{query}".encode()
        return await RawClient(self.server.websocket("/ws/public.x/")).open(*headers, target=target)


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite", layer="pubsub"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    return start_shared_site(request.param, ALLOW_MISSING_ORIGIN=False, ALLOWED_ORIGINS=ALLOWED)


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


@pytest.fixture(scope="module")
def actor(site: Site, server: WebServer) -> Iterator[Actor]:
    with Actor(site) as running:
        yield running


@pytest.fixture(scope="module")
def user(site: Site, actor: Actor) -> tuple[int, str]:
    key, session = asyncio.run(actor.log_in("ada"))
    return key, f"sessionid={session}"


@pytest.fixture
def attacker(server: WebServer, user: tuple[int, str]) -> Attacker:
    return Attacker(server, user[1])


@pytest.fixture
def records(site: Site) -> Iterator[None]:
    """The test leaves no record of a connection."""
    count = "SELECT count(*) FROM realtime_connection"
    before = site.database.value(count)
    yield
    assert site.database.value(count) == before


@pytest.mark.parametrize("name", REFUSED)
async def test_another_origin_is_refused(attacker: Attacker, records: None, name: str) -> None:
    async with await attacker.shake_hands(*REFUSED[name]) as client:
        assert client.status in ((0, 400, 403) if name in MALFORMED else (403,))


@pytest.mark.parametrize("name", ["another-site", "null", "scheme-https"])
async def test_a_ticket_opens_no_other_site(
    attacker: Attacker, records: None, actor: Actor, user: tuple[int, str], name: str
) -> None:
    (ticket,) = await actor.tickets(user[0], 1)
    async with await attacker.shake_hands(*REFUSED[name], query=f"?ticket={ticket}") as client:
        assert client.status == 403


async def test_without_an_origin_a_cookie_is_not_enough(attacker: Attacker, records: None) -> None:
    async with await attacker.shake_hands() as client:
        assert client.status == 403


@pytest.mark.parametrize("query", ["?ticket=", "?ticket=nonsense", "?%74icket=a.b"])
async def test_without_an_origin_a_bad_ticket_is_refused(
    attacker: Attacker, records: None, query: str
) -> None:
    async with await attacker.shake_hands(query=query) as client:
        assert await client.closes() == GONE
        assert [frame["reason"] for frame in client.frames] == ["not_authenticated"]


async def test_without_an_origin_a_ticket_opens(
    attacker: Attacker, actor: Actor, user: tuple[int, str]
) -> None:
    (ticket,) = await actor.tickets(user[0], 1)
    async with await attacker.shake_hands(query=f"?ticket={ticket}") as client:
        assert (await client.seen("welcome"))["groups"] == ["public.x"]


@pytest.mark.parametrize(
    "origin",
    ["http://{host}", "https://app.example", "https://a.apps.example", "https://xn--bcher-kva.example"],
    ids=["ours", "allowed", "wildcard", "punycode"],
)
async def test_an_allowed_origin_opens(attacker: Attacker, origin: str) -> None:
    async with await attacker.shake_hands(origin) as client:
        await client.seen("welcome")


async def test_many_refusals_of_one_origin_are_few_lines(attacker: Attacker, records: None) -> None:
    def refused() -> float:
        return scrape(attacker.server).value("realtime_limited_total", limit="ALLOWED_ORIGINS")

    before = refused()
    for _ in range(30):
        clients = await asyncio.gather(*(attacker.shake_hands("http://flood.example") for _ in range(10)))
        assert {client.status for client in clients} == {403}
        await asyncio.gather(*(client.close() for client in clients))
    assert refused() - before == 300
    lines = [line for line in attacker.server.log_text().splitlines() if "flood.example" in line]
    assert 1 <= len(lines) <= FEW
