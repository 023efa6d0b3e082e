"""More is published than a process can write: it falls behind, keeps its clients, and is not lost."""

import asyncio
import time
import uuid
from pathlib import Path

import psutil
import pytest

from realtime.closing import CloseReason
from realtime.layers import groups, messages
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.audience import Audience
from tests.support.clients.numbers import same_layer
from tests.support.clients.torrent import Torrent
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

MEMBERS = 125  # of each group
GROUPS = ("public.left", "public.right")
PER_SECOND = 3300.0
SIZE = 1000  # bytes of a message
SECONDS = 5.0
MIB = 1024 * 1024
#: Rounds come so often that several fall into the time while the process is behind.
ROUNDS = {"ROUND_INTERVAL": 2.0, "ROUND_TIMEOUT": 1.0}
#: Bytes of memory beside the waiting messages: buffers of sockets, and what a busy minute leaves in any
#: server.
ALLOWANCE = 60 * MIB


async def kick_one(site: Site, audience: Audience) -> float:
    """Have the server close one connection, as the admin does; return the seconds until the client saw it."""
    (row, *_) = site.database.query(
        "SELECT c.id, p.channel_name FROM realtime_connection c"
        " JOIN realtime_process p ON p.id = c.process_id"
    )
    kick = messages.Kick([uuid.UUID(str(row["id"]))], [], CloseReason.KICKED.value)
    began = time.monotonic()
    with same_layer(site):
        await groups.tell(row["channel_name"], kick)
    await eventually_async(lambda: audience.report.codes == {"4504": 1}, within=30)
    return time.monotonic() - began


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", layer="pubsub"))
async def test_a_process_that_falls_behind_is_not_lost(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing, **ROUNDS)
    server, reaper = site.serve(), site.reaper()
    urls = [server.websocket(f"/ws/{group}/") for group in GROUPS]
    with Audience(*urls, count=MEMBERS, log=tmp_path / "audience.log") as audience:
        reaper.wait_for_a_round()
        began = time.monotonic()
        async with Torrent(site, *GROUPS, per_second=PER_SECOND, size=SIZE) as torrent:
            await asyncio.sleep(SECONDS)
        behind = torrent.published - audience.report.fewest
        kicked_after = await kick_one(site, audience)
        still_behind = torrent.published - audience.report.most
        expected = torrent.published * len(urls) * MEMBERS
        # The member that was kicked has received a part.
        await eventually_async(
            lambda: audience.report.messages > expected - torrent.published, within=90, every=0.5
        )
        await asyncio.sleep(2 * ROUNDS["ROUND_INTERVAL"])
        report, took = audience.report, time.monotonic() - began
        metrics = await asyncio.to_thread(scrape, server)
        measured(
            "more than a process can write",
            pairing,
            published=torrent.published * len(GROUPS),
            behind_at_the_end=behind,
            delivered_after=took,
            kicked_after=kicked_after,
            missed=report.missed,
            out_of_order=report.out_of_order,
            closed=site.close_reasons(),
            dropped=int(metrics.value("realtime_messages_dropped_total")),
        )
        assert site.close_reasons() == {"kicked": 1}
        assert report.open == MEMBERS * len(GROUPS) - 1
        assert "is lost" not in reaper.log_text()
        assert (report.out_of_order, report.missed) == (0, 0)
        assert still_behind > PER_SECOND / len(GROUPS), "the kick was not carried out before the messages"


def keeps_up(server: WebServer) -> bool:
    """True if the process has logged that it fell behind, and as often that it keeps up again."""
    log = server.log_text()
    return log.count("This process cannot keep up") == log.count("This process keeps up again") >= 1


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", layer="pubsub"))
async def test_messages_that_wait_are_bounded_in_bytes(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    bound = 2 * MIB
    site = start_site(pairing, MAX_QUEUED_BYTES=bound, **ROUNDS)
    server = site.serve()
    process = psutil.Process(server.pid)
    urls = [server.websocket(f"/ws/{group}/") for group in GROUPS]
    with Audience(*urls, count=MEMBERS, log=tmp_path / "audience.log") as audience:
        before, highest = process.memory_info().rss, 0
        async with Torrent(site, *GROUPS, per_second=PER_SECOND, size=4 * SIZE) as torrent:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                await asyncio.sleep(0.1)
                highest = max(highest, process.memory_info().rss)
        # The newest messages stay.
        await eventually_async(lambda: audience.report.latest == torrent.published - 1, within=60, every=0.2)
        # The process notes that it keeps up again after it has written the last message.
        await eventually_async(lambda: scrape(server).value("realtime_queued_bytes") == 0, within=5)
        await eventually_async(lambda: keeps_up(server), within=5)
        metrics = await asyncio.to_thread(scrape, server)
        dropped = int(metrics.value("realtime_messages_dropped_total"))
        sent = torrent.published * len(GROUPS)
        measured(
            "more than may wait",
            pairing,
            published_mib=round(sent * 4 * SIZE / MIB),
            dropped=dropped,
            of=sent,
            grown_mib=round((highest - before) / MIB, 1),
            out_of_order=audience.report.out_of_order,
            closed=site.close_reasons(),
        )
        assert sent * 4 * SIZE > 20 * bound
        assert dropped > 0
        assert audience.report.out_of_order == 0
        assert highest - before < bound + ALLOWANCE
        assert metrics.value("realtime_queued_bytes") == 0
        assert keeps_up(server)
        log = server.log_text()
        assert f"{dropped} messages were dropped" in log or log.count("messages were dropped") > 1
