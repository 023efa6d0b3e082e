"""Redis loses the history of groups, wholly or in part: clients are told, or miss nothing."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from realtime.history.positions import Position
from tests.faults.test_redis_restart import groups_of
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.judge import Publication
from tests.support.assertions.measured import measured, measuring
from tests.support.clients.arrivals import all_live, all_shown, whole
from tests.support.clients.recovering import RecoveringClient, many, running
from tests.support.clients.talking import (
    ServerSource,
    Source,
    like_a_process_of,
    publications,
    talking,
)
from tests.support.faults.relay import RedisBehindAddress
from tests.support.fixtures import StartSite
from tests.support.pairings import PAIRINGS, Pairing, pairings
from tests.support.programs.servers import SeveralRedis
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.faults

GROUPS = ["public.history-0", "public.history-1"]
GROUP = GROUPS[0]
CLIENTS = 20
INTERVAL = 2.0
REALTIME = {
    "ROUND_INTERVAL": INTERVAL,
    "ROUND_TIMEOUT": INTERVAL / 2,
    "HISTORY": {"public.*": {"size": 50, "ttl": 300}},
}
LONG = {**REALTIME, "HISTORY": {"public.*": {"size": 1000, "ttl": 300}}}
BACK = 2.0  # seconds within which processes find Redis again, see `test_redis_restart`
TIMES = 12
SLACK = 1.5  # seconds for a machine that is busy with other tests


def restart(site: Site) -> None:
    site.redis.restart()


def flush(site: Site) -> None:
    with site.redis.client() as redis:
        redis.flushall()


def evict(site: Site, kind: str) -> None:
    """Delete one of the two keys of the group, as Redis does at `maxmemory`.

    Args:
        site: The site.
        kind: "position" or "history".
    """
    with site.redis.client() as redis:
        (key,) = redis.keys(f"*:{kind}:{GROUP}")
        assert redis.delete(key) == 1


def all_told(clients: Sequence[RecoveringClient], since: float, *groups: str) -> bool:
    """True if each client was told, after this time, that messages of its groups may be missing."""
    untold = [
        f"{each.name} in {group}"
        for each in clients
        for group in each.groups
        if group in groups and not any(told.at > since for told in each.told(group))
    ]
    assert not untold, f"{len(untold)} were not told: {untold[:5]}"
    return True


def cases() -> list[object]:
    """Return parameters: the fault, the load, and the pairing."""
    everyday = {("restart", False, "core-uvicorn-sqlite"), ("flush", True, "pubsub-daphne-sqlite")}
    return [
        pytest.param(
            fault,
            load,
            pairing,
            id=f"{fault.__name__}-{'under-load' if load else 'idle'}-{pairing}",
            marks=() if (fault.__name__, load, str(pairing)) in everyday else pytest.mark.matrix,
        )
        for fault in (restart, flush)
        for load in (False, True)
        for pairing in PAIRINGS
    ]


@pytest.mark.parametrize(("fault", "load", "pairing"), cases())
async def test_every_member_is_told_of_an_empty_redis_within_a_round(
    fault: Callable[[Site], None], load: bool, pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, **REALTIME)
    servers = [site.serve(), site.serve()]
    site.reaper()
    urls = [f"ws://{each.address}" for each in servers]
    clients = many(CLIENTS, urls, *GROUPS)
    away = [RecoveringClient(f"away {number}", urls, GROUP) for number in range(2)]
    sources: list[Source] = [ServerSource(f"source {group}", group, every=0.1) for group in GROUPS]
    async with like_a_process_of(site), running([*clients, *away]):
        await all_live([*clients, *away])
        for each in sources:
            for _ in range(5):
                await all_shown([*clients, *away], await each.publish())
        for each in away:
            await each.stop()

        async with talking(sources if load else []):
            began = time.monotonic()
            await asyncio.to_thread(fault, site)
            emptied_at = time.monotonic()
            within = INTERVAL + SLACK + (BACK if fault is restart else 0.0)
            await eventually_async(lambda: all_told(clients, began, *GROUPS), within=within)
            measured(
                f"history lost, {fault.__name__}, {'under load' if load else 'idle'}",
                pairing,
                clients=len(clients),
                told_after=time.monotonic() - emptied_at,
                bound=within - SLACK,
            )
        if not load:
            # As many as before: the offset of the clients that are away is that of the latest message.
            for each in sources:
                for _ in range(5):
                    await each.publish()
        for each in away:
            each.start()
        await all_live(away)
        assert all_told(away, began, GROUP), "the same offset in another epoch is not continued"
        for each in sources:
            await all_shown([*clients, *away], await each.publish())
        verdict = whole(publications(sources), [*clients, *away])
        assert verdict.repeated == 0 or load
    assert all(len(each.told(group)) == 1 for each in [*clients, *away] for group in each.groups)
    assert all(each.connects == 1 for each in clients), "no client has to reconnect"


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_messages_that_were_evicted_are_refused_and_nothing_else(
    pairing: Pairing, start_site: StartSite
) -> None:
    site = start_site(pairing, **REALTIME)
    here, elsewhere = (f"ws://{site.serve().address}" for _ in range(2))
    members = many(4, [here], GROUP)
    behind, current = (RecoveringClient(name, [here], GROUP) for name in ("behind", "current"))
    everyone = [*members, behind, current]
    source = ServerSource("source", GROUP)
    async with like_a_process_of(site), running(everyone):
        await all_live(everyone)
        await all_shown(everyone, await source.publish())
        await behind.stop()
        await all_shown([*members, current], await source.publish())
        await current.stop()
        evict(site, "history")
        # This process has kept the messages that Redis lost. Another process has not.
        behind, current = (_at(each, elsewhere) for each in (behind, current))
        async with running([behind, current]):
            await all_live([behind, current])
            assert [each.why for each in behind.told()] == ["refused"]
            assert current.told() == [], "it has missed nothing"
            everyone = [*members, behind, current]
            await all_shown(everyone, await source.publish())
            await asyncio.sleep(INTERVAL + SLACK)  # a round and more: nothing follows
            whole(source.publications, everyone)
    assert not any(each.told() for each in members), "they have missed nothing"


def _at(client: RecoveringClient, url: str) -> RecoveringClient:
    """Return the same client, at another server."""
    moved = RecoveringClient(client.name, [url], client.home)
    moved.groups = client.groups
    return moved


@pytest.mark.parametrize("load", [False, pytest.param(True, marks=pytest.mark.matrix)], ids=["idle", "load"])
@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_every_member_is_told_that_a_position_was_evicted(
    pairing: Pairing, load: bool, start_site: StartSite
) -> None:
    site = start_site(pairing, **REALTIME)
    urls = [f"ws://{site.serve().address}", f"ws://{site.serve().address}"]
    clients = many(CLIENTS, urls, GROUP)
    away = RecoveringClient("away", urls, GROUP)
    source = ServerSource("source", GROUP, every=0.1)
    async with like_a_process_of(site), running([*clients, away]):
        await all_live([*clients, away])
        for _ in range(3):
            await all_shown([*clients, away], await source.publish())
        await away.stop()
        async with talking([source] if load else []):
            began = time.monotonic()
            evict(site, "position")
            await eventually_async(lambda: all_told(clients, began, GROUP), within=INTERVAL + SLACK)
            measured(
                f"history lost, position evicted, {'under load' if load else 'idle'}",
                pairing,
                clients=len(clients),
                told_after=time.monotonic() - began,
                bound=INTERVAL,
            )
        away.start()
        await all_live([away])
        assert [each.why for each in away.told()] == ["refused"]
        await all_shown([*clients, away], await source.publish())
        whole(source.publications, [*clients, away])


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_a_replica_with_a_shorter_history_is_promoted(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing, redis=RedisBehindAddress(tmp_path), **REALTIME)
    urls = [f"ws://{site.serve().address}", f"ws://{site.serve().address}"]
    members = many(CLIENTS, urls, GROUP)
    behind, beyond, shared = (RecoveringClient(name, urls, GROUP) for name in ("behind", "beyond", "shared"))
    everyone = [*members, behind, beyond, shared]
    before, lost, after = (ServerSource(name, GROUP) for name in ("before", "lost", "after"))
    async with like_a_process_of(site), running(everyone):
        await all_live(everyone)
        await all_shown(everyone, await before.publish())
        await behind.stop()
        await all_shown([*members, beyond, shared], await before.publish())
        await shared.stop()
        await asyncio.to_thread(site.redis.part)
        for _ in range(2):
            await all_shown([*members, beyond], await lost.publish())
        await beyond.stop()

        with measuring("history lost, a shorter replica promoted", pairing) as m:
            began = time.monotonic()
            await asyncio.to_thread(site.redis.move)
            promoted_at = time.monotonic()
            within = INTERVAL + BACK + SLACK
            await eventually_async(lambda: all_told(members, began, GROUP), within=within)
            m.clients = len(members)
            m.told_after = time.monotonic() - promoted_at
            m.bound = within - SLACK
        # As many as were lost: the new master has the offset of the client that is beyond it.
        for _ in range(2):
            await all_shown(members, await after.publish())
        for each in (behind, beyond, shared):
            each.start()
        await all_live([behind, beyond, shared])
        await all_shown(everyone, await after.publish())

        # Two of the clients that were away have missed messages that no Redis has any more, and are told so.
        whole(publications([before, lost, after]), everyone)
        for each in (behind, shared, beyond):
            assert [told.why for told in each.told()] == ["refused"]
        forked: set[Position] = {each.position for each in members[0].told()}
        assert len(forked) == 1
        assert all({told.position for told in each.told()} == forked for each in members)
        assert {each.position.offset for each in lost.publications} & _offsets(after.publications)


class Flapping(Repeating):
    """Clients hang up at random, and come back by themselves."""

    def __init__(self, clients: Sequence[RecoveringClient], seed: int) -> None:
        self.clients = clients
        self.chance = random.Random(seed)

    async def step(self) -> None:
        self.chance.choice(self.clients).hang_up()
        await asyncio.sleep(0.1)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_the_same_under_load_with_clients_that_come_and_go(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing, redis=RedisBehindAddress(tmp_path), **LONG)
    urls = [f"ws://{site.serve().address}", f"ws://{site.serve().address}"]
    clients = many(CLIENTS, urls, *GROUPS)
    sources = [ServerSource(f"source {n}", GROUPS[n % 2], every=0.05) for n in range(4)]
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking(sources), Flapping(clients, seed=13):
            await asyncio.sleep(2.0)  # the load itself
            await asyncio.to_thread(site.redis.part)
            await asyncio.sleep(1.0)
            await asyncio.to_thread(site.redis.move)
            await asyncio.sleep(3.0)
        await all_live(clients)
        for each in sources:
            await all_shown(clients, await each.publish())
        found = publications(sources)
        verdict = whole(found, clients)
        lost = [each for each in found if not survived(each, clients)]
        measured(
            "history lost, a shorter replica promoted, under load",
            pairing,
            clients=len(clients),
            connects=sum(each.connects for each in clients),
            published=len(found),
            lost_by_redis=len(lost),
            told=verdict.gaps,
            lost=len(verdict.lost),
        )
        assert lost, "the replica lacked nothing"
    assert all(len(each.told(group)) <= 1 for each in clients for group in each.groups)


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_redis_is_emptied_again_and_again_under_load(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing, **LONG)
    urls = [f"ws://{site.serve().address}", f"ws://{site.serve().address}"]
    clients = many(CLIENTS, urls, *GROUPS)
    sources = [ServerSource(f"source {n}", GROUPS[n % 2], every=0.02) for n in range(4)]
    chance = random.Random(13)
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking(sources), Flapping(clients, seed=14):
            for _ in range(TIMES):
                await asyncio.sleep(chance.uniform(0.1, 1.5))
                await asyncio.to_thread(flush, site)
            await asyncio.sleep(2.0)
        await all_live(clients)
        for each in sources:
            await all_shown(clients, await each.publish())
        verdict = whole(publications(sources), clients)
        measured(
            "history lost, flush, again and again",
            pairing,
            clients=len(clients),
            flushed=TIMES,
            connects=sum(each.connects for each in clients),
            published=len(publications(sources)),
            told=verdict.gaps,
            covered=verdict.covered,
            lost=len(verdict.lost),
        )


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings(layer="pubsub"))
async def test_one_redis_of_two_restarts_empty(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    redis = SeveralRedis(tmp_path)
    site = start_site(pairing, redis=redis, **REALTIME)
    urls = [f"ws://{site.serve().address}", f"ws://{site.serve().address}"]
    unaffected, affected = groups_of(redis)
    clients = [
        RecoveringClient(f"client {n}", urls[n % 2 :] + urls[: n % 2], unaffected, affected)
        for n in range(CLIENTS)
    ]
    sources = [ServerSource(f"source {group}", group, every=0.05) for group in (unaffected, affected)]
    async with like_a_process_of(site), running(clients):
        await all_live(clients)
        async with talking(sources):
            await asyncio.sleep(1.0)  # the load itself
            began = time.monotonic()
            await asyncio.to_thread(redis.members[1].restart)
            restarted_at = time.monotonic()
            within = INTERVAL + BACK + SLACK
            await eventually_async(lambda: all_told(clients, began, affected), within=within)
            measured(
                "history lost, restart of one of two Redis",
                pairing,
                clients=len(clients),
                told_after=time.monotonic() - restarted_at,
                bound=within - SLACK,
            )
        for each in sources:
            await all_shown(clients, await each.publish())
        whole(publications(sources), clients)
    assert not any(each.told(unaffected) for each in clients), "groups on the other Redis notice nothing"
    assert all(len(each.told(affected)) == 1 for each in clients)


def survived(publication: Publication, clients: Sequence[RecoveringClient]) -> bool:
    """True if the new master has this message: it is of the new epoch, or not after the fork."""
    told = [
        given
        for each in clients
        if publication.group in each.groups
        for given in each.told(publication.group)
    ]
    (fork,) = {given.position for given in told if given.why == "reset"}
    return publication.position.epoch == fork.epoch or publication.position.offset <= fork.offset


def _offsets(publications: Sequence[Publication]) -> set[int]:
    return {each.position.offset for each in publications}
