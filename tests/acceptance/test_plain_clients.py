"""A client that does not offer `realtime.v1` sees only frames that the author of the consumer writes.

On Daphne it is pinged by RFC 6455, and found dead within the same bounds.
"""

import asyncio
import time
from typing import Any

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.scrape import scrape
from tests.support.clients.raw import RawClient
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

PONG_TIMEOUT = 1.0
DAPHNE = Pairing("pubsub", "daphne", "sqlite")
SLACK = 3.0  # seconds for a busy machine
PATH = "/ws/public.room/"


def reasons(site: Site) -> list[Any]:
    return [
        row["close_reason"] for row in site.database.query("SELECT close_reason FROM realtime_connection")
    ]


async def test_only_a_client_that_answers_no_ping_is_closed(start_site: StartSite) -> None:
    ping_interval = 2.0
    site = start_site(DAPHNE, PING_INTERVAL=ping_interval, PONG_TIMEOUT=PONG_TIMEOUT)
    server = site.serve()
    async with Client(server.websocket(PATH), plain=True) as honest:
        silent = await RawClient(server.websocket(PATH), answers_pings=False).open(v1=False)
        began = time.monotonic()
        # The close frame says why. A client that does not answer it is aborted after a moment.
        assert await silent.closes(within=10) == 4008
        assert time.monotonic() - began < ping_interval + PONG_TIMEOUT + SLACK
        await silent.close()
        # The record is closed a moment after the socket.
        await eventually_async(lambda: reasons(site).count("ping_timeout") == 1, within=5)
        await asyncio.sleep(ping_interval)
        assert honest.is_open
        assert honest.frames == []
        assert reasons(site).count("") == 1


async def test_a_client_that_is_written_to_is_found_sooner(
    start_site: StartSite,
) -> None:
    probe_after = 0.5
    # No regular ping comes before the end of the test.
    site = start_site(
        DAPHNE, PING_INTERVAL=60.0, MAX_SILENCE=200.0, PONG_TIMEOUT=PONG_TIMEOUT, PROBE_AFTER=probe_after
    )
    server = site.serve()
    silent = await RawClient(server.websocket(PATH), answers_pings=False).open(v1=False)
    await eventually_async(lambda: site.open_memberships(server) == 1, within=5)
    await site.amanage("publish", "public.room", "0")
    await silent.seen("message")
    written_at = time.monotonic()
    assert await silent.closes(within=10) == 4008
    assert time.monotonic() - written_at < probe_after + PONG_TIMEOUT + SLACK
    await silent.close()
    seen = await asyncio.to_thread(scrape, server)
    assert seen.value("realtime_zombie_messages_total", reason="ping_timeout") == 1
    assert seen.value("realtime_zombie_bytes_total", reason="ping_timeout") == len(
        '{"type":"message","group":"public.room","data":0}'
    )
