"""Clients end in every way while they are written to: each record says how, once, and nothing is left."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measuring
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

EACH, HEALTHY = 100, 20
GROUP = "public.room"
PER_SECOND = 20
SECONDS = 3.0  # over which the clients end, all kinds mixed
SLACK = 5.0  # seconds for the last record to be written, on a machine that is busy with other tests


async def close(client: Client) -> None:
    await client.close()


async def reset(client: Client) -> None:
    client.reset()


async def stop_reading_then_close(client: Client) -> None:
    client.stop_reading()
    # A few messages, so that there is something unread: the kernel then answers the close with a RST.
    await asyncio.sleep(5 / PER_SECOND)
    client.abort()


WAYS: tuple[Callable[[Client], object], ...] = (close, reset, stop_reading_then_close)

#: The reasons that a record may have. A write that meets a broken connection before the server reports it is
#: a send that failed.
CLOSED, BROKEN = {"client_closed"}, {"client_lost", "send_failed"}
ALLOWED = {close: CLOSED, reset: BROKEN, stop_reading_then_close: BROKEN}


@asynccontextmanager
async def fan_out(site: Site) -> AsyncIterator[list[int]]:
    """Publish 0, 1, 2 … to the group within the block; the list has the numbers that were sent."""
    publisher, sent = site.publisher(GROUP), []

    async def publish() -> None:
        while True:
            publisher.send(str(len(sent)))
            sent.append(len(sent))
            await asyncio.sleep(1 / PER_SECOND)

    publishing = asyncio.create_task(publish())
    try:
        yield sent
    finally:
        publishing.cancel()


async def all_end(way_of: dict[Client, Callable[..., object]]) -> None:
    """Let each client end in its way, in a random order that is the same in each run."""
    order = random.Random(1).sample(list(way_of), len(way_of))

    async def end(position: int, client: Client) -> None:
        await asyncio.sleep(SECONDS * position / len(order))
        await way_of[client](client)  # type: ignore[misc]

    await asyncio.gather(*(end(position, client) for position, client in enumerate(order)))


async def only_the_healthy_are_left(site: Site, server: WebServer) -> None:
    await eventually_async(lambda: site.open_memberships(server) == HEALTHY, within=SLACK)
    await eventually_async(lambda: site.open_connections(server) == HEALTHY, within=SLACK)


def ends_counted(server: WebServer) -> float:
    return scrape(server).value("realtime_connections_closed_total")


async def reasons_by_way(
    site: Site, way_of: dict[Client, Callable[..., object]]
) -> dict[str, dict[str, int]]:
    """Count the reasons of the closed records, for each way to end."""
    names = {(await client.welcomed())["connection"].replace("-", ""): client for client in way_of}
    reasons: dict[str, Counter[str]] = {way.__name__: Counter() for way in WAYS}
    for row in site.database.query(
        "SELECT id, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
    ):
        client = names[str(row["id"]).replace("-", "")]
        reasons[way_of[client].__name__][row["close_reason"]] += 1
    return {way: dict(counts) for way, counts in reasons.items()}


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", "pubsub-uvicorn-postgres"))
async def test_each_client_that_ends_in_a_fan_out_is_recorded_once(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve()
    url = server.websocket(f"/ws/{GROUP}/")
    async with crowd(HEALTHY, url) as healthy, crowd(EACH * len(WAYS), url) as leaving:
        with measuring("ends during a fan-out", pairing) as m:
            m.clients = len(leaving)
            way_of = {client: WAYS[number % len(WAYS)] for number, client in enumerate(leaving)}
            async with fan_out(site) as sent:
                await asyncio.gather(*(client.welcomed() for client in leaving))
                await eventually_async(
                    lambda: all(client.messages for client in healthy + leaving), within=10
                )
                await all_end(way_of)
                ended_at = time.monotonic()
                await only_the_healthy_are_left(site, server)
                m.all_closed_after = time.monotonic() - ended_at
            m.reasons = await reasons_by_way(site, way_of)
            log = server.log_text()
            m.tracebacks = log.count("Traceback")
            m.memberships_left = site.open_memberships(server) - HEALTHY

        for way, allowed in ALLOWED.items():
            assert set(m.reasons[way.__name__]) <= allowed
            assert sum(m.reasons[way.__name__].values()) == EACH
        # The process counts an end after it has committed the record.
        await eventually_async(lambda: ends_counted(server) == len(leaving), within=5)
        for complaint in ("Traceback", " ERROR ", "closed protocol", "Unhandled", "Task was destroyed"):
            assert complaint not in log
        if pairing.layer == "core":
            with site.redis.client() as redis:
                assert [redis.zcard(key) for key in redis.scan_iter(f"asgi:group:{GROUP}")] == [1]
        # The others receive all messages, once and in order.
        for client in healthy:
            await client.seen(lambda frame: frame.get("data") == sent[-1])
            assert client.data == sent
            assert client.is_open
        assert ends_counted(server) == len(leaving), "each end counts once"
