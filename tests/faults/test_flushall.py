"""Redis is emptied: the memberships in it are gone, and the sockets of all clients stay open."""

import asyncio
import time

import pytest

from tests.support.assertions.measured import measured
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import close_all, connect_many
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings, rounds, scale

pytestmark = pytest.mark.faults

CLIENTS = 50
SLACK = 1.0  # seconds for a machine that is busy with other tests
GROUPS = [f"public.room-{number}" for number in range(10)]


@rounds
@pytest.mark.parametrize(
    "reaping", [True, pytest.param(False, marks=pytest.mark.matrix)], ids=["with-reaper", "without-reaper"]
)
@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_clients_receive_again_within_a_round_without_reconnect(
    pairing: Pairing, reaping: bool, interval: float, start_site: StartSite
) -> None:
    site = start_site(pairing, ROUND_INTERVAL=interval, ROUND_TIMEOUT=interval / 2)
    servers = [site.serve(), site.serve()]
    if reaping:
        site.reaper().wait_for_a_round()

    clients = []
    try:
        for number, group in enumerate(GROUPS):
            clients += await connect_many(
                CLIENTS // len(GROUPS), servers[number % 2].websocket(f"/ws/{group}/")
            )
        with same_layer(site):
            async with Numbers(*GROUPS) as numbers:
                await numbers.all_back_after(clients, time.monotonic(), within=10)

                with site.redis.client() as redis:
                    redis.flushall()
                flushed_at = time.monotonic()
                back = await numbers.all_back_after(clients, flushed_at, within=interval + SLACK)
                # Long enough for one more check of every membership, which may double none of them.
                await asyncio.sleep(interval)
                await numbers.stop()
                measured(
                    f"FLUSHALL, {scale(interval)}",
                    f"{pairing}, {'with' if reaping else 'without'} a reaper",
                    clients=CLIENTS,
                    receiving_again_after=back,
                    bound=interval,
                )

                # All numbers have passed through Redis in order, so the last number ends the wait.
                await numbers.arrive(clients)
                # On the pub/sub layer nothing of a membership is stored in Redis.
                from_then_on = flushed_at + back if pairing.layer == "core" else 0.0
                assert all(numbers.nothing_lost_after(client, from_then_on) for client in clients)
        assert all(client.is_open for client in clients), "no client has to reconnect"
        assert site.database.value("SELECT count(*) FROM realtime_connection") == CLIENTS
    finally:
        await close_all(clients)
