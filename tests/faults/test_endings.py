"""Clients end in every way while they are written to: each record says how, once, and nothing is left."""

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings

pytestmark = pytest.mark.faults

EACH, HEALTHY = 100, 20
GROUP = "public.room"
PER_SECOND = 20
SECONDS = 3.0  # over which the clients end, all kinds mixed
SLACK = 5.0  # seconds for the last record to be written, on a machine that is busy with other tests

#: What a record may say. A write that meets a broken connection before it is reported is a send that failed.
CLOSED, BROKEN = {"client_closed"}, {"client_lost", "send_failed"}


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


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", "pubsub-uvicorn-postgres"))
async def test_clients_that_end_during_a_fan_out_leave_one_closed_record_each(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve()
    url = server.websocket(f"/ws/{GROUP}/")
    publisher = site.publisher(GROUP)
    sent: list[int] = []

    async def publish() -> None:
        while True:
            publisher.send(str(len(sent)))
            sent.append(len(sent))
            await asyncio.sleep(1 / PER_SECOND)

    async with crowd(HEALTHY, url) as healthy, crowd(EACH * len(WAYS), url) as leaving:
        names = {(await client.welcomed())["connection"].replace("-", ""): client for client in leaving}
        publishing = asyncio.create_task(publish())
        await eventually_async(lambda: all(client.messages for client in healthy + leaving), within=10)

        way_of = {client: WAYS[number % len(WAYS)] for number, client in enumerate(leaving)}
        order = random.Random(1).sample(leaving, len(leaving))

        async def end(position: int, client: Client) -> None:
            await asyncio.sleep(SECONDS * position / len(order))
            await way_of[client](client)

        await asyncio.gather(*(end(position, client) for position, client in enumerate(order)))
        ended_at = time.monotonic()
        await eventually_async(lambda: site.open_memberships(server) == HEALTHY, within=SLACK)
        await eventually_async(lambda: site.open_connections(server) == HEALTHY, within=SLACK)
        took = time.monotonic() - ended_at
        publishing.cancel()

        rows = site.database.query(
            "SELECT id, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
        )
        reasons: dict[str, dict[str, int]] = {way.__name__: {} for way in WAYS}
        for row in rows:
            of_way = reasons[way_of[names[str(row["id"]).replace("-", "")]].__name__]
            of_way[row["close_reason"]] = of_way.get(row["close_reason"], 0) + 1
        counted = (await asyncio.to_thread(scrape, server)).by("reason", "realtime_connections_closed_total")
        log = server.log_text()
        measured(
            "ends during a fan-out",
            pairing,
            clients=len(leaving),
            all_closed_after=took,
            reasons=reasons,
            tracebacks=log.count("Traceback"),
            memberships_left=site.open_memberships(server) - HEALTHY,
        )
        allowed = {"close": CLOSED, "reset": BROKEN, "stop_reading_then_close": BROKEN}
        for way, counts in reasons.items():
            assert set(counts) <= allowed[way]
            assert sum(counts.values()) == EACH
        assert sum(counted.values()) == len(leaving), "each death counts once"
        for complaint in ("Traceback", " ERROR ", "closed protocol", "Unhandled", "Task was destroyed"):
            assert complaint not in log
        if pairing.layer == "core":
            with site.redis.client() as redis:
                assert [redis.zcard(key) for key in redis.scan_iter(f"asgi:group:{GROUP}")] == [1]

        # The others did not notice.
        for client in healthy:
            await client.seen(lambda frame: frame.get("data") == sent[-1])
            assert client.data == sent
            assert client.is_open
