"""A handler that sleeps synchronously stops everything in its process: that is nobody's silence."""

import asyncio
import time

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 20
SLACK = 3.0  # seconds for a busy machine, on top of a bound
APPLICATION = "tests.support.applications.misbehaving:application"


async def blocked(site: Site, seconds: float, *, answers_after: float, found_within: float) -> None:
    """Block the loop of a server for so long: nobody but a zombie may be gone afterwards."""
    server = site.serve(application=APPLICATION)
    site.reaper().wait_for_a_round()
    url = server.websocket("/ws/")
    async with (
        crowd(CLIENTS, url) as clients,
        crowd(CLIENTS, url, plain=True) as plain,
        Client(url) as zombie,
        Client(url) as culprit,
    ):
        for client in clients:
            client.answers_after = answers_after
        # Of those who have been asked and not answered yet when the loop stops, some answer meanwhile, which
        # the kernel takes for us, and some when it runs again, later than anybody may.
        meanwhile, afterwards = clients[::2], clients[1::2]
        await eventually_async(
            lambda: all(sum(client.answers_due for client in some) >= 2 for some in (meanwhile, afterwards)),
            within=60,
            every=0.01,
        )
        waiting = sum(client.answers_due for client in clients)
        zombie.answers_pings = False
        for client in afterwards:
            client.may_answer.clear()
        await culprit.send(f"block {seconds}")
        began = time.monotonic()
        await culprit.seen(lambda frame: frame["type"] == "blocked", within=seconds + SLACK)
        stood_still = time.monotonic() - began
        for client in afterwards:
            client.may_answer.set()
        assert stood_still >= seconds

        # The zombie has no other time than it would have had: what it did not answer was asked afterwards.
        assert await zombie.closes(within=found_within + SLACK) == 4008
        everybody = [*clients, *plain, culprit]
        for each in everybody:
            await each.send("echo")
            await each.seen(lambda frame: frame["type"] == "echo", within=5)
        closed = site.database.query(
            "SELECT close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
        )
        measured(
            "event loop blocked",
            site.pairing,
            blocked_for=stood_still,
            connections=len(everybody),
            answers_under_way=waiting,
            evicted=len(closed) - 1,
            zombie_found_after=time.monotonic() - began - stood_still,
        )
        assert closed == [{"close_reason": "ping_timeout"}]
        assert all(each.is_open for each in everybody)
        assert site.database.query("SELECT id FROM realtime_process WHERE stopped_at IS NOT NULL") == []
        assert server.log_text().count("stood still for") >= 1
        stalled = (await asyncio.to_thread(scrape, server)).value("realtime_loop_stalled_seconds_total")
        assert stalled >= seconds - 1.0


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_nobody_is_evicted_while_the_loop_is_blocked(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(
        pairing, PING_INTERVAL=3.0, PONG_TIMEOUT=2.5, ROUND_INTERVAL=4.0, ROUND_TIMEOUT=3.0, MAX_SILENCE=10.0
    )
    await blocked(site, 5.0, answers_after=1.0, found_within=3.0 + 2.5)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_nobody_is_evicted_while_the_loop_is_blocked_for_15_seconds(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    await blocked(site, 15.0, answers_after=4.0, found_within=20.0 + 8.0)
