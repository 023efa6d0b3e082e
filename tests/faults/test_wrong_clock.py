"""Hosts with clocks five minutes apart: no healthy client is reaped, no dead one kept, no message lost.

With PostgreSQL only: if the database is a file, all of its users are on one host and have one clock.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measuring
from tests.support.clients.websocket import Client, close_all, connect_many
from tests.support.faults.clock import off_by, require_faketime
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

OFF = 300  # seconds
CLIENTS = 10  # of each server
SERVERS = 3  # with healthy clients
MESSAGES = 60  # from each server
PING_INTERVAL, PONG_TIMEOUT = 2.0, 1.0
INTERVAL, TIMEOUT = 1.0, 0.5
ROUNDS = 4  # twice as many as a process needs to be found lost
BOUND = 2 * INTERVAL + TIMEOUT
SLACK = 2.0  # seconds for a machine that is busy with other tests
GROUP = "public.room"
SENT = [[name, number] for number in range(MESSAGES) for name in range(SERVERS)]


@dataclass
class Scene:
    """Three servers with healthy clients, one that is going to be killed, and two reapers."""

    site: Site
    servers: list[WebServer]
    doomed: WebServer
    healthy: list[Client] = field(default_factory=list)
    lost: list[Client] = field(default_factory=list)

    @property
    def first_of_each(self) -> list[Client]:
        """The first client of each server: these publish, and fall silent in the end."""
        return self.healthy[::CLIENTS]

    @property
    def listeners(self) -> list[Client]:
        """The other healthy clients."""
        return [client for client in self.healthy if client not in self.first_of_each]


@asynccontextmanager
async def hosts_apart(pairing: Pairing, start_site: StartSite) -> AsyncIterator[Scene]:
    """Start all programs, each with its own clock, and connect all clients to one group."""
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT, MAX_SILENCE=10.0)
    servers = [site.serve(), site.serve(**off_by(+OFF)), site.serve(**off_by(-OFF))]
    scene = Scene(site, servers, site.serve(**off_by(+OFF)))
    path = f"/ws/{GROUP}/"
    try:
        for server in servers:
            scene.healthy += await connect_many(CLIENTS, server.websocket(path))
        scene.lost = await connect_many(CLIENTS, scene.doomed.websocket(path))
        # Otherwise a reaper would see immediately that a pid of its own machine is gone.
        site.look_remote()
        options = ("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
        for off in (+OFF, -OFF):
            site.reaper(*options, **off_by(off))
        yield scene
    finally:
        await close_all(scene.healthy + scene.lost)


async def talk(speakers: list[Client]) -> None:
    """Let each client publish its numbers, in the same instants as the others."""
    for number in range(MESSAGES):
        answers = await asyncio.gather(
            *(speaker.publish(GROUP, [name, number]) for name, speaker in enumerate(speakers))
        )
        assert {answer["type"] for answer in answers} == {"published"}


async def reaped_in_rounds(site: Site) -> int:
    """Wait for `ROUNDS` rounds, and return how many records are closed."""

    def round_number() -> int:
        return int(site.database.value("SELECT coalesce(max(number), 0) FROM realtime_round"))

    began = round_number()
    await eventually_async(lambda: round_number() >= began + ROUNDS, within=ROUNDS * 3 * INTERVAL)
    return int(site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NOT NULL"))


async def kill(scene: Scene) -> float:
    """Kill a server; return the seconds until none of its records and memberships is open."""
    site, doomed = scene.site, scene.doomed
    doomed.kill()
    return await seconds_until(
        lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0, within=BOUND + SLACK
    )


async def fall_silent(clients: list[Client]) -> float:
    """Let these clients answer no ping; return the seconds until the last one is closed."""
    for client in clients:
        client.answers_pings = False
    silent_at = time.monotonic()
    for client in clients:
        assert await client.closes(within=PING_INTERVAL + PONG_TIMEOUT + SLACK) == 4008
    return time.monotonic() - silent_at


def received_all(client: Client) -> bool:
    """True if the client received every message once, and those of each sender in order.

    The layer does not have to order senders among themselves.
    """
    assert sorted(client.data) == sorted(SENT)
    for name in range(SERVERS):
        assert [data for data in client.data if data[0] == name] == [
            [name, number] for number in range(MESSAGES)
        ]
    return True


@pytest.mark.parametrize("pairing", pairings(database="postgres"))
async def test_clocks_five_minutes_apart_change_nothing(pairing: Pairing, start_site: StartSite) -> None:
    require_faketime()
    async with hosts_apart(pairing, start_site) as scene:
        with measuring("clock off by 5 minutes", pairing) as m:
            m.clients = len(scene.healthy)
            await talk(scene.first_of_each)
            m.healthy_reaped = await reaped_in_rounds(scene.site)
            m.killed_cleaned_up_after = await kill(scene)
            m.bound = BOUND
            m.silent_found_after = await fall_silent(scene.first_of_each)
            m.messages = len(SENT)
            m.missing = sum(max(0, len(SENT) - len(client.data)) for client in scene.listeners)

        assert m.healthy_reaped == 0
        assert all(received_all(client) for client in scene.healthy)
        assert all(client.is_open for client in scene.listeners)
        ended = {"ping_timeout": SERVERS, "server_lost": CLIENTS}
        await eventually_async(lambda: scene.site.close_reasons() == ended, within=5)
        # The times in records are the database's, also if a host with a wrong clock writes them.
        wrong_times = (
            "SELECT count(*) FROM realtime_connection"
            " WHERE opened_at > Now() OR closed_at > Now() OR opened_at < Now() - INTERVAL '4 minutes'"
        )
        assert scene.site.database.value(wrong_times) == 0
        for server in scene.servers:
            assert "Traceback" not in server.log_text()
