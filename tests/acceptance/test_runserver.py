"""`manage.py runserver` without a reaper: everything works, a reload tells its clients to come back, and the
next start finishes the cleanup that was cut off.
"""

import asyncio
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from tests.support.assertions.eventually import eventually_async
from tests.support.clients.websocket import Client, crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing
from tests.support.programs.databases import Row
from tests.support.programs.servers import CHECKOUT, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

CLIENTS = 5
GROUPS = ("public.lobby", "public.news")
PINGS = {"PING_INTERVAL": 1.5, "PONG_TIMEOUT": 1.0}
SWEPT_WITHIN = 10.0  # seconds on a busy machine; the sweep needs no round and waits for none

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pids are judged on Linux; elsewhere by rounds")
layers = pytest.mark.parametrize(
    "pairing",
    [
        # On the core layer, a membership that is not discarded stays in Redis for a day.
        Pairing("core", "daphne", "sqlite"),
        pytest.param(Pairing("pubsub", "daphne", "postgres"), marks=pytest.mark.matrix),
    ],
    ids=str,
)


async def a_client(server: WebServer) -> Client:
    """Connect as soon as the server takes a client. While it reloads, it refuses, or sends a goodbye."""
    async with asyncio.timeout(30):
        while True:
            client = Client(server.websocket(f"/ws/{GROUPS[0]}/"))
            try:
                await client.open()
            except (OSError, WebSocketException):
                await asyncio.sleep(0.1)
                continue
            first = await client.seen(lambda frame: True)
            if first["type"] == "welcome":
                return client


def held(site: Site, process: str) -> tuple[int, int]:
    """Count the open records of one process, and its memberships that are not left."""
    records = site.database.query("SELECT process_id FROM realtime_connection WHERE closed_at IS NULL")
    memberships = site.database.query("SELECT process_id FROM realtime_membership WHERE left_at IS NULL")
    return _of(process, records), _of(process, memberships)


def _of(process: str, rows: list[Row]) -> int:
    return sum(str(row["process_id"]) == process for row in rows)


def running(site: Site) -> list[tuple[str, int, str]]:
    """Return id, pid and channel of the processes that are neither stopped nor lost."""
    found = site.database.query(
        "SELECT id, pid, channel_name FROM realtime_process WHERE stopped_at IS NULL ORDER BY started_at"
    )
    return [(str(row["id"]), row["pid"], row["channel_name"]) for row in found]


def members_in_redis(site: Site) -> set[str]:
    """Return the channels that the core layer has in any of the groups."""
    with site.redis.client() as client:
        return {name for key in client.scan_iter("asgi:group:*") for name in client.zrange(key, 0, -1)}


async def in_two_groups(clients: list[Client]) -> None:
    await asyncio.gather(*(client.join(GROUPS[1]) for client in clients))


async def nothing_is_left_of(process: str, channel: str, site: Site) -> None:
    await eventually_async(lambda: held(site, process) == (0, 0), within=SWEPT_WITHIN)
    assert channel not in members_in_redis(site)
    assert [each[0] for each in running(site)] != [process]
    assert site.database.value("SELECT count(*) FROM realtime_round") == 0, "a reaper has run"


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
    # Its publish moved its ping, so that one may come after the end of the silent client.
    await client.seen(lambda frame: frame["type"] == "ping")
    assert client.is_open
    await client.close()


@on_linux
@layers
async def test_a_reload_tells_all_clients_to_come_back_and_cleans_up(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    # A module that the server has imported and that is not in the checkout: its settings.
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
            # Repeatedly, because the reloader first reads the state of all files.
            watched.write_text(watched.read_text() + "\n")
            return all(not client.is_open for client in clients)

        await eventually_async(reloading, within=20, every=0.5)
    assert {client.close_code for client in clients} == {4000}
    assert all(client.of_type("goodbye") for client in clients)
    # The clients are closed before the records are.
    await eventually_async(lambda: held(site, process) == (0, 0), within=5)
    await eventually_async(lambda: running(site) == [], within=5)

    back = await a_client(server)
    await nothing_is_left_of(process, channel, site)
    reasons = site.database.query(
        "SELECT process_id, close_reason FROM realtime_connection WHERE closed_at IS NOT NULL"
    )
    assert {(str(row["process_id"]), row["close_reason"]) for row in reasons} == {(process, "server_restart")}
    assert (await back.publish(GROUPS[0], 1))["type"] == "published"
    assert back.is_open
    await back.close()


@on_linux
@layers
async def test_without_reload_a_sigterm_leaves_nothing_to_do(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.runserver("--noreload")
    async with crowd(CLIENTS, server.websocket(f"/ws/{GROUPS[0]}/")) as clients:
        await in_two_groups(clients)
        ((process, _, channel),) = running(site)
        server.terminate()
        await asyncio.to_thread(server.exit_code, within=20)
        assert [await client.closes(within=10) for client in clients] == [4000] * CLIENTS
    assert held(site, process) == (0, 0)
    assert running(site) == []
    assert channel not in members_in_redis(site)


@pytest.mark.matrix
@on_linux
@layers
async def test_with_reload_ctrl_c_tells_every_client_to_come_back(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.runserver("--nostatic")
    async with crowd(CLIENTS, server.websocket(f"/ws/{GROUPS[0]}/")) as clients:
        ((_, pid, _),) = running(site)
        # As a terminal does: to the process that serves, and to the process that watches the files, which
        # waits a quarter of a second for the other.
        for each in (server.pid, pid):
            os.kill(each, signal.SIGINT)
        assert [await client.closes(within=10) for client in clients] == [4000] * CLIENTS
        await asyncio.to_thread(server.exit_code, within=20)


@on_linux
@layers
async def test_the_next_start_finishes_what_a_sigterm_cut_off(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.runserver("--nostatic")
    async with crowd(CLIENTS, server.websocket(f"/ws/{GROUPS[0]}/")) as clients:
        await in_two_groups(clients)
        ((process, _, channel),) = running(site)
        # The process that watches the files kills the process that serves.
        server.terminate()
        await asyncio.to_thread(server.exit_code, within=20)
        await eventually_async(lambda: not any(client.is_open for client in clients), within=10)

    again = site.runserver("--nostatic")
    await (await a_client(again)).close()
    await nothing_is_left_of(process, channel, site)
