"""Nothing happens for a while. No connection ends for it, also if a read of Redis waits that long.

Since version 8, redis-py reads with a timeout of 5 s by default, and the core layer waits for 5 s in one
command.
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, connect_many
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 20
SCALED = {"PING_INTERVAL": 4.0, "PONG_TIMEOUT": 2.0}
LONGER_THAN_A_READ = 11.0  # seconds
GROUP = "public.room"
APPLICATION = "tests.support.applications.misbehaving:application"


async def idle(site: Site, seconds: float, kind: str = "idle", **environment: str) -> None:
    """Let clients of every kind be idle. Afterwards all must be connected, and receive messages."""
    groups = site.serve(**environment)
    channels = site.serve(application=APPLICATION, **environment)
    clients: list[Client] = []
    clients += await connect_many(CLIENTS, groups.websocket(f"/ws/{GROUP}/"))
    clients += await connect_many(CLIENTS, groups.websocket(f"/ws/{GROUP}/"), plain=True)
    # Each of the last has its own channel in the layer, with its own blocking read.
    own = await connect_many(CLIENTS, channels.websocket("/ws/"))
    clients += own
    try:
        began = time.monotonic()
        await asyncio.sleep(seconds)  # the fault itself
        dropped = sum(not client.is_open for client in clients)
        measured(
            kind,
            site.pairing,
            clients=len(clients),
            idle_for=time.monotonic() - began,
            dropped=dropped,
            pings=int(sum(scrape(each).value("realtime_pings_sent_total") for each in (groups, channels))),
        )
        assert dropped == 0
        assert site.database.value("SELECT count(*) FROM realtime_connection") == len(clients)
        assert site.open_connections(groups) == 2 * CLIENTS
        assert site.open_connections(channels) == CLIENTS

        publisher = site.publisher(GROUP)
        publisher.send('"after it"')
        await asyncio.gather(*(client.send("echo-by-channel") for client in own))
        for client in clients:
            # The publisher is a program that only now starts.
            await client.seen(lambda frame: frame.get("data") == "after it", within=30)
        for client in own:
            await client.seen(lambda frame: frame["type"] == "echo")
        for server in (groups, channels):
            assert "Traceback" not in server.log_text()
            assert " ERROR " not in server.log_text()
    finally:
        await asyncio.gather(*(client.close() for client in clients))


@pytest.mark.parametrize("pairing", pairings())
async def test_clients_may_be_idle_for_longer_than_a_read_of_redis(
    pairing: Pairing, start_site: StartSite
) -> None:
    await idle(start_site(pairing, **SCALED), LONGER_THAN_A_READ)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_clients_may_be_idle_for_35_seconds(pairing: Pairing, start_site: StartSite) -> None:
    await idle(start_site(pairing), 35.0)


@pytest.mark.matrix
@pytest.mark.parametrize("version", ["5.0.3", "5.3.1", "6.4.0", "7.4.1", "8.0.1"])
@pytest.mark.parametrize("pairing", pairings(server="daphne"))
async def test_clients_may_be_idle_with_another_redis_py(
    pairing: Pairing, version: str, start_site: StartSite, tmp_path: Path
) -> None:
    folder = str(tmp_path / "redis-py")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, f"redis=={version}")
    await asyncio.to_thread(subprocess.run, install, check=True)
    # Before the version that is installed for the tests.
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    which = (sys.executable, "-c", "import redis; print(redis.__version__)")
    used = await asyncio.to_thread(
        subprocess.run, which, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True
    )
    assert used.stdout.decode().strip() == version
    site = start_site(pairing, **SCALED)
    await idle(site, LONGER_THAN_A_READ, f"idle, redis-py {version}", PYTHONPATH=path)
