"""Recovery under all faults together: no message is lost, doubled or out of order, unless clients are told.

    python -m tests.faults.chaos --minutes 2 --clients 1000 --seed 7 --layer core --server daphne

Clients are spread over five groups with history and two servers. Publishers and some of the clients publish
all the time, and repeat a publish that failed with the same id. One server after the other is killed, Redis
is restarted once with its data and once empty, and clients sleep. With `--more`, servers and Redis also stand
still for seconds, connections to Redis are cut, and clients hang up. In the end, the judge compares what
publishes returned with what each client was shown. The program prints its progress, and after a failure the
command that repeats it.
"""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import django

from realtime.closing import CloseReason
from tests.support import by_hand
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.judge import Verdict, judge
from tests.support.assertions.measured import measured
from tests.support.by_hand import say
from tests.support.clients.following import Event, Shown
from tests.support.clients.recovering import RecoveringClient, logs, many, running
from tests.support.clients.talking import (
    ClientSource,
    ServerSource,
    Source,
    all_stop,
    like_a_process_of,
    publications,
    talking,
)
from tests.support.pairings import Pairing
from tests.support.programs.servers import DURABLE, Program, RedisServer, WebServer
from tests.support.programs.site import Site

GROUPS = [f"public.history-{number}" for number in range(5)]
SERVERS = 2
#: Scaled down, so that clients that sleep are dropped and come back within the two minutes.
REALTIME = {
    "PING_INTERVAL": 4.0,
    "PONG_TIMEOUT": 2.0,
    "PROBE_AFTER": 1.0,
    "ROUND_INTERVAL": 2.0,
    "ROUND_TIMEOUT": 1.0,
    "MAX_SILENCE": 10.0,
    "RECONNECT_WINDOW": 1.0,
    "HISTORY": {"public.history-*": {"size": 300, "ttl": 300}},
}
#: Clients that publish as well; each publishes once in this many seconds.
TALKERS, TALK_EVERY = 5, 1.0
#: With more faults, clients that hang up in one second and come back immediately.
HANG_UPS = 5
#: Seconds for everything to arrive when nothing is broken any more.
QUIESCENCE = 45.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Action:
    """One fault.

    Attributes:
        at: Seconds from the start.
        what: "kill-server", "restart-redis", "empty-redis" or "sleep"; with more faults also "freeze-server",
            "freeze-redis", "cut-redis" and "hang-up".
        target: The number of the server or client.
        seconds: For how long it lasts.
    """

    at: float
    what: str
    target: int
    seconds: float


def plan(seed: int, seconds: float, every: float, clients: int, *, more: bool = False) -> list[Action]:
    """Return the faults of this seed, in their order.

    Args:
        seed: The seed.
        seconds: The length of the plan.
        every: Seconds between two kills of a server.
        clients: The number of clients.
        more: Servers and Redis also stand still, connections to Redis are cut, and clients hang up.
    """
    chance = random.Random(seed)
    actions = [
        Action(every * kill, "kill-server", chance.randrange(SERVERS), chance.uniform(0.2, every / 4))
        for kill in range(1, int((seconds - 1) / every) + 1)
    ]
    for what, share in (("restart-redis", 0.35), ("empty-redis", 0.7)):
        at = seconds * share + chance.uniform(0.0, every)
        actions.append(Action(at, what, 0, chance.uniform(0.2, 1.5)))
    for client in chance.sample(range(clients), clients // 10):
        asleep = chance.uniform(1.0, 10.0)
        actions.append(Action(chance.uniform(0.0, seconds * 0.9), "sleep", client, asleep))
    for _ in range(int(seconds / every) if more else 0):
        for what, longest in (("freeze-server", 6.0), ("freeze-redis", 3.0), ("cut-redis", 0.0)):
            at, target = chance.uniform(0.0, seconds * 0.9), chance.randrange(SERVERS)
            actions.append(Action(at, what, target, chance.uniform(0.0, longest)))
    for _ in range(int(seconds * HANG_UPS) if more else 0):
        actions.append(Action(chance.uniform(0.0, seconds), "hang-up", chance.randrange(clients), 0.0))
    return sorted(actions, key=lambda action: action.at)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of a chaos."""

    clients: int
    published: int
    """Publishes that returned."""
    failed: int
    """Publishes that failed, and were repeated with the same id."""
    shown: int
    """Messages that clients were shown."""
    lost: int
    doubled: int
    out_of_order: int
    kills: int
    """Servers that were killed."""
    connects: int
    recoveries: int
    """Joins that were answered by `recovered: true`."""
    recovered: int
    """Messages that followed these answers."""
    told: int
    """Times that a client was told by `reset` or `recovered: false`, in one group."""
    covered: int
    """Messages that Redis lost, and that a client was not shown and was told so."""
    repeated: int
    """Messages that were shown again after Redis had lost their id."""
    quiet_after: float
    """Seconds until every client had everything, after the last fault."""


class Chaos:
    """A site, its clients, its publishers, and the faults of a plan."""

    def __init__(self, site: Site, say: Say, *, seed: int, clients: int, per_second: float) -> None:
        self.site = site
        self.say = say
        self.servers: list[WebServer] = [site.serve() for _ in range(SERVERS)]
        site.reaper()
        urls = [f"ws://{each.address}" for each in self.servers]
        self.clients = many(clients, urls, *GROUPS, seed=seed)
        every = len(GROUPS) / per_second
        self.sources: list[Source] = [
            ServerSource(f"server {number}", group, every=every) for number, group in enumerate(GROUPS)
        ]
        self.sources += [
            ClientSource(each, each.home, every=TALK_EVERY) for each in self.clients[: min(TALKERS, clients)]
        ]
        self.done: Counter[str] = Counter()
        self.emptied_at = float("inf")
        """The time of the monotonic clock when Redis was stopped to be emptied."""
        self._turns = {id(each): asyncio.Lock() for each in [*self.servers, site.redis]}

    async def run(self, actions: Sequence[Action]) -> None:
        """Cause the faults at their times.

        Raises:
            ExceptionGroup: The errors of programs that did not start again.
        """
        began, told_at = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as under_way:
            for action in actions:
                await asyncio.sleep(max(0.0, began + action.at - time.monotonic()))
                under_way.create_task(self._do(action))
                if action.at - told_at >= 10.0:
                    told_at = action.at
                    live = sum(each.live for each in self.clients)
                    self.say(
                        f"{action.at:6.0f} s  {live} clients are live; {dict(sorted(self.done.items()))}"
                    )

    async def _do(self, action: Action) -> None:
        match action.what:
            case "kill-server":
                await self._restart(self.servers[action.target], action.seconds)
            case "restart-redis":
                await self._restart(self.site.redis, action.seconds)
            case "empty-redis":
                self.emptied_at = time.monotonic()
                await self._restart(self.site.redis, action.seconds, empty=True)
            case "freeze-server":
                await self._freeze(self.servers[action.target], action.seconds)
            case "freeze-redis":
                await self._freeze(self.site.redis, action.seconds)
            case "cut-redis":
                await self._cut()
            case "hang-up":
                self.clients[action.target].hang_up()
            case "sleep":
                await self._sleep(self.clients[action.target], action.seconds)
        self.done[action.what] += 1

    async def _restart(self, program: Program, seconds: float, *, empty: bool = False) -> None:
        async with self._turns[id(program)]:
            await asyncio.to_thread(program.kill)
            if empty:
                self.site.redis.forget()
            await asyncio.sleep(seconds)
            await asyncio.to_thread(program.start)

    async def _freeze(self, program: Program, seconds: float) -> None:
        async with self._turns[id(program)]:
            program.freeze()
            await asyncio.sleep(seconds)
            program.thaw()

    async def _cut(self) -> None:
        """Have Redis close all of its connections."""
        async with self._turns[id(self.site.redis)]:
            for kind in ("pubsub", "normal"):
                with self.site.redis.client() as redis:
                    redis.client_kill_filter(_type=kind)

    async def _sleep(self, client: RecoveringClient, seconds: float) -> None:
        if client.live:
            client.fall_asleep()
            await asyncio.sleep(seconds)
            client.wake()

    async def all_arrived(self) -> None:
        """Publish a last message to each group, and wait until each member was shown it.

        A member that was told only after this message that others are missing would not be shown it.
        """
        await self.all_live()
        last = [ServerSource(f"last {group}", group) for group in GROUPS]
        self.sources += last
        await asyncio.gather(*(each.publish() for each in last))

        def none_is_missing() -> bool:
            found = [
                f"{client.name} in {group}: {each.since}, live {each.live}, connected {client.connected}"
                for client in self.clients
                for group, each in client.groups.items()
                if not _is_from(each.events[-1:], f"last {group}")
            ]
            assert not found, f"{len(found)} have not all: {found[:5]}"
            return True

        await eventually_async(none_is_missing, within=QUIESCENCE, every=0.5)

    async def all_live(self) -> None:
        """Wait until each client is connected and has recovered."""
        await eventually_async(lambda: all(each.live for each in self.clients), within=QUIESCENCE, every=0.2)

    def told(self) -> Iterator[tuple[str, list[float]]]:
        """Return, for each client and group, when it was told that messages may be missing."""
        for client in self.clients:
            for group in client.groups:
                yield f"{client.name} in {group}", [each.at for each in client.told(group)]


def _is_from(events: Sequence[Event], source: str) -> bool:
    return any(isinstance(each, Shown) and each.number[0] == source for each in events)


async def chaos(
    site: Site,
    *,
    seed: int,
    seconds: float,
    every: float,
    clients: int,
    per_second: float,
    say: Say,
    more: bool = False,
) -> Outcome:
    """Run the plan of this seed against a site that was started with `REALTIME` and a `durable` Redis.

    Args:
        site: The site.
        seed: The seed of the plan.
        seconds: The length of the plan.
        every: Seconds between two kills of a server.
        clients: The number of clients.
        per_second: Messages that publishers send in one second, over all groups.
        say: Called with lines about the progress.
        more: There are more kinds of faults, see `plan`.

    Raises:
        AssertionError: A rule of recovery was broken.
    """
    chaos = Chaos(site, say, seed=seed, clients=clients, per_second=per_second)
    async with like_a_process_of(site), running(chaos.clients):
        await chaos.all_live()
        say(f"{clients} clients are live")
        async with talking(chaos.sources):
            await chaos.run(plan(seed, seconds, every, clients, more=more))
            say("nothing is broken any more")
            over_at = time.monotonic()
            await all_stop(chaos.sources)
            await chaos.all_arrived()
            quiet_after = time.monotonic() - over_at
    verdict = judge(publications(chaos.sources), logs(chaos.clients))
    say(f"verdict: {verdict}")
    outcome = outcome_of(chaos, verdict, quiet_after)
    assert verdict.whole, str(verdict)
    assert [sentence for each in chaos.clients for sentence in each.broken] == []
    early = [name for name, times in chaos.told() if any(at < chaos.emptied_at for at in times)]
    assert early == [], "told that messages are missing, although Redis had them all"
    untold = [name for name, times in chaos.told() if not any(at > chaos.emptied_at for at in times)]
    assert untold == [], "not told that Redis has lost the history"
    assert not (set(site.close_reasons()) & {CloseReason.HANDLER_ERROR.value}), site.close_reasons()
    return outcome


def outcome_of(chaos: Chaos, verdict: Verdict, quiet_after: float) -> Outcome:
    following = [each for client in chaos.clients for each in client.groups.values()]
    return Outcome(
        clients=len(chaos.clients),
        published=len(publications(chaos.sources)),
        failed=sum(each.failures for each in chaos.sources),
        shown=verdict.shown,
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
        out_of_order=len(verdict.out_of_order),
        kills=chaos.done["kill-server"],
        connects=sum(each.connects for each in chaos.clients),
        recoveries=sum(len(each.recoveries) for each in following),
        recovered=sum(sum(each.recoveries) for each in following),
        told=sum(len(times) for _, times in chaos.told()),
        covered=verdict.covered,
        repeated=verdict.repeated,
        quiet_after=quiet_after,
    )


def durable(folder: Path) -> RedisServer:
    """Return a Redis that has its data when it starts again, unless it is told to forget it."""
    return RedisServer(folder, options=DURABLE)


def command(
    pairing: Pairing,
    *,
    seed: int,
    seconds: float,
    every: float,
    clients: int,
    per_second: float,
    more: bool = False,
) -> str:
    """Return the command line that repeats a chaos."""
    options = {"minutes": f"{seconds / 60:g}", "every": f"{every:g}", "clients": str(clients)}
    options |= {"per-second": f"{per_second:g}", "seed": str(seed)}
    return by_hand.command("tests.faults.chaos", pairing, options, *(["--more"] if more else []))


def main() -> None:
    parser = by_hand.parser(__doc__, minutes=2.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--per-second", type=float, default=20.0, help="messages of the publishers")
    parser.add_argument("--more", action="store_true", help="more kinds of faults")
    options = parser.parse_args()
    pairing, seconds = by_hand.pairing_of(options), options.minutes * 60
    if options.plan:
        for action in plan(options.seed, seconds, options.every, options.clients, more=options.more):
            say(str(action))
        return
    django.setup()
    size = {"seed": options.seed, "seconds": seconds, "every": options.every}
    size |= {"clients": options.clients, "per_second": options.per_second, "more": options.more}
    again = command(pairing, **size)
    say(f"seed {options.seed}; again: {again}")
    with by_hand.site_by_hand("chaos", pairing, again, durable, **REALTIME) as site:
        outcome = asyncio.run(chaos(site, **size, say=say))
    measured(f"chaos of {options.minutes:g} minutes", pairing, seed=options.seed, **asdict(outcome))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
    sys.exit(main())
