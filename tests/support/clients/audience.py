"""Members of groups in a process of their own, which read as fast as one process can, and check the order.

`python -m tests.support.clients.audience URL ... --count N` opens N members at each URL. They answer pings of
every kind until the process is terminated. A fifth of them check what they receive: data of the form
`[source, number]`, or a plain `number` of source 0. The numbers that one member receives from one source must
follow each other. With `--talkers T`, T of the members that check ask for pongs all the time. With
`--publishers P`, P of the talkers also publish to their own group, each as a source of its own.

When all are open, and then several times a second, the process prints one JSON object a line: see `Report`.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from tests.support.clients.raw import CLOSE, PING, PONG, TEXT, frame, upgrade
from tests.support.programs.servers import Program

NUMBERED = re.compile(rb'"data":(?:\[(\d+),)?(\d+)')
ASKED = re.compile(rb'"type":"ping","n":(\d+)')
LONGEST_CONTROL = 45
"""Bytes of the longest frame that is not a message, once the member is in its groups."""
EVERY = 0.2
"""Seconds between two reports."""
AT_ONCE = 50
"""Handshakes under way."""


@dataclass(slots=True)
class Report:
    """The sums over all members; `at` is the time on the monotonic clock."""

    at: float = 0.0
    open: int = 0
    messages: int = 0
    missed: int = 0
    """Numbers that were not received."""
    out_of_order: int = 0
    """Numbers that are not above the number before them."""
    pings: int = 0
    """Pings of the server that were answered."""
    pongs: int = 0
    """Pongs of the server."""
    fewest: int = 0
    """Messages of the member that has received the fewest; `most` is the opposite."""
    most: int = 0
    latest: int = 0
    """The highest number of source 0 that all open members that check have received."""
    published: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    """The number of members that were closed, by close code; the code is 0 if there was none."""


class Member(asyncio.Protocol):
    """One connection of the subprotocol `realtime.v1`, or of none."""

    def __init__(self, house: "House", target: str, *, plain: bool, checks: bool) -> None:
        self.house = house
        self.target = target
        self.plain = plain
        self.checks = checks
        self.opened = asyncio.get_running_loop().create_future()
        self.rest = b""
        self.last: dict[int, int] = {}
        self.messages = 0
        self.code = 0
        self.ended = False
        self.published = 0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(upgrade(self.target, self.house.netloc, "" if self.plain else "realtime.v1"))

    def data_received(self, data: bytes) -> None:
        data, at = self.rest + data, 0
        if not self.opened.done():
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(ConnectionError(data[:80].decode(errors="replace")))
                self.transport.abort()
                return
            self.opened.set_result(None)
        while len(data) - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : start], "big")
            if len(data) < start + length:
                break
            if length > LONGEST_CONTROL and not self.checks:
                # A busy process can do no more than this for each of thousands of deliveries.
                self.messages += 1
                self.house.report.messages += 1
            else:
                self._take(data[at] & 0x0F, data[start : start + length])
            at = start + length
        self.rest = data[at:]

    def _take(self, opcode: int, payload: bytes) -> None:
        report = self.house.report
        if opcode == PING:
            self.send(payload, PONG)
            report.pings += 1
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big")
            self.send(payload, CLOSE)
        elif (asked := ASKED.search(payload, 0, 80)) is not None:
            self.send(b'{"type":"pong","n":%s}' % asked[1])
            report.pings += 1
        elif b'"type":"pong"' in payload:
            report.pongs += 1
        elif b'"type":"message"' in payload:
            self._take_message(payload)

    def _take_message(self, payload: bytes) -> None:
        report = self.house.report
        self.messages += 1
        report.messages += 1
        if (numbered := NUMBERED.search(payload)) is None:
            return
        source, number = int(numbered[1] or 0), int(numbered[2])
        last = self.last.get(source, number - 1)
        report.missed += max(0, number - last - 1)
        report.out_of_order += number <= last
        self.last[source] = max(last, number)

    def send(self, payload: bytes, opcode: int = TEXT) -> None:
        self.transport.write(frame(payload, opcode))

    def ask(self) -> None:
        self.send(b'{"type":"ping","n":1}')

    def publish(self, source: int) -> None:
        group = self.target.strip("/").rpartition("/")[2]
        text = {"type": "publish", "group": group, "data": [source, self.published], "ref": self.published}
        self.published += 1
        self.house.report.published += 1
        self.send(json.dumps(text, separators=(",", ":")).encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed during the handshake"))
        self.ended = True
        self.house.ended(self)


class House:
    """All members of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.netloc = urlsplit(options.urls[0]).netloc
        self.report = Report()
        self.codes: Counter[int] = Counter()
        self.members: list[Member] = []
        self.open = 0

    def ended(self, member: Member) -> None:
        self.open -= 1
        self.codes[member.code] += 1

    async def fill(self) -> None:
        """Open all members.

        Raises:
            ExceptionGroup: The errors of handshakes that failed.
        """
        loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)

        async def one(url: str, number: int) -> None:
            parts = urlsplit(url)
            member = Member(self, parts.path, plain=self.options.plain, checks=number % 5 == 0)
            async with slots:
                await loop.create_connection(lambda: member, str(parts.hostname), int(parts.port or 80))
                self.open += 1
                await member.opened
            self.members.append(member)

        async with asyncio.TaskGroup() as opening:
            for url in self.options.urls:
                for number in range(self.options.count):
                    opening.create_task(one(url, number))

    async def talk(self) -> None:
        """Have the talkers ask for pongs and the publishers publish, many times a second."""
        talkers = [each for each in self.members if each.checks][: self.options.talkers]
        publishers = list(enumerate(talkers[: self.options.publishers], start=1))
        chance = random.Random(7)
        while talkers:
            for talker in chance.sample(talkers, max(1, len(talkers) // 20)):
                talker.ask()
            if publishers:
                source, publisher = chance.choice(publishers)
                publisher.publish(source)
            await asyncio.sleep(0.02)

    async def tell(self) -> None:
        """Print reports until cancelled."""
        while True:
            self.report.at, self.report.open = time.monotonic(), self.open
            received = [each.messages for each in self.members]
            self.report.fewest, self.report.most = min(received, default=0), max(received, default=0)
            checked = [each.last.get(0, 0) for each in self.members if each.checks and not each.ended]
            self.report.latest = min(checked, default=0)
            self.report.codes = {str(code): number for code, number in self.codes.items()}
            print(json.dumps(asdict(self.report)), flush=True)  # noqa: T201 - the product of this program
            await asyncio.sleep(EVERY)


async def run(options: argparse.Namespace) -> None:
    house = House(options)
    await house.fill()
    async with asyncio.TaskGroup() as both:
        both.create_task(house.tell())
        both.create_task(house.talk())


class Audience(Program):
    """The process with `count` members at each URL, as a program that tests start."""

    def __init__(
        self,
        *urls: str,
        count: int,
        log: Path,
        talkers: int = 0,
        publishers: int = 0,
        plain: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        numbers = ("--count", count, "--talkers", talkers, "--publishers", publishers)
        command = [*prefix, sys.executable, "-m", "tests.support.clients.audience", *urls, *map(str, numbers)]
        super().__init__([*command, *(["--plain"] if plain else [])], log=log)

    def is_ready(self) -> bool:
        return bool(self._lines())

    @property
    def report(self) -> Report:
        """The last report."""
        return Report(**json.loads(self._lines()[-1]))

    def _lines(self) -> list[str]:
        return [line for line in self.log_text().splitlines() if line.startswith("{") and line.endswith("}")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--talkers", type=int, default=0)
    parser.add_argument("--publishers", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    uvloop.run(run(parser.parse_args()))
