"""A server is told to stop: every client is told why and when to come back, and nothing is left to do."""

import asyncio
import contextlib
import http.client
import math
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.memberships import in_layer
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, close_all, connect_many
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.databases import Databases
from tests.support.programs.servers import UvicornServer, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

BOUND = 10.0  # seconds from the signal to the exit
AFTER_THE_DRAIN = 4.0  # seconds: uvicorn's --timeout-graceful-shutdown, or the patience with a hung thread
SLACK = 2.0  # seconds, on a machine that is busy with other tests
WINDOW = 5.0  # RECONNECT_WINDOW
GROUP = "public.lobby"

everywhere = pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", "core-uvicorn-sqlite"))
somewhere = pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
crowds = pytest.mark.parametrize(
    "count", [100, pytest.param(500, marks=pytest.mark.matrix)], ids=["100-clients", "500-clients"]
)


def stop(server: WebServer, number: signal.Signals = signal.SIGTERM) -> float:
    """Send the signal, and return the time of the monotonic clock."""
    assert server.process is not None
    at = time.monotonic()
    server.process.send_signal(number)
    return at


async def end_of(server: WebServer, told_at: float) -> float:
    """Wait for an orderly exit; return the seconds from the signal to it."""
    code = await asyncio.to_thread(server.exit_code, within=BOUND)
    took = time.monotonic() - told_at
    # uvicorn dies by the signal that stopped it.
    assert code in (0, -signal.SIGTERM, -signal.SIGINT), server.log_text()[-3000:]
    assert "Traceback" not in server.log_text()
    return took


def goodbyes(clients: list[Client]) -> Iterator[dict[str, object]]:
    for client in clients:
        yield from client.of_type("goodbye")


def reasons(site: Site) -> dict[str | None, int]:
    """Count the records by close reason; an open record has None."""
    rows = site.database.query("SELECT close_reason, closed_at FROM realtime_connection")
    return Counter(row["close_reason"] if row["closed_at"] is not None else None for row in rows)


async def nothing_is_left(site: Site) -> None:
    assert site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL") == 0
    assert site.database.value("SELECT count(*) FROM realtime_process WHERE stopped_at IS NULL") == 0
    assert site.database.value("SELECT count(*) FROM realtime_process WHERE lost") == 0
    # Redis notices the end of a pub/sub connection a little later.
    await eventually_async(lambda: in_layer(site) == {}, within=2)


async def all_closed_with_4000(clients: list[Client]) -> None:
    codes = await asyncio.gather(*(client.closes(within=BOUND) for client in clients))
    assert Counter(codes) == {4000: len(clients)}
    said = list(goodbyes(clients))
    assert len(said) == len(clients)
    assert {(each["reason"], each["reconnect"]) for each in said} == {("server_restart", True)}


@everywhere
@crowds
async def test_every_client_is_told_why_and_when_to_come_back(
    pairing: Pairing, count: int, start_site: StartSite
) -> None:
    site = start_site(pairing)
    await told_why_and_when(site, site.serve(), count, signal.SIGTERM)


@somewhere
async def test_sigint_works_like_sigterm(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    await told_why_and_when(site, site.serve(), 50, signal.SIGINT)


def other_uvicorn(site: Site, *options: str) -> UvicornServer:
    """Return a uvicorn with more options than the other tests use."""
    return UvicornServer(
        *options,
        log=site.folder / "uvicorn.log",
        environment={**site.environment, "ALLOWED_HOSTS": "127.0.0.1"},
        application="tests.support.applications.lifespan:application",
    )


@pytest.mark.matrix
@pytest.mark.parametrize(
    "options",
    [["--workers", "2"], ["--lifespan", "on"], ["--workers", "2", "--lifespan", "on"], ["--loop", "uvloop"]],
    ids=" ".join,
)
async def test_clients_are_told_however_uvicorn_is_run(options: list[str], start_site: StartSite) -> None:
    if "uvloop" in options:
        pytest.importorskip("uvloop")
    site = start_site(Pairing("core", "uvicorn", "sqlite"))
    with other_uvicorn(site, *options) as server:
        await told_why_and_when(site, server, 40, signal.SIGTERM)


async def test_uvicorn_that_stops_by_itself_tells_its_clients_too(start_site: StartSite) -> None:
    site = start_site(Pairing("core", "uvicorn", "sqlite"))
    with other_uvicorn(site, "--limit-max-requests", "1") as server:
        clients = await connect_many(40, server.websocket(f"/ws/{GROUP}/"))
        told_at = time.monotonic()
        await asyncio.to_thread(scrape, server)
        took = await end_of(server, told_at)

        await all_closed_with_4000(clients)
        assert reasons(site) == {"server_restart": len(clients)}
        await nothing_is_left(site)
        measured(
            "--limit-max-requests",
            site.pairing,
            clients=len(clients),
            goodbyes_and_4000=len(clients),
            exit_after=took,
            memberships_left=0,
        )
        await close_all(clients)


async def told_why_and_when(site: Site, server: WebServer, count: int, number: signal.Signals) -> None:
    clients = await connect_many(count, server.websocket(f"/ws/{GROUP}/"))
    assert set(in_layer(site)) == {GROUP}
    # 10 ms old when the signal comes: Daphne, left to itself, raises KeyError then and does nothing.
    newest = await Client(server.websocket(f"/ws/{GROUP}/")).open()
    await newest.welcomed()
    clients.append(newest)
    await asyncio.sleep(0.01)  # the age itself
    told_at = stop(server, number)
    took = await end_of(server, told_at)

    await all_closed_with_4000(clients)
    last = max(client.closed_at or 0.0 for client in clients) - told_at
    delays = sorted(float(each["retry_after"]) for each in goodbyes(clients))  # type: ignore[arg-type]
    assert delays[0] >= 0.0
    assert delays[-1] <= WINDOW
    fullest = max(Counter(int(delay) for delay in delays).values())
    # Six standard deviations above the average of a second.
    share = 1.0 / WINDOW
    likely = share * len(clients) + 6 * math.sqrt(share * (1 - share) * len(clients))
    assert fullest < likely, "reconnects are not spread over the window"
    assert reasons(site) == {"server_restart": len(clients)}
    await nothing_is_left(site)
    measured(
        "SIGTERM" if number is signal.SIGTERM else "SIGINT",
        site.pairing,
        clients=len(clients),
        goodbyes_and_4000=len(clients),
        last_closed_after=last,
        exit_after=took,
        retry_after_from=delays[0],
        to=delays[-1],
        most_in_one_second=fullest,
        memberships_left=0,
    )
    await close_all(clients)


@somewhere
async def test_clients_that_come_during_a_stop_are_sent_away(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.serve()
    url = server.websocket(f"/ws/{GROUP}/")
    settled = await connect_many(20, url)
    coming: list[Client] = []
    outcomes: Counter[object] = Counter()
    over = asyncio.Event()

    async def keep_coming() -> None:
        while not over.is_set():
            client = Client(url)
            try:
                await client.open()
            except (OSError, EOFError, TimeoutError, WebSocketException) as error:
                outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                coming.append(client)

    comers = [asyncio.create_task(keep_coming()) for _ in range(10)]
    await eventually_async(lambda: len(coming) >= 20, within=20)
    told_at = stop(server)
    took = await end_of(server, told_at)
    over.set()
    await asyncio.gather(*comers)

    await all_closed_with_4000(settled)
    codes = Counter([await client.closes(within=BOUND) for client in coming])
    assert codes[4000] >= 20
    # Between the drain and the exit, a handshake may still be answered and then cut off.
    assert set(codes) <= {4000, 1006, 1012}
    by_reason = reasons(site)
    assert None not in by_reason
    assert set(by_reason) <= {"server_restart", "client_lost", "client_closed"}
    assert by_reason["server_restart"] >= 40
    await nothing_is_left(site)
    seen = {"codes": dict(codes), "refused": dict(outcomes)}
    measured("SIGTERM while clients come", pairing, exit_after=took, **seen)
    await close_all(settled + coming)


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_a_second_sigterm_changes_nothing(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.serve()
    clients = await connect_many(50, server.websocket(f"/ws/{GROUP}/"))
    told_at = stop(server)
    await asyncio.sleep(0.02)  # the second one comes while the first is at work
    stop(server)
    await end_of(server, told_at)

    await all_closed_with_4000(clients)
    assert reasons(site) == {"server_restart": 50}
    await nothing_is_left(site)
    await close_all(clients)


@pytest.mark.parametrize("hung", ["database", pytest.param("redis", marks=pytest.mark.matrix)])
@pytest.mark.parametrize(
    "pairing",
    [Pairing("core", "daphne", "postgres"), Pairing("pubsub", "uvicorn", "postgres")],
    ids=str,
)
@pytest.mark.parametrize(
    "drain_timeout", [1.5, pytest.param(6.0, marks=pytest.mark.matrix)], ids=["scaled", "default"]
)
async def test_a_hung_database_or_redis_delays_no_goodbye_and_no_exit(
    pairing: Pairing, hung: str, drain_timeout: float, tmp_path: Path, breakable_databases: Databases
) -> None:
    database = breakable_databases.new("postgres")
    with Site(tmp_path, pairing, database, DRAIN_TIMEOUT=drain_timeout) as site:
        server = site.serve()
        clients = await connect_many(30, server.websocket(f"/ws/{GROUP}/"))
        broken = breakable_databases.postgres if hung == "database" else site.redis
        broken.freeze()
        try:
            # One request hangs in a thread of the server, and one before it reaches a consumer.
            stuck = asyncio.create_task(asyncio.to_thread(get, server.http("/health/ready")))
            cookie = {"Cookie": "sessionid=0123456789abcdefghijklmnopqrstuv"}
            coming = asyncio.create_task(Client(server.websocket("/ws/"), headers=cookie).open())
            await asyncio.sleep(0.3)  # both are on their way; the test cannot see it
            told_at = stop(server)
            await all_closed_with_4000(clients)
            last = max(client.closed_at or 0.0 for client in clients) - told_at
            assert last < 2.0
            await asyncio.to_thread(server.exit_code, within=drain_timeout + AFTER_THE_DRAIN + SLACK)
            took = time.monotonic() - told_at
        finally:
            broken.thaw()
        await asyncio.wait([stuck, coming])
        coming.exception()
        if hung == "redis":
            # The rows did not wait for Redis. Only what Redis itself must do is left.
            assert reasons(site)[None] == 0
            assert site.database.value("SELECT count(*) FROM realtime_process WHERE stopped_at IS NULL") == 0
    measured(
        f"SIGTERM while {'the database' if hung == 'database' else 'Redis'} hangs",
        pairing,
        clients=30,
        last_closed_after=last,
        exit_after=took,
    )
    await close_all(clients)


def get(url: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=20):  # noqa: S310 - loopback
        pass
