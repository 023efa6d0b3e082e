"""Limits on connections hold across processes, and while processes die and Redis fails."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured
from tests.support.assertions.scrape import scrape
from tests.support.clients.sessions import logged_in
from tests.support.clients.websocket import Client, close_all
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

LIMIT = 4
INTERVAL, TIMEOUT = 2.0, 1.0
#: Seconds after which a killed process holds no place: a process renews itself once in an interval.
BOUND = 3 * INTERVAL
SLACK = 2.0  # seconds for a machine that is busy with other tests
#: Seconds that a connect may wait for a Redis that hangs, and a busy machine.
HELD_UP = 1.0 + SLACK
LIMITS = {"MAX_CONNECTIONS_PER_USER": LIMIT, "ROUND_INTERVAL": INTERVAL, "ROUND_TIMEOUT": TIMEOUT}
TOO_MANY = 4030


@dataclass
class Scene:
    """Two servers, a reaper, a user, and the clients that are open."""

    site: Site
    one: WebServer
    two: WebServer
    cookie: dict[str, str]
    clients: list[Client] = field(default_factory=list)

    async def arrive(self, server: WebServer, *, client: str = "", group: str = "") -> Client:
        """Connect as the user."""
        path = f"/ws/{group}/" if group else "/ws/"
        query = f"?client={client}" if client else ""
        made = Client(server.websocket(path + query), headers=self.cookie)
        self.clients.append(made)
        return await made.open()

    async def enters(self, server: WebServer, *, client: str = "") -> bool:
        """Connect as the user; return False if the server says that there are too many connections."""
        made = await self.arrive(server, client=client)
        first = await made.seen(lambda frame: frame["type"] in ("welcome", "goodbye"))
        if first["type"] == "welcome":
            return True
        assert first["reason"] == "too_many_connections"
        assert first["reconnect"]
        assert await made.closes(within=5) == TOO_MANY
        return False

    @property
    def rows(self) -> int:
        return int(self.site.database.value("SELECT count(*) FROM realtime_connection"))


@asynccontextmanager
async def two_servers(pairing: Pairing, start_site: StartSite, **settings: Any) -> AsyncIterator[Scene]:
    site = start_site(pairing, **LIMITS, **settings)
    one, two = site.serve(), site.serve()
    site.reaper("--interval", str(INTERVAL), "--timeout", str(TIMEOUT))
    _, session = await logged_in(site)
    scene = Scene(site, one, two, {"Cookie": f"sessionid={session}"})
    try:
        yield scene
    finally:
        await close_all(scene.clients)


async def full(scene: Scene) -> None:
    """Take all places of the user, half of them on each server."""
    for server in (scene.one, scene.two) * (LIMIT // 2):
        assert await scene.enters(server)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_limit_holds_across_processes_also_if_one_is_killed(
    pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site) as scene:
        await full(scene)
        rows = scene.rows
        refused = [await scene.enters(server) for server in (scene.one, scene.two) * 3]
        assert not any(refused)
        assert scene.rows == rows, "a refused connection has a record"
        said = scrape(scene.one)
        assert said.value("realtime_limited_total", limit="MAX_CONNECTIONS_PER_USER") == 3
        assert said.value("realtime_connections_refused_total", reason="too_many_connections") == 3
        assert scene.one.log_text().count("MAX_CONNECTIONS_PER_USER") == 1, "each refusal is logged"

        # A connection that ends in an orderly way is replaced immediately, in any process.
        await scene.clients[0].close()
        await eventually_async(lambda: scene.site.open_connections(scene.one) == LIMIT // 2 - 1, within=5)
        assert await scene.enters(scene.two)
        assert not await scene.enters(scene.one)

        # The rounds find the pid missing; the counts in Redis do not depend on them.
        scene.site.look_remote()
        scene.one.kill()
        killed_at = time.monotonic()
        async with asyncio.timeout(BOUND + SLACK):
            while not await scene.enters(scene.two):
                await asyncio.sleep(0.3)
        took = time.monotonic() - killed_at
        measured("connection limit, process killed", pairing, free_after=took, bound=BOUND)
        assert took < BOUND + SLACK
        # Exactly the places of the killed process are free.
        assert not await scene.enters(scene.two)


@pytest.mark.parametrize("pairing", pairings("pubsub-uvicorn-postgres"))
async def test_a_server_that_stops_gives_its_places_back_first(
    pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site) as scene:
        for _ in range(LIMIT):
            assert await scene.enters(scene.one)
        assert not await scene.enters(scene.two)
        scene.one.terminate()
        await scene.clients[0].closes(within=5)
        assert [await scene.enters(scene.two) for _ in range(LIMIT)] == [True] * LIMIT
        assert not await scene.enters(scene.two)


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_a_phone_is_not_locked_out_by_its_lost_connection(
    pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site) as scene:
        phones = [f"phone-{number:04}" for number in range(LIMIT)]
        for phone in phones:
            assert await scene.enters(scene.one, client=phone)
        for client in scene.clients:
            # The network is gone: the server hears nothing, and no close reaches it.
            client.answers_pings = False
            client.stop_reading()
        assert not await scene.enters(scene.two, client="another-phone")
        came_back = await asyncio.gather(*(scene.enters(scene.two, client=phone) for phone in phones))
        assert came_back == [True] * LIMIT
        assert not await scene.enters(scene.one, client="another-phone")


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_counts_heal_after_redis_was_emptied_and_restarted(
    pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site) as scene:
        await full(scene)
        with scene.site.redis.client() as client:
            client.flushall()
            await eventually_async(
                lambda: (
                    len(client.keys("*realtime.limits:alive:*")) == 2
                    and len(client.keys("*realtime.limits:u:*")) == 1
                ),
                within=INTERVAL + SLACK,
            )
        assert not await scene.enters(scene.one)
        assert not await scene.enters(scene.two)

        scene.site.redis.restart()
        with scene.site.redis.client() as client:
            await eventually_async(
                lambda: (
                    len(client.keys("*realtime.limits:alive:*")) == 2
                    and sum(map(len, map(client.hgetall, client.keys("*realtime.limits:u:*")))) == 2
                ),
                within=INTERVAL + 2 + SLACK,
            )
        assert not await scene.enters(scene.one)
        assert not await scene.enters(scene.two)


@pytest.mark.parametrize("answer", ["accept", pytest.param("refuse", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_a_hung_redis_delays_connects_by_one_second(
    answer: str, pairing: Pairing, start_site: StartSite
) -> None:
    async with two_servers(pairing, start_site, LIMITS_WITHOUT_REDIS=answer) as scene:
        # The hub of the process must have started.
        assert await scene.enters(scene.one)
        healthy = scene.clients[0]
        await healthy.join("public.lobby")
        scene.site.redis.freeze()
        try:
            began = time.monotonic()
            made = [await scene.arrive(scene.one) for _ in range(LIMIT + 2)]
            firsts = [
                (await each.seen(lambda frame: frame["type"] in ("welcome", "goodbye")), time.monotonic())
                for each in made
            ]
            kinds = [first.get("reason", first["type"]) for first, _ in firsts]
            if answer == "accept":
                # The process goes on counting its own.
                assert kinds == ["welcome"] * (LIMIT - 1) + ["too_many_connections"] * 3
            else:
                assert kinds == ["server_unavailable"] * (LIMIT + 2)
            took = firsts[-1][1] - began
            measured("connection limit, Redis hung", pairing, connects=LIMIT + 2, answered_after=took)
            assert took < HELD_UP, "each connect waited for Redis"
            assert healthy.is_open
        finally:
            scene.site.redis.thaw()
        log = scene.one.log_text()
        assert "LIMITS_WITHOUT_REDIS" in log
        assert "Traceback" not in log
        took = await seconds_until(
            lambda: "Redis is back: connections" in scene.one.log_text(), within=BOUND + SLACK
        )
        assert took < BOUND + SLACK
        # What was accepted meanwhile counts everywhere.
        assert await scene.enters(scene.two) is (answer == "refuse")


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_flood_of_connects_harms_no_healthy_client(pairing: Pairing, start_site: StartSite) -> None:
    async with two_servers(pairing, start_site, MAX_HANDSHAKES_PER_SECOND=20, RECONNECT_WINDOW=2.0) as scene:
        healthy = [await scene.arrive(server, group="public.lobby") for server in (scene.one, scene.two)]
        for _ in range(LIMIT - len(healthy)):
            assert await scene.enters(scene.one)
        rows = scene.rows
        publisher = scene.site.publisher("public.lobby")
        outcomes: list[str] = []

        async def flood() -> None:
            for _ in range(30):
                made = Client(scene.one.websocket(), headers=scene.cookie)
                try:
                    async with made:
                        outcomes.append(str(await made.closes(within=5)))
                except Exception as error:
                    outcomes.append(str(getattr(getattr(error, "response", None), "status_code", error)))

        flooding = asyncio.gather(*(flood() for _ in range(8)))
        sent = 0
        while not flooding.done():
            publisher.send(str(sent))
            sent += 1
            await asyncio.sleep(0.05)
        await flooding
        assert await asyncio.to_thread(publisher.finish) == 0
        assert set(outcomes) <= {str(TOO_MANY), "403"}, outcomes
        measured(
            "connection limit, flood",
            pairing,
            refused=outcomes.count(str(TOO_MANY)),
            refused_by_403=outcomes.count("403"),
            rows=scene.rows - rows,
        )
        assert str(TOO_MANY) in outcomes
        assert "403" in outcomes
        assert scene.rows == rows
        for each in healthy:
            await eventually_async(lambda each=each: len(each.data) >= sent, within=5)  # type: ignore[misc]
            assert each.data == list(range(sent))
            assert each.is_open
