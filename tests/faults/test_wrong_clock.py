"""Hosts whose clocks are five minutes apart: nobody healthy is reaped, nobody dead kept, no message lost.

With PostgreSQL only: where the database is a file, all of its users are on one host and have one clock.
"""

import asyncio
import time

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.websocket import Client, close_all, connect_many
from tests.support.faults.clock import off_by, require_faketime
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

OFF = 300  # seconds
CLIENTS = 10  # of each server
MESSAGES = 60  # from each server
PING_INTERVAL, PONG_TIMEOUT = 2.0, 1.0
INTERVAL, TIMEOUT = 1.0, 0.5
ROUNDS = 4  # enough to find anybody lost, twice
BOUND = 2 * INTERVAL + TIMEOUT
SLACK = 2.0  # seconds for a machine that is busy with other tests
GROUP = "public.room"


def round_number(site: Site) -> int:
    return int(site.database.value("SELECT coalesce(max(number), 0) FROM realtime_round"))


async def talk(speakers: list[Client]) -> None:
    """Each publishes its numbers, in the same instants as the others."""
    for number in range(MESSAGES):
        answers = await asyncio.gather(
            *(speaker.publish(GROUP, [name, number]) for name, speaker in enumerate(speakers))
        )
        assert {answer["type"] for answer in answers} == {"published"}


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", database="postgres"))
async def test_clocks_five_minutes_apart_cost_nobody_and_keep_nobody(
    pairing: Pairing, start_site: StartSite
) -> None:
    require_faketime()
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT, MAX_SILENCE=10.0)
    servers = [site.serve(), site.serve(**off_by(+OFF)), site.serve(**off_by(-OFF))]
    doomed = site.serve(**off_by(+OFF))
    path = f"/ws/{GROUP}/"
    healthy: list[Client] = []
    lost: list[Client] = []
    try:
        for server in servers:
            healthy += await connect_many(CLIENTS, server.websocket(path))
        lost = await connect_many(CLIENTS, doomed.websocket(path))
        # Else the reapers would see at once that a pid of theirs is gone.
        site.look_remote()
        options = ("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
        for off in (+OFF, -OFF):
            site.reaper(*options, **off_by(off))

        await talk(healthy[::CLIENTS])
        began = round_number(site)
        await eventually_async(lambda: round_number(site) >= began + ROUNDS, within=ROUNDS * 3 * INTERVAL)
        reaped = int(
            site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NOT NULL")
        )

        doomed.kill()
        killed_at = time.monotonic()
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0, within=BOUND + SLACK
        )
        put_right_after = time.monotonic() - killed_at

        silent = healthy[::CLIENTS]
        for client in silent:
            client.answers_pings = False
        silent_at = time.monotonic()
        for client in silent:
            assert await client.closes(within=PING_INTERVAL + PONG_TIMEOUT + SLACK) == 4008
        found_after = time.monotonic() - silent_at

        expected = [[name, number] for number in range(MESSAGES) for name in range(len(servers))]
        missing = sum(max(0, len(expected) - len(client.data)) for client in healthy if client not in silent)
        measured(
            "clock off by 5 minutes",
            pairing,
            clients=len(healthy),
            healthy_reaped=reaped,
            killed_put_right_after=put_right_after,
            bound=BOUND,
            silent_found_after=found_after,
            messages=len(expected),
            missing=missing,
        )
        assert reaped == 0
        for client in healthy:
            # Each sender's in order; the layer need not order senders among themselves.
            assert sorted(client.data) == sorted(expected)
            for name in range(len(servers)):
                assert [data for data in client.data if data[0] == name] == [
                    [name, number] for number in range(MESSAGES)
                ]
        assert all(client.is_open for client in healthy if client not in silent)
        ended = {"ping_timeout": len(silent), "server_lost": CLIENTS}
        await eventually_async(lambda: site.close_reasons() == ended, within=5)
        # Times in records are the database's, whoever writes them.
        assert (
            site.database.value(
                "SELECT count(*) FROM realtime_connection"
                " WHERE opened_at > Now() OR closed_at > Now() OR opened_at < Now() - INTERVAL '4 minutes'"
            )
            == 0
        )
        for server in servers:
            assert "Traceback" not in server.log_text()
    finally:
        await close_all(healthy + lost)
