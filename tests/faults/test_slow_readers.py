"""Clients that stop reading are evicted before they cost memory. A client that only reads slowly is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.support.assertions import growth
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.scrape import scrape
from tests.support.clients.raw import RawClient, frame
from tests.support.clients.websocket import Client
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import Publisher, WebServer
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.faults

READERS = 10
GROUP = "public.flood"
SIZE, PER_SECOND = 100_000, 10
MIB = 1024 * 1024
MAX_UNACKED_BYTES, MAX_UNSENT_BYTES = 4 * MIB, MIB  # the defaults
SLACK = 2.0  # seconds for a machine that is busy with other tests
MEGABIT = 1_000_000
LEFT = 4 * MIB  # of memory, for what one busy minute leaves in any server
#: glibc gives blocks above this size back immediately, so that the size of the process is what it uses.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "32768"}
HONEST_FOR = 11.0  # seconds; longer than a client may leave a ping unanswered


def bound(cap: int) -> float:
    """Return the seconds until `cap` bytes were published, plus the second that a reader has to answer."""
    return cap / (SIZE * PER_SECOND) + 1.0


class Memory:
    """The memory of a server, sampled all the time from outside."""

    def __init__(self, server: WebServer) -> None:
        self._process = psutil.Process(server.pid)
        self.before = self.now()
        self.highest = self.before

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    @property
    def growth(self) -> int:
        return self.highest - self.before

    async def watch(self) -> None:
        while True:
            self.highest = max(self.highest, self.now())
            await asyncio.sleep(0.05)


class Flood(Repeating):
    """Messages of `SIZE` bytes to the group, at a fixed rate; each has its number."""

    def __init__(self, publisher: Publisher, per_second: float) -> None:
        self.publisher = publisher
        self.pause = 1 / per_second
        self.sent = 0

    async def __aenter__(self) -> Self:
        self.began = time.monotonic()
        return await super().__aenter__()

    async def step(self) -> None:
        text = f"{self.sent:08}".ljust(SIZE, "x")
        # In a thread: a publisher that is behind must not keep the clients of the test from reading.
        await asyncio.to_thread(self.publisher.send, f'"{text}"')
        self.sent += 1
        await asyncio.sleep(max(0.0, self.began + self.sent * self.pause - time.monotonic()))


@asynccontextmanager
async def running(*works: Callable[[], object]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work()) for work in works]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def numbers(frames: list[dict[str, object]]) -> list[int]:
    return [int(str(frame["data"])[:8]) for frame in frames if frame["type"] == "message"]


async def flood_until_evicted(
    site: Site, server: WebServer, healthy: Client, *, cap: int, evicted: int, kind: str
) -> None:
    """Flood the group. The `evicted` members that do not read must go within the bound, with their memory."""
    await healthy.welcomed()
    publisher = site.publisher(GROUP)
    # The first message makes the server allocate memory that does not belong to these readers.
    publisher.send('"00000000"')
    await healthy.seen(lambda frame: frame["type"] == "message")
    held, before = server.sockets(), await growth.memory(server)

    memory, flood = Memory(server), Flood(publisher, PER_SECOND)
    began = time.monotonic()
    async with running(memory.watch):
        async with flood:
            await eventually_async(
                lambda: sum(site.close_reasons().values()) == evicted, within=bound(cap) + SLACK, every=0.1
            )
            took = time.monotonic() - began
        await eventually_async(lambda: server.sockets() == held - evicted, within=10)
    await healthy.seen(lambda frame: numbers([frame]) == [flood.sent - 1], within=10)
    left = (await growth.memory_at_rest(server)).resident - before.resident
    measured(
        f"readers that stop, {kind}",
        site.pairing,
        readers=evicted,
        evicted_after=took,
        bound=bound(cap),
        reasons=site.close_reasons(),
        grown_mib=round(memory.growth / MIB, 1),
        bound_mib=round(evicted * cap / MIB),
        left_mib=round(left / MIB, 1),
    )
    assert site.close_reasons() == {"slow_consumer": evicted}
    assert memory.growth <= evicted * cap + LEFT
    assert left < LEFT
    assert site.open_connections(server) == site.open_memberships(server) == 1
    assert healthy.is_open
    assert numbers(healthy.frames) == [0, *range(flood.sent)], "lost, doubled or out of order"
    closed = (await asyncio.to_thread(scrape, server)).by("reason", "realtime_connections_closed_total")
    assert closed == {"slow_consumer": evicted}, "each end counts once"
    assert "Traceback" not in server.log_text()
    assert " ERROR " not in server.log_text()


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_readers_in_a_stopped_process_are_evicted_as_slow(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing)
    server = site.serve(**RETURNED)
    url = server.websocket(f"/ws/{GROUP}/")
    with ClientProcess(None, url, READERS, log=tmp_path / "clients.log") as readers:
        async with Client(url) as healthy:
            await eventually_async(lambda: site.open_memberships(server) == READERS + 1, within=10)
            readers.freeze()
            await flood_until_evicted(
                site, server, healthy, cap=MAX_UNACKED_BYTES, evicted=READERS, kind="SIGSTOP"
            )


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_readers_that_go_on_sending_are_evicted_as_slow(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve(**RETURNED)
    url = server.websocket(f"/ws/{GROUP}/")
    # The kernels keep next to nothing for them, as on the link of a phone. The rest waits in the memory of
    # the server.
    readers = [RawClient(url, bytes_per_second=1) for _ in range(READERS)]

    async def talk() -> None:
        for n in range(10**6):
            for each in readers:
                await each.send(frame(f'{{"type":"ping","n":{n}}}'))
            await asyncio.sleep(0.2)

    async with Client(url) as healthy:
        try:
            for each in readers:
                assert (await each.open()).status == 101
            await eventually_async(lambda: site.open_memberships(server) == READERS + 1, within=10)
            async with running(talk):
                await flood_until_evicted(
                    site, server, healthy, cap=MAX_UNSENT_BYTES, evicted=READERS, kind="still sending"
                )
        finally:
            await asyncio.gather(*(each.hang_up() for each in readers))


async def stays_and_misses_nothing(
    site: Site, server: WebServer, received: Callable[[], int], kind: str
) -> None:
    """Publish at 0.8 Mbit/s to a reader that takes 1 Mbit/s; it needs 0.8 s for each message."""
    flood = Flood(site.publisher(GROUP), 1.0)
    async with flood:
        await asyncio.sleep(HONEST_FOR)
    await eventually_async(lambda: received() == flood.sent, within=10)
    pings = (await asyncio.to_thread(scrape, server)).value("realtime_pings_sent_total")
    measured(
        f"slow but honest, {kind}",
        site.pairing,
        messages=flood.sent,
        received=received(),
        evicted=site.close_reasons(),
        pings=int(pings),
    )
    assert pings >= 3, "it was pinged, and it answered"
    assert site.close_reasons() == {}


@pytest.mark.parametrize("pairing", pairings())
async def test_a_client_that_reads_slowly_stays_and_misses_nothing(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve()
    reader = RawClient(server.websocket(f"/ws/{GROUP}/"), bytes_per_second=MEGABIT / 8)
    async with reader:
        await reader.open()
        await reader.seen("welcome")
        await stays_and_misses_nothing(site, server, lambda: len(numbers(reader.frames)), "reading 1 Mbit/s")
        assert numbers(reader.frames) == sorted(set(numbers(reader.frames)))


@pytest.mark.parametrize("pairing", pairings())
async def test_a_client_behind_a_slow_link_stays_and_misses_nothing(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    require_namespaces()
    site = start_site(pairing)
    with NetworkNamespace() as network:
        server = site.serve(interface=network.host_address)
        url = server.websocket(f"/ws/{GROUP}/")
        with ClientProcess(network, url, 1, log=tmp_path / "clients.log") as reader:
            network.slow_down(MEGABIT)
            await stays_and_misses_nothing(
                site, server, lambda: int(reader.reports()[-1]["messages"]), "a link of 1 Mbit/s"
            )
            assert reader.reports()[-1]["open"] == 1


async def join_as(site: Site, server: WebServer, agent: str, readers: list[RawClient]) -> None:
    """Connect readers under this user agent, and wait until each is a member."""
    members = site.open_memberships(server)
    for each in readers:
        assert (await each.open(("User-Agent", agent))).status == 101
    await eventually_async(lambda: site.open_memberships(server) == members + len(readers), within=10)


async def publish_slowly(publisher: Publisher, first: int, last: int) -> None:
    """Publish the messages from `first` to below `last`, five a second."""

    def publish() -> None:
        for n in range(first, last):
            publisher.send(f'"{str(n).rjust(8, "0").ljust(SIZE, "x")}"')
            time.sleep(0.2)

    await asyncio.to_thread(publish)


async def leave_unsent(
    site: Site, server: WebServer, healthy: Client, worst: list[RawClient], better: list[RawClient]
) -> list[dict[str, Any]]:
    """Let the worst readers leave 1.8 MB unsent each, and the better ones 0.8 MB, which is too much together.

    Returns:
        The rows of the connections that the server closed.
    """
    publisher = site.publisher(GROUP)
    try:
        await join_as(site, server, "worst", worst)
        await publish_slowly(publisher, 0, 10)
        await join_as(site, server, "better", better)
        await publish_slowly(publisher, 10, 18)
        await healthy.seen(lambda frame: numbers([frame]) == [17], within=10)
        await eventually_async(lambda: site.close_reasons(), within=5)
        # Long enough for a second check, and shorter than the wait for a pong.
        await asyncio.sleep(1)
        return site.database.query(
            "SELECT user_agent, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
        )
    finally:
        await asyncio.gather(*(each.hang_up() for each in (*worst, *better)))


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", "core-uvicorn-sqlite"))
async def test_the_readers_with_the_most_unsent_bytes_go_first(
    pairing: Pairing, start_site: StartSite
) -> None:
    """Ten readers stop, and five of them have twice as much unsent. Of the five, only as many go as must."""
    half, total = READERS // 2, 6 * MIB
    site = start_site(pairing, MAX_UNSENT_BYTES=4 * MIB, MAX_UNSENT_TOTAL_BYTES=total)
    server = site.serve(**RETURNED)
    url = server.websocket(f"/ws/{GROUP}/")
    worst, better = ([RawClient(url, bytes_per_second=1) for _ in range(half)] for _ in range(2))
    async with Client(url) as healthy:
        await healthy.welcomed()
        memory = Memory(server)
        with measuring("readers that stop, too much for the process", pairing) as m:
            async with running(memory.watch):
                closed = await leave_unsent(site, server, healthy, worst, better)
            m.readers = READERS
            m.closed = len(closed)
            m.grown_mib = round(memory.growth / MIB, 1)
            m.bound_mib = round(total / MIB)

        assert len(closed) <= half
        assert {(row["user_agent"], row["close_reason"]) for row in closed} == {("worst", "slow_consumer")}
        assert numbers(healthy.frames) == list(range(18))
        # A server looks four times a second, and all ten get 1.2 MB meanwhile.
        assert memory.growth <= total + 2 * READERS * SIZE + LEFT
        assert "MAX_UNSENT_TOTAL_BYTES" in server.log_text()
