"""A comparison of clients, kernel, server processes, records and channel layer: all must agree exactly."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psutil

from tests.support.assertions.eventually import NeverHappened, eventually_async
from tests.support.assertions.memberships import in_layer, in_records
from tests.support.assertions.scrape import scrape
from tests.support.clients.phone import Phone, Report
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

PATIENCE = 10.0  # seconds for a step that takes no time once everything works


@dataclass(frozen=True, slots=True)
class Agreement:
    """The numbers on which all of them agree."""

    sockets: int
    """Also the number of open clients, of connections in all processes, and of open records."""
    memberships: int
    """Pairs of a connection and a group, in the records and as the clients say."""
    groups: int
    """Groups with members in the layer."""


class Witnesses:
    """The parts that are compared: the phones that are on, and the servers, database and Redis of a site."""

    def __init__(self, site: Site, servers: Sequence[WebServer], phones: Collection[Phone]) -> None:
        self.site = site
        self.servers = servers
        self.phones = phones

    async def agree(self, *, within: float) -> Agreement:
        """Wait until all of them agree.

        Raises:
            NeverHappened: They do not agree after `within` seconds; the message has the last difference.
        """
        deadline = time.monotonic() + within
        while True:
            try:
                return self._agreement(await self.reports())
            except (AssertionError, OSError) as error:
                if time.monotonic() > deadline:
                    raise NeverHappened(f"no agreement after {within} s: {error}") from error
            await asyncio.sleep(0.5)

    async def reports(self) -> list[Report]:
        """Ask every phone for a report."""
        asked = {phone: phone.ask() for phone in self.phones}
        await eventually_async(
            lambda: all(phone.report(number) is not None for phone, number in asked.items()), within=PATIENCE
        )
        return [report for phone, number in asked.items() if (report := phone.report(number)) is not None]

    async def all_reached(self, groups: Sequence[str]) -> None:
        """Publish one message to each group, and wait until each member has received it once.

        Raises:
            AssertionError: A member did not receive the message, or received it twice.
        """
        expected: Counter[str] = Counter()
        for report in await self.reports():
            expected.update({f'"final {group}"': report.groups.get(group, 0) for group in groups})
        for group in groups:
            done = await self.site.amanage("publish", group, f'"final {group}"')
            assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + PATIENCE
        while True:
            seen: Counter[str] = Counter()
            for report in await self.reports():
                seen.update(report.seen)
            if seen == +expected:
                return
            assert time.monotonic() < deadline, f"seen {seen}, expected {expected}"
            await asyncio.sleep(0.2)

    def _agreement(self, reports: list[Report]) -> Agreement:
        unsettled = [report for report in reports if not report.settled]
        assert not unsettled, f"not all clients are where they want to be: {unsettled}"
        value = self.site.database.value
        open_clients = sum(report.open for report in reports)
        said = {
            "clients that are open": open_clients,
            "sockets of the kernel": sum(map(open_sockets, self.servers)),
            "connections of processes": sum(map(connections, self.servers)),
            "open records": value("SELECT count(*) FROM realtime_connection WHERE closed_at IS NULL"),
        }
        assert set(said.values()) == {open_clients}, said
        wanted = sum(sum(report.groups.values()) for report in reports)
        rows = value("SELECT count(*) FROM realtime_membership WHERE left_at IS NULL")
        assert rows == wanted, f"{rows} membership rows, {wanted} memberships of clients"
        layer, records = in_layer(self.site), in_records(self.site)
        assert layer == records, f"members of groups: layer {layer}, records {records}"
        return Agreement(sockets=open_clients, memberships=rows, groups=len(layer))


def open_sockets(server: WebServer) -> int:
    """Return the number of TCP connections that the kernel has for this server."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port
        for each in psutil.Process(server.pid).net_connections(kind="tcp")
    )


def connections(server: WebServer) -> int:
    """Return the number of connections that this process says it holds."""
    return int(scrape(server).value("realtime_connections"))
