"""Handlers that misbehave: the connection ends once and its cause is logged once, or it lives on."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.websocket import Client, crowd
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import Publisher, WebServer
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.faults

PING_INTERVAL, PONG_TIMEOUT = 1.0, 0.8
HANDLER_TIMEOUT = 3.0  # seconds; opening a connection takes less, also as the first of a process
SLACK = 2.0  # seconds for a busy machine, on top of a bound
#: Twice as long as a client may be silent, as 60 s are at the default settings.
LONG = 2 * (PING_INTERVAL + PONG_TIMEOUT)
APPLICATION = "tests.support.applications.misbehaving:application"
GROUP = "public.room"  # of every client

pairs = pairings("pubsub-daphne-sqlite", "core-uvicorn-sqlite")


@pytest.fixture(scope="module", params=pairs)
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(
        pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT, MAX_INBOUND_QUEUE=20
    )


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve(application=APPLICATION)


class Watch:
    """The log and the records of the connections of one test."""

    def __init__(self, site: Site, server: WebServer) -> None:
        self.site = site
        self.server = server
        self.log_began = len(server.log_text())

    @property
    def log(self) -> str:
        return self.server.log_text()[self.log_began :]

    async def reason(self, client: Client) -> str:
        """Wait until the record of this client is closed, and return its reason."""
        welcome = await client.welcomed()
        return await self.reason_of(welcome["connection"])

    async def reason_of(self, name: str) -> str:
        return await eventually_async(lambda: self.site.close_reason(name), within=10)

    async def nothing_is_left(self) -> None:
        def rows() -> bool:
            assert self.site.open_connections(self.server) == 0
            assert self.site.open_memberships(self.server) == 0
            return True

        await eventually_async(rows, within=10)
        for complaint in (
            "Task was destroyed",
            "never retrieved",
            "never awaited",
            "Exception inside application",
        ):
            assert complaint not in self.log


@pytest_asyncio.fixture
async def watch(site: Site, server: WebServer) -> AsyncIterator[Watch]:
    watch = Watch(site, server)
    yield watch
    await watch.nothing_is_left()


def told(watch: Watch) -> int:
    """Count the calls of `disconnect`."""
    return watch.log.count("disconnected with")


@pytest.mark.parametrize(
    ("what", "codes", "reason", "causes"),
    [
        ("raise", {4000}, "handler_error", 1),
        ("raise-in-thread", {4000}, "handler_error", 1),
        ("raise-in-event", {4000}, "handler_error", 1),
        ("cancelled", {4000}, "handler_error", 1),
        ("stop", {1000}, "application_closed", 0),
        ("close 4321", {4321}, "application_closed", 0),
        ("close 4321 4322 4323", {4321}, "application_closed", 0),
        # Daphne refuses this code, so it sends 1000.
        ("close 1011", {1000, 1011}, "application_closed", 0),
        ("close-and-send", {4321}, "application_closed", 0),
    ],
)
async def test_a_handler_that_ends_the_connection_does_so_once(
    watch: Watch, what: str, codes: set[int], reason: str, causes: int
) -> None:
    async with (
        Client(watch.server.websocket("/ws/")) as client,
        Client(watch.server.websocket("/ws/")) as other,
    ):
        await client.welcomed()
        await client.send(what)
        assert await client.closes(within=5) in codes
        assert await watch.reason(client) == reason
        assert client.of_type("late") == []
        await eventually_async(lambda: told(watch) == 1, within=5)
        assert watch.log.count("A handler failed (handler_error)") == causes
        assert ("Traceback" in watch.log) == bool(causes)
        # The other client does not notice.
        await other.send("echo")
        await other.seen(lambda each: each["type"] == "echo")


async def test_every_handler_that_raises_leaves_nothing(watch: Watch) -> None:
    async with crowd(33, watch.server.websocket("/ws/")) as clients:
        for client in clients:
            await client.send("raise")
        codes = [await client.closes(within=10) for client in clients]
        await watch.nothing_is_left()
        causes = watch.log.count("A handler failed (handler_error)")
        measured(
            "handlers that raise",
            watch.site.pairing,
            raised=len(clients),
            causes_logged=causes,
            left=watch.site.open_memberships(watch.server),
        )
        assert codes == [4000] * len(clients)
        assert causes == len(clients)
        await eventually_async(lambda: told(watch) == len(clients), within=5)


async def test_a_consumer_that_is_cancelled_ends_like_any_other(watch: Watch) -> None:
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        await client.send("cancel-itself")
        assert await client.closes(within=5) == 4000
        assert client.of_type("goodbye")[0]["reason"] == "cancelled"
        assert await watch.reason(client) == "cancelled"
        await eventually_async(lambda: told(watch) == 1, within=5)
        await eventually_async(lambda: watch.log.count("Connection closed: cancelled") == 1, within=5)


async def test_a_connect_that_raises_is_answered_by_4000(watch: Watch) -> None:
    async with Client(watch.server.websocket("/connect/raise/")) as client:
        assert await client.closes(within=5) == 4000
        assert [frame["type"] for frame in client.frames] == ["goodbye"]
    await eventually_async(lambda: told(watch) == 1, within=5)
    assert watch.log.count("ZeroDivisionError: a bug") == 1


async def test_a_connect_that_never_decides_ends_with_its_client(watch: Watch) -> None:
    client = asyncio.create_task(Client(watch.server.websocket("/connect/return/")).open())
    await eventually_async(lambda: watch.site.open_connections(watch.server) == 1, within=5)
    client.cancel()
    await asyncio.wait([client])
    await eventually_async(lambda: told(watch) == 1, within=5)
    assert "Traceback" not in watch.log


async def test_a_disconnect_that_raises_is_only_logged(watch: Watch) -> None:
    async with Client(watch.server.websocket("/disconnect/raise/")) as client:
        await client.welcomed()
    assert await watch.reason(client) == "client_closed"
    await eventually_async(lambda: watch.log.count("ZeroDivisionError: a bug") == 1, within=5)
    assert told(watch) == 1


async def test_a_disconnect_that_hangs_delays_no_cleanup(watch: Watch) -> None:
    began = time.monotonic()
    async with Client(watch.server.websocket("/disconnect/sleep 60/".replace(" ", "%20"))) as client:
        await client.welcomed()
    assert await watch.reason(client) == "client_closed"
    await watch.nothing_is_left()
    assert time.monotonic() - began < 5


async def test_pings_are_answered_while_a_handler_waits(watch: Watch) -> None:
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        await client.send(f"sleep {LONG}")
        await client.seen(lambda each: each["type"] == "slept", within=LONG + SLACK)
        while_it_ran = client.frames[: client.frames.index({"type": "slept"})]
        pings = len([each for each in while_it_ran if each["type"] == "ping"])
        measured("handler waits", watch.site.pairing, waited=LONG, pings_answered=pings, evicted=0)
        assert pings >= 3
        assert client.is_open


async def test_a_zombie_is_found_while_its_handler_waits(watch: Watch) -> None:
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        client.answers_pings = False
        await client.send("sleep 20")
        assert await client.closes(within=2 * PING_INTERVAL + PONG_TIMEOUT + SLACK) == 4008
        assert await watch.reason(client) == "ping_timeout"
        await watch.nothing_is_left()


async def test_a_handler_that_blocks_the_loop_closes_no_connection(watch: Watch) -> None:
    async with (
        Client(watch.server.websocket("/ws/")) as client,
        Client(watch.server.websocket("/ws/")) as other,
    ):
        await client.welcomed()
        await other.welcomed()
        await client.send(f"block {LONG}")
        await client.seen(lambda each: each["type"] == "blocked", within=LONG + SLACK)
        for each in (client, other):
            await each.send("echo")
            await each.seen(lambda frame: frame["type"] == "echo", within=5)
            assert each.is_open
        assert "The event loop stalled" in watch.log


async def test_more_frames_than_may_wait_end_the_connection(watch: Watch) -> None:
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        await client.send("sleep 1")
        for _ in range(60):
            await client.send("echo")
        assert await client.closes(within=5) == 4029
        assert await watch.reason(client) == "rate_limited"
        assert client.of_type("echo") == []


async def test_all_frames_that_may_wait_are_handled(watch: Watch) -> None:
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        await client.send("sleep 0.5")
        for _ in range(20):
            await client.send("echo")
        await eventually_async(lambda: len(client.of_type("echo")) == 20, within=5)
        assert client.is_open


@pytest.mark.parametrize("pairing", pairs)
async def test_a_handler_above_its_timeout_is_evicted(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, HANDLER_TIMEOUT=HANDLER_TIMEOUT)
    watch = Watch(site, site.serve(application=APPLICATION))
    async with Client(watch.server.websocket("/ws/")) as client:
        await client.welcomed()
        began = time.monotonic()
        await client.send("sleep 60")
        assert await client.closes(within=HANDLER_TIMEOUT + SLACK) == 4000
        took = time.monotonic() - began
        measured("handler above its time", pairing, evicted_after=took, bound=HANDLER_TIMEOUT)
        assert took >= HANDLER_TIMEOUT
        assert client.of_type("goodbye")[0]["reason"] == "handler_timeout"
        assert await watch.reason(client) == "handler_timeout"
    assert watch.log.count("A handler failed (handler_timeout)") == 1
    await watch.nothing_is_left()


# -- synchronous consumers -------------------------------------------------------------------------


BLOCKED = 100  # connections whose handler blocks its thread for a second


@pytest.fixture
def network() -> Iterator[NetworkNamespace]:
    require_namespaces()
    with NetworkNamespace() as network:
        yield network


class Load(Repeating):
    """Publishes to the group of all clients, and measures in how many seconds a client's ping is answered."""

    def __init__(self, publisher: Publisher, client: Client) -> None:
        self.publisher = publisher
        self.client = client
        self.sent = 0
        self.slowest = 0.0

    async def step(self) -> None:
        self.publisher.send(str(self.sent))
        asked, n = time.monotonic(), self.sent
        await self.client.send({"type": "ping", "n": n})
        await self.client.seen(lambda frame: frame == {"type": "pong", "n": n})
        self.slowest = max(self.slowest, time.monotonic() - asked)
        self.sent += 1
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("threads", [None, pytest.param(20, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_handlers_that_block_threads_hold_up_no_ping(
    pairing: Pairing, threads: int | None, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    bound = 2 * PING_INTERVAL + PONG_TIMEOUT
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT, THREADS=threads)
    server = site.serve(application=APPLICATION, interface=network.host_address)
    url = server.websocket("/sync/")
    # uvicorn sends no pings of RFC 6455, which clients without `realtime.v1` would answer.
    plain = pairing.server == "daphne"
    with ClientProcess(network, url, 5, plain=plain, log=tmp_path / "clients.log") as inside:
        await eventually_async(inside.is_ready, within=10)
        async with crowd(BLOCKED, url) as clients, Client(url) as zombie, Client(url) as pinging:
            await eventually_async(lambda: site.open_connections(server) == BLOCKED + 7, within=10)
            async with Load(site.publisher(GROUP), pinging) as load:
                for client in (*clients, zombie):
                    await client.send("1")
                await eventually_async(lambda: any(map(blocked, clients)), within=5)
                network.drop()
                zombie.answers_pings = False
                began = time.monotonic()
                assert await zombie.closes(within=bound + SLACK) == 4008
                await eventually_async(lambda: site.close_reasons().get("ping_timeout") == 6, within=bound)
                took = time.monotonic() - began
                # In one thread most handlers still wait.
                if threads is None:
                    assert not all(map(blocked, clients))
                else:
                    await eventually_async(lambda: all(map(blocked, clients)), within=BLOCKED / threads + 5)
            await eventually_async(lambda: all(len(client.data) == load.sent for client in clients), within=5)
            measured(
                f"handler blocks its thread, THREADS={threads}",
                pairing,
                blocked=BLOCKED,
                evicted=sum(not client.is_open for client in clients),
                slowest_pong=load.slowest,
                dead_found_after=took,
                bound=bound,
            )
            assert all(client.is_open for client in (*clients, pinging))
            assert all(client.data == list(range(load.sent)) for client in clients)
            assert load.slowest < 1.0
            assert took < bound + SLACK
    assert "Traceback" not in server.log_text()


def blocked(client: Client) -> bool:
    return client.of_type("blocked") != []


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_a_handler_may_wait_for_60_seconds_at_the_defaults(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    watch = Watch(site, site.serve(application=APPLICATION))
    async with (
        Client(watch.server.websocket("/ws/")) as client,
        Client(watch.server.websocket("/ws/")) as other,
    ):
        await client.welcomed()
        await client.send("sleep 60")
        other.answers_pings = False
        assert await other.closes(within=30) == 4008
        await client.seen(lambda each: each["type"] == "slept", within=60 + SLACK)
        measured("handler waits", pairing, waited=60, pings_answered=len(client.of_type("ping")), evicted=0)
        assert client.is_open
    await watch.nothing_is_left()
