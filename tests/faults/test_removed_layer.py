"""A channel layer was removed from CHANNEL_LAYERS while a process in it died.

No round can leave the groups of the process, and the rounds do all other work.
"""

import asyncio

import pytest
from websockets.asyncio.client import connect

from tests.faults.test_reaper_down import OPTIONS, give
from tests.support.assertions.eventually import eventually, eventually_async
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import ReaperProcess, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

OLD = 100
CONNECTIONS = 3
WITHIN = 20.0  # seconds for a few rounds of a second each, on a machine that is busy with other tests
ONCE = ("reap_connections", "--once", *OPTIONS[:4])
#: The settings of the demo project, which has only the default layer.
REMOVED = {"DJANGO_SETTINGS_MODULE": "project.settings"}

# Longer than the month of KEEP_CLOSED.
LONG_AGO = {"sqlite": "datetime('now', '-40 days')", "postgres": "now() - interval '40 days'"}


async def in_the_other_layer(server: WebServer) -> None:
    """Kill a process that has connections in the group `others` of the layer `other`."""
    clients = [await connect(server.websocket("/ours/other/"), proxy=None) for _ in range(CONNECTIONS)]
    for client in clients:
        await asyncio.wait_for(client.recv(), 10)
    server.kill()
    for client in clients:
        await client.wait_closed()


def close_long_ago(site: Site, server: WebServer) -> None:
    """Give this process records that were closed so long ago that they must be deleted."""
    give(site.database, server.pid, OLD, 1)
    long_ago = LONG_AGO[site.pairing.database]
    given = "SELECT id FROM realtime_connection WHERE remote_address = ''"
    site.database.query(
        f"UPDATE realtime_membership SET left_at = {long_ago} WHERE connection_id IN ({given})"  # noqa: S608
    )
    site.database.query(
        f"UPDATE realtime_connection SET closed_at = {long_ago}, close_reason = 'client_closed'"  # noqa: S608
        " WHERE remote_address = ''"
    )


def count(site: Site, rows: str) -> int:
    return int(site.database.value(f"SELECT count(*) FROM realtime_{rows}"))  # noqa: S608


def failures(reaper: ReaperProcess) -> list[str]:
    return [line for line in reaper.log_text().splitlines() if line.startswith("round failed: ")]


@pytest.mark.parametrize("pairing", pairings())
async def test_a_removed_layer_stops_no_other_cleanup(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    healthy, doomed = site.serve(), site.serve(application="tests.support.applications.drop_in:application")
    async with connect(healthy.websocket("/ws/public.lobby/"), proxy=None):
        await in_the_other_layer(doomed)
        close_long_ago(site, healthy)
        reaper = site.reaper(*OPTIONS[:4], **REMOVED)

        await eventually_async(lambda: count(site, "connection WHERE closed_at IS NULL") == 1, within=WITHIN)
        await eventually_async(
            lambda: count(site, "connection WHERE remote_address = ''") == 0, within=WITHIN
        )
        assert site.open_memberships(doomed) == CONNECTIONS
        # The reaper reports a failure when the round is over, which is after the writes seen above.
        await eventually_async(lambda: failures(reaper), within=WITHIN)
        failed = failures(reaper)
        assert all(
            f'{doomed.pid} cannot leave its groups: CHANNEL_LAYERS has no "other" layer' in line
            for line in failed
        )
        assert all("2592000 s after the process ended" in line for line in failed)

        once = await site.amanage(*ONCE, **REMOVED)
        assert once.returncode == 1, once.stdout + once.stderr
        assert 'no "other" layer' in once.stderr
        assert "Traceback" not in once.stderr + reaper.log_text()

        site.database.query(
            f"UPDATE realtime_process SET stopped_at = {LONG_AGO[pairing.database]} WHERE pid = {doomed.pid}"  # noqa: S608
        )
        await eventually_async(lambda: site.open_memberships(doomed) == 0, within=WITHIN)
        once = await site.amanage(*ONCE, **REMOVED)
        assert once.returncode == 0, once.stdout + once.stderr
        reaper.stop()
        assert reaper.log_text().count(f"{doomed.pid}: its memberships in 1 groups are written off") == 1


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite", layer="core"))
def test_groups_of_a_layer_that_is_brought_back_are_left(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    doomed = site.serve(application="tests.support.applications.drop_in:application")
    asyncio.run(in_the_other_layer(doomed))
    assert site.manage(*ONCE, **REMOVED).returncode == 1
    with site.redis.client() as redis:
        assert redis.zcard("other:group:others") == 1
        reaper = site.reaper(*OPTIONS)
        eventually(lambda: site.open_memberships(doomed) == 0, within=WITHIN)
        assert redis.zcard("other:group:others") == 0
    reaper.wait_for_a_round()
    assert '"discarded": 1' in reaper.log_text()
