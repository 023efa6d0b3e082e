"""Redis is gone for two seconds and comes back empty: sockets stay open, and publishers get an error."""

import asyncio
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from channels_redis.utils import _consistent_hash

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measuring
from tests.support.clients.numbers import Attempt, Numbers, same_layer
from tests.support.clients.websocket import Client, Frame, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import RedisServer, SeveralRedis, redis_program
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 50
DOWN = 2.0  # seconds
BOUND = 2.0  # seconds from Redis's return until every client receives again
SLACK = 1.0  # seconds for a machine that is busy with other tests
PROMPT = 1.0  # seconds within which a publisher wants to know, plus the same slack
GROUP = "public.lobby"


@dataclass
class Attempts:
    """The answers that publishers got while Redis was down."""

    command: subprocess.CompletedProcess[str]
    """The result of `manage.py publish`."""
    frame: Frame
    """The answer to a client's command."""
    failed: list[Attempt]
    """The failed calls of `apublish`."""

    @property
    def slowest(self) -> float:
        return max(attempt.ended - attempt.began for attempt in self.failed)


async def publish_into_the_void(site: Site, client: Client, numbers: Numbers) -> Attempts:
    """Publish in every way while Redis is down, for as long as it is down."""
    stopped_at = time.monotonic()
    command = await site.amanage("publish", GROUP, '"into the void"')
    frame = await client.publish(GROUP, "into the void")
    await asyncio.sleep(max(0.0, stopped_at + DOWN - time.monotonic()))  # the outage itself
    return Attempts(command, frame, [each for each in numbers.failed if each.began > stopped_at])


def were_told(attempts: Attempts) -> bool:
    """True if each publisher learned, in one sentence and in time, that its message was not published."""
    command, frame = attempts.command, attempts.frame
    assert (command.returncode, command.stdout) == (1, "")
    assert command.stderr.startswith("CommandError: The channel layer failed to publish (")
    assert command.stderr.strip().endswith("0 published before it.")
    assert command.stderr.count("\n") == 1, "one sentence, no traceback"
    assert (frame["type"], frame["code"]) == ("error", "internal")
    assert attempts.failed, "a publisher learns that its message went nowhere"
    assert all("The channel layer failed to publish" in str(attempt.error) for attempt in attempts.failed)
    assert attempts.slowest < PROMPT + SLACK
    return True


async def nothing_more_is_lost(numbers: Numbers, clients: list[Client]) -> None:
    await eventually_async(lambda: clients[0].data[-1] == numbers.attempts[-1].number, within=5)
    recovered_at = time.monotonic()
    await asyncio.sleep(1.0)  # some numbers more, of which none may be lost
    await numbers.stop()
    await numbers.arrive(clients)
    assert all(numbers.nothing_lost_after(client, recovered_at) for client in clients)


async def restart(pairing: Pairing, start_site: StartSite, redis: RedisServer, name: str) -> None:
    """Restart Redis under load, and look at all clients."""
    # The settings are the defaults: within two seconds it is over without a round.
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

            with measuring(name, pairing) as m:
                m.clients = len(clients)
                await asyncio.to_thread(site.redis.stop)
                stopped_at = time.monotonic()
                attempts = await publish_into_the_void(site, first[0], numbers)
                await asyncio.to_thread(site.redis.start)
                back_at = time.monotonic()
                m.down_for = back_at - stopped_at
                m.receiving_again_after = await numbers.all_back_after(clients, back_at, within=BOUND + SLACK)
                m.bound = BOUND
                m.publishes_failed = len(attempts.failed)
                m.slowest_error_after = attempts.slowest

            assert were_told(attempts)
            await nothing_more_is_lost(numbers, clients)
            assert all(client.is_open for client in clients)
            assert site.open_connections(server) == site.open_connections(other) == CLIENTS
            assert site.open_memberships(server) == site.open_memberships(other) == CLIENTS
            assert site.database.value("SELECT count(*) FROM realtime_connection") == 2 * CLIENTS


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_sockets_stay_open_and_receive_again_within_two_seconds(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    await restart(pairing, start_site, RedisServer(tmp_path), "Redis restarted")


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings(server="daphne"))
async def test_the_same_with_valkey(pairing: Pairing, start_site: StartSite, tmp_path: Path) -> None:
    valkey = RedisServer(tmp_path, program=redis_program("valkey"))
    await restart(pairing, start_site, valkey, "Valkey restarted")


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_a_client_that_comes_while_redis_is_down_is_sent_away(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve()
    here, elsewhere = (server.websocket(f"/ws/{group}/") for group in (GROUP, "public.elsewhere"))
    async with crowd(1, here) as (settled,):
        await asyncio.to_thread(site.redis.stop)
        # This process is in the first group already, so it can let in more members without Redis. It cannot
        # join the other group, so a member would receive nothing.
        async with crowd(5, here) as more:
            async with crowd(5, elsewhere) as newcomers:
                codes = [await client.closes(within=15) for client in newcomers]
                reasons = [frame["reason"] for client in newcomers for frame in client.of_type("goodbye")]
            assert codes == [4000] * 5
            assert reasons == ["server_unavailable"] * 5
            assert all(client.is_open for client in [settled, *more])
            await asyncio.to_thread(site.redis.start)
            async with crowd(5, elsewhere) as again:
                await asyncio.gather(*(client.welcomed() for client in again))
                with same_layer(site):
                    async with Numbers(GROUP, "public.elsewhere") as numbers:
                        everybody = [settled, *more, *again]
                        await numbers.all_back_after(everybody, time.monotonic(), within=BOUND + SLACK)
    # A process closes records and leaves groups side by side.
    await eventually_async(
        lambda: site.open_memberships(server) == site.open_connections(server) == 0, within=10
    )


def groups_of(redis: SeveralRedis) -> list[str]:
    """Return the name of a group on each of the Redis."""
    names = [f"public.{number}" for number in range(20)]
    shards = [_consistent_hash(f"asgi__group__{name}", len(redis.members)) for name in names]
    return [names[shards.index(number)] for number in range(len(redis.members))]


@pytest.mark.matrix
async def test_one_redis_of_two_is_down_for_longer_than_a_round(
    start_site: StartSite, tmp_path: Path
) -> None:
    redis = SeveralRedis(tmp_path)
    pairing = Pairing("pubsub", "daphne", "sqlite")
    site = start_site(pairing, redis=redis)
    server, other = site.serve(), site.serve()
    site.reaper().wait_for_a_round()
    here, there = groups_of(redis)
    with same_layer(site):
        async with (
            crowd(10, server.websocket(f"/ws/{here}/")) as unaffected,
            crowd(10, other.websocket(f"/ws/{there}/")) as affected,
            crowd(10, server.websocket(f"/ws/{there}/")) as affected_too,
            Numbers(here) as numbers,
            Numbers(there) as others,
        ):
            cut_off = affected + affected_too
            await numbers.all_back_after(unaffected, time.monotonic(), within=10)
            await others.all_back_after(cut_off, time.monotonic(), within=10)

            with measuring("one of two Redis restarted", pairing) as m:
                down_at = time.monotonic()
                await asyncio.to_thread(redis.members[1].kill)
                await asyncio.sleep(15)  # longer than a round
                async with crowd(1, server.websocket(f"/ws/{here}/")) as (newcomer,):
                    await newcomer.welcomed()
                m.down_for = time.monotonic() - down_at
                await asyncio.to_thread(redis.members[1].start)
                back_at = time.monotonic()
                m.receiving_again_after = await others.all_back_after(cut_off, back_at, within=BOUND + SLACK)
                m.bound = BOUND
                m.publishes_failed = len(others.failed)

            failed = [each for each in others.failed if down_at < each.began < back_at]
            assert len(failed) > 100
            assert not numbers.failed, "groups on the other Redis notice nothing"
            for each in (numbers, others):
                await each.stop()
            await numbers.arrive(unaffected)
            assert all(numbers.nothing_lost_after(client, 0.0) for client in unaffected)
            assert all(client.is_open for client in unaffected + cut_off)
            assert set(site.close_reasons()) <= {"client_closed"}
