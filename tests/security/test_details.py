"""Addresses and user agents that may not be kept any more, while servers and a reaper run."""

import json
import socket

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support.assertions.eventually import eventually
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

ADDRESS, AGENT = "127.0.0.77", "Mozilla/5.0 (secret)"


def recorded(site: Site) -> list[tuple[str, str, bool]]:
    rows = site.database.query("SELECT remote_address, user_agent, closed_at FROM realtime_connection")
    return [(row["remote_address"], row["user_agent"], row["closed_at"] is None) for row in rows]


def echo(client: ClientConnection) -> object:
    """Publish to the client's own group, and return what comes back."""
    client.send('{"type": "publish", "group": "public.room", "ref": 1, "data": 1}')
    while "data" not in (frame := json.loads(client.recv(timeout=10))):
        pass
    return frame["data"]


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
def test_a_reaper_reduces_open_records_of_a_running_server(start_site: StartSite, pairing: Pairing) -> None:
    """A process that still runs with the freer setting writes more than is allowed now."""
    rounds: dict[str, object] = {"ROUND_INTERVAL": 1.0, "ROUND_TIMEOUT": 0.5}
    site = start_site(pairing, **rounds)
    server = site.serve()
    mine = socket.create_connection((server.interface, server.port), 10, source_address=(ADDRESS, 0))
    with connect(server.websocket("/ws/public.room/"), sock=mine, user_agent_header=AGENT) as client:
        eventually(lambda: recorded(site) == [(ADDRESS, AGENT, True)], within=20)
        site.database.query("UPDATE realtime_connection SET opened_at = '2026-01-01 00:00:00+00:00'")
        reaper = site.reaper(
            "--format", "json", REALTIME_JSON=json.dumps(rounds | {"CLIENT_DETAILS": "network"})
        )
        eventually(lambda: recorded(site) == [("127.0.0.0", "", True)], within=20)
        eventually(lambda: '"reduced": 1' in reaper.log_text(), within=20)
        # The connection is as it was.
        assert echo(client) == 1
    eventually(lambda: recorded(site) == [("127.0.0.0", "", False)], within=20)


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
def test_with_none_neither_rows_nor_lines_have_details(start_site: StartSite, pairing: Pairing) -> None:
    site = start_site(pairing, CLIENT_DETAILS="none")
    server = site.serve()
    mine = socket.create_connection((server.interface, server.port), 10, source_address=(ADDRESS, 0))
    with connect(server.websocket("/ws/public.room/"), sock=mine, user_agent_header=AGENT) as client:
        assert echo(client) == 1
        client.send("not json")
    eventually(lambda: recorded(site) == [("", "", False)], within=20)
    ours = [line for line in server.log_text().splitlines() if " realtime." in line]
    assert ours
    assert not any(ADDRESS in line or "secret" in line for line in ours)
