"""The connection on which a process receives from Redis is up and carries nothing, or Redis is out of reach.

A firewall that forgot the connection does this: neither side is told, and only an echo can show it.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.scrape import scrape
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import Client, crowd
from tests.support.faults.network import NetworkNamespace, require_namespaces
from tests.support.faults.relay import Relay
from tests.support.fixtures import StartSite
from tests.support.pairings import DEFAULT_INTERVAL, Pairing, pairings, rounds, scale
from tests.support.programs.servers import RedisServer, WebServer

pytestmark = pytest.mark.faults

CLIENTS = 50
SLACK = 1.0  # seconds for a machine that is busy with other tests
GROUP = "public.lobby"
#: Parts of a round after which one process after the other becomes deaf.
PHASES = (0.0, 0.25, 0.5, 0.75)


@pytest.fixture
def network() -> Iterator[NetworkNamespace]:
    require_namespaces()
    with NetworkNamespace() as network:
        yield network


def receiving_ports(redis: RedisServer, server: WebServer) -> set[int]:
    """Return the ports of the connections on which this process receives from Redis."""
    its_own = {each.laddr.port for each in psutil.Process(server.pid).net_connections(kind="tcp")}
    with redis.client() as client:
        # "P": subscribed, as on the pub/sub layer. "b": blocked in a pop, as on the core layer.
        waiting = {
            int(each["addr"].rpartition(":")[2])
            for each in client.client_list()
            if {*each["flags"]} & {*"Pb"}
        }
    return its_own & waiting


def ready(server: WebServer) -> tuple[int, list[str]]:
    """Ask `/health/ready`; return the status, and the parts that are not ready."""
    try:
        with urllib.request.urlopen(server.http("/health/ready"), timeout=10) as answer:  # noqa: S310 - our own
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        status, body = refusal.code, refusal.read()
    return status, sorted({*json.loads(body)} - {"ready"})


@rounds
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_dead_connection_is_replaced_in_two_intervals(
    pairing: Pairing,
    interval: float,
    start_site: StartSite,
    network: NetworkNamespace,
    tmp_path: Path,
) -> None:
    redis = RedisServer(tmp_path, tcp=True, interface=network.client_address, prefix=network.prefix)
    site = start_site(pairing, redis=redis, ROUND_INTERVAL=interval, ROUND_TIMEOUT=interval / 2)
    server, other, reaper = site.serve(), site.serve(), site.reaper()
    url = f"/ws/{GROUP}/"
    with same_layer(site):
        async with (
            crowd(CLIENTS, server.websocket(url)) as deaf,
            crowd(5, other.websocket(url)) as hearing,
            Numbers(GROUP) as numbers,
        ):
            await numbers.all_back_after(deaf + hearing, time.monotonic(), within=10)
            ports = receiving_ports(redis, server)
            assert ports, "the connection that receives was not found"
            assert rebuilds(server) == 0

            with measuring(f"subscriber connection carries nothing, {scale(interval)}", pairing) as m:
                m.clients, m.bound = CLIENTS, 2 * interval
                network.mute(ports)
                muted_at = time.monotonic()
                back = await numbers.all_back_after(deaf, muted_at + 0.1, within=m.bound + SLACK)
                m.receiving_again_after = back + 0.1

            recovered_at = time.monotonic()
            await asyncio.sleep(2 * interval)  # the next checks find nothing to repair
            await numbers.stop()
            await numbers.arrive(deaf + hearing)
            assert all(numbers.nothing_lost_after(client, recovered_at) for client in deaf)
            assert all(numbers.nothing_lost_after(client, 0.0) for client in hearing)
            assert all(client.is_open for client in deaf + hearing), "no client has to reconnect"
            assert (rebuilds(server), rebuilds(other)) == (1, 0)
            assert "echoes in a row did not come back" in server.log_text()
            assert not ports & receiving_ports(redis, server), "it receives on another connection"
            assert "is lost" not in reaper.log_text()


def rebuilds(server: WebServer) -> float:
    return scrape(server).value("realtime_layer_rebuilds_total")


@pytest.mark.parametrize(
    ("interval", "reaper_interval"),
    [(2.0, 0.5), pytest.param(DEFAULT_INTERVAL, 2.0, marks=pytest.mark.matrix)],
    ids=["scaled", "default"],
)
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_deaf_processes_are_not_lost_at_any_phase_of_a_round(
    pairing: Pairing,
    interval: float,
    reaper_interval: float,
    start_site: StartSite,
    network: NetworkNamespace,
    tmp_path: Path,
) -> None:
    """Rounds come more often than processes check themselves: several rounds pass while they are deaf."""
    redis = RedisServer(tmp_path, tcp=True, interface=network.client_address, prefix=network.prefix)
    site = start_site(pairing, redis=redis, ROUND_INTERVAL=interval, ROUND_TIMEOUT=interval / 2)
    servers = [site.serve() for _ in PHASES]
    reaper = site.reaper("--interval", str(reaper_interval), "--timeout", str(reaper_interval / 2))
    url = f"/ws/{GROUP}/"
    with same_layer(site):
        async with AsyncExitStack() as open_clients, Numbers(GROUP) as numbers:
            crowds = [
                await open_clients.enter_async_context(crowd(5, each.websocket(url))) for each in servers
            ]
            clients = [client for each in crowds for client in each]
            await numbers.all_back_after(clients, time.monotonic(), within=10)
            reaper.wait_for_a_round()
            ports = [receiving_ports(redis, server) for server in servers]

            with measuring(f"deaf while rounds come, {scale(interval)}", pairing) as m:
                m.processes = len(servers)
                await mute_one_after_the_other(network, ports, reaper_interval)
                await numbers.all_back_after(clients, time.monotonic(), within=2 * interval + SLACK)
                # Two more rounds: they would declare a process lost that has answered no round before.
                await asyncio.sleep(2 * reaper_interval + 0.5)
                m.rounds = len(reaper.log_text().splitlines())
                m.closed, m.of = sum(not client.is_open for client in clients), len(clients)

            assert all(client.is_open for client in clients)
            assert "is lost" not in reaper.log_text()
            assert site.close_reasons() == {}


async def mute_one_after_the_other(
    network: NetworkNamespace, ports: list[set[int]], reaper_interval: float
) -> None:
    """Mute the ports of one process after the other, each at another phase of a round."""
    muted: set[int] = set()
    began = time.monotonic()
    for phase, its_ports in zip(PHASES, ports, strict=True):
        await asyncio.sleep(max(0.0, began + phase * reaper_interval - time.monotonic()))
        muted |= its_ports
        network.mute(muted)


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_a_process_that_alone_cannot_reach_redis_is_not_lost(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path, tcp=True)
    site = start_site(pairing, redis=redis, ROUND_INTERVAL=2.0, ROUND_TIMEOUT=1.0)
    url = f"/ws/{GROUP}/"
    with same_layer(site), Relay(redis, log=tmp_path / "relay.log") as relay:
        cut_off, other, reaper = site.serve(REDIS_URL=relay.url), site.serve(), site.reaper()
        async with (
            crowd(20, cut_off.websocket(url)) as clients,
            crowd(5, other.websocket(url)) as others,
            Numbers(GROUP) as numbers,
        ):
            await numbers.all_back_after(clients + others, time.monotonic(), within=10)
            reaper.wait_for_a_round()
            relay.freeze()
            await asyncio.sleep(5 * 2.0)
            rounds_meanwhile = reaper.log_text()
            relay.thaw()
            back = await numbers.all_back_after(clients, time.monotonic(), within=10)
            measured(
                "one process cannot reach Redis",
                pairing,
                closed=sum(not client.is_open for client in clients),
                of=len(clients),
                receiving_again_after=back,
            )
            assert "is lost" not in rounds_meanwhile
            assert all(client.is_open for client in clients + others)
            await numbers.stop()
            await numbers.arrive(others)
            assert all(numbers.nothing_lost_after(client, 0.0) for client in others)


@pytest.mark.parametrize("pairing", pairings())
async def test_a_process_that_stays_deaf_sends_its_clients_away(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path, tcp=True)
    site = start_site(
        pairing, redis=redis, ROUND_INTERVAL=1.0, ROUND_TIMEOUT=0.5, MAX_ECHOES_MISSED=4, RECONNECT_WINDOW=2.0
    )
    url = f"/ws/{GROUP}/"
    with same_layer(site), Relay(redis, log=tmp_path / "relay.log") as relay:
        deaf, other, reaper = site.serve(REDIS_URL=relay.url), site.serve(), site.reaper()
        async with crowd(20, deaf.websocket(url)) as clients, crowd(5, other.websocket(url)) as others:
            # The other process must have recorded that it hears.
            reaper.wait_for_a_round()
            await asyncio.sleep(2.0)
            assert await asyncio.to_thread(ready, deaf) == (200, [])
            with measuring("a process stays deaf", pairing) as m:
                relay.freeze()
                m.clients_sent_elsewhere_after = await seconds_until(
                    lambda: all(not each.is_open for each in clients), within=40
                )
                ends = sorted(each.closed_at or 0.0 for each in clients)
                m.spread_over = ends[-1] - ends[0]
                m.codes = sorted({each.close_code for each in clients}, key=str)
            await admits_no_client_until_it_hears(deaf, other, relay)

            assert {each.close_code for each in clients} == {4000}
            assert [each.of_type("goodbye")[0]["reason"] for each in clients] == ["server_unavailable"] * 20
            assert m.spread_over > 1.0
            assert "This process stays deaf" in deaf.log_text()
            assert "is lost" not in reaper.log_text()
            assert all(each.is_open for each in others)


async def admits_no_client_until_it_hears(deaf: WebServer, other: WebServer, relay: Relay) -> None:
    """A process that stays deaf says so and sends clients away. When Redis answers, it admits them."""
    path = f"/ws/{GROUP}/"
    assert await asyncio.to_thread(ready, deaf) == (503, ["channel_layer", "channel_layer:other"])
    state = await asyncio.to_thread(scrape, deaf)
    assert state.value("realtime_layer_deaf", layer="default") == 1
    async with Client(deaf.websocket(path)) as again:
        assert await again.closes(within=20) == 4000
    async with Client(other.websocket(path)) as again:
        assert (await again.welcomed())["groups"] == [GROUP]
    relay.thaw()
    await eventually_async(lambda: ready(deaf) == (200, []), within=30, every=0.5)
    async with Client(deaf.websocket(path)) as again:
        assert (await again.welcomed())["groups"] == [GROUP]


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_redis_that_restarts_in_every_round_loses_no_process(
    pairing: Pairing, start_site: StartSite
) -> None:
    """In some rounds, Redis takes the questions before the processes have subscribed again."""
    site = start_site(pairing, ROUND_INTERVAL=2.0, ROUND_TIMEOUT=1.0)
    servers, reaper = [site.serve() for _ in range(3)], site.reaper("--interval", "1", "--timeout", "0.5")
    async with AsyncExitStack() as open_clients:
        crowds = [
            await open_clients.enter_async_context(crowd(5, each.websocket(f"/ws/{GROUP}/")))
            for each in servers
        ]
        clients = [client for each in crowds for client in each]
        reaper.wait_for_a_round()
        for _ in range(8):
            seen = len(reaper.log_text())
            await eventually_async(lambda seen=seen: len(reaper.log_text()) > seen, within=10, every=0.01)
            await asyncio.to_thread(site.redis.stop)
            await asyncio.sleep(0.7)
            await asyncio.to_thread(site.redis.start)
        await asyncio.sleep(3.0)
        measured(
            "Redis restarts in every round",
            pairing,
            processes=len(servers),
            closed=sum(not client.is_open for client in clients),
            unanswered_rounds=reaper.log_text().count("answered 0"),
        )
        assert "is lost" not in reaper.log_text()
        assert all(client.is_open for client in clients)
