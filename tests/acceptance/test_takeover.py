"""Clients that come back to any of two processes take the place of their older connections there."""

import asyncio
import secrets
from pathlib import Path

import pytest

from tests.support.assertions.announced import signals_equal_records
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measuring
from tests.support.clients.sessions import logged_in
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

GROUP = "public.lobby"
INTERVAL = 2.0  # ROUND_INTERVAL
CLIENTS, TIMES = 8, 6


class Place:
    """Two server processes and a reaper, with a log of their signals."""

    def __init__(self, start_site: StartSite, pairing: Pairing, folder: Path) -> None:
        self.log = folder / "signals.log"
        self.site: Site = start_site(pairing, ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=INTERVAL / 2)
        log = str(self.log)
        self.servers = [self.site.serve(SIGNALS_LOG=log) for _ in range(2)]
        times = ("--interval", str(INTERVAL), "--timeout", str(INTERVAL / 2))
        self.site.reaper(*times, SIGNALS_LOG=log).wait_for_a_round()

    async def agrees(self) -> None:
        """Wait until nothing is open, and compare the signals with the records."""
        count = "SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL"
        await eventually_async(lambda: self.site.database.value(count) == 0, within=10)
        await eventually_async(lambda: signals_equal_records(self.site, self.log, []), within=10)


def client_of(server: WebServer, id: str, session: str = "", group: str = GROUP) -> Client:
    headers = {"Cookie": f"sessionid={session}"} if session else None
    return Client(server.websocket(f"/ws/{group}/?client={id}"), headers=headers)


def new_id() -> str:
    return secrets.token_urlsafe(16)


async def superseded(client: Client) -> float:
    """Wait until the client is superseded; return the time of its close."""
    assert await client.closes(within=10) == 4509
    (goodbye,) = client.of_type("goodbye")
    assert (goodbye["reason"], goodbye["reconnect"]) == ("superseded", False)
    assert client.closed_at is not None
    return client.closed_at


async def come_back_again_and_again(place: Place, number: int, session: str) -> list[float]:
    """Connect to the processes in turn; return the seconds until each older connection was closed."""
    id, seconds = new_id(), []
    older: Client | None = None
    for time in range(TIMES):
        newer = await client_of(place.servers[(number + time) % 2], id, session).open()
        await newer.welcomed()
        if older is not None:
            seconds.append(await superseded(older) - newer.opened_at)
        await newer.publish(GROUP, f"{number} {time}")
        older = newer
    assert older is not None
    assert older.is_open
    await older.close()
    return seconds


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", server="daphne"))
async def test_only_the_older_connection_of_a_client_is_closed(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    place = Place(start_site, pairing, tmp_path)
    user, session = await logged_in(place.site)
    shared = new_id()
    bystanders = [
        await client_of(place.servers[0], shared).open(),
        await client_of(place.servers[1], new_id(), session).open(),
        await Client(place.servers[1].websocket(f"/ws/{GROUP}/"), headers=None).open(),
    ]
    # The same id of a user is another client than that of an anonymous one.
    theirs = [await client_of(server, shared, session).open() for server in place.servers]
    await superseded(theirs[0])

    with measuring("clients come back without closing", pairing) as m:
        times = await asyncio.gather(
            *(come_back_again_and_again(place, i, session if i % 2 else "") for i in range(CLIENTS))
        )
        m.clients = CLIENTS
        m.slowest_close = max(each for some in times for each in some)

    everyone_left = [*bystanders, theirs[1]]
    assert all(client.is_open for client in everyone_left)
    assert place.site.close_reasons()["superseded"] == CLIENTS * (TIMES - 1) + 1
    present = place.site.database.query("SELECT user_id, gone_at FROM realtime_presentuser ORDER BY 1")
    assert {(row["user_id"], row["gone_at"]) for row in present} == {(str(user), None)}
    for client in everyone_left:
        await client.close()
    await place.agrees()


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", server="daphne"))
async def test_a_stopped_process_closes_the_older_connection_later(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    place = Place(start_site, pairing, tmp_path)
    stopped, running = place.servers
    id = new_id()
    older = await client_of(stopped, id).open()
    connection = str((await older.welcomed())["connection"])
    stopped.freeze()
    try:
        # The process will read it when it goes on, with everything that arrives meanwhile.
        await older.send({"type": "publish", "ref": 1, "group": GROUP, "data": "late"})
        newer = await client_of(running, id).open()
        await newer.welcomed()
        await eventually_async(lambda: place.site.close_reason(connection) == "superseded", within=5)
        assert older.is_open
    finally:
        stopped.thaw()

    await superseded(older)

    assert (await newer.join("public.news"))["type"] == "joined"
    assert place.site.close_reasons() == {"superseded": 1}
    await newer.close()
    await place.agrees()


async def come_and_go(place: Place, id: str, times: int) -> None:
    """Come back again and again; the close of each connection crosses the opening of the next one."""
    older: Client | None = None
    for number in range(times):
        newer = client_of(place.servers[number % 2], id)
        opening = asyncio.create_task(newer.open())
        if older is not None:
            await older.close()
        older = await opening
    assert older is not None
    await older.welcomed()
    await older.join("public.news")
    await older.close()


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", server="daphne"))
async def test_a_client_that_flaps_leaves_nothing_open(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    place = Place(start_site, pairing, tmp_path)

    await asyncio.gather(*(come_and_go(place, new_id(), 10) for _ in range(CLIENTS)))

    await place.agrees()
    assert sum(place.site.close_reasons().values()) == CLIENTS * 10
