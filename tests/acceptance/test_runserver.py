"""`manage.py runserver` without a reaper: all works, and what a reload cuts off the next start puts right."""

import asyncio
import os
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from tests.support.clients import Client, crowd
from tests.support.databases import Row
from tests.support.eventually import eventually_async
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.servers import CHECKOUT, WebServer
from tests.support.site import Site

pytestmark = pytest.mark.acceptance

CLIENTS = 5
GROUPS = ("public.lobby", "public.news")
PINGS = {"PING_INTERVAL": 1.5, "PONG_TIMEOUT": 1.0}
SWEPT_WITHIN = 10.0  # seconds on a busy machine; no round and no waiting for one is in it

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pids are judged on Linux; elsewhere by rounds")
layers = pytest.mark.parametrize(
    "pairing",
    [
        # Under core, a membership that nobody discards stays in Redis for a day.
        Pairing("core", "daphne", "sqlite"),
        pytest.param(Pairing("pubsub", "daphne", "postgres"), marks=pytest.mark.matrix),
    ],
    ids=str,
)


async def a_client(server: WebServer) -> Client:
    """A client, as soon as the server takes one: while it reloads, nobody listens."""
    opened: list[Client] = []
    async with asyncio.timeout(30):
        while not opened:
            try:
                opened.append(await Client(server.websocket(f"/ws/{GROUPS[0]}/")).open())
            except (OSError, WebSocketException):
                await asyncio.sleep(0.1)
    await opened[0].welcomed()
    return opened[0]


def held(site: Site, process: str) -> tuple[int, int]:
    """Open records and memberships that are not left, of one process."""
    records = site.database.query("SELECT process_id FROM realtime_connection WHERE closed_at IS NULL")
    memberships = site.database.query("SELECT process_id FROM realtime_membership WHERE left_at IS NULL")
    return _of(process, records), _of(process, memberships)


def _of(process: str, rows: list[Row]) -> int:
    return sum(str(row["process_id"]) == process for row in rows)


def running(site: Site) -> list[tuple[str, int, str]]:
    """Id, pid and channel of the processes that are neither stopped nor lost."""
    found = site.database.query(
        "SELECT id, pid, channel_name FROM realtime_process WHERE stopped_at IS NULL ORDER BY started_at"
    )
    return [(str(row["id"]), row["pid"], row["channel_name"]) for row in found]


def members_in_redis(site: Site) -> set[str]:
    """The channels that the core layer has in any of the groups."""
    with site.redis.client() as client:
        return {name for key in client.scan_iter("asgi:group:*") for name in client.zrange(key, 0, -1)}


async def in_two_groups(clients: list[Client]) -> None:
    await asyncio.gather(*(client.join(GROUPS[1]) for client in clients))


async def nothing_is_left_of(process: str, channel: str, site: Site) -> None:
    await eventually_async(lambda: held(site, process) == (0, 0), within=SWEPT_WITHIN)
    assert channel not in members_in_redis(site)
    assert [each[0] for each in running(site)] != [process]
    assert site.database.value("SELECT count(*) FROM realtime_round") == 0, "a reaper has been at work"


@layers
async def test_page_connect_publish_and_pings_need_no_reaper(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, **PINGS)
    server = site.runserver("--noreload")

    def page() -> int:
        with urllib.request.urlopen(server.http("/"), timeout=10) as answer:  # noqa: S310 - loopback
            return int(answer.status)

    assert await asyncio.to_thread(page) == 200
    client, silent = await a_client(server), await a_client(server)
    silent.answers_pings = False
    assert (await client.publish(GROUPS[0], {"hello": 1}))["type"] == "published"
    await client.seen(lambda frame: frame.get("data") == {"hello": 1})
    assert await silent.closes(within=2 * (PINGS["PING_INTERVAL"] + PINGS["PONG_TIMEOUT"])) == 4008
    assert len(client.of_type("ping")) >= 1
    assert client.is_open
    await client.close()


@on_linux
@layers
async def test_what_a_reload_cut_off_is_put_right_by_the_next_start(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    # A module that the server has imported and that is no file of the checkout: its settings.
    watched = tmp_path / "watched_settings.py"
    watched.write_text("from tests.support.live import *\n")
    site = start_site(pairing)
    server = site.runserver(
        DJANGO_SETTINGS_MODULE=watched.stem, PYTHONPATH=os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    )
    async with crowd(CLIENTS, server.websocket(f"/ws/{GROUPS[0]}/")) as clients:
        await in_two_groups(clients)
        ((process, pid, channel),) = running(site)
        assert held(site, process) == (CLIENTS, 2 * CLIENTS)
        assert pid != server.pid, "the server is a child of the process that reloads it"

        def reloading() -> bool:
            # Again and again, because the reloader first looks at what there is.
            watched.write_text(watched.read_text() + "\n")
            return all(not client.is_open for client in clients)

        await eventually_async(reloading, within=20, every=0.5)
    # Nothing of it was undone at the end: that is the work to be done.
    assert held(site, process) == (CLIENTS, 2 * CLIENTS)

    back = await a_client(server)
    await nothing_is_left_of(process, channel, site)
    reasons = site.database.query(
        "SELECT process_id, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
    )
    assert {(str(row["process_id"]), row["close_reason"]) for row in reasons} == {(process, "server_lost")}
    assert (await back.publish(GROUPS[0], 1))["type"] == "published"
    assert back.is_open
    await back.close()


@on_linux
@layers
@pytest.mark.parametrize("option", ["--noreload", "--nostatic"], ids=["without reload", "with reload"])
async def test_what_a_sigterm_left_is_put_right_by_the_next_start(
    pairing: Pairing, option: str, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.runserver(option)
    async with crowd(CLIENTS, server.websocket(f"/ws/{GROUPS[0]}/")) as clients:
        await in_two_groups(clients)
        ((process, _, channel),) = running(site)
        server.terminate()
        await asyncio.to_thread(server.exit_code, within=20)
        await eventually_async(lambda: not any(client.is_open for client in clients), within=10)

    again = site.runserver(option)
    await (await a_client(again)).close()
    await nothing_is_left_of(process, channel, site)
