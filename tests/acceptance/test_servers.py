"""The table of docs/howto/servers.md: the behaviour of each server, measured with real clients.

Each test asserts the behaviour of today, also where a server does less than others. The times are scaled
down. Daphne and uvicorn have tests of their own elsewhere, so their lines are left to `make test-all`.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, close_all, connect_many, crowd
from tests.support.faults.network import ClientProcess, NetworkNamespace, require_namespaces
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.servers import (
    DaphneServer,
    GranianServer,
    HypercornServer,
    Publisher,
    UvicornServer,
    WebServer,
)
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.acceptance

PING_INTERVAL, PONG_TIMEOUT, PROBE_AFTER = 2.0, 1.0, 1.0
TIMES = {"PING_INTERVAL": PING_INTERVAL, "PONG_TIMEOUT": PONG_TIMEOUT, "PROBE_AFTER": PROBE_AFTER}
BOUND = PING_INTERVAL + PONG_TIMEOUT
SLACK = 2.0  # seconds, on a machine that is busy with other tests
VANISHING, HEALTHY = 5, 5
DARK, LIGHT = "public.dark", "public.light"  # the groups of the vanishing clients, and of the healthy ones


@dataclass(frozen=True)
class Line:
    """One line of the table: a server, the way it is run, and where servers differ."""

    server: Callable[..., WebServer]
    name: str
    finds_plain: bool = True
    """A client without `realtime.v1` that vanished is found by pings, of `realtime` or of the server."""
    goodbyes: bool = True
    """At SIGTERM each client gets its goodbye and 4000; otherwise clients see 1006."""


PINGING = ("--ws-ping-interval", "2", "--ws-ping-timeout", "1")  # uvicorn's own, scaled down as ours
DAPHNE = Line(DaphneServer, "daphne")
UVICORN = Line(partial(UvicornServer, *PINGING), "uvicorn")
GRANIAN = Line(GranianServer, "granian", finds_plain=False)
HYPERCORN = Line(HypercornServer, "hypercorn")
WITH_A_WORKER = Line(partial(HypercornServer, "--workers", "1"), "hypercorn --workers 1")
ON_UVLOOP = Line(
    partial(GranianServer, "--loop", "uvloop"), "granian --loop uvloop", finds_plain=False, goodbyes=False
)


def lines(*everyday: Line, besides: tuple[Line, ...] = ()) -> pytest.MarkDecorator:
    """Return the parameter `line`; servers that are not named first have the mark `matrix`."""
    every = (DAPHNE, UVICORN, GRANIAN, HYPERCORN, *besides)
    marks = [() if line in everyday else pytest.mark.matrix for line in every]
    return pytest.mark.parametrize(
        "line",
        [pytest.param(line, id=line.name, marks=mark) for line, mark in zip(every, marks, strict=True)],
    )


@contextlib.contextmanager
def serving(site: Site, line: Line, interface: str = "127.0.0.1") -> Iterator[WebServer]:
    """Run the server of this line."""
    environment = {**site.environment, "ALLOWED_HOSTS": f"127.0.0.1,{interface}"}
    log = site.folder / f"{line.name.split()[0]}.log"
    with line.server(log=log, environment=environment, interface=interface) as server:
        yield server


def a_site(start_site: StartSite, line: Line, **realtime: object) -> Site:
    return start_site(Pairing("pubsub", line.name, "sqlite"), **{**TIMES, **realtime})


class Load(Repeating):
    """Numbers that are published to the healthy clients all the time."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.sent = 0

    async def step(self) -> None:
        self.publisher.send(str(self.sent))
        self.sent += 1
        await asyncio.sleep(0.05)

    async def arrived(self, clients: list[Client]) -> None:
        """Stop, and wait until each client has got each number since its first, in order."""
        await self.stop()

        def complete() -> bool:
            return all(client.data[-1:] == [self.sent - 1] for client in clients)

        await eventually_async(complete, within=10)
        for client in clients:
            assert client.data == list(range(client.data[0], self.sent)), "lost, doubled or out of order"


@pytest.fixture
def network() -> Iterator[NetworkNamespace]:
    require_namespaces()
    with NetworkNamespace() as network:
        yield network


@lines(GRANIAN, HYPERCORN)
async def test_half_open_clients_are_found_as_the_table_says(
    line: Line, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    site = a_site(start_site, line)
    with serving(site, line, network.host_address) as server:
        vanishing = [
            ClientProcess(
                network,
                server.websocket(f"/ws/{DARK}/"),
                VANISHING,
                log=tmp_path / f"clients-{plain}.log",
                plain=plain,
            )
            for plain in (False, True)
        ]
        with vanishing[0], vanishing[1]:
            url = server.websocket(f"/ws/{LIGHT}/")
            async with (
                crowd(HEALTHY, url) as speaking,
                crowd(HEALTHY, url, plain=True) as listening,
                Load(site.publisher(LIGHT)) as load,
            ):
                await eventually_async(lambda: all(each.data for each in speaking + listening), within=10)
                # Longer than a client may be silent: these live because they answer, or are not asked.
                await asyncio.sleep(BOUND + 0.5)
                assert site.close_reasons() == {}

                network.drop()
                dropped_at = time.monotonic()
                found = await until_found(site, dropped_at, 2 * VANISHING if line.finds_plain else VANISHING)
                if not line.finds_plain:
                    # The rest stays, for as long as the test looks.
                    await asyncio.sleep(BOUND)
                await load.arrived(speaking + listening)
                assert all(each.is_open for each in speaking + listening)
                left = 0 if line.finds_plain else VANISHING
                assert site.open_connections(server) == 2 * HEALTHY + left
                unseen = await asyncio.to_thread(scrape, server)
                assert unseen.value("realtime_connections_unpinged") == (
                    0 if line.finds_plain else left + HEALTHY
                )
                warnings = server.log_text().count("cannot be pinged, because granian sends no pings")
                assert warnings == (0 if line.finds_plain else 1)
                measured("half-open", line.name, found=found, found_after=time.monotonic() - dropped_at)
    assert set(site.close_reasons()) <= {"ping_timeout", "client_closed", "client_lost", "server_restart"}


async def until_found(site: Site, since: float, number: int) -> dict[str, float]:
    """Wait until this number of connections is evicted.

    Returns:
        The seconds until the first and until the last of them.
    """
    seen: list[float] = []

    def all_found() -> bool:
        found = site.close_reasons().get("ping_timeout", 0)
        seen.extend([time.monotonic() - since] * (found - len(seen)))
        return len(seen) >= number

    await eventually_async(all_found, within=BOUND + SLACK)
    return {"first": round(seen[0], 2), "last": round(seen[-1], 2)}


@lines(GRANIAN)
async def test_the_idle_rule_finds_only_clients_that_nothing_pings(
    line: Line, start_site: StartSite, network: NetworkNamespace, tmp_path: Path
) -> None:
    site = a_site(start_site, line, UNPINGED_IDLE_TIMEOUT=BOUND + 2)
    with serving(site, line, network.host_address) as server:
        dark = server.websocket(f"/ws/{DARK}/")
        with ClientProcess(network, dark, VANISHING, log=tmp_path / "clients.log", plain=True):
            url = server.websocket(f"/ws/{LIGHT}/")
            async with crowd(HEALTHY, url) as speaking, crowd(1, url, plain=True) as (talking,):
                network.drop()
                began = time.monotonic()
                while time.monotonic() - began < BOUND + 2 + SLACK:
                    await talking.send({"type": "ping", "n": 1})
                    await asyncio.sleep(1)
                if line.finds_plain:
                    assert site.close_reasons() == {"ping_timeout": VANISHING}
                else:
                    assert site.close_reasons() == {"idle": VANISHING}
                assert all(each.is_open for each in [*speaking, talking])


MESSAGES, SIZE = 100, 128_000  # more than the kernels of both ends take


@lines(GRANIAN)
async def test_a_client_that_does_not_read_is_evicted(line: Line, start_site: StartSite) -> None:
    limits = {"MAX_UNSENT_BYTES": 200_000, "MAX_UNACKED_BYTES": 2_000_000, "SEND_TIMEOUT": 3.0}
    site = a_site(start_site, line, **limits)
    with serving(site, line) as server:
        url = server.websocket(f"/ws/{LIGHT}/")
        async with (
            crowd(2, url) as reading,
            crowd(1, url) as (speaking,),
            crowd(1, url, plain=True) as (plain,),
        ):
            await speaking.welcomed()
            publisher = site.publisher(LIGHT)
            speaking.stop_reading()
            plain.stop_reading()
            began = time.monotonic()
            for number in range(MESSAGES):
                await asyncio.to_thread(publisher.send, f'"{str(number).ljust(SIZE, "x")}"')
                await asyncio.sleep(0.01)
            await eventually_async(lambda: sum(site.close_reasons().values()) == 2, within=10)
            took = time.monotonic() - began
            assert set(site.close_reasons()) <= {"slow_consumer", "ping_timeout"}
            await eventually_async(lambda: all(len(each.data) == MESSAGES for each in reading), within=10)
            # At the latest after CLOSE_TIMEOUT.
            await eventually_async(lambda: server.sockets() == len(reading), within=5)
            measured(
                "slow reader",
                line.name,
                evicted_within=took,
                reasons=site.close_reasons(),
            )


@lines(GRANIAN, HYPERCORN, besides=(WITH_A_WORKER, ON_UVLOOP))
async def test_sigterm_says_goodbye_to_every_client(line: Line, start_site: StartSite) -> None:
    site = a_site(start_site, line)
    with serving(site, line) as server:
        speaking = await connect_many(20, server.websocket(f"/ws/{LIGHT}/"))
        plain = await connect_many(20, server.websocket(f"/ws/{LIGHT}/"), plain=True)
        clients = speaking + plain
        async with Load(site.publisher(LIGHT)):
            await eventually_async(lambda: all(each.data for each in clients), within=10)
            told_at = time.monotonic()
            server.terminate()
            codes = Counter([await each.closes(within=10) for each in clients])
        last = max(each.closed_at or 0.0 for each in clients) - told_at
        code = await asyncio.to_thread(server.exit_code, within=15)
        took = time.monotonic() - told_at
        goodbyes = [frame["reason"] for each in speaking for frame in each.of_type("goodbye")]
        measured(
            "SIGTERM", line.name, codes=dict(codes), last_closed_after=last, exit_after=took, exit_code=code
        )
        assert codes == ({4000: 40} if line.goodbyes else {1006: 40})
        assert goodbyes == (["server_restart"] * 20 if line.goodbyes else [])
        assert code in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log_text()
        assert site.close_reasons() == {"server_restart": 40}
        assert site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL") == 0
        assert site.database.value("SELECT count(*) FROM realtime_process WHERE stopped_at IS NULL") == 0
        await close_all(clients)


@lines(GRANIAN)
async def test_after_a_sigkill_the_reaper_cleans_up(line: Line, start_site: StartSite) -> None:
    site = a_site(start_site, line)
    with serving(site, line) as server:
        clients = await connect_many(10, server.websocket(f"/ws/{LIGHT}/"))
        clients += await connect_many(10, server.websocket(f"/ws/{LIGHT}/"), plain=True)
        os.kill(server.serving_pid, signal.SIGKILL)
        killed_at = time.monotonic()
        codes = Counter([await each.closes(within=10) for each in clients])
        assert codes == {1006: 20}
        site.reaper("--interval", "1", "--timeout", "0.5")
        await eventually_async(lambda: site.close_reasons() == {"server_lost": 20}, within=20)
        took = time.monotonic() - killed_at
        await eventually_async(
            lambda: (
                site.database.value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL") == 0
            ),
            within=10,
        )
        measured("SIGKILL", line.name, cleaned_up_after=took)
        await close_all(clients)
