"""Attacks with tickets, and on them, against real servers: each is used once, and nothing shows one."""

import asyncio
import time
import urllib.request

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.scrape import scrape
from tests.support.clients.raw import RawClient
from tests.support.clients.websocket import Client, close_all
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.actor import Actor
from tests.support.programs.servers import WebServer
from tests.support.programs.site import SERVERS, Site

pytestmark = pytest.mark.acceptance

GONE, UNAVAILABLE = 4501, 4000
INTERVAL = 2.0  # ROUND_INTERVAL
MANY = 20
ANSWER = 1.0  # seconds that a handshake waits for Redis
SLACK = 2.0  # seconds for a machine that is busy with other tests
#: Characters of a query or a header that every server takes; Daphne takes 16,384 in all headers together.
HUGE = 14_000


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite", server="daphne"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    return start_shared_site(
        request.param, ALLOW_MISSING_ORIGIN=False, ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=INTERVAL / 2
    )


@pytest.fixture(scope="module")
def users(actor: Actor) -> dict[str, tuple[int, str]]:
    """The keys of two users and of their sessions."""

    async def log_in() -> dict[str, tuple[int, str]]:
        return {name: await actor.log_in(name) for name in ("ada", "eve")}

    return asyncio.run(log_in())


def rows(site: Site) -> int:
    return int(site.database.value("SELECT count(*) FROM realtime_connection"))


async def first_frame(client: Client) -> str:
    """Return the reason of the goodbye, or the type of another first frame."""
    first = await client.seen(lambda frame: True)
    return str(first.get("reason", first["type"]))


def presents(server: WebServer, ticket: str, *, by_query: bool = False) -> Client:
    """Return a client that will connect with a ticket and without an Origin."""
    if by_query:
        return Client(server.websocket(f"/ws/?ticket={ticket}"))
    return Client(server.websocket("/ws/"), ticket=ticket)


# -- once


async def test_of_two_processes_one_accepts_a_ticket(
    site: Site, servers: list[WebServer], actor: Actor, users: dict[str, tuple[int, str]]
) -> None:
    before = rows(site)
    clients: list[Client] = []

    async def race(number: int, ticket: str) -> list[str]:
        # By query here and by subprotocol there, which must not make two tickets of one.
        both = [
            presents(server, ticket, by_query=(number + at) % 2 == 0) for at, server in enumerate(servers)
        ]
        clients.extend(both)
        await asyncio.gather(*(client.open() for client in both))
        return sorted([await first_frame(client) for client in both])

    try:
        tickets = await actor.tickets(users["ada"][0], MANY)
        outcomes = await asyncio.gather(*(race(number, each) for number, each in enumerate(tickets)))
        assert outcomes == [["not_authenticated", "welcome"]] * MANY
        assert rows(site) - before == MANY
        await eventually_async(lambda: sum(not each.is_open for each in clients) == MANY, within=10)
        assert {each.close_code for each in clients if not each.is_open} == {GONE}
    finally:
        await close_all(clients)


async def test_a_replay_is_refused_by_both_processes(
    site: Site, servers: list[WebServer], actor: Actor, users: dict[str, tuple[int, str]]
) -> None:
    (ticket,) = await actor.tickets(users["ada"][0], 1)
    async with presents(servers[0], ticket) as client:
        await client.welcomed()
    before = rows(site)
    for server in servers:
        for by_query in (True, False):
            async with presents(server, ticket, by_query=by_query) as client:
                assert await first_frame(client) == "not_authenticated"
                assert await client.closes(within=5) == GONE
    assert rows(site) == before


# -- whose


async def test_a_ticket_beside_a_cookie_is_the_user_of_the_ticket(
    site: Site, servers: list[WebServer], actor: Actor, users: dict[str, tuple[int, str]]
) -> None:
    (ticket,) = await actor.tickets(users["ada"][0], 1)
    cookie = {"Cookie": f"sessionid={users['eve'][1]}"}
    origin = {"Origin": servers[0].http("")}
    async with Client(servers[0].websocket("/ws/"), headers=cookie | origin, ticket=ticket) as client:
        connection = (await client.welcomed())["connection"]
    found = site.database.query("SELECT id, user_id FROM realtime_connection")
    whose = {str(row["id"]).replace("-", ""): str(row["user_id"]) for row in found}
    assert whose[connection.replace("-", "")] == str(users["ada"][0])


async def test_beside_a_used_ticket_a_cookie_does_not_count(
    site: Site, servers: list[WebServer], actor: Actor, users: dict[str, tuple[int, str]]
) -> None:
    (ticket,) = await actor.tickets(users["ada"][0], 1)
    async with presents(servers[0], ticket) as client:
        await client.welcomed()
    before = rows(site)
    headers = {"Cookie": f"sessionid={users['eve'][1]}", "Origin": servers[0].http("")}
    async with Client(servers[0].websocket("/ws/"), headers=headers, ticket=ticket) as client:
        assert await first_frame(client) == "not_authenticated"
    assert rows(site) == before


# -- huge

QUERIES = {
    "one-ticket": "ticket=" + "a" * HUGE,
    "many-tickets": "&".join(["ticket=a"] * (HUGE // 9)),
    "escaped": "ticket=" + "%61" * (HUGE // 3),
    "many-names-then-a-ticket": "&".join(["%61"] * (HUGE // 4)) + "&ticket=a.b",
    "many-empty-names": "&" * HUGE + "ticket=a.b",
    "many-dots": "ticket=" + "." * HUGE,
}
SUBPROTOCOLS = {
    "one-ticket": "realtime.v1, realtime.ticket." + "a" * HUGE,
    "many-tickets": "realtime.v1, " + ", ".join(f"realtime.ticket.{number}" for number in range(HUGE // 24)),
    "many-others": "realtime.v1, realtime.ticket.a.b, " + ", ".join(map(str, range(HUGE // 7))),
}


async def refused(client: RawClient) -> None:
    async with client:
        assert client.status == 101
        assert await client.closes() == GONE
        assert [frame["reason"] for frame in client.frames] == ["not_authenticated"]


@pytest.mark.parametrize("name", QUERIES)
async def test_a_huge_query_is_a_bad_ticket(site: Site, servers: list[WebServer], name: str) -> None:
    before = rows(site)
    target = f"/ws/?{QUERIES[name]}".encode()
    await refused(await RawClient(servers[0].websocket("/ws/")).open(target=target))
    assert rows(site) == before
    assert "Traceback" not in servers[0].log_text()


@pytest.mark.parametrize("name", SUBPROTOCOLS)
async def test_a_huge_subprotocol_is_a_bad_ticket(site: Site, servers: list[WebServer], name: str) -> None:
    before = rows(site)
    header = ("Sec-WebSocket-Protocol", SUBPROTOCOLS[name])
    await refused(await RawClient(servers[0].websocket("/ws/")).open(header))
    assert rows(site) == before
    assert "Traceback" not in servers[0].log_text()


async def test_a_good_ticket_at_the_end_of_a_huge_query_counts(
    servers: list[WebServer], actor: Actor, users: dict[str, tuple[int, str]]
) -> None:
    (ticket,) = await actor.tickets(users["ada"][0], 1)
    target = f"/ws/?{'a&' * (HUGE // 2 - len(ticket))}ticket={ticket}".encode()
    async with await RawClient(servers[0].websocket("/ws/")).open(target=target) as client:
        await client.seen("welcome")


# -- while Redis hangs


@pytest.mark.parametrize("without_redis", ["refuse", "accept"])
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", server="daphne"))
async def test_while_redis_hangs_the_setting_decides(
    start_site: StartSite, pairing: Pairing, without_redis: str
) -> None:
    site = start_site(pairing, ALLOW_MISSING_ORIGIN=False, TICKETS_WITHOUT_REDIS=without_redis)
    server = site.serve()
    clients: list[Client] = []

    async def arrive(ticket: str) -> tuple[str, float]:
        began = time.monotonic()
        client = presents(server, ticket)
        clients.append(client)
        await client.open()
        return await first_frame(client), time.monotonic() - began

    with Actor(site) as actor:
        user, _ = await actor.log_in("ada")
        tickets = await actor.tickets(user, MANY)
        assert (await arrive(tickets.pop()))[0] == "welcome"
        site.redis.freeze()
        try:
            found = await asyncio.gather(*map(arrive, tickets))
        finally:
            site.redis.thaw()
        try:
            expected = {"refuse": "server_unavailable", "accept": "welcome"}[without_redis]
            assert {first for first, _ in found} == {expected}
            # All wait at the same time.
            assert max(took for _, took in found) < ANSWER + SLACK
            if without_redis == "refuse":
                assert {await client.closes(within=5) for client in clients[1:]} == {UNAVAILABLE}
                assert scrape(server).value("realtime_tickets_total", outcome="unknown") == len(tickets)

            async def accepted() -> bool:
                return (await arrive((await actor.tickets(user, 1))[0]))[0] == "welcome"

            # Redis goes on, and the layer connects again.
            deadline = time.monotonic() + 10
            while not await accepted():
                assert time.monotonic() < deadline
            # From now on a ticket is used once again.
            (ticket,) = await actor.tickets(user, 1)
            firsts = [(await arrive(ticket))[0] for _ in range(2)]
            assert firsts == ["welcome", "not_authenticated"]
        finally:
            await close_all(clients)
    assert "Traceback" not in server.log_text()


# -- in logs

#: Options with which a server logs each request. Daphne and uvicorn do so without one.
ACCESS_LOGS = {
    "daphne": [],
    "uvicorn": [],
    "hypercorn": ["--access-logfile", "-"],
    "granian": ["--access-log"],
}


def metrics_of(server: WebServer) -> str:
    with urllib.request.urlopen(server.http("/metrics"), timeout=10) as answer:  # noqa: S310 - our own server
        return str(answer.read().decode())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "daphne" else pytest.mark.matrix, id=name)
        for name in ACCESS_LOGS
    ],
)
async def test_no_log_no_record_and_no_metric_has_a_ticket(start_site: StartSite, name: str) -> None:
    site = start_site(Pairing("pubsub", name, "sqlite"), ALLOW_MISSING_ORIGIN=False)
    server = SERVERS[name](
        *ACCESS_LOGS[name],
        log=site.folder / f"{name}.log",
        environment={**site.environment, "ALLOWED_HOSTS": "127.0.0.1"},
    )
    tickets: list[str] = []
    with server, Actor(site) as actor:
        user, _ = await actor.log_in("ada")
        for by_query in (True, False):
            (ticket,) = await actor.tickets(user, 1)
            tickets.append(ticket)
            query = f"?ticket={ticket}" if by_query else ""
            evil = Client(
                server.websocket(f"/ws/public.x/{query}"),
                headers={"Origin": "http://evil.example"},
                ticket="" if by_query else ticket,
            )
            with pytest.raises(InvalidStatus, match="403"):
                await evil.open()
            for expected in ("welcome", "not_authenticated"):
                async with presents(server, ticket, by_query=by_query) as client:
                    # The refusal before has not spent it.
                    assert await first_frame(client) == expected
        metrics = await asyncio.to_thread(metrics_of, server)
    assert "/ws/public.x/" in server.log_text()
    secrets = [part for ticket in tickets for part in ticket.split(".")]
    for file in site.folder.glob("*.log"):
        assert not [line for line in file.read_text().splitlines() if any(each in line for each in secrets)]
    tables = site.database.query("SELECT name FROM sqlite_master WHERE type = 'table'")
    records = "".join(str(site.database.query(f"SELECT * FROM {row['name']}")) for row in tables)  # noqa: S608
    assert "/ws/" in records
    assert not [each for each in secrets if each in records or each in metrics]
