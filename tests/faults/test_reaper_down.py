"""The reaper is away, comes back, has a twin, or dies in the middle of a round.

No healthy client is closed for it, and nothing is done twice. The servers look as if they ran on another
machine than the reapers. Otherwise a reaper would find immediately that a pid is gone.
"""

import asyncio
import json
import time
import uuid

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.databases import Database
from tests.support.programs.servers import ReaperProcess, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

PING_INTERVAL, PONG_TIMEOUT = 2.0, 0.8
INTERVAL, TIMEOUT = 1.0, 0.5
OPTIONS = ("--interval", str(INTERVAL), "--timeout", str(TIMEOUT), "--format", "json")
SLACK = 2.0  # seconds for a machine that is busy with other tests
LOST_WITHIN = 2 * INTERVAL + TIMEOUT
SWEEP = 40.0  # seconds to clean up the thousands of rows that these tests give a process, on a busy machine
GROUP = "public.lobby"


# Have the database say that the last round was that long ago.
TEN_MINUTES_AGO = {
    "sqlite": "UPDATE realtime_round SET started_at = datetime('now', '-10 minutes')",
    "postgres": "UPDATE realtime_round SET started_at = now() - interval '10 minutes'",
}


def reports(*reapers: ReaperProcess) -> list[dict[str, float]]:
    """Return the reports of reapers, without a line that a killed reaper did not finish."""
    lines = [line for reaper in reapers for line in reaper.log_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.startswith('{"number"') and line.endswith("}\n")]


def rounds_run(site: Site) -> int:
    return int(
        site.database.value("SELECT max(number) FROM (SELECT number FROM realtime_round UNION SELECT 0) r")
    )


async def rounds_more(site: Site, number: int) -> None:
    """Wait until `number` more rounds have been claimed."""
    first = rounds_run(site)
    await eventually_async(
        lambda: rounds_run(site) >= first + number, within=30 + number * INTERVAL, every=0.05
    )


def give(database: Database, pid: int, connections: int, groups: int) -> None:
    """Add open records to a process, each with one membership.

    Args:
        database: The database of the site.
        pid: The pid of the process.
        connections: The number of records.
        groups: The number of groups over which the memberships are spread.
    """
    (process,) = [
        row["id"] for row in database.query("SELECT id, pid FROM realtime_process") if row["pid"] == pid
    ]
    ids = [uuid.uuid4() for _ in range(connections)]
    for first in range(0, connections, 400):
        batch = ids[first : first + 400]
        # SQLite keeps a UUID as 32 hexadecimal digits; PostgreSQL takes these too.
        records = ", ".join(
            f"('{each.hex}', '{process}', '', '/ws/', '', '', '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, '')"
            for each in batch
        )
        database.query(
            "INSERT INTO realtime_connection (id, process_id, user_id, path, remote_address, user_agent,"  # noqa: S608
            f" subprotocol, opened_at, last_seen_at, close_reason) VALUES {records}"
        )
        memberships = ", ".join(
            f"('{each.hex}', '{process}', 'public.many-{number % groups}', CURRENT_TIMESTAMP, FALSE)"
            for number, each in enumerate(batch, start=first)
        )
        database.query(
            'INSERT INTO realtime_membership (connection_id, process_id, "group", joined_at,'  # noqa: S608
            f" connection_closed) VALUES {memberships}"
        )


def closed(site: Site) -> int:
    return int(site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NOT NULL"))


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_only_zombies_are_closed_before_and_after_a_late_reaper(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, PING_INTERVAL=PING_INTERVAL, PONG_TIMEOUT=PONG_TIMEOUT)
    server = site.serve()
    url = server.websocket(f"/ws/{GROUP}/")
    first = site.reaper(*OPTIONS)
    async with crowd(20, url) as healthy, crowd(20, url) as zombies:
        site.look_remote()
        await rounds_more(site, 2)
        first.kill()
        rounds_before = rounds_run(site)
        site.database.query(TEN_MINUTES_AGO[pairing.database])

        for client in zombies:
            client.answers_pings = False
        silent_at, bound = time.monotonic(), PING_INTERVAL + PONG_TIMEOUT
        await eventually_async(
            lambda: site.open_connections(server) == site.open_memberships(server) == len(healthy),
            within=bound + SLACK,
        )
        found_after = time.monotonic() - silent_at
        assert rounds_run(site) == rounds_before, "no round was run meanwhile"

        second = site.reaper(*OPTIONS)
        await rounds_more(site, 4)
        await eventually_async(lambda: len(reports(second)) >= 3, within=SLACK)
        measured(
            "reaper down",
            pairing,
            zombies_found_by_the_hub_after=found_after,
            bound=bound,
            healthy=len(healthy),
            healthy_reaped_on_return=closed(site) - len(zombies),
        )
        assert all(client.is_open for client in healthy)
        assert closed(site) == len(zombies)
        assert [(each["asked"], each["answered"]) for each in reports(second)[:3]] == [(1, 1)] * 3
        for name in ("lost", "reaped", "discarded", "kicked"):
            assert sum(each[name] for each in reports(second)) == 0


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_two_reapers_claim_and_count_everything_once(pairing: Pairing, start_site: StartSite) -> None:
    connections, groups = 3000, 3000
    site = start_site(pairing)
    doomed, healthy = site.serve(), site.serve()
    async with crowd(20, doomed.websocket(f"/ws/{GROUP}/")), crowd(20, healthy.websocket("/ws/")) as kept:
        site.look_remote()
        # Enough that one reaper is still sweeping when the turn of the other comes.
        give(site.database, doomed.pid, connections, groups)
        reapers = [site.reaper(*OPTIONS) for _ in range(2)]
        # One of them may claim every round: they do not alternate strictly.
        await eventually_async(lambda: reports(*reapers), within=30)
        await rounds_more(site, 3)
        doomed.kill()
        killed_at = time.monotonic()
        await eventually_async(
            lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
            within=LOST_WITHIN + SWEEP,
            every=0.1,
        )
        swept_after = time.monotonic() - killed_at
        await rounds_more(site, 3)
        assert all(client.is_open for client in kept)
    for reaper in reapers:
        reaper.terminate()
    for reaper in reapers:
        assert reaper.exit_code(within=10) == 0
    all_reports = reports(*reapers)
    numbers = [each["number"] for each in all_reports]
    sums = {name: sum(each[name] for each in all_reports) for name in ("lost", "reaped", "discarded")}
    measured(
        "two reapers",
        pairing,
        reapers=len(reapers),
        rounds=len(numbers),
        rounds_twice=len(numbers) - len(set(numbers)),
        swept_after=swept_after,
        **sums,
    )
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "each round once, none left out"
    assert sums == {"lost": 1, "reaped": connections + 20, "discarded": groups + 1}


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", layer="core"))
async def test_once_finds_the_dead_beside_a_reaper_that_cannot_ask(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    doomed, healthy = site.serve(), site.serve()
    async with crowd(5, doomed.websocket(f"/ws/{GROUP}/")), crowd(5, healthy.websocket("/ws/")) as kept:
        site.look_remote()
        # This reaper has another Redis, so it can ask no process, and it is the first to claim each round.
        blind = site.reaper(*OPTIONS, REDIS_URL=f"unix://{site.folder}/nowhere.sock")
        await rounds_more(site, 2)
        # A process is spared for longer if it has not seen yet how often rounds come here.
        await eventually_async(
            lambda: site.database.value("SELECT min(last_round) FROM realtime_process") > 0, within=10
        )
        doomed.kill()
        once = await site.amanage("reap_connections", "--once", *OPTIONS)
        assert once.returncode == 3, once.stdout + once.stderr
        assert all(client.is_open for client in kept)
    own = [json.loads(line) for line in once.stdout.splitlines()]
    assert [(each["asked"], each["answered"]) for each in own] == [(2, 1), (2, 1)]
    assert [each["lost"] for each in own] == [0, 1]
    assert {each["asked"] for each in reports(blind)} == {0}
    assert site.close_reasons()["server_lost"] == 5


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_the_next_reaper_finishes_what_a_killed_one_began(
    pairing: Pairing, start_site: StartSite
) -> None:
    connections, groups = 5000, 500
    site = start_site(pairing)
    doomed, healthy = site.serve(), site.serve()
    async with (
        crowd(10, doomed.websocket(f"/ws/{GROUP}/")),
        crowd(10, healthy.websocket(f"/ws/{GROUP}/")) as kept,
    ):
        site.look_remote()
        give(site.database, doomed.pid, connections, groups)
        with measuring("reaper killed in the middle of a round", pairing) as m:
            before, m.records_closed_by_the_first = await kill_a_reaper_in_its_sweep(site, doomed)
            second = site.reaper(*OPTIONS)
            m.done_after_its_start = await seconds_until(
                lambda: site.open_connections(doomed) + site.open_memberships(doomed) == 0,
                within=SWEEP,
                every=0.1,
            )
            await eventually_async(lambda: reports(second), within=SLACK + 5)
            finishing = reports(second)[0]
            m.by_the_next_round = finishing["reaped"]

        half_way = m.records_closed_by_the_first
        assert 0 < half_way < connections + 10, "the reaper was not stopped in the middle of its sweep"
        assert finishing["number"] == before + 1, "the next round does it, not a later one"
        assert finishing["reaped"] == connections + 10 - half_way, "nothing is counted twice"
        assert finishing["lost"] == 0, "the process was declared lost once"
        assert all_closed_once_as_lost(site, connections + 10)
        assert all(client.is_open for client in kept)
        assert in_layer(site) == in_records(site) == {GROUP: 1}


async def kill_a_reaper_in_its_sweep(site: Site, doomed: WebServer) -> tuple[int, int]:
    """Kill a server, and then the reaper that cleans up after it, when it has closed only some records.

    Returns:
        The number of the last round, and how many records the reaper has closed.
    """
    first = site.reaper(*OPTIONS)
    await rounds_more(site, 2)
    doomed.kill()
    await eventually_async(lambda: closed(site) > 0, within=LOST_WITHIN + SLACK + 5, every=0.002)
    first.freeze()
    await eventually_async(lambda: unchanged(site), within=10)
    half_way = closed(site)
    first.kill()
    return rounds_run(site), half_way


def unchanged(site: Site) -> bool:
    """True if nothing is written any more: what a stopped program has sent may still reach the database."""
    first = closed(site)
    time.sleep(0.3)
    return closed(site) == first


def all_closed_once_as_lost(site: Site, number: int) -> bool:
    rows = site.database.query(
        "SELECT close_reason, count(*) AS number FROM realtime_connection"
        " WHERE closed_at IS NOT NULL GROUP BY close_reason"
    )
    return rows == [{"close_reason": "server_lost", "number": number}]


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_rounds_that_were_never_judged_count_no_miss(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.serve()
    async with crowd(10, server.websocket(f"/ws/{GROUP}/")) as healthy:
        site.look_remote()
        # The server cannot answer while it is stopped, so each reaper dies waiting for its answer.
        server.freeze()
        try:
            for _ in range(3):
                reaper = site.reaper("--interval", "60", "--timeout", "30", "--format", "json")
                await rounds_more(site, 1)
                reaper.kill()
                site.database.query("UPDATE realtime_round SET started_at = NULL")
        finally:
            server.thaw()
        assert site.database.value("SELECT missed FROM realtime_process") == 0
        reaper = site.reaper(*OPTIONS)
        await rounds_more(site, 3)
        assert await still_well(healthy)
        assert closed(site) == 0
        assert sum(each["lost"] for each in reports(reaper)) == 0


async def still_well(clients: list[Client]) -> bool:
    """True if each client is connected and gets an answer."""
    for client in clients:
        await client.send({"type": "ping", "n": 7})
    await asyncio.gather(
        *(client.seen(lambda frame: frame["type"] == "pong" and frame["n"] == 7) for client in clients)
    )
    return all(client.is_open for client in clients)
