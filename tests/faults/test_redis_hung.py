"""Redis hangs: its socket is open and nobody answers. Connections end all the same, and what is left to do is
done when it goes on.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.assertions.scrape import scrape
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.websocket import close_all, connect_many
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import Program, WebServer

pytestmark = pytest.mark.faults

# So long that evictions have given Redis up (twice 5 s after the last of them began) while it still hangs.
HUNG = 14.0
SCALED = {"PING_INTERVAL": 2.0, "PONG_TIMEOUT": 0.8, "ROUND_INTERVAL": 2.0, "ROUND_TIMEOUT": 1.0}
DEFAULTS = {"PING_INTERVAL": 20.0, "PONG_TIMEOUT": 8.0, "ROUND_INTERVAL": 10.0, "ROUND_TIMEOUT": 5.0}
HUNG_LONGER = 40.0  # seconds: the same, where a silent client is found after 28
# Seconds that one call which Redis was asked before it went on may still take, and a busy machine.
SLACK = 2.0
STAYING, LEAVING, SILENT = 10, 20, 20
DOOMED = [f"public.doomed-{number}" for number in range(5)]
HEALTHY = "public.healthy"


@contextlib.contextmanager
def hung(program: Program) -> Iterator[None]:
    program.freeze()
    try:
        yield
    finally:
        program.thaw()


def held(server: WebServer) -> tuple[float, float]:
    """How many connections and groups the process itself has."""
    said = scrape(server)
    return said.value("realtime_connections"), said.value("realtime_groups")


@pytest.mark.parametrize(
    ("times", "hung_for"),
    [
        pytest.param(SCALED, HUNG, id="scaled"),
        pytest.param(DEFAULTS, HUNG_LONGER, id="default", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_evictions_finish_here_at_once_and_elsewhere_a_round_after_the_thaw(
    pairing: Pairing, times: dict[str, float], hung_for: float, start_site: StartSite
) -> None:
    bound = times["PING_INTERVAL"] + times["PONG_TIMEOUT"]
    a_round = times["ROUND_INTERVAL"] + times["ROUND_TIMEOUT"]
    site = start_site(pairing, **times)
    server = site.serve()
    site.reaper().wait_for_a_round()
    staying = await connect_many(STAYING, server.websocket(f"/ws/{HEALTHY}/"))
    ending = []
    try:
        for group in DOOMED:
            ending += await connect_many((LEAVING + SILENT) // len(DOOMED), server.websocket(f"/ws/{group}/"))
        leaving, silent = ending[::2], ending[1::2]
        assert (len(leaving), len(silent)) == (LEAVING, SILENT)
        everywhere = dict.fromkeys([*DOOMED, HEALTHY], 1)
        assert in_layer(site) == in_records(site) == everywhere

        with hung(site.redis):
            hung_at = time.monotonic()
            for client in silent:
                client.answers_pings = False
            await asyncio.gather(*(client.close() for client in leaving))
            left_after = time.monotonic() - hung_at
            codes = [await client.closes(within=bound + SLACK) for client in silent]
            evicted_after = max(client.closed_at or 0.0 for client in silent) - hung_at
            # Out of what is written to, though Redis cannot be told.
            gone_at = time.monotonic()
            await eventually_async(lambda: held(server) == (STAYING, 1), within=1.0)
            gone_after = time.monotonic() - gone_at
            await eventually_async(lambda: site.open_connections(server) == STAYING, within=SLACK)
            closed_after = time.monotonic() - gone_at
            await asyncio.sleep(max(0.0, hung_at + hung_for - time.monotonic()))  # the fault itself
            if pairing.layer == "core":
                # On the pub/sub layer an UNSUBSCRIBE that was written is a group that was left.
                assert in_records(site) == everywhere, "no group is written off that Redis was not told of"
            assert all(client.is_open for client in staying)
        thawed_at = time.monotonic()
        await eventually_async(
            lambda: in_layer(site) == in_records(site) == {HEALTHY: 1}, within=a_round + SLACK
        )
        empty_after = time.monotonic() - thawed_at
        with same_layer(site):
            async with Numbers(HEALTHY) as numbers:
                back = await numbers.all_back_after(staying, thawed_at, within=SLACK)
        measured(
            "Redis hung",
            pairing,
            hung_for=hung_for,
            sockets_that_left_closed_after=left_after,
            silent_ones_closed_after=evicted_after,
            bound=bound,
            out_of_fan_out_after=gone_after,
            records_closed_after=closed_after,
            to_do_list_empty_after_thaw=empty_after,
            bound_after_thaw=a_round,
            receiving_after_thaw=back,
        )
        assert codes == [4008] * SILENT
        reasons = site.database.query(
            "SELECT close_reason, count(*) AS number FROM realtime_connection"
            " WHERE closed_at IS NOT NULL GROUP BY close_reason ORDER BY close_reason"
        )
        assert reasons == [
            {"close_reason": "client_closed", "number": LEAVING},
            {"close_reason": "ping_timeout", "number": SILENT},
        ]
        assert all(client.is_open for client in staying), "nobody pays for a Redis that hangs"
        assert site.open_connections(server) == site.open_memberships(server) == STAYING
        assert "Traceback" not in server.log_text()
    finally:
        await close_all(staying + ending)
