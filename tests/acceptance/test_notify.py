"""`notify()` with two server processes: clients that read or sleep, and processes that hang or died."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.sessions import logged_in
from tests.support.clients.websocket import Client
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.notifier import Notifier
from tests.support.programs.servers import Program, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

PONG_TIMEOUT = 1.5
REALTIME = {"PING_INTERVAL": 3.0, "PONG_TIMEOUT": PONG_TIMEOUT, "PROBE_AFTER": 1.0}
LONG = 30.0  # seconds; no call takes so long
LATE = 3.0  # seconds beyond a time limit, on a busy machine

_names = itertools.count(1)


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    pairing: Pairing = request.param
    return start_shared_site(pairing, **REALTIME)


@pytest.fixture(scope="module")
def servers(site: Site) -> list[WebServer]:
    return [site.serve(), site.serve()]


@pytest.fixture(scope="module")
def notifier(site: Site, servers: list[WebServer]) -> Iterator[Notifier]:
    with Notifier(site) as running:
        yield running


class User:
    """A user, and the clients that have logged in."""

    def __init__(self, key: int, session: str) -> None:
        self.key = key
        self.session = session

    @asynccontextmanager
    async def client(self, server: WebServer, *, plain: bool = False) -> AsyncIterator[Client]:
        headers = {"Cookie": f"sessionid={self.session}"}
        async with Client(server.websocket("/ws/"), plain=plain, headers=headers) as client:
            if not plain:
                await client.welcomed()
            yield client

    @contextmanager
    def sleeper(self, server: WebServer, log: Path) -> Iterator[Program]:
        """A client in a process of its own, which can be stopped."""
        module, url = "tests.support.clients.process", server.websocket("/ws/")
        program = Program([sys.executable, "-m", module, url, "--session", self.session], log=log)
        try:
            yield program.start()
        finally:
            program.thaw()
            program.kill()


@pytest_asyncio.fixture
async def user(site: Site) -> User:
    return User(*await logged_in(site, f"user{next(_names)}"))


def notifications(client: Client) -> list[object]:
    return [frame["data"] for frame in client.of_type("notification")]


@pytest.mark.parametrize("plain", [False, True], ids=["v1", "plain"])
async def test_clients_of_every_process_get_and_confirm_it(
    site: Site, servers: list[WebServer], notifier: Notifier, user: User, plain: bool
) -> None:
    can_be_pinged = not plain or site.pairing.server == "daphne"
    async with user.client(servers[0], plain=plain) as one, user.client(servers[1], plain=plain) as two:
        for confirm in (False, True):
            outcome = await notifier.notify(user.key, {"confirm": confirm}, confirm=confirm, timeout=LONG)
            assert outcome.taken is (can_be_pinged or not confirm)
            assert outcome.seconds < LATE
        for client in (one, two):
            await eventually_async(
                lambda client=client: notifications(client) == [{"confirm": False}, {"confirm": True}],
                within=LATE,
            )


async def test_a_client_that_reads_confirms_under_load(
    site: Site, servers: list[WebServer], notifier: Notifier, user: User
) -> None:
    publisher = site.publisher(f"user.{user.key}")
    busy = True

    def publish() -> None:
        line = json.dumps("x" * 4000)
        while busy:
            publisher.send(line)

    async with user.client(servers[1]) as client:
        await client.join(f"user.{user.key}")
        publishing = asyncio.create_task(asyncio.to_thread(publish))
        try:
            await eventually_async(lambda: len(client.messages) > 100, within=LONG)
            outcomes = [
                await notifier.notify(user.key, number, confirm=True, timeout=LONG) for number in range(10)
            ]
        finally:
            busy = False
            await publishing
        assert all(outcome.taken for outcome in outcomes)
        assert notifications(client) == list(range(10))
        measured(
            "notify with confirm under load",
            site.pairing,
            messages=len(client.messages),
            slowest=max(outcome.seconds for outcome in outcomes),
        )


async def test_a_client_that_sleeps_takes_and_does_not_confirm(
    site: Site, servers: list[WebServer], notifier: Notifier, user: User, tmp_path: Path
) -> None:
    with user.sleeper(servers[1], tmp_path / "sleeper.log") as sleeper:
        await eventually_async(lambda: '"open": 1' in sleeper.log_text(), within=LONG)
        assert (await notifier.notify(user.key, "awake", confirm=True)).taken
        sleeper.freeze()
        assert (await notifier.notify(user.key, "asleep")).taken
        outcome = await notifier.notify(user.key, "asleep", confirm=True)
        assert not outcome.taken
        # The connection ends, and so it needs no more than that.
        assert outcome.seconds < PONG_TIMEOUT + 2.0 + LATE
        assert not (await notifier.notify(user.key, "gone", confirm=True, timeout=LONG)).taken


async def test_a_user_without_a_connection_costs_no_wait(notifier: Notifier, user: User) -> None:
    for confirm in (False, True):
        outcome = await notifier.notify(user.key, "hello", confirm=confirm, timeout=LONG)
        assert not outcome.taken
        assert outcome.seconds < LATE


async def test_a_process_that_hangs_or_died_delays_no_other(
    site: Site, servers: list[WebServer], notifier: Notifier, user: User
) -> None:
    gone = site.serve()
    async with user.client(gone):
        gone.freeze()
        async with user.client(servers[0]) as client:
            assert (await notifier.notify(user.key, 1, confirm=True, timeout=LONG)).seconds < LATE
            gone.kill()
            outcome = await notifier.notify(user.key, 2, confirm=True, timeout=LONG)
            assert outcome.taken
            assert outcome.seconds < LATE
            assert notifications(client) == [1, 2]
        await eventually_async(lambda: site.open_connections(servers[0]) == 0, within=LONG)
        assert site.open_connections(gone) == 1
        outcome = await notifier.notify(user.key, 3, timeout=1.0)
        assert not outcome.taken
        assert 1.0 <= outcome.seconds < 1.0 + LATE
        # It was never answered, so this looks first if answers arrive at all.
        async with user.client(servers[0]):
            assert (await notifier.notify(user.key, 4, confirm=True, timeout=LONG)).taken
