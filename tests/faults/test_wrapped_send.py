"""Behind middlewares that wrap `send`, plain clients are found and bounded as without a middleware."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults.test_slow_readers import GROUP as FLOODED
from tests.faults.test_slow_readers import MAX_UNSENT_BYTES, RETURNED, flood_until_evicted, running
from tests.support.applications.middlewares import SHAPES
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.raw import RawClient, frame
from tests.support.clients.websocket import Client
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer

pytestmark = pytest.mark.faults

APPLICATION = "tests.support.applications.wrapped:application"
EACH = 5  # vanishing clients behind each shape of middleware
PING_INTERVAL, PONG_TIMEOUT, PROBE_AFTER = 2.0, 1.5, 1.0
SLACK = 2.0  # seconds for the records to be written, on a machine that is busy with other tests
DARK, LIGHT = "public.dark", "public.light"  # the groups of the vanishing clients, and of the healthy ones


def urls(server: WebServer, group: str) -> list[str]:
    return [server.websocket(f"/{shape}/ws/{group}/") for shape in SHAPES]


@pytest.mark.parametrize("written_to", [False, True], ids=["idle", "written-to"])
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_clients_behind_any_middleware_are_found_in_time(
    pairing: Pairing, written_to: bool, start_site: StartSite, tmp_path: Path
) -> None:
    require_namespaces()
    regular = {"PING_INTERVAL": 30.0, "MAX_SILENCE": 90.0} if written_to else {"PING_INTERVAL": PING_INTERVAL}
    bound = (PROBE_AFTER if written_to else PING_INTERVAL) + PONG_TIMEOUT
    site = start_site(pairing, **regular, PONG_TIMEOUT=PONG_TIMEOUT, PROBE_AFTER=PROBE_AFTER)
    vanishing = EACH * len(SHAPES)
    with NetworkNamespace() as network:
        server = site.serve(interface=network.host_address, application=APPLICATION)
        first, *more = urls(server, DARK)
        # On uvicorn, the server's own keepalive finds clients without `realtime.v1`.
        plain = pairing.server == "daphne"
        inside = ClientProcess(network, first, EACH, *more, plain=plain, log=tmp_path / "clients.log")
        healthy = [Client(url, plain=True) for url in urls(server, LIGHT)]
        light, dark = site.publisher(LIGHT), site.publisher(DARK)
        sent = 0

        async def load() -> None:
            nonlocal sent
            while True:
                light.send(str(sent))
                sent += 1
                for client in healthy:
                    await client.send({"type": "join", "ref": sent, "group": LIGHT})
                await asyncio.sleep(0.05)

        with inside:
            await asyncio.gather(*(client.open() for client in healthy))
            # Ready when both publishers are: the first messages come through.
            dark.send("0")
            await eventually_async(lambda: inside.reports()[-1]["messages"] >= vanishing, within=20)
            async with running(load):
                # Longer than a client may be silent: these live because they answer.
                await asyncio.sleep(1.0 if written_to else bound + 1.0)
                assert site.close_reasons() == {}
                network.drop()
                if written_to:
                    dark.send("1")
                dropped_at = time.monotonic()
                await eventually_async(
                    lambda: site.close_reasons() == {"ping_timeout": vanishing}, within=bound + SLACK + 1.0
                )
                took = time.monotonic() - dropped_at
            metrics = await asyncio.to_thread(scrape, server)
            await eventually_async(lambda: len(healthy[0].data) == sent, within=10)
            for client in healthy:
                assert client.is_open
                assert client.data == list(range(sent)), "lost, doubled or out of order"
                await client.close()
        measured(
            f"behind middlewares, {'written to' if written_to else 'idle'}",
            pairing,
            clients=vanishing,
            evicted_after=took,
            bound=bound,
        )
        assert inside.reports()[-1]["messages"] == vanishing, "the network was not dark"
        assert metrics.value("realtime_connections_unpinged") == 0
        assert "cannot be pinged" not in server.log_text()
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_slow_readers_behind_any_middleware_go_at_the_cap(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve(application=APPLICATION, **RETURNED)
    # A middleware's own queue fills the buffer of Daphne, which is seen. uvicorn lets none fill, so there
    # the queue grows until uvicorn's keepalive finds the client.
    bounded = [url for url in urls(server, FLOODED) if pairing.server == "daphne" or "/queue/" not in url]
    readers = [RawClient(url, bytes_per_second=1) for url in bounded]

    async def talk() -> None:
        for n in range(10**6):
            for each in readers:
                await each.send(frame(f'{{"type":"join","ref":{n},"group":"{FLOODED}"}}'))
            await asyncio.sleep(0.2)

    async with Client(server.websocket(f"/ws/{FLOODED}/")) as fast:
        try:
            for each in readers:
                assert (await each.open(v1=False)).status == 101
            await eventually_async(lambda: site.open_memberships(server) == len(readers) + 1, within=10)
            async with running(talk):
                await flood_until_evicted(
                    site, server, fast, cap=MAX_UNSENT_BYTES, evicted=len(readers), kind="behind middlewares"
                )
        finally:
            await asyncio.gather(*(each.hang_up() for each in readers))
