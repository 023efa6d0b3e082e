"""All clients vanish in one instant and come back together: a phone network, an office line, a proxy."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.websocket import close_all, connect_many
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 500
BOUND = 5.0  # seconds until the last is back
SILENT = 28.0  # seconds within which silence is found, by default
SLACK = 5.0  # seconds for records and memberships, on a machine that is busy with other tests
GROUP = "public.room"


async def come_back(
    site: Site, server: WebServer, vanished_at: float, *, kind: str, gone_within: float
) -> None:
    """Connect all clients together, while the server still cleans up after the clients that vanished."""
    clients = await connect_many(CLIENTS, server.websocket(f"/ws/{GROUP}/"), at_once=CLIENTS)
    try:
        await asyncio.gather(*(client.welcomed() for client in clients))
        back_after = time.monotonic() - vanished_at
        await eventually_async(
            lambda: site.open_connections(server) == site.open_memberships(server) == CLIENTS,
            within=gone_within,
        )
        gone_after = time.monotonic() - vanished_at
        site.publisher(GROUP).send('"all"')
        await asyncio.gather(*(client.seen(lambda frame: frame.get("data") == "all") for client in clients))
        log = server.log_text()
        measured(
            f"vanish and come back, {kind}",
            site.pairing,
            clients=CLIENTS,
            back=sum(client.is_open for client in clients),
            back_after=back_after,
            bound=BOUND,
            nothing_left_after=gone_after,
            tracebacks=log.count("Traceback"),
        )
        assert all(client.is_open for client in clients)
        assert back_after <= BOUND
        assert site.database.value("SELECT count(*) FROM realtime_connection") == 2 * CLIENTS
        assert "Traceback" not in log
        assert " ERROR " not in log
        if site.pairing.layer == "core":
            with site.redis.client() as redis:
                assert redis.zcard(f"asgi:group:{GROUP}") == 1
    finally:
        await close_all(clients)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_all_clients_of_a_killed_process_come_back_together(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing)
    server = site.serve()
    with ClientProcess(
        None, server.websocket(f"/ws/{GROUP}/"), CLIENTS, log=tmp_path / "clients.log"
    ) as clients:
        assert site.open_memberships(server) == CLIENTS
        clients.kill()
        await come_back(site, server, time.monotonic(), kind="killed", gone_within=SLACK)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_all_clients_come_back_together_by_another_link(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    require_namespaces()
    site = start_site(pairing)
    with NetworkNamespace() as network:
        server = site.serve(interface=network.host_address)
        url = server.websocket(f"/ws/{GROUP}/")
        with ClientProcess(network, url, CLIENTS, log=tmp_path / "clients.log"):
            network.cut()
            # The server is not told: the old connections are zombies while the clients are let in again.
            await come_back(site, server, time.monotonic(), kind="link down", gone_within=SILENT + SLACK)
