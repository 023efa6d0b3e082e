"""A client sleeps until the server has dropped it, as a phone in a pocket: awake again, it misses nothing."""

import asyncio
import time

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.arrivals import all_live, all_shown, whole
from tests.support.clients.recovering import RecoveringClient, running
from tests.support.clients.talking import (
    ClientSource,
    ServerSource,
    Source,
    like_a_process_of,
    publications,
    talking,
)
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

GROUP = "public.history"
REALTIME = {
    "PING_INTERVAL": 3.0,
    "PONG_TIMEOUT": 1.5,
    "PROBE_AFTER": 1.0,
    "ROUND_INTERVAL": 2.0,
    "ROUND_TIMEOUT": 1.0,
    "HISTORY": {"public.*": {"size": 300, "ttl": 300}},
}
MISSED = 41  # messages while it sleeps


async def sleep_until_dropped(site: Site, client: RecoveringClient, source: Source) -> int:
    """Have the client sleep through `MISSED` messages, and at least until the server has dropped it.

    Returns:
        The number of messages that were published meanwhile.
    """
    before = len(source.publications)
    dropped = site.close_reasons().get("ping_timeout", 0)
    client.fall_asleep()
    await eventually_async(lambda: len(source.publications) >= before + MISSED, within=30)
    await eventually_async(lambda: site.close_reasons().get("ping_timeout", 0) > dropped, within=15)
    return len(source.publications) - before


@pytest.mark.parametrize("reaping", [True, pytest.param(False, marks=pytest.mark.matrix)])
@pytest.mark.parametrize(
    "talks", [pytest.param(False, marks=pytest.mark.matrix), True], ids=["listens", "talks"]
)
@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_a_client_that_slept_misses_nothing(
    pairing: Pairing, talks: bool, reaping: bool, start_site: StartSite
) -> None:
    site = start_site(pairing, **REALTIME)
    urls = [f"ws://{site.serve().address}" for _ in range(2)]
    if reaping:
        site.reaper()
    sleeper = RecoveringClient("sleeper", urls, GROUP)
    awake = [RecoveringClient(f"awake {number}", urls[number:], GROUP) for number in range(2)]
    clients = [sleeper, *awake]
    source = ServerSource("source", GROUP, every=0.1)
    sources: list[Source] = [source]
    if talks:
        # The words of a client that sleeps are proof of nothing: it says them before it knows of its end.
        sources.append(ClientSource(sleeper, GROUP, every=0.5))
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking(sources):
            for _ in range(2):  # the second time, on the other server
                missed = await sleep_until_dropped(site, sleeper, source)
                woken_at = time.monotonic()
                sleeper.wake()
                last = source.publications[-1]
                await all_shown([sleeper], last)
                current_after = time.monotonic() - woken_at
                await all_live(clients)
        for each in sources:
            await all_shown(clients, each.publications[-1])
        verdict = whole(publications(sources), clients)
    measured(
        f"a sleeping client that {'talks' if talks else 'listens'}",
        f"{pairing}, {'with' if reaping else 'without'} a reaper",
        published_while_asleep=missed,
        missed=len(verdict.lost),
        doubled=len(verdict.doubled),
        current_after=current_after,
        recovered=sum(sleeper.groups[GROUP].recoveries),
    )
    assert verdict.gaps == 0, "told that messages are missing, although Redis had them all"
    assert sleeper.connects == 3


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_server_that_dies_meanwhile_changes_nothing(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, **REALTIME)
    servers = [site.serve(), site.serve()]
    site.reaper()
    sleeper = RecoveringClient("sleeper", [f"ws://{each.address}" for each in servers], GROUP)
    source = ServerSource("source", GROUP)
    async with like_a_process_of(site), running([sleeper]):
        await all_live([sleeper])
        for _ in range(5):
            await source.publish()
        sleeper.fall_asleep()
        for _ in range(MISSED):
            await source.publish()
        await asyncio.to_thread(servers[0].kill)
        await source.publish()
        sleeper.wake()
        await all_shown([sleeper], source.publications[-1])
        verdict = whole(source.publications, [sleeper])
    measured(
        "a sleeping client whose server dies",
        pairing,
        published_while_asleep=MISSED + 1,
        missed=len(verdict.lost),
        doubled=len(verdict.doubled),
    )
    assert verdict.gaps == 0
