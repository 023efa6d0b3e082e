"""A server process is stopped for longer than rounds allow, as a laptop's lid or a hypervisor does, and goes
on: what it held was reaped meanwhile, and on waking it makes that true.
"""

import asyncio
import signal
import time
from collections import Counter

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import PAIRINGS, Pairing, pairings
from tests.support.programs.servers import WebServer
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
    """Open records, and memberships that are not left."""
    records = site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL")
    return records, site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL")


async def reaped(site: Site, server: WebServer) -> None:
    """Stop the server until rounds have put right what it held."""
    site.look_remote()
    server.freeze()
    await eventually_async(lambda: lost(site) == 1 and open_rows(site) == (0, 0), within=REAPED_WITHIN)


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_its_sockets_are_closed_over_a_window_and_it_starts_anew(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=TIMEOUT, RECONNECT_WINDOW=WINDOW)
    server = site.serve()
    reaper = site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    reaper.wait_for_a_round()
    publisher = site.publisher(GROUP)
    url = server.websocket(f"/ws/{GROUP}/")
    async with crowd(CLIENTS, url) as clients, crowd(PLAIN, url, plain=True) as plain:
        everybody = [*clients, *plain]
        publisher.send('"before"')
        await eventually_async(lambda: all(client.data == ["before"] for client in everybody), within=10)
        await reaped(site, server)

        server.thaw()
        woken_at = time.monotonic()
        # Closed one after the other: from the first on it is known that nobody is a member any more.
        await eventually_async(lambda: any(not client.is_open for client in everybody), within=5, every=0.005)
        publisher.send('"after"')
        codes = await asyncio.gather(*(client.closes(within=WINDOW + 5) for client in everybody))

        assert Counter(codes) == {4000: CLIENTS + PLAIN}
        for client in clients:
            (goodbye,) = client.of_type("goodbye")
            assert (goodbye["reason"], goodbye["reconnect"]) == ("server_lost", True)
            assert 0 <= goodbye["retry_after"] <= WINDOW
        assert all(client.data == ["before"] for client in everybody), "delivered to somebody who was reaped"
        ends = sorted((client.closed_at or 0.0) - woken_at for client in everybody)
        fullest = max(Counter(int(4 * end / WINDOW) for end in ends).values())
        assert fullest <= 0.5 * len(ends), "closed in one instant"

        await eventually_async(lambda: open_rows(site) == (0, 0), within=5)
        await eventually_async(lambda: in_layer(site) == {} == in_records(site), within=5)
        closed = site.database.query("SELECT close_reason, count(*) AS n FROM realtime_connection GROUP BY 1")
        assert closed == [{"close_reason": "server_lost", "n": CLIENTS + PLAIN}]
        # The reaper has counted these deaths, so the process must not.
        counted = await asyncio.to_thread(scrape, server)
        assert counted.value("realtime_connections_closed_total") == 0

        async with Client(url) as back:
            await back.welcomed()
            processes = site.database.query(
                "SELECT lost, stopped_at FROM realtime_process ORDER BY started_at"
            )
            assert [(bool(row["lost"]), row["stopped_at"] is None) for row in processes] == [
                (True, False),
                (False, True),
            ]
            assert open_rows(site) == (1, 1)
            publisher.send('"again"')
            await back.seen(lambda frame: frame.get("data") == "again")
            assert in_layer(site) == {GROUP: 1}
    measured(
        "stopped, then continued",
        pairing,
        clients=len(everybody),
        first_closed_after=ends[0],
        last_closed_after=ends[-1],
        window=WINDOW,
    )


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_whoever_does_something_on_a_lost_socket_is_closed_at_once(
    pairing: Pairing, start_site: StartSite
) -> None:
    # Nobody's turn comes while the test lasts, but for the first's.
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

        # And a stop waits for no window.
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
        site.look_remote()
        server.freeze()
        try:
            stopped_at = time.monotonic()
            await eventually_async(
                lambda: lost(site) == 1 and open_rows(site) == (0, 0), within=BOUND + SLACK, every=0.2
            )
            reaped_after = time.monotonic() - stopped_at
            await asyncio.sleep(stopped_at + THREE_MINUTES - time.monotonic())  # the fault itself
        finally:
            server.thaw()
        woken_at = time.monotonic()
        codes = await asyncio.gather(*(client.closes(within=DEFAULT_WINDOW + 10) for client in clients))
        ends = sorted((client.closed_at or 0.0) - woken_at for client in clients)
        await eventually_async(lambda: in_layer(site) == {} == in_records(site), within=5)
        async with Client(url) as back:
            await back.welcomed()
            open_then = open_rows(site)
            assert in_layer(site) == {GROUP: 1}
        measured(
            "stopped, then continued after three minutes",
            pairing,
            clients=len(clients),
            reaped_after=reaped_after,
            bound=BOUND,
            first_closed_after_waking=ends[0],
            last_closed_after_waking=ends[-1],
            window=DEFAULT_WINDOW,
        )
        assert Counter(codes) == {4000: CLIENTS}
        assert {client.of_type("goodbye")[0]["reason"] for client in clients} == {"server_lost"}
        assert ends[-1] > DEFAULT_WINDOW / 2, "closed in one instant"
        assert open_then == (1, 1)
        assert site.close_reasons()["server_lost"] == CLIENTS


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_three_minutes_at_the_default_settings(start_site: StartSite) -> None:
    # Side by side: to stand still costs nothing.
    await asyncio.gather(*(stopped_for_three_minutes(pairing, start_site) for pairing in PAIRINGS))
