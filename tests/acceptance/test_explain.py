"""`reap_connections --once --explain` against real servers: it names the differences and repairs them."""

import json
import time
from typing import Any

import pytest

from tests.support.clients.websocket import crowd
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance


async def explained(site: Site, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; return its exit code and the differences in its report."""
    done = await site.amanage(
        "reap_connections", "--explain", "--format", "json", "--interval", "0.6", "--timeout", "0.5", *options
    )
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, [line for line in lines if "difference" in line]


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_database_layer_and_sockets_are_compared_and_repaired(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    here, there = site.serve(), site.serve()
    async with (
        crowd(3, here.websocket("/ws/public.here/")) as clients,
        crowd(3, there.websocket("/ws/public.there/")),
    ):
        site.database.query(
            "UPDATE realtime_membership SET left_at = joined_at"
            " WHERE id IN (SELECT min(id) FROM realtime_membership WHERE \"group\" = 'public.here')"
        )
        if pairing.layer == "core":
            with site.redis.client() as redis:
                redis.zadd("asgi:group:public.here", {"specific.nobodys!1": time.time()})
        there.kill()
        status, found = await explained(site, "--once")
        assert status == 3
        assert [(each["difference"], each["repaired"]) for each in found] == [
            ("process_silent", True),
            ("member_without_row", True),
            *([("unknown_channel", None)] if pairing.layer == "core" else []),
        ]
        assert found[0]["name"].endswith(f":{there.pid}")
        assert all(client.is_open for client in clients)
        told = await site.amanage("reap_connections", "--explain", "--dry-run", "--timeout", "0.5")
        last = told.stdout.splitlines()[-1]
        assert last == "Compared: 1 of 1 processes answered; 3 sockets, 3 open records, 3 memberships."
        status, found = await explained(site, "--dry-run")
        assert (status, [each["difference"] for each in found]) == (
            0,
            ["unknown_channel"] if pairing.layer == "core" else [],
        )
    assert site.open_connections(there) == site.open_memberships(there) == 0
