"""One server after the other is told to stop: every client recovers everything, and Redis is asked once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.arrivals import all_live, all_shown, whole
from tests.support.clients.recovering import many, running
from tests.support.clients.talking import ServerSource, like_a_process_of, publications, talking
from tests.support.faults.relay import Proxy
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer

pytestmark = pytest.mark.faults

GROUPS = [f"public.history-{number}" for number in range(3)]
PER_SECOND = 20
REALTIME = {"RECONNECT_WINDOW": 2.0, "HISTORY": {"public.*": {"size": 300, "ttl": 300}}}


async def reads(server: WebServer) -> Counter[str]:
    """Return how often this process has read messages from Redis, by cause."""
    metrics = await asyncio.to_thread(scrape, server)
    return Counter(
        {name: int(number) for name, number in metrics.by("cause", "realtime_history_reads_total").items()}
    )


@pytest.mark.parametrize(
    "count", [100, pytest.param(500, marks=pytest.mark.matrix)], ids=["100-clients", "500-clients"]
)
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_every_client_recovers_everything(
    pairing: Pairing, count: int, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing, **REALTIME)
    servers = [site.serve(), site.serve()]
    site.reaper()
    sources = [ServerSource(f"source {name}", name, every=len(GROUPS) / PER_SECOND) for name in GROUPS]
    asked: list[Counter[str]] = []
    with Proxy(servers, log=tmp_path / "proxy.log") as proxy:
        clients = many(count, [proxy.url], *GROUPS)
        async with like_a_process_of(site), running(clients):
            await all_live(clients, within=30)
            async with talking(sources):
                await asyncio.sleep(1.0)
                for server in servers:
                    # A process that ends takes its figures with it.
                    asked.append(await reads(server))
                    await asyncio.to_thread(server.stop)
                    await all_live(clients, within=30)
                    await asyncio.to_thread(server.start)
            for each in sources:
                await all_shown(clients, each.publications[-1])
            asked += [await reads(server) for server in servers]
            found = publications(sources)
            verdict = whole(found, clients)
    following = [each for client in clients for each in client.groups.values()]
    measured(
        "rolling restart",
        pairing,
        clients=count,
        published=len(found),
        connects=sum(each.connects for each in clients),
        recoveries=sum(len(each.recoveries) for each in following),
        recovered=sum(sum(each.recoveries) for each in following),
        told=verdict.gaps,
        lost=len(verdict.lost),
        reads=dict(sum(asked, Counter())),
        reads_bound=len(asked) * len(GROUPS),
    )
    assert verdict.gaps == 0, "a client was told that it may have missed messages"
    assert sum(each.connects for each in clients) >= 2 * count, "each server had its clients"
    recovering = [each["join"] + each["page"] for each in asked]
    assert max(recovering) <= len(GROUPS), asked
