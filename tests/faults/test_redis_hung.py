"""Redis hangs: its socket is open, and no command is answered. Connections still end, and the rest of their
cleanup is done when Redis goes on.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from tests.support.assertions.eventually import seconds_until
from tests.support.assertions.measured import measuring
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.assertions.scrape import scrape
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import Client, close_all, connect_many
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import Program, WebServer
from tests.support.programs.site import Site

pytestmark = pytest.mark.faults

# Evictions give Redis up (twice 5 s after the last of them began) while it still hangs.
HUNG = 14.0
SCALED = {"PING_INTERVAL": 2.0, "PONG_TIMEOUT": 0.8, "ROUND_INTERVAL": 2.0, "ROUND_TIMEOUT": 1.0}
DEFAULTS = {"PING_INTERVAL": 20.0, "PONG_TIMEOUT": 8.0, "ROUND_INTERVAL": 10.0, "ROUND_TIMEOUT": 5.0}
HUNG_LONGER = 40.0  # seconds: the same if a silent client is found after 28
# Seconds that a call may still take that Redis got before it went on, on a busy machine.
SLACK = 2.0
STAYING, LEAVING, SILENT = 10, 20, 20
DOOMED = [f"public.doomed-{number}" for number in range(5)]
HEALTHY = "public.healthy"
EVERYWHERE = dict.fromkeys([*DOOMED, HEALTHY], 1)


@dataclass
class Scene:
    """One server and a reaper; clients that stay, that leave, and that fall silent while Redis hangs."""

    site: Site
    server: WebServer
    staying: list[Client] = field(default_factory=list)
    ending: list[Client] = field(default_factory=list)

    @property
    def leaving(self) -> list[Client]:
        return self.ending[::2]

    @property
    def silent(self) -> list[Client]:
        return self.ending[1::2]

    def held(self) -> tuple[float, float]:
        """Return how many connections and groups the process itself has."""
        said = scrape(self.server)
        return said.value("realtime_connections"), said.value("realtime_groups")


@asynccontextmanager
async def connected(pairing: Pairing, start_site: StartSite, times: dict[str, float]) -> AsyncIterator[Scene]:
    """Connect all clients; the clients that end share no group with the clients that stay."""
    site = start_site(pairing, **times)
    scene = Scene(site, site.serve())
    site.reaper().wait_for_a_round()
    try:
        scene.staying = await connect_many(STAYING, scene.server.websocket(f"/ws/{HEALTHY}/"))
        for group in DOOMED:
            url = scene.server.websocket(f"/ws/{group}/")
            scene.ending += await connect_many((LEAVING + SILENT) // len(DOOMED), url)
        assert (len(scene.leaving), len(scene.silent)) == (LEAVING, SILENT)
        assert in_layer(site) == in_records(site) == EVERYWHERE
        yield scene
    finally:
        await close_all(scene.staying + scene.ending)


@contextlib.contextmanager
def hung(program: Program) -> Iterator[None]:
    """Stop a program for the length of the block."""
    program.freeze()
    try:
        yield
    finally:
        program.thaw()


async def while_redis_hangs(scene: Scene, m: SimpleNamespace, hung_for: float) -> list[int | None]:
    """Let clients leave and fall silent, and measure how the process ends them.

    Returns:
        The close codes of the silent clients.
    """
    site, hung_at = scene.site, time.monotonic()
    for client in scene.silent:
        client.answers_pings = False
    await asyncio.gather(*(client.close() for client in scene.leaving))
    m.sockets_that_left_closed_after = time.monotonic() - hung_at
    codes = [await client.closes(within=m.bound + SLACK) for client in scene.silent]
    m.silent_ones_closed_after = max(client.closed_at or 0.0 for client in scene.silent) - hung_at
    # The process does not write to them any more, though Redis cannot be told.
    gone_at = time.monotonic()
    m.out_of_fan_out_after = await seconds_until(lambda: scene.held() == (STAYING, 1), within=1.0)
    m.records_closed_after = await seconds_until(
        lambda: site.open_connections(scene.server) == STAYING, within=SLACK, since=gone_at
    )
    await asyncio.sleep(max(0.0, hung_at + hung_for - time.monotonic()))  # the fault itself
    if site.pairing.layer == "core":
        # On the pub/sub layer an UNSUBSCRIBE that was written is a group that was left.
        assert in_records(site) == EVERYWHERE, "no group is written off that Redis was not told of"
    assert all(client.is_open for client in scene.staying)
    return codes


async def after_the_thaw(scene: Scene, m: SimpleNamespace, thawed_at: float) -> None:
    """Measure when the groups are left in Redis, and when clients receive again."""
    m.to_do_list_empty_after_thaw = await seconds_until(
        lambda: in_layer(scene.site) == in_records(scene.site) == {HEALTHY: 1},
        within=m.bound_after_thaw + SLACK,
        since=thawed_at,
    )
    with same_layer(scene.site):
        async with Numbers(HEALTHY) as numbers:
            m.receiving_after_thaw = await numbers.all_back_after(scene.staying, thawed_at, within=SLACK)


@pytest.mark.parametrize(
    ("times", "hung_for"),
    [
        pytest.param(SCALED, HUNG, id="scaled"),
        pytest.param(DEFAULTS, HUNG_LONGER, id="default", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_evictions_finish_in_the_process_and_later_in_redis(
    pairing: Pairing, times: dict[str, float], hung_for: float, start_site: StartSite
) -> None:
    async with connected(pairing, start_site, times) as scene:
        with measuring("Redis hung", pairing) as m:
            m.hung_for = hung_for
            m.bound = times["PING_INTERVAL"] + times["PONG_TIMEOUT"]
            m.bound_after_thaw = times["ROUND_INTERVAL"] + times["ROUND_TIMEOUT"]
            with hung(scene.site.redis):
                codes = await while_redis_hangs(scene, m, hung_for)
            await after_the_thaw(scene, m, time.monotonic())

        site, server = scene.site, scene.server
        assert codes == [4008] * SILENT
        assert site.close_reasons() == {"client_closed": LEAVING, "ping_timeout": SILENT}
        assert all(client.is_open for client in scene.staying), "a Redis that hangs closes no client"
        assert site.open_connections(server) == site.open_memberships(server) == STAYING
        assert "Traceback" not in server.log_text()
