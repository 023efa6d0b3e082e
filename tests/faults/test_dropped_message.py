"""The channel layer drops messages without an error: each is delivered within a round, in its order."""

import asyncio
import time

import pytest

from tests.support.assertions.measured import measured, measuring
from tests.support.clients.arrivals import all_live, all_shown, whole
from tests.support.clients.recovering import RecoveringClient, many, running
from tests.support.clients.talking import ServerSource, like_a_process_of, publications, talking
from tests.support.faults.forgetting import FORGET
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings, rounds, scale

pytestmark = pytest.mark.faults

APPLICATION = "tests.support.applications.forgetful:application"
GROUP = "public.history"
HISTORY = {"public.*": {"size": 300, "ttl": 300}}
CLIENTS = 20
SLACK = 1.0  # seconds for a machine that is busy with other tests
CAPACITY = 20


def nobody_was_told(clients: list[RecoveringClient]) -> bool:
    return not any(each.told() for each in clients)


@rounds
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", "core-uvicorn-sqlite"))
async def test_a_last_message_that_was_dropped_arrives_within_a_round(
    pairing: Pairing, interval: float, start_site: StartSite
) -> None:
    site = start_site(pairing, ROUND_INTERVAL=interval, ROUND_TIMEOUT=interval / 2, HISTORY=HISTORY)
    servers = [site.serve(application=APPLICATION), site.serve()]
    clients = many(CLIENTS, [f"ws://{each.address}" for each in servers], GROUP)
    source = ServerSource("source", GROUP)
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        await all_shown(clients, await source.publish())
        with measuring(f"message dropped, the last one, {scale(interval)}", pairing) as m:
            began = time.monotonic()
            dropped = await source.publish(FORGET)
            await all_shown(clients, dropped, within=interval + SLACK)
            m.delivered_after = time.monotonic() - began
            m.bound = interval
        await all_shown(clients, await source.publish())
        whole(source.publications, clients)
        assert nobody_was_told(clients)


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_dropped_messages_keep_their_order_under_load(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, ROUND_INTERVAL=2.0, ROUND_TIMEOUT=1.0, HISTORY=HISTORY)
    server = site.serve(application=APPLICATION)
    clients = many(CLIENTS, [f"ws://{server.address}"], GROUP, "public.other")
    sources = [ServerSource(f"source {n}", GROUP, "public.other", every=0.02) for n in range(3)]
    forgotten = ServerSource("forgotten", GROUP, "public.other", every=0.05, filler=FORGET)
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking([*sources, forgotten]):
            await asyncio.sleep(4.0)  # the load itself
        # The last ones of each group are dropped as well.
        last = [await forgotten.publish() for _ in range(2)]
        await asyncio.gather(*(all_shown(clients, each) for each in last))
        found = publications([*sources, forgotten])
        verdict = whole(found, clients)
        assert nobody_was_told(clients)
        measured(
            "messages dropped under load",
            pairing,
            published=len(found),
            dropped=len(forgotten.publications),
            shown=verdict.shown,
            lost=len(verdict.lost),
        )


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres", layer="pubsub"))
async def test_what_is_published_while_the_subscriber_is_cut_arrives(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, ROUND_INTERVAL=2.0, ROUND_TIMEOUT=1.0, HISTORY=HISTORY)
    server = site.serve()
    clients = many(CLIENTS, [f"ws://{server.address}"], GROUP)
    source = ServerSource("source", GROUP, every=0.01)
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking([source]):
            for _ in range(5):
                await asyncio.sleep(0.4)
                with site.redis.client() as redis:
                    cut = redis.client_kill_filter(_type="pubsub")
        assert cut >= 1
        await all_shown(clients, source.publications[-1])
        verdict = whole(source.publications, clients)
        assert nobody_was_told(clients)
        measured(
            "messages dropped by a cut subscriber",
            pairing,
            published=len(source.publications),
            shown=verdict.shown,
            lost=len(verdict.lost),
        )


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", layer="core"))
async def test_what_a_full_queue_refused_arrives(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(
        pairing,
        layer_config={"capacity": CAPACITY},
        ROUND_INTERVAL=2.0,
        ROUND_TIMEOUT=1.0,
        HISTORY=HISTORY,
    )
    servers = [site.serve(), site.serve()]
    clients = many(CLIENTS, [f"ws://{each.address}" for each in servers], GROUP)
    source = ServerSource("source", GROUP)
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        servers[0].freeze()
        try:
            for _ in range(5 * CAPACITY):
                await source.publish()
        finally:
            servers[0].thaw()
        thawed_at = time.monotonic()
        await all_shown(clients, source.publications[-1], within=2.0 + SLACK)
        measured(
            "messages dropped by a full queue",
            pairing,
            published=len(source.publications),
            capacity=CAPACITY,
            delivered_after=time.monotonic() - thawed_at,
            bound=2.0,
        )
        whole(source.publications, clients)
        assert nobody_was_told(clients)
