"""A server process is killed: its records and memberships are cleaned up in time. No other client notices.

The servers look as if they ran on another machine than the reapers. Otherwise a reaper would find immediately
that a pid is gone.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import ReaperProcess, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CONNECTIONS = 200
INTERVAL, TIMEOUT = 2.0, 1.0
BOUND = 6.0  # seconds: 2 x interval + timeout is 5 with one miss allowed, and one for the sweep
SLACK = 1.0  # seconds for a machine that is busy with other tests, on top of the bound
GROUPS = ("public.lobby", "public.news")  # every connection is in both


@dataclass
class Scene:
    """Two servers, the clients of each, and the numbers that are published to the first group."""

    site: Site
    doomed: WebServer
    healthy: WebServer
    lost: list[Client]
    kept: list[Client]
    channel: str
    """The channel of the server that is going to be killed."""
    sent: list[int] = field(default_factory=list)


@asynccontextmanager
async def two_servers(pairing: Pairing, start_site: StartSite) -> AsyncIterator[Scene]:
    """Start the servers and a reaper, and let every client join both groups."""
    site = start_site(pairing)
    doomed, healthy = site.serve(), site.serve()
    site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    url = f"/ws/{GROUPS[0]}/"
    async with (
        crowd(CONNECTIONS, doomed.websocket(url)) as lost,
        crowd(CONNECTIONS, healthy.websocket(url)) as kept,
    ):
        await asyncio.gather(*(client.join(GROUPS[1]) for client in lost + kept))
        assert site.open_connections(doomed) == site.open_connections(healthy) == CONNECTIONS
        site.look_remote()
        assert site.open_memberships(doomed) == site.open_memberships(healthy) == 2 * CONNECTIONS
        channels = {
            row["pid"]: row["channel_name"]
            for row in site.database.query("SELECT pid, channel_name FROM realtime_process")
        }
        yield Scene(site, doomed, healthy, lost, kept, channels[doomed.pid])


@asynccontextmanager
async def numbers(scene: Scene) -> AsyncIterator[None]:
    """Publish 0, 1, 2 … to the first group within the block, five a second, when all clients receive."""
    stop, publisher = asyncio.Event(), scene.site.publisher(GROUPS[0])

    async def publish() -> None:
        while not stop.is_set():
            publisher.send(str(len(scene.sent)))
            scene.sent.append(len(scene.sent))
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(publisher.finish) == 0

    publishing = asyncio.create_task(publish())
    await eventually_async(lambda: all(client.messages for client in scene.lost + scene.kept), within=15)
    try:
        yield
    finally:
        stop.set()
        await publishing


def traces_in_redis(scene: Scene) -> set[str]:
    """The keys with traces of the process that was killed: group members, and its queue.

    The pub/sub layer keeps nothing of a process in Redis.
    """
    if scene.site.pairing.layer != "core":
        return set()
    queue = scene.channel.split("!")[0] + "!"
    with scene.site.redis.client() as client:
        left = {key for key in client.scan_iter("*") if queue in key}
        for key in client.scan_iter("asgi:group:*"):
            if any(member.split("!")[0] + "!" == queue for member in client.zrange(key, 0, -1)):
                left.add(key)
    return left


async def survivors_lost_nothing(scene: Scene) -> None:
    site, sent = scene.site, scene.sent
    for each in scene.kept:
        await eventually_async(lambda each=each: len(each.data) >= len(sent), within=5)  # type: ignore[misc]
    assert all(each.data == sent for each in scene.kept), "a survivor lost a message, or got one twice"
    assert all(each.is_open for each in scene.kept)
    assert site.open_connections(scene.healthy) == CONNECTIONS
    assert site.open_memberships(scene.healthy) == 2 * CONNECTIONS
    # One row for each connection that was ever made: no client had to come back.
    assert site.database.value("SELECT count(*) FROM realtime_connection") == 2 * CONNECTIONS


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_a_killed_process_is_cleaned_up_and_others_lose_nothing(
    pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site) as scene:
        site, doomed = scene.site, scene.doomed
        async with numbers(scene):
            assert pairing.layer != "core" or traces_in_redis(scene), "otherwise their absence says nothing"
            with measuring("process killed", pairing) as m:
                m.members = CONNECTIONS
                doomed.kill()
                killed_at = time.monotonic()
                m.records_closed_after = await seconds_until(
                    lambda: site.open_connections(doomed) == 0,
                    within=BOUND + SLACK,
                    every=0.1,
                    since=killed_at,
                )
                m.memberships_left_after = await seconds_until(
                    lambda: site.open_memberships(doomed) == 0,
                    within=BOUND + SLACK,
                    every=0.1,
                    since=killed_at,
                )
                m.bound = BOUND

            assert m.memberships_left_after < BOUND + SLACK
            assert site.close_reasons() == {"server_lost": CONNECTIONS}
            await eventually_async(lambda: traces_in_redis(scene) == set(), within=5)
        await survivors_lost_nothing(scene)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_two_reapers_clean_up_a_killed_process_once(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    doomed = site.serve()
    reapers = [
        site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT), "--format", "json")
        for _ in range(2)
    ]
    async with crowd(50, doomed.websocket(f"/ws/{GROUPS[0]}/")):
        # The bound counts from the kill only if rounds run already.
        await eventually_async(lambda: any(reaper.log_text() for reaper in reapers), within=15)
        site.look_remote()
        doomed.kill()
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
            within=BOUND + SLACK,
            every=0.1,
        )
    # A reaper reports a round when it is over, which is after the writes seen above.
    await eventually_async(lambda: reported(reapers, "reaped") >= 50, within=10)
    for reaper in reapers:
        reaper.terminate()
        assert reaper.exit_code(within=2 + SLACK) == 0
    assert reported(reapers, "lost") == 1
    assert reported(reapers, "reaped") == 50


def reported(reapers: list[ReaperProcess], name: str) -> int:
    """The sum of a number over all rounds that these reapers have reported."""
    lines = [line for reaper in reapers for line in reaper.log_text().splitlines(keepends=True)]
    return sum(json.loads(line)[name] for line in lines if line.startswith("{") and line.endswith("}\n"))


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_another_reaper_takes_over_from_a_killed_one(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    doomed = site.serve()
    first = site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    async with crowd(20, doomed.websocket(f"/ws/{GROUPS[0]}/")):
        site.look_remote()
        doomed.kill()
        # One miss is counted, and the process is not yet declared lost.
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
async def test_a_killed_process_is_cleaned_up_at_the_default_settings(
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
        measured("process killed, defaults", pairing, members=CONNECTIONS, cleaned_up_after=took, bound=bound)
        if pairing.layer == "core":
            with site.redis.client() as client:
                assert client.zcard(f"asgi:group:{GROUPS[0]}") == 0
