"""Clients in a process that can be stopped and killed, and that reconnect by themselves like real ones.

`python -m tests.support.clients.phone URL GROUP --count N` opens N clients with GROUP as their first group,
and then obeys its input, a JSON object a line:

    {"do": "join", "group": G}                       every client
    {"do": "leave", "group": G}                      every client
    {"do": "publish", "group": G, "data": ANY}       the first client that is open
    {"do": "stay"}                                   no client changes its server any more
    {"do": "report", "number": N}                    prints one line of JSON: see `Report`

At the end of the input every client closes in an orderly way. A client that the other side closed reconnects
after a moment, and joins its groups again.

With `--users 7,7,,8` the clients are users of `tests.support.applications.users`, in turn; an empty name
stands for an anonymous client. They join with `"presence": true` and keep a picture of each group. From time
to time such a client changes to the next server while its connection is open, as a phone does that changes
its network. The newer connection must supersede the older one.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from websockets.exceptions import WebSocketException

from tests.support.assertions.eventually import NeverHappened
from tests.support.clients.pictures import Pictures, Seen, seen
from tests.support.clients.websocket import Client, Frame
from tests.support.programs.servers import Program

#: Seconds between two attempts to connect or to join: jittered, and short, so that a test sees many.
PAUSE = (0.2, 1.0)
#: The chance that a client changes its server at one of these pauses: about every half minute.
CHANGE = 0.02
#: Seconds until a superseded connection has ended, also if a message between servers is lost.
SUPERSEDED_WITHIN = 20.0
SUPERSEDED = 4509
#: Seconds for an answer to a command; then the client connects again.
ANSWER = 12.0
CLOSED = (WebSocketException, OSError, TimeoutError, NeverHappened)


#: The start of a line in the log about messages that were received in another order than they were sent.
OUT_OF_ORDER = "out of order"


@dataclass(frozen=True, slots=True)
class Report:
    """The state of one phone."""

    number: int
    clients: int
    open: int
    settled: bool
    """True if every client is open and in exactly its wanted groups."""
    groups: dict[str, int]
    """The number of its clients in each group."""
    seen: dict[str, int]
    """The number of arrivals of each final message."""
    connects: int
    pictures: list[tuple[Seen, int]]
    """Each picture of a group, and the number of its clients that have it."""
    unlike: list[str]
    """Sentences about frames that break the protocol of presence."""


class PhoneClient(Client):
    """A client that keeps no message of a burst, and only checks their order.

    Of frames about presence it keeps the pictures.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pictures = Pictures()
        self._last: dict[tuple[str, str], int] = {}

    def _note(self, frame: Frame) -> None:
        self.pictures.take(frame)
        if frame["type"] == "presence":
            return
        data = frame.get("data")
        if frame["type"] != "message" or not isinstance(data, list):
            super()._note(frame)
            return
        tag, number, _ = data
        burst = frame["group"], tag
        if number <= self._last.get(burst, -1):
            print(f"{OUT_OF_ORDER}: {burst} {number} after {self._last[burst]}", flush=True)  # noqa: T201 - its product
        self._last[burst] = number


class Member:
    """One client of the phone, with the groups that it wants to be in.

    Args:
        urls: The servers. A client without presence only uses the first one.
        home: The group that it is always in.
        user: The user that it says it is; empty if it is anonymous. None for a client without presence.
    """

    def __init__(self, urls: Sequence[str], home: str, user: str | None) -> None:
        self.presence = {} if user is None else {"presence": True}
        query = ""
        if user is not None:
            name = {"user": user} if user else {}
            query = "?" + urlencode({**name, "client": uuid.uuid4().hex})
        servers = urls if self.presence else urls[:1]
        self._urls = itertools.cycle([f"{url}/ws/{home}/{query}" for url in servers])
        self.may_change = len(servers) > 1
        self.home = home
        self.wanted = {home}
        self.joined: set[str] = set()
        self.client: PhoneClient | None = None
        self.connects = 0
        self.off = False
        self.seen: Counter[str] = Counter()
        self.unlike: list[str] = []
        self._changed = asyncio.Event()
        self._older: set[asyncio.Task[None]] = set()
        """Waits for connections that a newer one supersedes."""

    @property
    def settled(self) -> bool:
        return self.client is not None and self.client.is_open and self.joined == self.wanted

    def want(self, group: str, *, member: bool) -> None:
        if group != self.home:
            (self.wanted.add if member else self.wanted.discard)(group)
            self._changed.set()

    def close(self) -> None:
        self.off = True
        self._changed.set()

    async def live(self) -> None:
        """Connect again and again, until `close` was called and the client has closed."""
        older: PhoneClient | None = None
        while not self.off:
            client, changes = PhoneClient(next(self._urls)), False
            with contextlib.suppress(*CLOSED):
                await client.open()
                self.client = client
                self.connects += 1
                await client.welcomed()
                if older is not None:
                    self._leave_to_server(older)
                    older = None
                # A client with presence joins its home once more, to be told of its users.
                self.joined = set() if self.presence else {self.home}
                while client.is_open and not self.off and not changes:
                    await self._settle(client)
                    await self._pause(*PAUSE)
                    changes = self.may_change and random.random() < CHANGE
            if client.close_code == SUPERSEDED:
                self.unlike.append(f"the newest connection was superseded: {client.url}")
            # A client that changes its server has welcomed the next one before it forgets this one.
            self.client, self.joined = None, set()
            if changes and client.is_open:
                older = client
                continue
            await self._end(client)
            if older is not None:
                await self._end(older)
                older = None
            if not self.off:
                await asyncio.sleep(random.uniform(*PAUSE))
        if older is not None:
            await self._end(older)
        await asyncio.gather(*self._older)

    def _leave_to_server(self, older: PhoneClient) -> None:
        """Wait in the background until the server has closed an older connection."""
        waiting = asyncio.create_task(self._superseded(older))
        self._older.add(waiting)
        waiting.add_done_callback(self._older.discard)

    async def _superseded(self, older: PhoneClient) -> None:
        try:
            # Its server may also have ended it for another reason, or have been killed.
            await older.closes(within=SUPERSEDED_WITHIN)
        except NeverHappened:
            self.unlike.append(f"an older connection is still open: {older.url}")
        await self._end(older)

    async def _end(self, client: PhoneClient) -> None:
        with contextlib.suppress(*CLOSED):
            await client.close()
        self._count(client)

    async def _settle(self, client: Client) -> None:
        """Join and leave one group after the other, until all are as wanted or an answer fails."""
        for group in sorted(self.wanted ^ self.joined):
            join = group in self.wanted
            async with asyncio.timeout(ANSWER):
                answer = await (client.join(group, **self.presence) if join else client.leave(group))
            if answer["type"] == "error":
                return
            (self.joined.add if join else self.joined.discard)(group)

    async def _pause(self, shortest: float, longest: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(shortest, longest)):
                await self._changed.wait()

    def _count(self, client: PhoneClient) -> None:
        self.seen.update(json.dumps(data) for data in client.data)
        self.unlike += client.pictures.broken

    def all_seen(self) -> Counter[str]:
        now = Counter(json.dumps(data) for data in self.client.data) if self.client is not None else Counter()
        return self.seen + now


async def run(urls: Sequence[str], group: str, users: Sequence[str | None]) -> None:
    members = [Member(urls, group, user) for user in users]
    living = [asyncio.create_task(member.live()) for member in members]
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async for line in orders:
        await _obey(json.loads(line), members)
    for member in members:
        member.close()
    await asyncio.gather(*living)


async def _obey(order: dict[str, Any], members: list[Member]) -> None:
    match order["do"]:
        case "join" | "leave" as verb:
            for member in members:
                member.want(order["group"], member=verb == "join")
        case "publish":
            open_ones = [member.client for member in members if member.client and member.client.is_open]
            for client in open_ones[:1]:
                with contextlib.suppress(*CLOSED):
                    await client.send(
                        {"type": "publish", "ref": 0, "group": order["group"], "data": order["data"]}
                    )
        case "stay":
            for member in members:
                member.may_change = False
        case "report":
            print(json.dumps(asdict(_report(order["number"], members))), flush=True)  # noqa: T201 - its product


def _report(number: int, members: list[Member]) -> Report:
    all_seen = sum((member.all_seen() for member in members), Counter[str]())
    clients = [member.client for member in members if member.client is not None]
    return Report(
        number=number,
        clients=len(members),
        open=sum(member.client is not None and member.client.is_open for member in members),
        settled=all(member.settled for member in members),
        groups=dict(Counter(group for member in members for group in member.joined)),
        seen={data: count for data, count in all_seen.items() if "final" in data},
        connects=sum(member.connects for member in members),
        pictures=list(seen(client.pictures for client in clients).items()),
        unlike=[
            *(sentence for member in members for sentence in member.unlike),
            *(sentence for client in clients for sentence in client.pictures.broken),
        ],
    )


class Phone(Program):
    """The process, as the test sees it.

    Args:
        url: The server.
        group: The first group of its clients.
        count: The number of clients.
        log: The file of its output.
        users: The user of each client in turn, for clients with presence.
        others: More servers, for clients with presence.
    """

    stdin = subprocess.PIPE

    def __init__(
        self,
        url: str,
        group: str,
        count: int,
        *,
        log: Path,
        users: Sequence[str] | None = None,
        others: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, "-m", "tests.support.clients.phone", url, group, "--count", str(count)]
        if users is not None:
            command += ["--users", ",".join(users), "--others", *others]
        super().__init__(command, log=log)
        self._reports = 0

    def tell(self, **order: object) -> None:
        """Send one order; it is lost if the process has been killed."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()

    def off(self) -> None:
        """Have every client close in an orderly way, and the process end; does not wait."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def kill(self) -> None:
        super().kill()
        self.off()

    @property
    def _orders(self) -> IO[bytes]:
        assert self.process is not None, "not started"
        assert self.process.stdin is not None
        return self.process.stdin

    def ask(self) -> int:
        """Ask for a report, and return its number."""
        self._reports += 1
        self.tell(do="report", number=self._reports)
        return self._reports

    def report(self, number: int) -> Report | None:
        """Return the report of this number, or None if it has not arrived yet."""
        for line in reversed(self.log_text().splitlines()):
            if (
                line.startswith("{")
                and line.endswith("}")
                and (found := json.loads(line))["number"] == number
            ):
                found["pictures"] = [
                    ((group, tuple(users), *counts), clients)
                    for (group, users, *counts), clients in found["pictures"]
                ]
                return Report(**found)
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("group")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--others", nargs="*", default=[], metavar="URL")
    parser.add_argument("--users", type=lambda names: names.split(","))
    options = parser.parse_args()
    named = itertools.cycle(options.users or [None])
    users = list(itertools.islice(named, options.count))
    asyncio.run(run([options.url, *options.others], options.group, users))
