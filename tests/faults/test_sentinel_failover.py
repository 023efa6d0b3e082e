"""Sentinel promotes the replica: sockets stay open, and every client receives again within seconds."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measuring
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import PAIRINGS, Pairing
from tests.support.programs.rights import rights
from tests.support.programs.sentinel import DATABASE, NAME, RedisWithSentinel
from tests.support.programs.servers import redis_program

pytestmark = pytest.mark.faults

CLIENTS = 50
GROUP = "public.lobby"
BOUND = 2.0  # seconds from the promotion until every client receives again
SLACK = 1.0  # seconds for a machine that is busy with other tests
FAILOVER = 15.0  # seconds within which Sentinel must have promoted the replica
CALL = 5.0  # seconds after which a publisher is told at the latest


def kill(redis: RedisWithSentinel) -> None:
    redis.master.kill()


def hang(redis: RedisWithSentinel) -> None:
    """Stop the master as a hypervisor does: its connections stay open and carry nothing."""
    redis.master.freeze()


def switch(redis: RedisWithSentinel) -> None:
    """Fail over as an operator does before maintenance. The old master becomes the replica."""
    with redis.sentinels[0].client() as client:
        client.execute_command("SENTINEL", "FAILOVER", NAME)


def forget_memberships_on_the_replica(redis: RedisWithSentinel) -> None:
    """Make the replica as one that has missed the last joins, because replication is asynchronous."""
    with redis.replica.client() as client:
        client.config_set("replica-read-only", "no")
        client.select(DATABASE)
        for key in client.keys("*:group:*"):
            client.delete(key)
        client.config_set("replica-read-only", "yes")


def cases() -> list[object]:
    """Return parameters: what happens to the master, the pairing, and the server program."""
    by_layer = {each.layer: each for each in PAIRINGS if each.server == "daphne"}
    matrix = [
        (kill, "pubsub", "redis"),
        (kill, "core", "valkey"),
        (hang, "core", "redis"),
        (hang, "pubsub", "redis"),
        (switch, "core", "redis"),
        (switch, "pubsub", "redis"),
    ]
    return [
        pytest.param(fault, by_layer[layer], kind, id=f"{fault.__name__}-{layer}-{kind}", marks=marks)
        for fault, layer, kind, marks in [
            (kill, "core", "redis", ()),
            *((*case, pytest.mark.matrix) for case in matrix),
        ]
    ]


@pytest.mark.parametrize(("fault", "pairing", "kind"), cases())
async def test_every_client_receives_again_after_a_failover(
    fault: Callable[[RedisWithSentinel], None],
    pairing: Pairing,
    kind: str,
    start_site: StartSite,
    tmp_path: Path,
) -> None:
    redis = RedisWithSentinel(
        tmp_path,
        sentinels=3,
        password="secret",
        sentinel_password="other",
        rights=(*rights(pairing.layer), "+select"),
        program=redis_program(kind),
    )
    site = start_site(pairing, redis=redis)
    server, other = site.serve(), site.serve()
    site.reaper().wait_for_a_round()
    url = f"/ws/{GROUP}/"
    with same_layer(site):
        async with (
            crowd(CLIENTS, server.websocket(url)) as first,
            crowd(CLIENTS, other.websocket(url)) as second,
            Numbers(GROUP) as numbers,
        ):
            clients = first + second
            await numbers.all_back_after(clients, time.monotonic(), within=10)

            with measuring(f"Sentinel failover on {kind}, {fault.__name__}", pairing) as m:
                m.clients = len(clients)
                await asyncio.to_thread(forget_memberships_on_the_replica, redis)
                began_at = time.monotonic()
                await asyncio.to_thread(fault, redis)
                await eventually_async(redis.is_failed_over, within=FAILOVER)
                promoted_at = time.monotonic()
                m.promoted_after = promoted_at - began_at
                m.receiving_again_after = await numbers.all_back_after(
                    clients, promoted_at, within=BOUND + SLACK
                )
                m.bound = BOUND
                m.publishes_failed = len(numbers.failed)
                m.slowest_error_after = max((each.ended - each.began for each in numbers.failed), default=0.0)

            assert m.slowest_error_after < CALL + SLACK
            # Sentinel may name the new master before it demotes the old one. Until each process has asked
            # Sentinel again, two masters take messages.
            await asyncio.sleep(max(0.0, promoted_at + BOUND - time.monotonic()))
            recovered_at = time.monotonic()
            redis.master.thaw()
            await asyncio.sleep(2.0)  # more numbers, of which none may be lost; a thawed master is demoted
            await numbers.stop()
            await numbers.arrive(clients)
            assert all(numbers.nothing_lost_after(client, recovered_at) for client in clients)
            assert all(client.is_open for client in clients)
            assert site.open_connections(server) == site.open_connections(other) == CLIENTS
            assert site.open_memberships(server) == site.open_memberships(other) == CLIENTS
            assert site.database.value("SELECT count(*) FROM realtime_connection") == 2 * CLIENTS
            for log in site.folder.glob("daphne-*.log"):
                assert "Traceback" not in log.read_text()
