"""All faults together: clients come, go, sleep and vanish, while servers, the reaper and Redis are killed.

    python -m tests.faults.churn --minutes 30 --seed 7 --layer core --server daphne --database sqlite

The actions follow from the seed (`tests.support.faults.churn_plan`). When nothing is broken any more, open
sockets, open records and the memberships in the layer must be exactly the same. Each closed record must have
been announced once by `connection_closed`, in one of all servers and reapers. The program prints its
progress, and after a failure the command that repeats it.

With `--presence`, which is the default, clients are users, some of them with several connections, and some
are anonymous. Now and then a client changes to another server, and its newer connection supersedes the older
one. Each client keeps a picture of the users in its groups. In the end these pictures, `presence()`,
`is_online()`, the rows of presence and the open memberships must be exactly the same. Each change that the
database noted must have been told once by `user_online` or `user_offline`, and the two alternate for each
user.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass

import redis

from realtime.errors import LayerUnavailable
from tests.support import by_hand
from tests.support.assertions.agreement import Agreement, Witnesses
from tests.support.assertions.announced import Announced, signals_equal_records
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.growth import (
    MANY_WAVES,
    WAVES,
    Growth,
    connections_had,
    growth_per_connection,
    memory,
    wave,
)
from tests.support.assertions.measured import measured
from tests.support.assertions.present import Pictures, Present, all_agree
from tests.support.assertions.stays import Told, note_changes, signals_equal_changes
from tests.support.by_hand import say
from tests.support.clients.phone import OUT_OF_ORDER, Phone
from tests.support.clients.torrent import Torrent
from tests.support.faults.churn_plan import GROUPS, SERVERS, STEADY, Action, plan
from tests.support.pairings import Pairing
from tests.support.programs.servers import Program, WebServer
from tests.support.programs.site import Site

#: Scaled down, so that two minutes have the events of half an hour.
REALTIME = {
    "PING_INTERVAL": 4.0,
    "PONG_TIMEOUT": 2.0,
    "PROBE_AFTER": 1.0,
    "ROUND_INTERVAL": 2.0,
    "ROUND_TIMEOUT": 1.0,
    "MAX_SILENCE": 10.0,
    "PRESENCE_GRACE": 3.0,
}
#: The application with users.
WITH_USERS = "tests.support.applications.users:application"
#: Seconds for the system to come to rest when nothing is broken any more.
QUIESCENCE = 45.0
#: Blocks of Python's objects that a connection may leave in use in the memory of a process: a seventieth of
#: what an open connection needs, and more than caches that fill up once, such as those of statements.
BLOCKS_PER_CONNECTION = 10.0
#: The same in bytes: above the fragmentation of memory over many connections, though not over a few.
GROWTH_PER_CONNECTION = 4096
#: Bytes that a process needs once, for what it has not done before.
GROWTH_ONCE = 8 * 2**20
#: Seconds from which a churn is a long one, with time for many waves.
LONG = 600.0

#: Deliveries a second that clients took from three servers together, all on one machine with two processors.
DELIVERABLE = 120_000
#: A burst asks for this many times as many deliveries, with at most as many messages as a publisher can send.
BURST = 5
MAX_PER_SECOND = 12_000
BURST_BYTES = 200
LARGEST_GROUP = """
    SELECT "group" AS name, count(*) AS members FROM realtime_membership
    WHERE left_at IS NULL GROUP BY "group" ORDER BY members DESC, name LIMIT 1
"""
OPEN_RECORDS = "SELECT id FROM realtime_connection WHERE closed_at IS NULL"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a churn. Counts are from the time when it has come to rest."""

    actions: int
    bursts: int
    burst_messages: int
    burst_deliveries: int
    """Messages of bursts, times the members of their groups when the burst began."""
    ends: dict[str, int]
    """The number of connections that ended for each reason, until nothing was broken any more."""
    sockets: int
    """Open sockets; also the connections of processes, and the open records."""
    memberships: int
    """Memberships in the layer, and in the records."""
    rest_after: float
    """Seconds until these numbers agreed."""
    grown_mib: float
    """The growth of the process that was never killed."""
    growth_bytes_per_connection: float
    """The growth after the churn, in waves of connections; half of them are closed and half vanish."""
    growth_blocks_per_connection: float
    """The same in blocks of Python's objects; an open connection has about 700."""
    announced: int
    """Ends that `connection_closed` announced, once each; also the closed records."""
    cut_off: int
    """Ends that were not announced, because the process that closed the record was killed at that moment."""
    presence: dict[str, int]
    """With presence: the numbers of `Present` at rest, and signals and changes over the whole churn."""


class Churn:
    """A site, and the actions of a plan on it."""

    def __init__(self, site: Site, say: Say, *, presence: bool) -> None:
        self.site = site
        self.say = say
        self.presence = presence
        self.signals = site.folder / "signals.jsonl"
        log = {"SIGNALS_LOG": str(self.signals)}
        if presence:
            note_changes(site)
        serve = functools.partial(site.serve, application=WITH_USERS) if presence else site.serve
        self.servers: list[WebServer] = [serve(**log) for _ in range(SERVERS)]
        self.reaper: Program = site.reaper(**log)
        self.kills: list[float] = []
        """The times at which servers and reapers were killed, as seconds since 1970."""
        self.phones: dict[str, Phone] = {}
        self.done: Counter[str] = Counter()
        self.burst_messages = 0
        self.burst_deliveries = 0
        """Messages of bursts, times the members of their groups."""
        # Actions on one target run in their order, and actions on different targets side by side.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._logs = (site.folder / f"phone-{number}.log" for number in range(10**6))

    async def run(self, seed: int, seconds: float) -> None:
        """Run the plan of this seed.

        Raises:
            ExceptionGroup: The errors of actions that failed.
        """
        began, told_at = time.monotonic(), 0.0
        async with asyncio.TaskGroup() as under_way:
            for action in plan(seed, seconds):
                await asyncio.sleep(max(0.0, began + action.at - time.monotonic()))
                under_way.create_task(self._in_turn(action))
                if action.at - told_at >= 10.0:
                    told_at = action.at
                    self.say(f"{action.at:6.0f} s  {dict(sorted(self.done.items()))}")

    async def _in_turn(self, action: Action) -> None:
        async with self._turns[action.who]:
            await self._do(action)
            self.done[action.what] += 1

    async def _do(self, action: Action) -> None:
        match action.what:
            case "connect":
                urls = [server.websocket("").rstrip("/") for server in self.servers]
                url, *others = urls[action.server :] + urls[: action.server]
                users = users_of(action.who, action.count) if self.presence else None
                log = next(self._logs)
                phone = Phone(url, action.group, action.count, log=log, users=users, others=others)
                self.phones[action.who] = await asyncio.to_thread(phone.start)
            case "disconnect":
                await self._end(self.phones.pop(action.who))
            case "vanish":
                await asyncio.to_thread(self.phones.pop(action.who).kill)
            case "sleep":
                await self._frozen(self.phones[action.who], action.seconds)
            case "join" | "leave":
                self.phones[action.who].tell(do=action.what, group=action.group)
            case "publish":
                self.phones[action.who].tell(do="publish", group=action.group, data=action.at)
            case "burst":
                await self._burst(action.seconds)
            case "kill-server" | "stop-server":
                server = self.servers[int(action.who.split()[1])]
                await self._restart(server, action.seconds, gently=action.what == "stop-server")
            case "restart-redis":
                await self._restart(self.site.redis, action.seconds, gently=True)
            case "freeze-redis":
                await self._frozen(self.site.redis, action.seconds)
            case "flush-redis":
                with self.site.redis.client() as redis:
                    redis.flushall()
            case "kill-reaper":
                await self._restart(self.reaper, action.seconds, gently=False)

    async def _burst(self, seconds: float) -> None:
        """Publish to the largest group, for `seconds`, far more than can be written to its members."""
        largest = await asyncio.to_thread(self.site.database.query, LARGEST_GROUP)
        for row in largest:
            torrent = Torrent(
                self.site,
                row["name"],
                per_second=min(MAX_PER_SECOND, BURST * DELIVERABLE / row["members"]),
                size=BURST_BYTES,
                tag=f"burst {self.done['burst']}",
            )
            # Redis may be down; then the messages reach no member.
            with contextlib.suppress(redis.RedisError, OSError, LayerUnavailable):
                async with torrent:
                    await asyncio.sleep(seconds)
            self.burst_messages += torrent.published
            self.burst_deliveries += torrent.published * row["members"]

    async def _end(self, phone: Phone) -> None:
        phone.off()
        try:
            await asyncio.to_thread(phone.exit_code, within=30.0)
        finally:
            await asyncio.to_thread(phone.kill)

    async def _frozen(self, program: Program, seconds: float) -> None:
        program.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            program.thaw()

    async def _restart(self, program: Program, seconds: float, *, gently: bool) -> None:
        await asyncio.to_thread(program.stop if gently else program.kill)
        if not gently:
            self.kills.append(time.time())
        await asyncio.sleep(seconds)
        await asyncio.to_thread(program.start)

    def settle(self) -> None:
        """Have clients change their server no more."""
        for phone in self.phones.values():
            phone.tell(do="stay")

    async def go_home(self) -> None:
        """Have every client leave."""
        await asyncio.gather(*(self._end(phone) for phone in self.phones.values()))
        self.phones.clear()

    def close(self) -> None:
        for phone in self.phones.values():
            phone.kill()


def users_of(phone: str, count: int) -> list[str]:
    """Return the user of each client of a phone; empty for an anonymous client.

    Two phones share eight users, and a phone with more clients has users with several connections. So some
    users always have another connection elsewhere, and others leave.
    """
    pair = int(phone.split()[1]) // 2
    return ["" if number % 5 == 4 else str(1 + pair * 8 + number % 8) for number in range(count)]


async def churn(site: Site, *, seed: int, seconds: float, say: Say, presence: bool = True) -> Outcome:
    """Run the plan of this seed against a site that was started with `REALTIME`.

    Args:
        site: The site.
        seed: The seed of the plan.
        seconds: The length of the plan.
        say: Called with lines about the progress.
        presence: Clients are users, and keep pictures.

    Raises:
        AssertionError: Something is left over, or missing.
    """
    chaos = Churn(site, say, presence=presence)
    witnesses = Witnesses(site, chaos.servers, chaos.phones.values())
    steady = chaos.servers[STEADY]
    try:
        await wave(steady)
        before, had = (await memory(steady)).resident, connections_had(steady)
        await chaos.run(seed, seconds)
        say("nothing is broken any more")
        chaos.settle()
        rest, rest_after, ends = await at_rest(site, witnesses, say)
        present = await presence_agrees(chaos, witnesses) if presence else {}
        await chaos.go_home()
        await nothing_is_left(site, witnesses)
        if presence:
            told = await all_are_offline(chaos)
            say(f"signals equal changes: {told}")
            present |= {f"signals_{name}": number for name, number in asdict(told).items()}
        grown, had = (await memory(steady)).resident - before, connections_had(steady) - had
        growth = await memory_is_kept(steady, grown, had, long=seconds >= LONG, say=say)
        announced = await all_announced(chaos)
        say(f"signals equal records: {announced}")
    finally:
        chaos.close()
    return Outcome(
        actions=sum(chaos.done.values()),
        bursts=chaos.done["burst"],
        burst_messages=chaos.burst_messages,
        burst_deliveries=chaos.burst_deliveries,
        ends=ends,
        sockets=rest.sockets,
        memberships=rest.memberships,
        rest_after=rest_after,
        grown_mib=grown / 2**20,
        growth_bytes_per_connection=growth.bytes,
        growth_blocks_per_connection=growth.blocks,
        announced=announced.closed,
        cut_off=announced.cut_off,
        presence=present,
    )


async def presence_agrees(chaos: Churn, witnesses: Witnesses) -> dict[str, int]:
    """Wait until all that know who is present agree, and compare the signals with the changes."""

    async def pictures() -> Pictures:
        reports = await witnesses.reports()
        assert [sentence for each in reports for sentence in each.unlike] == []
        return sum((Counter(dict(each.pictures)) for each in reports), Counter()).items()

    present = await all_agree(chaos.site, pictures, GROUPS, within=QUIESCENCE)
    chaos.say(f"all know who is present: {present}")
    # A client is told of all groups that it is in.
    members = sum(sum(each.groups.values()) for each in await witnesses.reports())
    assert present.pictures == members, f"{members} memberships, {present}"
    await signals_told_all(chaos, present.online)
    return asdict(present)


async def signals_told_all(chaos: Churn, online: int) -> Told:
    """Check the signals against the changes in the database, while `online` users are online."""

    def told() -> Told:
        # The last changes were made just now.
        found = signals_equal_changes(chaos.site, chaos.signals, chaos.kills)
        assert found.users == online, f"{online} users are online: {found}"
        return found

    return await eventually_async(told, within=10.0, every=0.5)


async def all_are_offline(chaos: Churn) -> Told:
    """Wait until no user is present, and check the signals of the whole churn."""

    async def no_pictures() -> Pictures:
        return ()

    rest = await all_agree(chaos.site, no_pictures, GROUPS, within=QUIESCENCE)
    assert rest == Present(online=0, places=0, anonymous=0, pictures=0)
    await eventually_async(
        lambda: chaos.site.database.value("SELECT count(*) FROM realtime_presencewatch") == 0, within=10.0
    )
    return await signals_told_all(chaos, 0)


async def all_announced(chaos: Churn) -> Announced:
    """Wait until no record is open, and compare the signals with the records."""
    async with asyncio.timeout(QUIESCENCE):
        while await asyncio.to_thread(chaos.site.database.query, OPEN_RECORDS):
            await asyncio.sleep(0.5)
    # The last records were closed just now.
    await asyncio.sleep(2.0)
    return signals_equal_records(chaos.site, chaos.signals, chaos.kills)


async def at_rest(site: Site, witnesses: Witnesses, say: Say) -> tuple[Agreement, float, dict[str, int]]:
    """Wait until all witnesses agree, and check that a message reaches every member.

    Returns:
        Their agreement, the seconds until then, and the ends of connections by reason.
    """
    began = time.monotonic()
    rest = await witnesses.agree(within=QUIESCENCE)
    rest_after, ends = time.monotonic() - began, ends_by_reason(site)
    say(f"at rest after {rest_after:.1f} s: {rest}, {ends}")
    await witnesses.all_reached(GROUPS)
    return rest, rest_after, ends


async def nothing_is_left(site: Site, witnesses: Witnesses) -> None:
    """Check, after all clients have left, that no message came out of order and that everything is empty."""
    assert not out_of_order(site)
    empty = await witnesses.agree(within=QUIESCENCE)
    assert empty == Agreement(sockets=0, memberships=0, groups=0)


async def memory_is_kept(server: WebServer, grown: int, had: int, *, long: bool, say: Say) -> Growth:
    """Check that a server has not grown too much, and measure its growth in waves of connections.

    Args:
        server: The server that was never killed.
        grown: The bytes by which it has grown in the churn.
        had: The number of its connections in the churn.
        long: True after a long churn; then there are more waves, and bytes are judged as well.
        say: Called with lines about the progress.
    """
    say(f"the process that was never killed has grown by {grown / 2**20:.1f} MiB with {had} connections")
    assert grown < GROWTH_ONCE + had * GROWTH_PER_CONNECTION
    growth = await growth_per_connection(server, MANY_WAVES if long else WAVES)
    say(f"then for each connection by {growth.bytes:.0f} bytes and {growth.blocks:.2f} blocks")
    assert growth.blocks < BLOCKS_PER_CONNECTION
    assert growth.bytes < GROWTH_PER_CONNECTION or not long
    return growth


def out_of_order(site: Site) -> list[str]:
    """Return the lines that phones logged about messages of one burst that arrived twice or out of order."""
    logs = (log.read_text(errors="replace") for log in site.folder.glob("phone-*.log"))
    return [line for text in logs for line in text.splitlines() if line.startswith(OUT_OF_ORDER)]


def ends_by_reason(site: Site) -> dict[str, int]:
    rows = site.database.query(
        "SELECT close_reason, count(*) AS number FROM realtime_connection"
        " WHERE closed_at IS NOT NULL GROUP BY close_reason ORDER BY close_reason"
    )
    return {row["close_reason"]: row["number"] for row in rows}


def command(pairing: Pairing, seed: int, seconds: float, *, presence: bool = True) -> str:
    """Return the command line that repeats a churn."""
    options = {"minutes": f"{seconds / 60:g}", "seed": str(seed)}
    flags = () if presence else ("--no-presence",)
    return by_hand.command("tests.faults.churn", pairing, options, *flags)


def main() -> None:
    asked = by_hand.parser(__doc__, minutes=30.0)
    asked.add_argument("--presence", action=argparse.BooleanOptionalAction, default=True)
    options = asked.parse_args()
    pairing, seconds = by_hand.pairing_of(options), options.minutes * 60
    if options.plan:
        for action in plan(options.seed, seconds):
            say(str(action))
        return
    again = command(pairing, options.seed, seconds, presence=options.presence)
    say(f"seed {options.seed}; again: {again}")
    with by_hand.site_by_hand("churn", pairing, again, **REALTIME) as site:
        outcome = asyncio.run(
            churn(site, seed=options.seed, seconds=seconds, say=say, presence=options.presence)
        )
    measured(f"churn of {options.minutes:g} minutes", pairing, seed=options.seed, **asdict(outcome))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.live")
    sys.exit(main())
