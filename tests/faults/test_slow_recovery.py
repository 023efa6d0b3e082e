"""A large history and clients that read slowly or not at all: recovery is whole or refused, in bounds."""

import asyncio
import itertools
import json
import time
from typing import NamedTuple

import psutil
import pytest

from realtime.history.positions import Position
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.arrivals import all_live, all_shown, whole
from tests.support.clients.raw import RawClient, frame
from tests.support.clients.recovering import RecoveringClient, running
from tests.support.clients.talking import ServerSource, like_a_process_of, talking
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer

pytestmark = pytest.mark.faults

GROUP, LIGHT = "public.history", "public.light"
MESSAGES, SIZE = 300, 60_000
MIB = 1024 * 1024
MAX_UNSENT_BYTES = MIB  # the default
RATE = 2_000_000  # bytes a second of a client that reads slowly: the recovery takes 9 s
STUCK = 5  # clients that do not read
LIVE = 3  # messages after the recovery has begun
LIMITS = {"PING_INTERVAL": 6.0, "PONG_TIMEOUT": 3.0, "PROBE_AFTER": 1.0}
#: Seconds until a client that does not read is evicted: see "A client stops reading" in the failure modes.
BOUND = LIMITS["PING_INTERVAL"] + 2 * LIMITS["PONG_TIMEOUT"]
SLACK = 3.0
HISTORY = {"public.*": {"size": 2 * MESSAGES, "ttl": 300}}
#: Bytes of memory for what one busy minute leaves in any server.
KEPT = 4 * MIB
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "32768"}


class Link(NamedTuple):
    """A history of messages with their size in bytes, and the rate of its readers in bytes a second."""

    messages: int
    size: int
    rate: float


#: The slowest link is one that `test_slow_honest` grants.
LINKS = {GROUP: Link(MESSAGES, SIZE, RATE), "public.small": Link(100, 6_000, 28_000)}


async def recover(client: RawClient, since: Position, group: str = GROUP) -> None:
    """Connect, and join since this position."""
    position = {"epoch": since.epoch, "offset": since.offset}
    join = {"type": "join", "group": group, "ref": 1, "since": position}
    assert (await client.open()).status == 101
    await client.send(frame(json.dumps(join)))


def received(client: RawClient) -> list[int]:
    return [each["offset"] for each in client.frames if each["type"] == "message"]


def resident(server: WebServer) -> int:
    return int(psutil.Process(server.serving_pid).memory_info().rss)


async def filled(name: str = "large", group: str = GROUP) -> Position:
    """Publish a history, and return the position before its first message."""
    source = ServerSource(name, group, filler="x" * LINKS[group].size)
    for _ in range(LINKS[group].messages):
        await source.publish()
    first = source.publications[0].position
    return Position(first.epoch, first.offset - 1)


@pytest.mark.parametrize("pairing", pairings())
async def test_a_client_that_reads_slowly_recovers_all(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, HISTORY=HISTORY)
    server = site.serve()
    readers = [
        (group, RawClient(server.websocket("/ws/"), bytes_per_second=LINKS[group].rate, large_buffers=large))
        for group, large in itertools.product(LINKS, (False, True))
    ]
    async with like_a_process_of(site):
        since = {group: await filled(group, group) for group in LINKS}
        began = time.monotonic()
        try:
            await asyncio.gather(*(recover(each, since[group], group) for group, each in readers))
            # Live messages follow what is recovered.
            live = ServerSource("live", *LINKS)
            for _ in range(LIVE * len(LINKS)):
                await live.publish()

            def all_done() -> bool:
                missing = [LINKS[group].messages + LIVE - len(received(each)) for group, each in readers]
                ended = [each.ended.is_set() for _, each in readers]
                assert not any(missing) or any(ended), (missing, ended)
                return True

            slowest = max(link.messages * link.size / link.rate for link in LINKS.values())
            await eventually_async(all_done, within=2 * slowest + 20, every=0.5)
            measured(
                "a large history, a slow reader",
                pairing,
                received=[len(received(each)) for _, each in readers],
                of=[LINKS[group].messages + LIVE for group, _ in readers],
                seconds=time.monotonic() - began,
                closed=[each.close_code for _, each in readers],
            )
            for group, each in readers:
                joined = await each.seen("joined")
                assert joined["recovered"] is True
                assert received(each) == list(range(1, LINKS[group].messages + LIVE + 1))
                kinds = [found["type"] for found in each.frames if found["type"] in ("joined", "message")]
                assert kinds[0] == "joined"
            assert not {"slow_consumer", "ping_timeout"} & set(site.close_reasons())
        finally:
            await asyncio.gather(*(each.hang_up() for _, each in readers))


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_a_reader_that_is_overtaken_is_refused_the_next_time(
    pairing: Pairing, start_site: StartSite
) -> None:
    """More is published during the recovery than the group keeps, so the rest of the recovery is lost."""
    site = start_site(pairing, HISTORY={"public.*": {"size": MESSAGES, "ttl": 300}})
    server = site.serve()
    reader = RawClient(server.websocket("/ws/"), bytes_per_second=RATE / 20)
    async with like_a_process_of(site):
        since = await filled()
        try:
            await recover(reader, since)
            joined = await reader.seen("joined")
            assert (joined["recovered"], joined["offset"]) == (True, MESSAGES)
            await filled("larger")
            await eventually_async(lambda: site.close_reasons().get("slow_consumer"), within=30)
            await reader.closes(within=60)
            got = received(reader)
            assert got == list(range(1, len(got) + 1)), "a part, in order and without a gap"
            assert len(got) < MESSAGES
        finally:
            await reader.hang_up()
        async with RawClient(server.websocket("/ws/")) as again:
            await recover(again, Position(since.epoch, len(got)))
            joined = await again.seen("joined")
            assert (joined["recovered"], joined["offset"]) == (False, 2 * MESSAGES)
            await again.send(frame(json.dumps({"type": "ping", "n": 1})))
            await again.seen("pong")
            assert received(again) == [], "never a part"
    measured("a large history, overtaken", pairing, received=len(got), of=MESSAGES, code=reader.close_code)


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_clients_that_do_not_read_their_recovery_are_evicted(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, HISTORY=HISTORY, **LIMITS)
    server = site.serve(**RETURNED)
    stuck = [RawClient(server.websocket("/ws/"), bytes_per_second=1) for _ in range(STUCK)]
    member = RecoveringClient("member", [f"ws://{server.address}"], LIGHT)
    other = RecoveringClient("other", [f"ws://{server.address}"], GROUP)
    light = ServerSource("light", LIGHT, every=0.05)
    async with like_a_process_of(site), running([member, other]):
        since = await filled()
        await all_live([member, other])
        # Another recovery first: the process then keeps what it keeps in any case.
        fast = RawClient(server.websocket("/ws/"))
        async with fast:
            await recover(fast, since)
            await eventually_async(lambda: len(received(fast)) == MESSAGES, within=30)
        before = highest = resident(server)
        async with talking([light]):
            began = time.monotonic()
            await asyncio.gather(*(recover(each, since) for each in stuck))

            def all_evicted() -> bool:
                nonlocal highest
                highest = max(highest, resident(server))
                reasons = site.close_reasons()
                return reasons.get("slow_consumer", 0) + reasons.get("ping_timeout", 0) == STUCK

            await eventually_async(all_evicted, within=BOUND + SLACK)
            took = time.monotonic() - began
            for each in stuck:
                await each.hang_up()
        bound = STUCK * (MAX_UNSENT_BYTES + 2 * SIZE) + KEPT
        measured(
            "a large history, no reader",
            pairing,
            clients=STUCK,
            reasons=site.close_reasons(),
            evicted_after=took,
            bound=BOUND,
            grown_mib=round((highest - before) / MIB, 1),
            bound_mib=round(bound / MIB),
        )
        assert highest - before <= bound

        again = RawClient(server.websocket("/ws/"))
        async with again:
            await recover(again, since)
            joined = await again.seen("joined")
            expected = list(range(1, MESSAGES + 1)) if joined["recovered"] else []
            await eventually_async(lambda: len(received(again)) >= len(expected), within=30)
            assert received(again) == expected
        await all_shown([member], light.publications[-1])
        whole(light.publications, [member])
        assert member.connects == other.connects == 1, "no other member was disturbed"
        assert member.told() == other.told() == []
    assert "Traceback" not in server.log_text()
