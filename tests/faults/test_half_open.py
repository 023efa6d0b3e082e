"""Clients lose their network without FIN or RST: they are evicted in time, and no other client suffers."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import Publisher
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.faults

VANISHING, HEALTHY = 50, 20
PING_INTERVAL, PONG_TIMEOUT, PROBE_AFTER = 4.0, 1.5, 1.0
SLACK = 2.0  # seconds for the record to be written, on a machine that is busy with other tests
DARK, LIGHT = "public.dark", "public.light"  # the groups of the vanishing clients, and of the healthy ones
REAPERS = pytest.mark.parametrize(
    "reaping", [pytest.param(False, marks=pytest.mark.matrix), True], ids=["without-reaper", "with-reaper"]
)


@pytest.fixture
def network() -> Iterator[NetworkNamespace]:
    require_namespaces()
    with NetworkNamespace() as network:
        yield network


class Scene:
    """A server at the host's end of a veth pair, and clients at its other end."""

    def __init__(
        self,
        site: Site,
        network: NetworkNamespace,
        folder: Path,
        *,
        vanishing: int = VANISHING,
        plain: bool = False,
    ) -> None:
        self.site = site
        self.vanishing = vanishing
        self.server = site.serve(interface=network.host_address)
        url = self.server.websocket(f"/ws/{DARK}/")
        self.inside = ClientProcess(network, url, vanishing, plain=plain, log=folder / "clients.log")

    def evicted(self) -> int:
        """Count the connections that were closed for a missing answer and have left all their groups."""
        return int(
            self.site.database.value(
                "SELECT count(*) FROM realtime_connection c WHERE c.close_reason = 'ping_timeout'"
                " AND NOT EXISTS (SELECT 1 FROM realtime_membership m"
                " WHERE m.connection_id = c.id AND m.left_at IS NULL)"
            )
        )

    def all_evicted(self) -> bool:
        evicted = self.evicted()
        assert evicted == self.vanishing, f"{evicted}; closed {self.site.close_reasons()}"
        return True

    def closed(self) -> int:
        rows = self.site.database.query("SELECT id FROM realtime_connection WHERE closed_at IS NOT NULL")
        return len(rows)


class Numbers(Repeating):
    """Publishes 0, 1, 2 … to the healthy clients, ten a second. Each client must receive each number."""

    def __init__(self, publisher: Publisher, clients: list[Client]) -> None:
        self.publisher = publisher
        self.clients = clients
        self.sent: list[int] = []
        self.sent_at: list[float] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await eventually_async(lambda: all(client.messages for client in self.clients), within=30)
        return self

    async def step(self) -> None:
        self.sent_at.append(time.monotonic())
        self.publisher.send(str(len(self.sent)))
        self.sent.append(len(self.sent))
        await asyncio.sleep(0.1)

    def p99(self, clients: list[Client], since: float) -> float:
        """Return the 99th percentile of the delays, in seconds, of what was published since then.

        A delay is the time from publishing to arrival at one of the clients.
        """
        delays = [
            each.at - self.sent_at[each.frame["data"]]
            for client in clients
            for each in client.received
            if each.frame.get("group") == LIGHT and each.frame["type"] == "message"
            if self.sent_at[each.frame["data"]] >= since
        ]
        return statistics.quantiles(delays, n=100)[98]

    def received_by_all(self) -> bool:
        for client in self.clients:
            received = [frame["data"] for frame in client.messages if frame["group"] == LIGHT]
            assert received == self.sent[: len(received)], "lost, doubled or out of order"
            assert len(received) == len(self.sent)
        return True


async def no_other_client_suffered(scene: Scene, healthy: list[Client], numbers: Numbers) -> None:
    await numbers.stop()
    await eventually_async(numbers.received_by_all, within=5)
    assert all(client.is_open for client in healthy)
    assert scene.closed() == scene.vanishing
    assert scene.site.open_connections(scene.server) == len(healthy)


@REAPERS
@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_idle_clients_without_a_network_are_evicted_in_time(
    pairing: Pairing, reaping: bool, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    bound = PING_INTERVAL + PONG_TIMEOUT
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT)
    scene = Scene(site, network, tmp_path)
    if reaping:
        site.reaper("--interval", "1", "--timeout", "0.5")

    with scene.inside as inside:
        async with (
            crowd(HEALTHY, scene.server.websocket(f"/ws/{LIGHT}/")) as healthy,
            Numbers(site.publisher(LIGHT), healthy) as numbers,
        ):
            await eventually_async(lambda: inside.reports()[-1]["pings"] >= VANISHING, within=2 * bound)
            assert inside.reports()[-1]["open"] == VANISHING
            assert scene.closed() == 0

            network.drop()
            dropped_at = time.monotonic()
            await eventually_async(scene.all_evicted, within=bound + SLACK)
            took = time.monotonic() - dropped_at
            measured(
                f"half-open, idle, {'with' if reaping else 'without'} a reaper",
                pairing,
                clients=VANISHING,
                evicted_after=took,
                bound=bound,
            )
            await no_other_client_suffered(scene, healthy, numbers)
            assert site.open_memberships(scene.server) == HEALTHY


@REAPERS
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_clients_that_vanish_are_evicted_sooner_after_a_write(
    pairing: Pairing, reaping: bool, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    bound = PROBE_AFTER + PONG_TIMEOUT
    # The next regular ping is far away: only the probe after a write can find these clients in time.
    times = {"PING_INTERVAL": 30.0, "PONG_TIMEOUT": PONG_TIMEOUT, "PROBE_AFTER": PROBE_AFTER}
    site = start_site(pairing, **times, MAX_SILENCE=90.0)
    scene = Scene(site, network, tmp_path)
    if reaping:
        site.reaper("--interval", "1", "--timeout", "0.5")

    with scene.inside as inside:
        async with (
            crowd(HEALTHY, scene.server.websocket(f"/ws/{LIGHT}/")) as healthy,
            Numbers(site.publisher(LIGHT), healthy) as numbers,
        ):
            await asyncio.gather(*(client.join(DARK) for client in healthy))
            assert scene.closed() == 0

            network.drop()
            site.publisher(DARK).send('"into the dark"')
            # A process writes to all members of a group together: the vanished ones were written to as well.
            for client in healthy:
                await client.seen(lambda frame: frame.get("group") == DARK and frame["type"] == "message")
            written_at = min(
                client.arrival(lambda frame: frame.get("group") == DARK and frame["type"] == "message")
                for client in healthy
            )
            await eventually_async(scene.all_evicted, within=bound + SLACK)
            took = time.monotonic() - written_at
            metrics = await asyncio.to_thread(scrape, scene.server)
            measured(
                f"half-open, written to, {'with' if reaping else 'without'} a reaper",
                pairing,
                clients=VANISHING,
                evicted_after=took,
                bound=bound,
                zombie_messages=int(metrics.value("realtime_zombie_messages_total")),
            )
            assert metrics.value("realtime_zombie_messages_total", reason="ping_timeout") == VANISHING
            assert metrics.value("realtime_zombie_bytes_total") > VANISHING * len("into the dark")
            assert inside.reports()[-1]["messages"] == 0, "the network was not dark"
            await no_other_client_suffered(scene, healthy, numbers)
            assert site.open_memberships(scene.server) == 2 * HEALTHY


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_a_gap_below_the_pong_timeout_closes_no_connection(
    pairing: Pairing, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    site = start_site(pairing, PING_INTERVAL=4.0, PONG_TIMEOUT=3.5)
    scene = Scene(site, network, tmp_path)

    with scene.inside as inside:
        network.drop()
        await asyncio.sleep(0.8)  # the gap itself, not a wait for something
        network.restore()
        # A client is pinged a second time only if it answered the first ping, or may still answer it.
        await eventually_async(lambda: inside.reports()[-1]["pings"] >= 2 * VANISHING, within=12)
        assert inside.reports()[-1]["open"] == VANISHING
        assert scene.closed() == 0


# On other servers the keepalive of the server finds clients without `realtime.v1`.
@pytest.mark.parametrize("pairing", pairings(server="daphne"))
async def test_plain_clients_are_found_by_pings_of_the_transport(
    pairing: Pairing, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    bound = PING_INTERVAL + PONG_TIMEOUT
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT)
    scene = Scene(site, network, tmp_path, plain=True)

    with scene.inside as inside:
        # Longer than a client may be silent: these live because they answer.
        await asyncio.sleep(bound + 1)
        assert scene.closed() == 0
        network.drop()
        dropped_at = time.monotonic()
        await eventually_async(scene.all_evicted, within=bound + SLACK)
        measured(
            "half-open, plain clients",
            pairing,
            clients=VANISHING,
            evicted_after=time.monotonic() - dropped_at,
            bound=bound,
        )
        assert inside.reports()[-1]["frames"] == 0, "the server sent what the consumer did not write"


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings(server="uvicorn"))
async def test_plain_clients_are_found_by_the_keepalive_of_the_server(
    pairing: Pairing, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    bound = 20.0 + 15.0  # the options of docs/howto/servers.md
    site = start_site(pairing)
    scene = Scene(site, network, tmp_path, plain=True)
    with scene.inside:
        assert site.open_memberships(scene.server) == VANISHING
        network.drop()
        dropped_at = time.monotonic()
        await eventually_async(
            lambda: site.open_connections(scene.server) + site.open_memberships(scene.server) == 0,
            within=bound + SLACK,
        )
        measured(
            "half-open, plain clients",
            pairing,
            clients=VANISHING,
            evicted_after=time.monotonic() - dropped_at,
            bound=bound,
        )
        assert site.close_reasons() == {"ping_timeout": VANISHING}
        await eventually_async(lambda: scene.server.sockets() == 0, within=5)


MANY_VANISHING, MANY_HEALTHY = 200, 50
UNSAID, AFTER_A_WRITE = 30.0, 15.0  # seconds, at the default settings
CALM = 8.0  # seconds for which the healthy are watched before the fault


async def vanish(scene: Scene, network: NetworkNamespace, m: SimpleNamespace, *, written_to: bool) -> float:
    """Drop all packets of the vanishing clients, write to them or not, and wait until they are evicted.

    Returns:
        When the packets were dropped.
    """
    dark = scene.site.publisher(DARK)
    network.drop()
    began = time.monotonic()
    if written_to:
        for _ in range(5):
            dark.send(json.dumps("x" * 1024))
            await asyncio.sleep(1.0)
    m.evicted_after = await seconds_until(scene.all_evicted, within=m.bound + SLACK, every=0.2, since=began)
    return began


@pytest.mark.matrix
@pytest.mark.parametrize("written_to", [False, True], ids=["idle", "written-to"])
@pytest.mark.parametrize("pairing", pairings())
async def test_two_hundred_clients_vanish_at_the_default_settings(
    pairing: Pairing, written_to: bool, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    site = start_site(pairing)
    scene = Scene(site, network, tmp_path, vanishing=MANY_VANISHING)
    # Its clients get the same messages, at the same time, on the same busy machine, and without the fault.
    untouched = site.serve()
    site.reaper()

    with scene.inside as inside:
        async with (
            crowd(MANY_HEALTHY, scene.server.websocket(f"/ws/{LIGHT}/")) as healthy,
            crowd(MANY_HEALTHY, untouched.websocket(f"/ws/{LIGHT}/")) as others,
            Numbers(site.publisher(LIGHT), healthy + others) as numbers,
        ):
            with measuring(
                f"half-open at the defaults, {'written to' if written_to else 'idle'}", pairing
            ) as m:
                m.clients = MANY_VANISHING
                m.bound = AFTER_A_WRITE if written_to else UNSAID
                calm_at = time.monotonic()
                await asyncio.sleep(CALM)
                m.p99_before = numbers.p99(healthy, calm_at)
                began = await vanish(scene, network, m, written_to=written_to)
                m.p99_during, m.p99_elsewhere = numbers.p99(healthy, began), numbers.p99(others, began)
                await no_other_client_suffered(scene, healthy, numbers)
                metrics = await asyncio.to_thread(scrape, scene.server)
                messages = metrics.value("realtime_zombie_messages_total", reason="ping_timeout")
                m.zombie_messages = int(messages)
                m.zombie_kib = round(metrics.value("realtime_zombie_bytes_total") / 1024)

            assert m.evicted_after <= m.bound
            assert inside.reports()[-1]["messages"] == 0, "the network was not dark"
            assert messages == (5 * MANY_VANISHING if written_to else 0)
            assert site.open_memberships(scene.server) == MANY_HEALTHY
            await eventually_async(lambda: scene.server.sockets() == MANY_HEALTHY, within=15)
            assert m.p99_during <= 2 * max(m.p99_before, m.p99_elsewhere) + 0.05, "the healthy noticed"
