"""A server process is stopped for longer than rounds allow, as a laptop's lid or a hypervisor does, and goes
on. Its connections were reaped meanwhile; when it wakes, it closes their sockets.
"""

import asyncio
import signal
import time
from collections import Counter

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measuring
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import PAIRINGS, Pairing, pairings
from tests.support.programs.servers import Publisher, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS, PLAIN = 40, 10
INTERVAL, TIMEOUT = 1.0, 0.5
SLACK = 2.0  # seconds on a busy machine
REAPED_WITHIN = 2 * INTERVAL + TIMEOUT + SLACK
THREE_MINUTES, BOUND, DEFAULT_WINDOW = 180.0, 25.0, 5.0  # seconds, at the default settings
WINDOW = 2.0  # RECONNECT_WINDOW
GROUP = "public.lobby"


def lost(site: Site) -> int:
    return int(site.database.value("SELECT count(*) FROM realtime_process WHERE lost"))


def open_rows(site: Site) -> tuple[int, int]:
    """Count the open records, and the memberships that are not left."""
    records = site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL")
    return records, site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL")


async def reaped(site: Site, server: WebServer) -> None:
    """Stop the server until rounds have closed its records and left its memberships."""
    site.look_remote()
    server.freeze()
    await eventually_async(lambda: lost(site) == 1 and open_rows(site) == (0, 0), within=REAPED_WITHIN)


async def woken(
    server: WebServer, publisher: Publisher, clients: list[Client]
) -> tuple[float, list[int | None]]:
    """Continue the server, and publish as soon as it has closed the first client.

    Returns:
        When the server was continued, and the close codes of all clients.
    """
    server.thaw()
    woken_at = time.monotonic()
    # The clients are closed one after the other; the process knows from the first on that all are reaped.
    await eventually_async(lambda: any(not client.is_open for client in clients), within=5, every=0.005)
    publisher.send('"after"')
    return woken_at, await asyncio.gather(*(client.closes(within=WINDOW + 5) for client in clients))


def spread_over_the_window(ends: list[float]) -> bool:
    """True unless more than half of the clients were closed in the same quarter of the window."""
    return max(Counter(int(4 * end / WINDOW) for end in ends).values()) <= 0.5 * len(ends)


async def all_recorded_once_as_lost(site: Site, server: WebServer) -> None:
    await eventually_async(lambda: open_rows(site) == (0, 0), within=5)
    await eventually_async(lambda: in_layer(site) == {} == in_records(site), within=5)
    closed = site.database.query("SELECT close_reason, count(*) AS n FROM realtime_connection GROUP BY 1")
    assert closed == [{"close_reason": "server_lost", "n": CLIENTS + PLAIN}]
    # The reaper has counted these ends, so the process must not.
    counted = await asyncio.to_thread(scrape, server)
    assert counted.value("realtime_connections_closed_total") == 0


async def the_process_has_a_new_row(site: Site, url: str, publisher: Publisher) -> None:
    """A client that comes back is let in, under a second row of the process, and receives messages."""
    async with Client(url) as back:
        await back.welcomed()
        processes = site.database.query("SELECT lost, stopped_at FROM realtime_process ORDER BY started_at")
        assert [(bool(row["lost"]), row["stopped_at"] is None) for row in processes] == [
            (True, False),
            (False, True),
        ]
        assert open_rows(site) == (1, 1)
        publisher.send('"again"')
        await back.seen(lambda frame: frame.get("data") == "again")
        assert in_layer(site) == {GROUP: 1}


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_its_sockets_close_over_a_window_and_it_starts_again(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=TIMEOUT, RECONNECT_WINDOW=WINDOW)
    server = site.serve()
    site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT)).wait_for_a_round()
    publisher = site.publisher(GROUP)
    url = server.websocket(f"/ws/{GROUP}/")
    async with crowd(CLIENTS, url) as clients, crowd(PLAIN, url, plain=True) as plain:
        everybody = [*clients, *plain]
        publisher.send('"before"')
        await eventually_async(lambda: all(client.data == ["before"] for client in everybody), within=10)

        with measuring("stopped, then continued", pairing) as m:
            await reaped(site, server)
            woken_at, codes = await woken(server, publisher, everybody)
            ends = sorted((client.closed_at or 0.0) - woken_at for client in everybody)
            m.clients = len(everybody)
            m.first_closed_after, m.last_closed_after = ends[0], ends[-1]
            m.window = WINDOW

        assert Counter(codes) == {4000: CLIENTS + PLAIN}
        for client in clients:
            (goodbye,) = client.of_type("goodbye")
            assert (goodbye["reason"], goodbye["reconnect"]) == ("server_lost", True)
            assert 0 <= goodbye["retry_after"] <= WINDOW
        assert all(client.data == ["before"] for client in everybody), (
            "a client that was reaped got a message"
        )
        assert spread_over_the_window(ends), "closed in one instant"
        await all_recorded_once_as_lost(site, server)
        await the_process_has_a_new_row(site, url, publisher)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_lost_client_that_does_something_is_closed_first(
    pairing: Pairing, start_site: StartSite
) -> None:
    # While the test lasts, the turn of the first client comes, and of no other.
    times = {"ROUND_INTERVAL": INTERVAL, "ROUND_TIMEOUT": TIMEOUT, "RECONNECT_WINDOW": 120.0}
    site = start_site(pairing, **times)
    server = site.serve()
    site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT)).wait_for_a_round()
    async with crowd(10, server.websocket(f"/ws/{GROUP}/")) as clients:
        await reaped(site, server)
        server.thaw()
        await eventually_async(lambda: any(not client.is_open for client in clients), within=5)
        (*others, joining) = [client for client in clients if client.is_open]
        await joining.send({"type": "join", "ref": 1, "group": "public.news"})
        assert await joining.closes(within=5) == 4000
        assert not joining.of_type("joined")
        assert all(client.is_open for client in others)

        # A stop does not wait for the window.
        server.terminate()
        assert {await client.closes(within=5) for client in others} == {4000}
        # uvicorn dies by the signal that stopped it.
        assert await asyncio.to_thread(server.exit_code, within=10) in (0, -signal.SIGTERM)
    assert open_rows(site) == (0, 0)


async def stopped_for_three_minutes(pairing: Pairing, start_site: StartSite) -> None:
    site = await asyncio.to_thread(start_site, pairing)
    server = await asyncio.to_thread(site.serve)
    await asyncio.to_thread(lambda: site.reaper().wait_for_a_round())
    url = server.websocket(f"/ws/{GROUP}/")
    async with crowd(CLIENTS, url) as clients:
        with measuring("stopped, then continued after three minutes", pairing) as m:
            m.clients = len(clients)
            m.reaped_after = await sleep_for_three_minutes(site, server)
            m.bound = BOUND
            woken_at = time.monotonic()
            codes = await asyncio.gather(*(client.closes(within=DEFAULT_WINDOW + 10) for client in clients))
            ends = sorted((client.closed_at or 0.0) - woken_at for client in clients)
            m.first_closed_after_waking, m.last_closed_after_waking = ends[0], ends[-1]
            m.window = DEFAULT_WINDOW

        assert Counter(codes) == {4000: CLIENTS}
        assert {client.of_type("goodbye")[0]["reason"] for client in clients} == {"server_lost"}
        assert ends[-1] > DEFAULT_WINDOW / 2, "closed in one instant"
        await eventually_async(lambda: in_layer(site) == {} == in_records(site), within=5)
        async with Client(url) as back:
            await back.welcomed()
            assert open_rows(site) == (1, 1)
            assert in_layer(site) == {GROUP: 1}
        assert site.close_reasons()["server_lost"] == CLIENTS


async def sleep_for_three_minutes(site: Site, server: WebServer) -> float:
    """Stop the server for that long; return after how many seconds it was reaped."""
    site.look_remote()
    server.freeze()
    stopped_at = time.monotonic()
    try:
        reaped_after = await seconds_until(
            lambda: lost(site) == 1 and open_rows(site) == (0, 0), within=BOUND + SLACK, every=0.2
        )
        await asyncio.sleep(stopped_at + THREE_MINUTES - time.monotonic())  # the fault itself
    finally:
        server.thaw()
    return reaped_after


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_a_process_stopped_for_three_minutes_at_the_defaults(start_site: StartSite) -> None:
    # Side by side, because a process that is stopped costs nothing.
    await asyncio.gather(*(stopped_for_three_minutes(pairing, start_site) for pairing in PAIRINGS))
