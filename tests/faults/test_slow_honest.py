"""A client that reads all the time gets everything that a handler sends, and the close, on any link."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from tests.support.assertions.measured import measured
from tests.support.clients.raw import RawClient
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings

pytestmark = pytest.mark.faults

APPLICATION = "tests.support.applications.drop_in:application"
KB, MB = 1000, 1_000_000


class Link(NamedTuple):
    """The messages of the handler with their size in bytes, and the rate of the client in bytes a second."""

    messages: int
    size: int
    rate: int


LINKS = {
    "20 MB at 2 MB/s": Link(312, 64 * KB, 2 * MB),
    "20 MB at 700 KB/s": Link(312, 64 * KB, 700 * KB),
    "one message of 600 KB at 400 kbit/s": Link(1, 600 * KB, 50 * KB),
    "100 messages of 6 KB at 224 kbit/s": Link(100, 6 * KB, 28 * KB),
}
CLOSES = {
    "900 KB at 200 KB/s": Link(100, 9 * KB, 200 * KB),
    "3 MB at 1 MB/s": Link(100, 30 * KB, MB),
}


@dataclass(frozen=True)
class Reader:
    """One client. With large buffers, the kernels take most of a report before the client has read it."""

    name: str
    link: Link
    v1: bool
    large_buffers: bool
    close: int | None = None

    async def read(self, url: str) -> tuple[list[int], int | None, float]:
        """Ask for the report; return the numbers of the messages, the close code, and the seconds."""
        link = self.link
        client = RawClient(url, bytes_per_second=link.rate, large_buffers=self.large_buffers)
        async with client:
            await client.open(v1=self.v1)
            began = time.monotonic()
            await client.ask_report(link.messages, link.size, self.close)
            async with asyncio.timeout(link.messages * link.size / link.rate * 2 + 30):
                while len(client.reports) < link.messages and not client.ended.is_set():
                    await asyncio.sleep(0.05)
                if self.close is not None:
                    await client.ended.wait()
            return client.reports, client.close_code, time.monotonic() - began

    def measured(self, pairing: Pairing, received: int, seconds: float, code: int | None) -> None:
        measured(
            f"reading slowly, {self.name}",
            pairing,
            v1=self.v1,
            buffers="large" if self.large_buffers else "small",
            received=received,
            of=self.link.messages,
            code=code,
            seconds=seconds,
        )


async def each_receives_all(readers: list[Reader], url: str, pairing: Pairing) -> None:
    """Let all clients read together. Each must get every message in order, and its close."""
    outcomes = await asyncio.gather(*(reader.read(url) for reader in readers))
    for reader, (numbers, code, seconds) in zip(readers, outcomes, strict=True):
        reader.measured(pairing, len(numbers), seconds, code)
    assert [(reader, numbers) for reader, (numbers, _, _) in zip(readers, outcomes, strict=True)] == [
        (reader, list(range(reader.link.messages))) for reader in readers
    ]
    assert [code for _, code, _ in outcomes] == [reader.close for reader in readers]


@pytest.mark.parametrize("pairing", pairings())
async def test_clients_that_read_slowly_get_whole_reports(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.serve(application=APPLICATION)
    readers = [
        Reader(name, link, v1=v1, large_buffers=large)
        for (name, link), v1, large in itertools.product(LINKS.items(), (True, False), (True, False))
    ]
    await each_receives_all(readers, server.websocket("/ours/report/"), pairing)
    assert {*site.close_reasons()} <= {"client_closed", "client_lost"}


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", "pubsub-uvicorn-postgres"))
async def test_a_close_loses_nothing_that_was_sent_before_it(pairing: Pairing, start_site: StartSite) -> None:
    site = start_site(pairing)
    server = site.serve(application=APPLICATION)
    readers = [
        Reader(f"then closed, {name}", link, v1=False, large_buffers=large, close=4321)
        for (name, link), large in itertools.product(CLOSES.items(), (True, False))
    ]
    await each_receives_all(readers, server.websocket("/ours/report/"), pairing)
