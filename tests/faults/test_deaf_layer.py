"""The connection on which a process receives from Redis is up and carries nothing, as after a firewall forgot
it: neither side is told, and only an echo can tell.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.clients import crowd
from tests.support.fixtures import StartSite
from tests.support.measured import measured
from tests.support.namespaces import NetworkNamespace, require_namespaces
from tests.support.numbers import Numbers, same_layer
from tests.support.pairings import Pairing, pairings, rounds, scale
from tests.support.scrape import scrape
from tests.support.servers import RedisServer, WebServer

pytestmark = pytest.mark.faults

CLIENTS = 50
SLACK = 1.0  # seconds for a machine that is busy with other tests
GROUP = "public.lobby"


@pytest.fixture
def network() -> Iterator[NetworkNamespace]:
    require_namespaces()
    with NetworkNamespace() as network:
        yield network


def receiving_ports(redis: RedisServer, server: WebServer) -> set[int]:
    """The ports of this process's connections on which it waits for what Redis has for it."""
    its_own = {each.laddr.port for each in psutil.Process(server.pid).net_connections(kind="tcp")}
    with redis.client() as client:
        # "P": subscribed, as on the pub/sub layer. "b": blocked in a pop, as on the core layer.
        waiting = {
            int(each["addr"].rpartition(":")[2])
            for each in client.client_list()
            if {*each["flags"]} & {*"Pb"}
        }
    return its_own & waiting


@rounds
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_connection_that_carries_nothing_is_noticed_and_replaced_within_two_intervals(
    pairing: Pairing,
    interval: float,
    start_site: StartSite,
    network: NetworkNamespace,
    tmp_path: Path,
) -> None:
    redis = RedisServer(tmp_path, tcp=True, interface=network.client_address, prefix=network.prefix)
    site = start_site(pairing, redis=redis, ROUND_INTERVAL=interval, ROUND_TIMEOUT=interval / 2)
    server, other = site.serve(), site.serve()
    url = f"/ws/{GROUP}/"
    with same_layer(site):
        async with (
            crowd(CLIENTS, server.websocket(url)) as deaf,
            crowd(5, other.websocket(url)) as hearing,
            Numbers(GROUP) as numbers,
        ):
            await numbers.all_back_after(deaf + hearing, time.monotonic(), within=10)
            ports = receiving_ports(redis, server)
            assert ports, "which connection is it?"
            assert scrape(server).value("realtime_layer_rebuilds_total") == 0

            network.mute(ports)
            muted_at = time.monotonic()
            back = await numbers.all_back_after(deaf, muted_at + 0.1, within=2 * interval + SLACK) + 0.1
            measured(
                f"subscriber connection carries nothing, {scale(interval)}",
                pairing,
                clients=CLIENTS,
                receiving_again_after=back,
                bound=2 * interval,
            )

            recovered_at = time.monotonic()
            await asyncio.sleep(2 * interval)  # the next looks find nothing to mend
            await numbers.stop()
            await numbers.arrive(deaf + hearing)
            assert all(numbers.nothing_lost_after(client, recovered_at) for client in deaf)
            assert all(numbers.nothing_lost_after(client, 0.0) for client in hearing)
            assert all(client.is_open for client in deaf + hearing), "nobody has to reconnect"
            assert scrape(server).value("realtime_layer_rebuilds_total") == 1
            assert scrape(other).value("realtime_layer_rebuilds_total") == 0
            assert "echoes in a row did not come back" in server.log_text()
            assert not ports & receiving_ports(redis, server), "it receives on another connection"
