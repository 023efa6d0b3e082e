"""A server process is killed: what it held is put right within the bound, and nobody else notices.

The servers look as if they ran on another machine than the reapers, which else would find at once that a
pid is gone.
"""

import asyncio
import json
import time

import pytest
import redis

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CONNECTIONS = 200
INTERVAL, TIMEOUT = 2.0, 1.0
BOUND = 6.0  # seconds: 2 x interval + timeout is 5 with one miss allowed, and one for the sweep
SLACK = 1.0  # seconds for a machine that is busy with other tests, on top of the bound
GROUPS = ("public.lobby", "public.news")  # every connection is in both


def traces_in_redis(client: redis.Redis, channel: str) -> set[str]:
    """The keys in which something of the process with this channel is left: group members, and its queue."""
    queue = channel.split("!")[0] + "!"
    left = {key for key in client.scan_iter("*") if queue in key}
    for key in client.scan_iter("asgi:group:*"):
        if any(member.split("!")[0] + "!" == queue for member in client.zrange(key, 0, -1)):
            left.add(key)
    return left


async def in_both_groups(clients: list[Client]) -> None:
    await asyncio.gather(*(client.join(GROUPS[1]) for client in clients))


async def publish_numbers(site: Site, sent: list[int], stop: asyncio.Event) -> None:
    """Publish 0, 1, 2 ... to the first group, five a second, until told to stop."""
    publisher = site.publisher(GROUPS[0])
    while not stop.is_set():
        publisher.send(str(len(sent)))
        sent.append(len(sent))
        await asyncio.sleep(0.2)
    assert await asyncio.to_thread(publisher.finish) == 0


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_what_a_killed_process_held_is_put_right_and_the_others_lose_nothing(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    doomed, healthy = site.serve(), site.serve()
    site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    url = f"/ws/{GROUPS[0]}/"

    async with (
        crowd(CONNECTIONS, doomed.websocket(url)) as lost,
        crowd(CONNECTIONS, healthy.websocket(url)) as kept,
    ):
        await in_both_groups(lost + kept)
        assert site.open_connections(doomed) == site.open_connections(healthy) == CONNECTIONS
        site.look_remote()
        assert site.open_memberships(doomed) == site.open_memberships(healthy) == 2 * CONNECTIONS
        channels = {
            row["pid"]: row["channel_name"]
            for row in site.database.query("SELECT pid, channel_name FROM realtime_process")
        }

        sent: list[int] = []
        stop = asyncio.Event()
        publishing = asyncio.create_task(publish_numbers(site, sent, stop))
        await eventually_async(lambda: all(client.messages for client in lost + kept), within=15)
        if pairing.layer == "core":
            with site.redis.client() as client:
                assert traces_in_redis(client, channels[doomed.pid]), "else their absence later says nothing"

        doomed.kill()
        killed_at = time.monotonic()
        await eventually_async(lambda: site.open_connections(doomed) == 0, within=BOUND + SLACK, every=0.1)
        records_after = time.monotonic() - killed_at
        await eventually_async(lambda: site.open_memberships(doomed) == 0, within=BOUND + SLACK, every=0.1)
        memberships_after = time.monotonic() - killed_at
        measured(
            "process killed",
            pairing,
            members=CONNECTIONS,
            records_closed_after=records_after,
            memberships_left_after=memberships_after,
            bound=BOUND,
        )

        assert memberships_after < BOUND + SLACK
        assert site.close_reasons() == {"server_lost": CONNECTIONS}
        if pairing.layer == "core":
            with site.redis.client() as client:
                assert traces_in_redis(client, channels[doomed.pid]) == set()

        stop.set()
        await publishing
        for each in kept:
            await eventually_async(lambda each=each: len(each.data) >= len(sent), within=5)  # type: ignore[misc]
        assert all(each.data == sent for each in kept), "a survivor lost a message, or got one twice"
        assert all(each.is_open for each in kept)
        assert site.open_connections(healthy) == CONNECTIONS
        assert site.open_memberships(healthy) == 2 * CONNECTIONS
        # One row for each connection that was ever made: nobody had to come back.
        assert site.database.value("SELECT count(*) FROM realtime_connection") == 2 * CONNECTIONS


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_two_reapers_put_a_killed_process_right_once(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    doomed = site.serve()
    reapers = [
        site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT), "--format", "json")
        for _ in range(2)
    ]
    async with crowd(50, doomed.websocket(f"/ws/{GROUPS[0]}/")):
        # The bound counts from the death only where rounds are being run already.
        await eventually_async(lambda: any(reaper.log_text() for reaper in reapers), within=15)
        site.look_remote()
        doomed.kill()
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
            within=BOUND + SLACK,
            every=0.1,
        )
    for reaper in reapers:
        reaper.terminate()
        assert reaper.exit_code(within=2 + SLACK) == 0

    reports = [
        json.loads(line)
        for reaper in reapers
        for line in reaper.log_text().splitlines()
        if line.startswith("{")
    ]
    assert sum(report["lost"] for report in reports) == 1
    assert sum(report["reaped"] for report in reports) == 50


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_a_killed_reaper_is_replaced_by_any_other(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    doomed = site.serve()
    first = site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    async with crowd(20, doomed.websocket(f"/ws/{GROUPS[0]}/")):
        site.look_remote()
        doomed.kill()
        # One miss is counted, the verdict is still to come.
        await eventually_async(
            lambda: site.database.value("SELECT missed FROM realtime_process") == 1, within=BOUND
        )
        first.kill()
        site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
            within=BOUND + SLACK,
            every=0.1,
        )


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_what_a_killed_process_held_is_put_right_at_the_default_settings(
    pairing: Pairing, start_site: StartSite
) -> None:
    bound = 2 * 10.0 + 5.0
    site = start_site(pairing)
    doomed = site.serve()
    site.reaper().wait_for_a_round()
    async with crowd(CONNECTIONS, doomed.websocket(f"/ws/{GROUPS[0]}/")):
        site.look_remote()
        doomed.kill()
        killed_at = time.monotonic()
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
            within=bound + SLACK,
            every=0.2,
        )
        took = time.monotonic() - killed_at
        measured("process killed, defaults", pairing, members=CONNECTIONS, put_right_after=took, bound=bound)
        if pairing.layer == "core":
            with site.redis.client() as client:
                assert client.zcard(f"asgi:group:{GROUPS[0]}") == 0
