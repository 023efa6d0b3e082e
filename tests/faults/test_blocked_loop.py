"""A handler that sleeps synchronously stops everything in its process. No client is closed for it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measuring
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 20
SLACK = 3.0  # seconds for a busy machine, on top of a bound
APPLICATION = "tests.support.applications.misbehaving:application"


@dataclass
class Scene:
    """A server and its clients. The zombie does not answer pings, and the culprit blocks the loop."""

    server: WebServer
    clients: list[Client]
    plain: list[Client]
    zombie: Client
    culprit: Client

    @property
    def healthy(self) -> list[Client]:
        return [*self.clients, *self.plain, self.culprit]


@asynccontextmanager
async def connected(site: Site) -> AsyncIterator[Scene]:
    server = site.serve(application=APPLICATION)
    site.reaper().wait_for_a_round()
    url = server.websocket("/ws/")
    async with (
        crowd(CLIENTS, url) as clients,
        crowd(CLIENTS, url, plain=True) as plain,
        Client(url) as zombie,
        Client(url) as culprit,
    ):
        yield Scene(server, clients, plain, zombie, culprit)


async def answers_under_way(clients: list[Client], answers_after: float) -> tuple[int, list[Client]]:
    """Wait until several clients have been asked and have not answered yet.

    Half of the clients answer while the loop stands, and the kernel takes their answers. The other half wait
    for `may_answer`: they answer when the loop runs again, later than a client may.

    Returns:
        How many answers are due, and the clients that wait.
    """
    for client in clients:
        client.answers_after = answers_after
    meanwhile, afterwards = clients[::2], clients[1::2]
    await eventually_async(
        lambda: all(sum(client.answers_due for client in some) >= 2 for some in (meanwhile, afterwards)),
        within=60,
        every=0.01,
    )
    due = sum(client.answers_due for client in clients)
    for client in afterwards:
        client.may_answer.clear()
    return due, afterwards


async def block(culprit: Client, seconds: float) -> float:
    """Let the handler of this client sleep synchronously; return for how many seconds the loop stood."""
    await culprit.send(f"block {seconds}")
    return await seconds_until(lambda: culprit.of_type("blocked"), within=seconds + SLACK)


async def all_answer(clients: list[Client]) -> None:
    """Check that the server still serves each client."""
    for each in clients:
        await each.send("echo")
        await each.seen(lambda frame: frame["type"] == "echo", within=5)


async def blocked(site: Site, seconds: float, *, answers_after: float, found_within: float) -> None:
    """Block the loop of a server for this long. Afterwards no client may be gone, except a zombie."""
    async with connected(site) as scene:
        with measuring("event loop blocked", site.pairing) as m:
            m.connections = len(scene.healthy)
            m.answers_under_way, waiting = await answers_under_way(scene.clients, answers_after)
            scene.zombie.answers_pings = False
            m.blocked_for = await block(scene.culprit, seconds)
            goes_on_at = time.monotonic()
            for client in waiting:
                client.may_answer.set()
            # The zombie gets no more time than usual: it is asked again when the loop runs.
            code = await scene.zombie.closes(within=found_within + SLACK)
            m.zombie_found_after = time.monotonic() - goes_on_at
            await all_answer(scene.healthy)
            await eventually_async(lambda: "ping_timeout" in site.close_reasons(), within=5)
            closed = site.close_reasons()
            m.evicted = sum(closed.values()) - 1

        assert m.blocked_for >= seconds
        assert code == 4008
        assert closed == {"ping_timeout": 1}
        assert all(each.is_open for each in scene.healthy)
        assert site.database.query("SELECT id FROM realtime_process WHERE stopped_at IS NOT NULL") == []
        assert scene.server.log_text().count("stalled for") >= 1
        stalled = (await asyncio.to_thread(scrape, scene.server)).value("realtime_loop_stalled_seconds_total")
        assert stalled >= seconds - 1.0


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_a_blocked_loop_evicts_no_client(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(
        pairing, PING_INTERVAL=3.0, PONG_TIMEOUT=2.5, ROUND_INTERVAL=4.0, ROUND_TIMEOUT=3.0, MAX_SILENCE=10.0
    )
    await blocked(site, 5.0, answers_after=1.0, found_within=3.0 + 2.5)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_a_loop_that_is_blocked_for_15_seconds_evicts_no_client(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    await blocked(site, 15.0, answers_after=4.0, found_within=20.0 + 8.0)
