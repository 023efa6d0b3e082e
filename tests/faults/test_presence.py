"""Presence while processes, Redis and clients fail: each change is told once, and none that is none."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually_async, seconds_until
from tests.support.assertions.measured import measured, measuring
from tests.support.assertions.present import Pictures, all_agree
from tests.support.assertions.stays import OFFLINE, ONLINE, told
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.clients.phone import Phone
from tests.support.clients.pictures import seen
from tests.support.clients.visitors import Visitor, Watcher, all_see, visiting, watching
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site
from tests.support.repeating import Repeating

pytestmark = pytest.mark.faults

APPLICATION = "tests.support.applications.users:application"
GROUP = "public.room"
GRACE = 2.0
REALTIME = {
    "PING_INTERVAL": 3.0,
    "PONG_TIMEOUT": 1.5,
    "PROBE_AFTER": 1.0,
    "ROUND_INTERVAL": 2.0,
    "ROUND_TIMEOUT": 1.0,
    "RECONNECT_WINDOW": 1.0,
    "PRESENCE_GRACE": GRACE,
}
FOUND = 6.0  # seconds: 2 x interval + timeout until a killed process is found, and one for the sweep
TOLD = 1.5  # seconds: changes are looked for every quarter of a second, and told at most once a second
SLACK = 2.0  # seconds for a machine that is busy with other tests
PATIENCE = 20.0  # seconds for steps that are not measured
LAST = "9999"  # a user who comes and leaves at the end of a test


@dataclass
class Scene:
    """A site with users, and the signals of all of its processes."""

    site: Site
    log: Path
    servers: list[WebServer]

    def signals(self) -> Counter[tuple[str, str]]:
        """Count the signals by user and event."""
        return Counter(told(self.log))

    def dormant(self) -> list[str]:
        """Return the users of the signals `connection_dormant`."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [user for kind, _, user in lines if kind == "dormant"]

    def were_told(self, event: str, users: Iterable[str]) -> bool:
        """Return True if each user has exactly one signal, and other users have none.

        Raises:
            AssertionError: There were others.
        """
        found = Counter({user: count for (user, kind), count in self.signals().items() if kind == event})
        wanted = Counter(dict.fromkeys(users, 1))
        assert found == wanted, f"{event}: missing {wanted - found}, too many {found - wanted}"
        return True

    async def rest(self, watchers: list[Watcher], server: WebServer, *, grace: float = GRACE) -> None:
        """Have a user come and leave, and wait until all know. What is not told until then is never told."""
        async with visiting(Visitor(LAST, GROUP, server)):
            await eventually_async(
                lambda: all(each.picture.joined[LAST] for each in watchers), within=PATIENCE
            )
        await eventually_async(
            lambda: all(each.picture.left[LAST] for each in watchers), within=grace + PATIENCE
        )
        await eventually_async(lambda: self.signals()[LAST, OFFLINE] == 1, within=PATIENCE)
        assert [each.pictures.broken for each in watchers] == [[]] * len(watchers)


def start(start_site: StartSite, pairing: Pairing, servers: int, **realtime: object) -> Scene:
    site = start_site(pairing, **{**REALTIME, **realtime})
    log = site.folder / "signals.jsonl"
    started = [site.serve(application=APPLICATION, SIGNALS_LOG=str(log)) for _ in range(servers)]
    site.reaper(SIGNALS_LOG=str(log)).wait_for_a_round()
    return Scene(site, log, started)


def users(first: int, count: int) -> list[str]:
    return [str(number) for number in range(first, first + count)]


@contextlib.asynccontextmanager
async def load(site: Site) -> AsyncIterator[None]:
    """Publish to the group of all clients within the block."""
    with same_layer(site):
        async with Numbers(GROUP, every=0.02):
            yield


@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres", server="daphne"))
async def test_users_of_a_killed_process_leave_once(pairing: Pairing, start_site: StartSite) -> None:
    scene = start(start_site, pairing, 3)
    doomed, healthy, other = scene.servers
    gone, back, elsewhere = users(1, 20), users(101, 20), users(201, 20)
    lost = [Visitor(user, GROUP, doomed) for user in gone + elsewhere]
    kept = [Visitor(user, GROUP, doomed, healthy) for user in back]
    kept += [Visitor(user, GROUP, other) for user in elsewhere]
    async with watching(GROUP, healthy, healthy, other) as watchers, visiting(*lost, *kept):
        everyone = gone + back + elsewhere
        await eventually_async(lambda: all_see(watchers, everyone), within=PATIENCE)
        await eventually_async(lambda: scene.were_told(ONLINE, everyone), within=PATIENCE)
        scene.site.look_remote()
        before = [each.picture.frames for each in watchers]
        async with load(scene.site):
            with measuring("presence, process killed", pairing) as m:
                doomed.kill()
                killed_at = time.monotonic()
                await asyncio.gather(*(each.stop() for each in lost))
                await eventually_async(lambda: all(each.is_in for each in kept), within=PATIENCE)
                m.users = len(everyone)
                m.left = len(gone)
                m.bound = FOUND + GRACE + TOLD
                m.left_after = await seconds_until(
                    lambda: all_see(watchers, back + elsewhere), within=PATIENCE, since=killed_at
                )
                m.offline_after = await seconds_until(
                    lambda: scene.were_told(OFFLINE, gone), within=PATIENCE, since=killed_at
                )
                m.frames = max(
                    each.picture.frames - count for each, count in zip(watchers, before, strict=True)
                )
        await scene.rest(watchers, healthy)
    assert m.left_after < m.bound + SLACK
    assert m.offline_after < m.bound + SLACK
    for each in watchers:
        assert each.picture.left == Counter([*gone, LAST])
        assert each.picture.said_again == []
    assert {user for user, event in told(scene.log) if event == OFFLINE} == {*gone, LAST}


class Flapping(Repeating):
    """Each visitor hangs up once in `every` seconds, at a moment of its own."""

    def __init__(self, visitors: list[Visitor], every: float) -> None:
        self.visitors = visitors
        self.every = every

    async def step(self) -> None:
        for each in random.sample(self.visitors, len(self.visitors)):
            await asyncio.sleep(self.every / len(self.visitors))
            each.hang_up()


@pytest.mark.parametrize(
    ("count", "every", "seconds", "grace"),
    [
        pytest.param(40, 0.8, 6.0, GRACE, id="scaled"),
        pytest.param(200, 5.0, 120.0, 15.0, id="default", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.parametrize("pairing", pairings())
async def test_users_who_reconnect_within_the_grace_stay(
    pairing: Pairing, count: int, every: float, seconds: float, grace: float, start_site: StartSite
) -> None:
    scene = start(start_site, pairing, 3, PRESENCE_GRACE=grace)
    flapping = users(1, count)
    visitors = [
        Visitor(user, GROUP, *scene.servers[number % 2 :], *scene.servers[: number % 2])
        for number, user in enumerate(flapping)
    ]
    async with watching(GROUP, *scene.servers) as watchers, visiting(*visitors):
        await eventually_async(lambda: all_see(watchers, flapping), within=PATIENCE)
        await eventually_async(lambda: scene.were_told(ONLINE, flapping), within=PATIENCE)
        before, connects = sum(each.picture.frames for each in watchers), sum(v.connects for v in visitors)
        async with Flapping(visitors, every):
            await asyncio.sleep(seconds)
        await eventually_async(lambda: all(each.is_in for each in visitors), within=PATIENCE)
        frames, signals = sum(each.picture.frames for each in watchers) - before, scene.signals()
        connects = sum(each.connects for each in visitors) - connects
        await scene.rest(watchers, scene.servers[0], grace=grace)
    measured(
        "presence, users who reconnect",
        pairing,
        users=count,
        reconnects=connects,
        frames=frames,
        signals=signals.total() - count,
    )
    assert connects > count
    assert (frames, signals.total()) == (0, count)
    assert all(each.picture.left == Counter([LAST]) for each in watchers)


@pytest.mark.parametrize("pairing", pairings("core-uvicorn-sqlite"))
async def test_nobody_blinks_in_a_rolling_restart(pairing: Pairing, start_site: StartSite) -> None:
    grace = 8.0
    scene = start(start_site, pairing, 3, PRESENCE_GRACE=grace)
    *restarted, steady = scene.servers
    staying = users(1, 60)
    visitors = [
        Visitor(user, GROUP, *restarted[number % 2 :], *restarted[: number % 2])
        for number, user in enumerate(staying)
    ]
    async with watching(GROUP, steady) as watchers, visiting(*visitors):
        await eventually_async(lambda: all_see(watchers, staying), within=PATIENCE)
        await eventually_async(lambda: scene.were_told(ONLINE, staying), within=PATIENCE)
        before, connects = watchers[0].picture.frames, sum(each.connects for each in visitors)
        for server in restarted:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await eventually_async(lambda: all(each.is_in for each in visitors), within=PATIENCE)
        frames, signals = watchers[0].picture.frames - before, scene.signals()
        connects = sum(each.connects for each in visitors) - connects
        await scene.rest(watchers, steady, grace=grace)
    measured(
        "presence, rolling restart",
        pairing,
        users=len(staying),
        reconnects=connects,
        frames=frames,
        signals=signals.total() - len(staying),
    )
    assert connects >= len(staying)
    assert (frames, signals.total()) == (0, len(staying))
    assert watchers[0].picture.left == Counter([LAST])


class Moving(Repeating):
    """Visitors come and leave, one after the other."""

    def __init__(self, visitors: list[Visitor], every: float = 0.05) -> None:
        self.visitors = visitors
        self.every = every
        self.here = [each.start() for each in visitors[::2]]

    async def step(self) -> None:
        each = random.choice(self.visitors)
        if each in self.here:
            self.here.remove(each)
            await each.stop()
        else:
            self.here.append(each.start())
        await asyncio.sleep(self.every)

    async def __aexit__(self, *exception: object) -> None:
        await super().__aexit__(*exception)


@pytest.mark.parametrize("kind", ["restart", pytest.param("flush", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("pairing", pairings())
async def test_pictures_agree_after_redis_was_emptied(
    pairing: Pairing, kind: str, start_site: StartSite
) -> None:
    grace = 1.0
    scene = start(start_site, pairing, 3, PRESENCE_GRACE=grace)
    visitors = [Visitor(user, GROUP, scene.servers[int(user) % 3]) for user in users(1, 30)]
    visitors += [Visitor("", GROUP, server) for server in scene.servers]
    async with watching(GROUP, *scene.servers) as watchers, visiting():
        moving = Moving(visitors)
        try:
            async with moving:
                await asyncio.sleep(2.0)
                if kind == "restart":
                    await asyncio.to_thread(scene.site.redis.stop)
                    await asyncio.sleep(1.5)
                    await asyncio.to_thread(scene.site.redis.start)
                else:
                    with scene.site.redis.client() as redis:
                        redis.flushall()
                await asyncio.sleep(1.0)
            await eventually_async(lambda: all(each.is_in for each in moving.here), within=PATIENCE)
            settled_at = time.monotonic()

            async def pictures() -> Pictures:
                assert [each.pictures.broken for each in watchers] == [[]] * len(watchers)
                return seen(each.pictures for each in watchers).items()

            present = await all_agree(scene.site, pictures, within=PATIENCE)
            took = time.monotonic() - settled_at
            measured(
                f"presence, Redis {kind}",
                pairing,
                agree_after=took,
                bound=grace + REALTIME["ROUND_INTERVAL"],
                users=present.places,
                anonymous=present.anonymous,
            )
            assert present.pictures == len(watchers)
            # The comparison itself starts a program, which takes seconds.
            assert took < grace + REALTIME["ROUND_INTERVAL"] + 3 * SLACK
        finally:
            await asyncio.gather(*(each.stop() for each in visitors))


@pytest.mark.parametrize("pairing", pairings())
async def test_a_phone_that_sleeps_is_dormant_then_gone(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    scene = start(start_site, pairing, 2)
    server, other = scene.servers
    url = f"ws://{server.address}"
    # Two connections of one user, which fall silent at the same time.
    with Phone(url, GROUP, 2, log=tmp_path / "phone.log", users=["7"]) as phone:
        async with watching(GROUP, server, other) as watchers:
            await eventually_async(lambda: all_see(watchers, ["7"]), within=PATIENCE)
            await eventually_async(
                lambda: scene.site.open_memberships(server) == 3, within=PATIENCE, every=0.2
            )
            phone.freeze()
            asleep_at = time.monotonic()
            with measuring("presence, a phone that sleeps", pairing) as m:
                m.dormant_after = await seconds_until(
                    lambda: scene.dormant() != [], within=PATIENCE, since=asleep_at
                )
                assert scene.signals()["7", OFFLINE] == 0
                m.left_after = await seconds_until(
                    lambda: all_see(watchers, []), within=PATIENCE, since=asleep_at
                )
                await eventually_async(lambda: scene.were_told(OFFLINE, ["7"]), within=PATIENCE)
                m.bound = REALTIME["PING_INTERVAL"] + REALTIME["PONG_TIMEOUT"] + GRACE + TOLD
                phone.thaw()
                woken_at = time.monotonic()
                m.back_after = await seconds_until(
                    lambda: all_see(watchers, ["7"]), within=PATIENCE, since=woken_at
                )
            await eventually_async(lambda: scene.signals()["7", ONLINE] == 2, within=PATIENCE)
            await scene.rest(watchers, other)
            assert scene.site.close_reasons()["ping_timeout"] == 2
            assert scene.dormant() == ["7"]
            assert scene.signals()["7", OFFLINE] == 1
            for each in watchers:
                # The watchers may have come before the phone or after it.
                assert (each.picture.left["7"], each.picture.said_again) == (1, [])
    assert m.left_after < m.bound + SLACK


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_users_of_a_stopped_process_leave_once_and_come_back(
    pairing: Pairing, start_site: StartSite
) -> None:
    scene = start(start_site, pairing, 2)
    stopped, healthy = scene.servers
    guests = users(1, 20)
    visitors = [Visitor(user, GROUP, stopped) for user in guests]
    async with watching(GROUP, healthy) as (watcher,), visiting(*visitors):
        await eventually_async(lambda: watcher.sees(guests), within=PATIENCE)
        await eventually_async(lambda: all(each.is_in for each in visitors), within=PATIENCE)
        stopped.freeze()
        try:
            await eventually_async(lambda: watcher.sees([]), within=FOUND + GRACE + PATIENCE)
            await eventually_async(lambda: scene.were_told(OFFLINE, guests), within=PATIENCE)
        finally:
            stopped.thaw()
        await eventually_async(lambda: watcher.sees(guests), within=PATIENCE)
        await scene.rest([watcher], healthy)
        assert all(each.connects == 2 for each in visitors)
        assert watcher.sees(guests)
        assert watcher.picture.left == Counter([*guests, LAST])
        assert watcher.picture.said_again == []
    expected = Counter({(user, ONLINE): 2 for user in guests}) + Counter((user, OFFLINE) for user in guests)
    assert scene.signals() - Counter([(LAST, ONLINE), (LAST, OFFLINE)]) == expected


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings(database="sqlite"))
async def test_pictures_agree_after_the_database_was_locked(pairing: Pairing, start_site: StartSite) -> None:
    scene = start(start_site, pairing, 3)
    leaving = [Visitor(user, GROUP, scene.servers[int(user) % 3]) for user in users(1, 15)]
    coming = [Visitor(user, GROUP, scene.servers[int(user) % 3]) for user in users(101, 15)]
    async with watching(GROUP, *scene.servers) as watchers, visiting(*leaving):
        await eventually_async(lambda: all_see(watchers, users(1, 15)), within=PATIENCE)
        async with contextlib.AsyncExitStack() as stack:
            with scene.site.database.locked():  # type: ignore[attr-defined]
                await asyncio.gather(*(each.stop() for each in leaving))
                await stack.enter_async_context(visiting(*coming))
                await asyncio.sleep(2 * GRACE)
            await eventually_async(lambda: all_see(watchers, users(101, 15)), within=PATIENCE)
            await scene.rest(watchers, scene.servers[0])
            assert all_see(watchers, users(101, 15))
            assert [each.picture.said_again for each in watchers] == [[]] * 3


@pytest.mark.matrix
@pytest.mark.parametrize("pairing", pairings())
async def test_each_process_tells_each_change_once(pairing: Pairing, start_site: StartSite) -> None:
    scene = start(start_site, pairing, 3)
    *watched, third = scene.servers
    guests = users(1, 12)
    async with watching(GROUP, *watched, *watched) as watchers:
        async with visiting(*(Visitor(user, GROUP, third) for user in guests)):
            await eventually_async(lambda: all_see(watchers, guests), within=PATIENCE)
        await eventually_async(lambda: all_see(watchers, []), within=PATIENCE)
        await scene.rest(watchers, third)
        for each in watchers:
            assert each.picture.joined == each.picture.left == Counter([*guests, LAST])
            assert each.picture.said_again == []
            assert (each.picture.anonymous, each.picture.total) == (len(watchers), 0)
    assert scene.signals() == Counter(
        (user, event) for user in [*guests, LAST] for event in (ONLINE, OFFLINE)
    )


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_a_change_while_redis_delays_a_join_is_seen(pairing: Pairing, start_site: StartSite) -> None:
    # The answer to a join waits for the history, which is in Redis; the change is only in the database.
    scene = start(start_site, pairing, 1, HISTORY={"public.*": {"size": 10, "ttl": 60}})
    (server,) = scene.servers
    visitors = [Visitor(user, GROUP, server) for user in users(1, 3)]
    async with (
        watching(GROUP, server) as (first,),
        Watcher(server, GROUP) as late,
        visiting(*visitors),
    ):
        await eventually_async(lambda: first.sees(users(1, 3)), within=PATIENCE)
        await visitors[0].stop()
        await asyncio.sleep(GRACE / 2)
        scene.site.redis.freeze()
        try:
            since = {"epoch": "0", "offset": 1}
            joining = asyncio.create_task(late.join(GROUP, presence=True, since=since))
            await eventually_async(lambda: first.sees(users(2, 2)), within=PATIENCE)
        finally:
            scene.site.redis.thaw()
        assert (await joining)["type"] == "joined"
        await scene.rest([first, late], server)
        assert late.sees(users(2, 2))
