"""The database is gone, hangs, takes no writes, or is out of reach of one process.

Clients that are connected notice nothing. Clients that come are told to come back. No client is reaped for
it, and the records are right afterwards.
"""

import asyncio
import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.memberships import in_layer
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import Client, close_all, connect_many
from tests.support.pairings import Pairing, pairings
from tests.support.programs.databases import Database, Databases, SqliteDatabase
from tests.support.programs.postgres import PostgresServer
from tests.support.programs.servers import RedisServer, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

INTERVAL, TIMEOUT = 1.0, 0.5
OUTAGE = 4 * INTERVAL  # far longer than a silent process lives
OPEN_TIMEOUT = 5.0  # how long a client waits for its record
MINUTE = 60.0
GROUP = "public.lobby"
PROBE_TIMEOUT = 5.0  # within which a probe is answered
SLACK = 1.0  # seconds for a machine that is busy with other tests
#: Three times as many as the executor of a server's event loop has threads.
PROBES = 3 * ((os.cpu_count() or 1) + 4)

daphne_or_uvicorn = pytest.mark.parametrize(
    "pairing",
    [
        Pairing("pubsub", "daphne", "postgres"),
        pytest.param(Pairing("core", "uvicorn", "postgres"), marks=pytest.mark.matrix),
    ],
    ids=str,
)
uvicorn_or_daphne = pytest.mark.parametrize(
    "pairing",
    [
        Pairing("core", "uvicorn", "postgres"),
        pytest.param(Pairing("pubsub", "daphne", "postgres"), marks=pytest.mark.matrix),
    ],
    ids=str,
)


class Installation:
    """A site with a database of its own, a server and a reaper."""

    def __init__(self, site: Site, databases: Databases) -> None:
        self.site = site
        self.databases = databases
        self.server = site.serve()
        self.url = self.server.websocket(f"/ws/{GROUP}/")
        site.reaper().wait_for_a_round()
        # Otherwise the reaper would look at pids and not at silence.
        self.site.look_remote()

    @property
    def outage(self) -> str:
        """The name of the fault that `database_down` causes."""
        return "database locked" if self.site.pairing.database == "sqlite" else "database gone"

    @property
    def postgres(self) -> PostgresServer:
        return self.databases.postgres

    @contextlib.contextmanager
    def database_down(self) -> Iterator[None]:
        """Kill PostgreSQL, or lock the file of SQLite, for the length of the block."""
        database: Database = self.site.database
        if isinstance(database, SqliteDatabase):
            with database.locked():
                yield
        else:
            self.postgres.kill()
            try:
                yield
            finally:
                self.postgres.start()

    def reasons(self) -> dict[str, int]:
        """Count the records by reason; an open record has an empty one."""
        rows = self.site.database.query(
            "SELECT close_reason AS reason, count(*) AS n FROM realtime_connection GROUP BY 1"
        )
        return {row["reason"]: row["n"] for row in rows}

    def lost(self) -> int:
        return int(self.site.database.value("SELECT count(*) FROM realtime_process WHERE lost"))

    def rounds(self) -> int:
        return int(self.site.database.value("SELECT number FROM realtime_round"))


@pytest.fixture
def installation(pairing: Pairing, tmp_path: Path, breakable_databases: Databases) -> Iterator[Installation]:
    database = breakable_databases.new(pairing.database)
    with Site(tmp_path, pairing, database, ROUND_INTERVAL=INTERVAL, ROUND_TIMEOUT=TIMEOUT) as site:
        yield Installation(site, breakable_databases)


async def turned_away(url: str) -> float:
    """Connect, be told why the connection cannot stay, and be closed; return the seconds that this took."""
    began = time.monotonic()
    async with Client(url) as client:
        assert await client.closes(within=OPEN_TIMEOUT + 5) == 4000
        (goodbye,) = client.of_type("goodbye")
        assert (goodbye["reason"], goodbye["reconnect"]) == ("server_unavailable", True)
        assert not client.of_type("welcome")
    return time.monotonic() - began


async def all_received(numbers: Numbers, clients: list[Client]) -> None:
    await numbers.stop()
    assert not numbers.failed
    await numbers.arrive(clients, within=5)
    for client in clients:
        assert numbers.received(client) == numbers.sent, "lost, doubled or out of order"


async def outage(installation: Installation, seconds: float, leaving: list[Client]) -> list[float]:
    """Close some clients while the database is down, and let others come until it has been down long enough.

    Returns:
        After how many seconds each client that came was sent away.
    """
    began, waits = time.monotonic(), []
    await close_all(leaving)
    while time.monotonic() - began < seconds:
        waits.append(await turned_away(installation.url))
        await asyncio.sleep(seconds / 10)
    return waits


async def three_rounds(installation: Installation, every: float) -> None:
    """Wait for three rounds; `every` is their interval."""
    number = installation.rounds()
    await eventually_async(lambda: installation.rounds() >= number + 3, within=10 * every)


async def records_are_right(
    installation: Installation, staying: list[Client], right: dict[str, int], turned_away: int
) -> None:
    """After the outage, records and groups are as if the database had been there; new clients are let in."""
    site = installation.site
    assert all(client.is_open for client in staying)
    assert installation.lost() == 0
    # A client that was sent away has no record, or one that says so.
    others = {key: number for key, number in installation.reasons().items() if key not in right}
    assert set(others) <= {"server_unavailable"}
    assert sum(others.values()) <= turned_away
    assert in_layer(site) == {GROUP: 1}
    memberships = "SELECT count(*) FROM realtime_membership WHERE left_at IS NULL"
    assert site.database.value(memberships) == len(staying)
    async with Client(installation.url) as client:
        await client.welcomed()


async def lived_through(
    installation: Installation, seconds: float, *, every: float, lasting: str = ""
) -> None:
    """Take the database down for at least this long; `every` is the interval of rounds."""
    site = installation.site
    clients = await connect_many(20, installation.url)
    leaving, staying = clients[:5], clients[5:]
    right = {"": len(staying), "client_closed": len(leaving)}
    with measuring(f"{installation.outage}{lasting}", site.pairing) as m, same_layer(site):
        async with Numbers(GROUP) as numbers:
            with installation.database_down():
                began = time.monotonic()
                waits = await outage(installation, seconds, leaving)
                assert all(client.is_open for client in staying)
                m.outage = time.monotonic() - began
            m.staying = len(staying)
            m.turned_away, m.after_at_most = len(waits), max(waits)
            m.records_right_after = await seconds_until(
                lambda: right.items() <= installation.reasons().items(), within=10
            )
            await three_rounds(installation, every)
            await all_received(numbers, staying)
            m.dropped = sum(not client.is_open for client in staying)
            m.messages = len(numbers.sent)
            m.messages_lost = sum(len(numbers.sent) - len(numbers.received(client)) for client in staying)

    await records_are_right(installation, staying, right, len(waits))
    await close_all(staying)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", "core-daphne-postgres"))
async def test_sockets_receive_without_a_database_and_records_follow(
    installation: Installation, pairing: Pairing
) -> None:
    await lived_through(installation, OUTAGE, every=INTERVAL)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_a_minute_without_a_database_closes_no_connection(
    pairing: Pairing, tmp_path: Path, breakable_databases: Databases
) -> None:
    with Site(tmp_path, pairing, breakable_databases.new(pairing.database)) as site:
        installation = await asyncio.to_thread(Installation, site, breakable_databases)
        await lived_through(installation, MINUTE, every=10.0, lasting=" for a minute")


@uvicorn_or_daphne
async def test_a_client_that_waits_for_a_hung_database_is_admitted(
    installation: Installation, pairing: Pairing
) -> None:
    site, url = installation.site, installation.url
    clients = await connect_many(20, url)
    leaving, staying = clients[:5], clients[5:]
    with same_layer(site):
        async with Numbers(GROUP) as numbers:
            installation.postgres.freeze()
            try:
                waited = await turned_away(url)
                assert OPEN_TIMEOUT - 1 < waited < OPEN_TIMEOUT + 2
                await close_all(leaving)
                late = Client(url)
                opening = asyncio.create_task(late.open())
                await asyncio.sleep(OPEN_TIMEOUT / 4)  # it waits, and so do rounds
                assert not opening.done()
            finally:
                installation.postgres.thaw()
            await opening
            await late.welcomed()
            await eventually_async(
                lambda: installation.reasons().get("client_closed", 0) == len(leaving), within=10
            )
            await three_rounds(installation, INTERVAL)
            await all_received(numbers, staying)
    assert all(client.is_open for client in [*staying, late])
    # A client that was sent away has no record, or one that says so.
    by_reason = Counter(installation.reasons())
    assert by_reason.pop("server_unavailable", 0) <= 1
    assert by_reason == {"": len(staying) + 1, "client_closed": len(leaving)}
    assert installation.lost() == 0
    measured("database hung", pairing, turned_away_after=waited, dropped=0, messages_lost=0)
    await close_all([*staying, late])


#: The status, the parts that are not ready, and the seconds until the answer.
Answer = tuple[int, set[str], float]


def probe(server: WebServer) -> Answer:
    """Ask `/health/ready`, in this thread."""
    began = time.monotonic()
    try:
        with urllib.request.urlopen(server.http("/health/ready"), timeout=20) as answer:  # noqa: S310 - our own
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        status, body = refusal.code, refusal.read()
    return status, set(json.loads(body)) - {"ready"}, time.monotonic() - began


@pytest.mark.parametrize(
    "pairing",
    [
        Pairing("pubsub", "daphne", "postgres"),
        pytest.param(Pairing("core", "uvicorn", "postgres"), marks=pytest.mark.matrix),
    ],
    ids=str,
)
async def test_probes_of_a_hung_database_block_no_reconnect_to_redis(
    pairing: Pairing, tmp_path: Path, breakable_databases: Databases
) -> None:
    """To connect, a process needs a thread of the event loop's executor, which looks up the host of Redis."""
    redis = RedisServer(tmp_path, tcp=True, interface="localhost")
    postgres = breakable_databases.postgres
    database = breakable_databases.new("postgres")
    with Site(tmp_path, pairing, database, redis=redis) as site:
        server = await asyncio.to_thread(site.serve)
        clients = await connect_many(20, server.websocket(f"/ws/{GROUP}/"))
        with measuring("database hung while it is probed", pairing) as m, same_layer(site):
            async with Numbers(GROUP) as numbers:
                await numbers.all_back_after(clients, time.monotonic(), within=10)
                assert (await asyncio.to_thread(probe, server))[:2] == (200, set())
                postgres.freeze()
                try:
                    answers, m.receiving_again_after = await probed(server, redis, numbers, clients)
                finally:
                    postgres.thaw()
                m.probes = len(answers)
                m.slowest_answer_after = max(seconds for _, _, seconds in answers)
                m.ready_again_after = await seconds_until(lambda: probe(server)[0] == 200, within=10)
                await eventually_async(lambda: clients[0].data[-1] == numbers.attempts[-1].number, within=5)
                await numbers.stop()
        assert {status for status, _, _ in answers} == {503}
        assert all("database" in missing for _, missing, _ in answers)
        assert answers[-1][1] == {"database"}
        assert m.slowest_answer_after < PROBE_TIMEOUT + SLACK
        assert all(client.is_open for client in clients)
        await close_all(clients)


async def probed(
    server: WebServer, redis: RedisServer, numbers: Numbers, clients: list[Client]
) -> tuple[list[Answer], float]:
    """Restart Redis while many probes wait for the database.

    Returns:
        The answers, the last of a probe after the restart; and the seconds until all clients receive again.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(PROBES + 1) as probes:
        asked = [loop.run_in_executor(probes, probe, server) for _ in range(PROBES)]
        await asyncio.sleep(1.0)  # all of them wait for the database by now
        await asyncio.to_thread(redis.restart)
        back = await numbers.all_back_after(clients, time.monotonic(), within=3 + SLACK)
        answers = await asyncio.gather(*asked)
        answers.append(await loop.run_in_executor(probes, probe, server))
    return answers, back


class Cable:
    """A socket that one process uses instead of the socket of PostgreSQL, and that can be unplugged."""

    def __init__(self, postgres: PostgresServer, folder: Path) -> None:
        self.folder = folder
        self._target = str(postgres.folder / ".s.PGSQL.5432")
        self._plugged_in = asyncio.Event()
        self._plugged_in.set()
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._carry, self.folder / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.plug_in()
        self._server.close()
        for end in self._ends:
            end.close()

    def url(self, database: str) -> str:
        return database.partition("?")[0] + f"?host={self.folder}"

    def unplug(self) -> None:
        """Carry nothing any more, in either direction; neither side is told."""
        self._plugged_in.clear()

    def plug_in(self) -> None:
        self._plugged_in.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        self._ends += [writer, there_writer]
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self._plugged_in.wait()
                target.write(data)
        target.close()


@daphne_or_uvicorn
async def test_a_process_that_alone_lost_the_database_is_not_lost(
    installation: Installation, pairing: Pairing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    site = installation.site
    folder = tmp_path_factory.mktemp("cable")
    async with Cable(installation.postgres, folder) as cable:
        alone = await asyncio.to_thread(_serve, site, DATABASE_URL=cable.url(site.database.url))
        clients = await connect_many(10, alone.websocket(f"/ws/{GROUP}/"))
        others = await connect_many(10, installation.url)
        site.look_remote()
        with same_layer(site):
            async with Numbers(GROUP) as numbers:
                cable.unplug()
                await close_all(clients[:3])
                before = installation.rounds()
                await eventually_async(
                    lambda: installation.rounds() >= before + OUTAGE / INTERVAL, within=5 * OUTAGE
                )
                assert installation.lost() == 0
                assert installation.reasons() == {"": 20}
                assert all(client.is_open for client in clients[3:])
                cable.plug_in()
                await eventually_async(
                    lambda: installation.reasons() == {"": 17, "client_closed": 3}, within=10
                )
                await all_received(numbers, [*clients[3:], *others])
        assert site.database.value("SELECT max(missed) FROM realtime_process") == 0
        measured("database out of reach of one process", pairing, rounds=OUTAGE / INTERVAL, lost=0, reaped=0)
        await close_all([*clients, *others])
        await asyncio.to_thread(alone.stop)


def _serve(site: Site, **environment: str) -> WebServer:
    return site.serve(**environment)
