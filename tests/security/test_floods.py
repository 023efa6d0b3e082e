"""Floods from many connections, beside clients that talk to each other through two processes.

Each flooder must be refused or cut soon. The others must neither lose a message nor their connections, and
the memory of the server must not grow with the flood. A reaper runs meanwhile.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.assertions.eventually import eventually
from tests.support.assertions.flooding import LIMITED, Flooded, flooded
from tests.support.clients.flooders import KINDS
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

HONEST = 20
#: Seconds in which a flooder is cut. On a calm machine, two are enough.
SOON = 10.0
#: Bytes by which the server may grow: for a while of its work, and for each flooder.
ANYWAY, EACH = 128 * 1024 * 1024, 1024 * 1024

#: Floods of connections that were admitted.
ADMITTED = [kind for kind in KINDS if kind != "handshakes"]


def attacked(
    start_site: StartSite,
    pairing: Pairing,
    kind: str,
    *options: str,
    limits: Mapping[str, int] | None = None,
    **numbers: Any,
) -> Flooded:
    """Flood one of two servers, check what must hold for every flood, and return the figures."""
    site = start_site(pairing, **{**LIMITED, **(limits or {})})
    servers = [site.serve(), site.serve()]
    reaper = site.reaper()
    seen = flooded(site, servers, kind, *options, honest=HONEST, **numbers)
    assert seen.missed == 0, seen
    assert seen.lost == []
    assert seen.refused == 0
    assert seen.open == 0
    before, most, _ = seen.memory
    assert most - before < ANYWAY + numbers.get("connections", 200) * EACH
    only_the_honest_are_left(site, servers)
    for program in (*servers, reaper):
        assert "Traceback" not in program.log_text()
    return seen


def only_the_honest_are_left(site: Site, servers: list[WebServer]) -> None:
    """Wait until every record of a flooder is closed and its memberships are left."""

    def none_is_left() -> bool:
        rows = site.database.query(
            "SELECT count(*) AS number FROM realtime_connection WHERE closed_at IS NULL"
        )
        memberships = site.database.query(
            "SELECT count(*) AS number FROM realtime_membership WHERE left_at IS NULL"
        )
        return rows[0]["number"] == memberships[0]["number"] == 0

    # The honest clients have gone by now.
    eventually(none_is_left, within=30)
    assert all(server.is_alive for server in servers)


def cut_soon(seen: Flooded) -> None:
    """Check that each flooder was told, and then closed as above its rate."""
    assert len(seen.cut) == seen.opened
    assert max(seen.cut) < SOON
    assert set(seen.codes) <= {"4029", "lost"}
    assert seen.rows == 0


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
def test_flooders_are_cut_and_the_honest_miss_nothing(start_site: StartSite, pairing: Pairing) -> None:
    seen = attacked(start_site, pairing, "pings", connections=40, rate=500.0, calm=1.0)
    cut_soon(seen)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
@pytest.mark.parametrize("kind", ADMITTED)
def test_a_large_flood_of_every_kind(start_site: StartSite, pairing: Pairing, kind: str) -> None:
    cut_soon(attacked(start_site, pairing, kind))


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
@pytest.mark.parametrize("how", ["--plain", "--deaf"])
def test_flooders_that_do_not_keep_to_the_protocol(start_site: StartSite, pairing: Pairing, how: str) -> None:
    cut_soon(attacked(start_site, pairing, "pings", how))


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
def test_refused_handshakes_write_no_row(start_site: StartSite, pairing: Pairing) -> None:
    # So low that the flood is above it on a machine that is busy with other tests, too.
    limits = {"MAX_HANDSHAKES_PER_SECOND": 5}
    numbers = {"connections": 50, "rate": 400.0, "seconds": 4.0, "calm": 1.0}
    seen = attacked(start_site, pairing, "handshakes", "--addresses", "1", limits=limits, **numbers)
    assert seen.codes["403"] > 0
    assert seen.rows <= seen.codes.get("None", 0)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
def test_a_large_flood_of_handshakes(start_site: StartSite, pairing: Pairing) -> None:
    seen = attacked(start_site, pairing, "handshakes", "--addresses", "1", rate=2000.0)
    assert seen.codes["403"] > 0
    assert seen.rows <= seen.codes.get("None", 0)
