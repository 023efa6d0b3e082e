"""Some of many clients that connect in one instant bring a row that the database refuses: only they fail."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured, measuring
from tests.support.clients.raw import RawClient
from tests.support.clients.sessions import logged_in
from tests.support.clients.websocket import Client, close_all
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

CLIENTS = 60
POISON = "poison"
APPLICATION = "tests.support.applications.misbehaving:application"

#: A row that the database itself refuses. No header or path can cause it, because their text is cleaned.
REFUSE_POISON = {
    "postgres": "ALTER TABLE realtime_connection ADD CONSTRAINT poisoned CHECK (user_agent <> 'poison')",
    "sqlite": (
        "CREATE TRIGGER poisoned BEFORE INSERT ON realtime_connection WHEN NEW.user_agent = 'poison'"
        " BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
    ),
}

#: Paths and user agents that a server passes on, and that no column could hold unchanged.
STRANGE: dict[str, tuple[bytes, bytes]] = {
    "a path with a NUL": (b"/connect/%00/", b"tests"),
    "a path with a lone surrogate": (b"/connect/%ed%a0%80/", b"tests"),
    "a path in no UTF-8": (b"/connect/%ff%fe/", b"tests"),
    "a path of 4 KB": (b"/connect/" + b"p" * 4000 + b"/", b"tests"),
    "a user agent in no UTF-8": (b"/ws/", b"\xff\xfe\x80"),
    "a user agent with a lone surrogate": (b"/ws/", b"\xed\xa0\x80"),
    "a user agent of 4 KB": (b"/ws/", b"u" * 4000),
}


def open_rows(site: Site) -> int:
    return int(site.database.value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL"))


@dataclass
class Crowd:
    """Clients that are going to connect in one instant."""

    clients: list[Client]
    culprits: list[Client]
    """They bring the row that the database refuses."""
    strange: list[RawClient]
    """They bring paths and user agents that must be cleaned."""

    @property
    def mixed(self) -> list[Client]:
        """All ordinary clients, with the culprits in the middle, so that others share a batch with them."""
        half = len(self.clients) // 2
        return self.clients[:half] + self.culprits + self.clients[half:]

    async def connect(self) -> None:
        """Connect all together, and wait until every client except the culprits is admitted."""
        strange = zip(self.strange, STRANGE.values(), strict=True)
        await asyncio.gather(
            *(client.open() for client in self.mixed),
            *(client.open(("User-Agent", agent), target=path) for client, (path, agent) in strange),
        )
        await asyncio.gather(*(client.welcomed() for client in self.clients))
        await asyncio.gather(*(client.seen("welcome") for client in self.strange))

    def connected(self) -> int:
        return sum(each.is_open for each in self.clients) + sum(
            not each.ended.is_set() for each in self.strange
        )

    async def close(self) -> None:
        await close_all(self.mixed)
        await asyncio.gather(*(each.close() for each in self.strange))


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", "pubsub-uvicorn-postgres"))
async def test_a_row_that_the_database_refuses_ends_one_connection(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve(application=APPLICATION)
    url = server.websocket("/ws/")
    site.database.query(REFUSE_POISON[pairing.database])
    crowd = Crowd(
        [Client(url) for _ in range(CLIENTS)],
        [Client(url, headers={"User-Agent": POISON}) for _ in range(3)],
        [RawClient(url) for _ in STRANGE],
    )
    try:
        with measuring("poisoned row", pairing) as m:
            m.clients = CLIENTS + len(crowd.strange)
            began = time.monotonic()
            await crowd.connect()
            m.after = time.monotonic() - began
            codes = [await culprit.closes(within=10) for culprit in crowd.culprits]
            await eventually_async(lambda: open_rows(site) == m.clients, within=5)
            m.connected = crowd.connected()
            m.culprits, m.closed_with = len(codes), codes

        assert m.connected == m.clients
        assert codes == [4000] * len(crowd.culprits)
        assert all(culprit.of_type("welcome") == [] for culprit in crowd.culprits)
        # The server still admits clients afterwards.
        async with Client(url) as later:
            await later.welcomed()
        assert server.log_text().count("Exception inside application") == 0
    finally:
        await crowd.close()


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_a_user_deleted_during_connect_ends_no_other_connection(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing)
    server = site.serve()
    pk, session = await logged_in(site)
    url = server.websocket("/ws/public.room/")

    others = [Client(url) for _ in range(CLIENTS)]
    of_user = [Client(url, headers={"Cookie": f"sessionid={session}"}) for _ in range(20)]
    mixed = [client for pair in zip(others, of_user, strict=False) for client in pair] + others[
        len(of_user) :
    ]
    try:
        connecting = asyncio.gather(*(client.open() for client in mixed))
        await eventually_async(lambda: any(client.is_open for client in mixed), within=10, every=0.001)
        site.database.query(f"DELETE FROM auth_user WHERE id = {int(pk)}")  # noqa: S608 - a number
        under_way = sum(not client.is_open for client in mixed)
        await connecting
        await asyncio.gather(*(client.welcomed() for client in mixed))
        await eventually_async(lambda: open_rows(site) == len(mixed), within=5)
        users = {
            row["user_id"]: row["number"]
            for row in site.database.query(
                "SELECT user_id, count(*) AS number FROM realtime_connection GROUP BY user_id"
            )
        }
        measured(
            "user deleted while connecting",
            pairing,
            clients=len(mixed),
            connecting_then=under_way,
            users=users,
        )
        assert under_way, "no client was connecting when the user was deleted"
        # The group is public: clients are in it as the user before the deletion, and as anonymous after it.
        assert all(client.is_open for client in mixed)
        assert set(users) <= {"", str(pk)}
        assert "Traceback" not in server.log_text()
    finally:
        await close_all(mixed)
