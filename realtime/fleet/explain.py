"""Compare the database, the channel layers and the server processes, and repair the differences."""

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from channels import DEFAULT_CHANNEL_LAYER

from realtime import metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.fleet import announcements, differences, snapshot
from realtime.fleet.announcements import Announcements
from realtime.fleet.database import on_shared_thread as database
from realtime.fleet.differences import Difference, Held, Kind, LayerSnapshot, Stored
from realtime.fleet.mailbox import Mailbox
from realtime.layers import groups, messages
from realtime.records import connection_rows, process_rows
from realtime.records.entries import Closing, Join

logger = logging.getLogger("realtime.fleet")

#: Seconds between two looks. A connection that opens or closes during the first one has finished by then.
LOOK_AGAIN_AFTER = 1.5
#: Seconds within which an echo to this program must come back.
ECHO_TIMEOUT = 5.0


class Explained(NamedTuple):
    """A difference, and what was done about it."""

    difference: Difference
    process: str
    """host:pid."""
    done: str
    repaired: bool | None
    """True if the difference is gone, False if it is not, None if nothing was done."""

    def fields(self) -> dict[str, Any]:
        """Return one JSON object."""
        kind, process, address, connection, group = self.difference
        return {
            "difference": kind.label,
            "process": process,
            "name": self.process,
            "address": address,
            "connection": connection,
            "group": group,
            "meaning": kind.text,
            "done": self.done,
            "repaired": self.repaired,
        }

    def line(self) -> str:
        """Return one line for people."""
        kind, _, address, connection, group = self.difference
        what = [("connection", connection), ("group", group), ("process", self.process)]
        if not self.process:
            what.append(("channel", address))
        where = ", ".join(f"{name} {value}" for name, value in what if value)
        return f"{kind.label}: {kind.text} ({where}): {self.done}"


class Explainer:
    """Looks for differences, on the event loop on which it is used.

    Args:
        timeout: Seconds that processes have to answer.
        look_again_after: Seconds between two looks.
        echo_timeout: Seconds within which an echo to this program must come back.
    """

    def __init__(
        self,
        *,
        timeout: float,
        look_again_after: float = LOOK_AGAIN_AFTER,
        echo_timeout: float = ECHO_TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._look_again_after = look_again_after
        self._echo_timeout = echo_timeout
        self._mailbox: Mailbox | None = None
        self._request = ""
        self._pages: dict[str, dict[int, Any]] = defaultdict(dict)
        """The pages that answer the request, by process and number."""
        self._wanted: dict[str, int] = {}
        self._news = asyncio.Event()
        self._announcements = Announcements(own_thread=True)
        self.compared = ""
        """Says what the last look compared."""

    async def look(self) -> list[Explained]:
        """Return the differences that two looks found.

        A single look also finds connections that are just opening or closing.

        Raises:
            LayerUnavailable: A layer did not list its groups, or brings this program no messages.
            django.db.Error: The database could not be asked.
        """
        await self._listen()
        found, _ = await self._look()
        if not found:
            return []
        await asyncio.sleep(self._look_again_after)
        again, stored = await self._look()
        return [_explained(difference, stored, "nothing", None) for difference in _in_order(found & again)]

    async def repair(self, found: Collection[Explained]) -> list[Explained]:
        """Repair the differences that rounds do not repair, and look again.

        Args:
            found: The differences that `look` returned.

        Returns:
            The same differences; each says what was done, and if it is gone.

        Raises:
            LayerUnavailable: As `look` raises it, or a process could not be told.
            django.db.Error: The database could not be asked.
        """
        if not found:
            return []
        await self._repair([each.difference for each in found])
        await asyncio.sleep(self._look_again_after)
        left, _ = await self._look()
        explained = []
        for each in found:
            kind, gone = each.difference.kind, each.difference not in left
            repaired = gone if kind.repairable else None
            done = kind.remedy if repaired in (None, True) else f"{kind.remedy}, and it is still there"
            explained.append(each._replace(done=done, repaired=repaired))
        return explained

    async def close(self) -> None:
        """Stop receiving answers."""
        if self._mailbox is not None:
            await self._mailbox.close()
        await self._announcements.finish()

    # -- looking -----------------------------------------------------------------------------------

    async def _look(self) -> tuple[set[Difference], Stored]:
        stored = await database(snapshot.everything)
        held = await self._ask(stored)
        layers = []
        for alias in groups.aliases():
            name = "" if alias == DEFAULT_CHANNEL_LAYER else alias
            layers.append(LayerSnapshot(name, await groups.contents(alias)))
        self.compared = _in_words(stored, held)
        return differences.compare(stored, layers, held), stored

    async def _ask(self, stored: Stored) -> dict[str, Held]:
        """Ask all processes for their connections and groups; return the answers that came in time."""
        self._request = uuid.uuid4().hex
        self._pages.clear()
        self._wanted = {}
        running = {id: process for id, process in stored.processes.items() if process.running}

        assert self._mailbox is not None, "the mailbox is opened before a process is asked"  # noqa: S101
        question = messages.Explain(self._request, self._mailbox.address)
        failed = await groups.tell_all({process.address: question for process in running.values()})
        for address, error in failed.items():
            logger.warning("%s was not asked for its connections: %s", address, error)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while not running.keys() <= self._complete().keys():
                    self._news.clear()
                    await self._news.wait()
        return self._complete()

    def _complete(self) -> dict[str, Held]:
        return {
            process: differences.joined(part for page in pages.values() for part in page)
            for process, pages in self._pages.items()
            if len(pages) == self._wanted[process]
        }

    # -- repairing ---------------------------------------------------------------------------------

    async def _repair(self, found: Collection[Difference]) -> None:
        by_kind: dict[Kind, list[Difference]] = defaultdict(list)
        for difference in found:
            by_kind[difference.kind].append(difference)
        if gone := by_kind[Kind.RECORD_WITHOUT_SOCKET]:
            closings = [Closing(uuid.UUID(each.connection), CloseReason.SERVER_LOST, None) for each in gone]
            closed = await database(connection_rows.end_connections, closings, uuid.uuid4())
            metrics.closed.labels(reason=CloseReason.SERVER_LOST.value).inc(len(closed))
            ended = await database(connection_rows.openings, closed)
            self._announcements.add(
                announcements.closed(opening, CloseReason.SERVER_LOST) for opening in ended
            )
        if unrecorded := by_kind[Kind.MEMBER_WITHOUT_ROW]:
            joins = [
                Join(uuid.UUID(each.connection), uuid.UUID(each.process), each.group) for each in unrecorded
            ]
            await database(connection_rows.restore_memberships, joins)
        await self._kick(by_kind[Kind.SOCKET_WITHOUT_RECORD], by_kind[Kind.ROW_WITHOUT_MEMBER])
        await self._heal(by_kind[Kind.NOT_IN_LAYER], by_kind[Kind.ONLY_IN_LAYER])

    async def _kick(self, sockets: Collection[Difference], rows: Collection[Difference]) -> None:
        for address in {each.address for each in (*sockets, *rows)}:
            connections = [uuid.UUID(each.connection) for each in sockets if each.address == address]
            memberships = [
                (uuid.UUID(each.connection), each.group) for each in rows if each.address == address
            ]
            kick = messages.Kick(connections, memberships, CloseReason.SERVER_LOST.value)
            await groups.tell(address, kick)

    async def _heal(self, missing: Collection[Difference], stray: Collection[Difference]) -> None:
        asked = await database(process_rows.processes_to_ask)
        running = {process.channel_name for process in asked}
        for address in {each.address for each in (*missing, *stray)}:
            names = [each.group for each in stray if each.address == address]
            if address in running:
                await groups.tell(address, messages.Heal(names))
                continue
            # The process has ended: it cannot do this itself, and cannot join the group meanwhile.
            for group in names:
                await groups.discard(group, address)

    # -- answers -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._mailbox is not None:
            return
        self._mailbox = await Mailbox.open()
        self._mailbox.listen(self._take)
        if not await self._mailbox.hears_itself(self._echo_timeout):
            raise LayerUnavailable("The channel layer brings this program no messages.")

    def _take(self, message: messages.Control) -> None:
        match message:
            case messages.Holdings(request, process, connections, page, pages) if request == self._request:
                self._wanted[process] = pages
                self._pages[process][page] = connections
                self._news.set()


async def look_and_repair(
    explainer: Explainer, tell: Callable[[Explained], None], rounds: Callable[[], Any] | None
) -> bool:
    """Look for differences, repair them, and report each.

    Args:
        explainer: Looks and repairs.
        tell: Called with each difference.
        rounds: Runs rounds, which come first and repair what ended processes left; returns True if they
            repaired anything. Without it, nothing is repaired.

    Returns:
        True if anything was repaired.

    Raises:
        LayerUnavailable: As the explainer raises it, or differences are still there.
        django.db.Error: The database could not be asked.
    """
    found = await explainer.look()
    repaired = False
    if rounds is not None:
        repaired = await rounds()
        found = await explainer.repair(found)
    for each in found:
        tell(each)
    if stuck := sum(each.repaired is False for each in found):
        raise LayerUnavailable(f"{stuck} differences are still there.")
    return repaired or any(each.repaired for each in found)


def _in_words(stored: Stored, held: Mapping[str, Held]) -> str:
    running = sum(process.running for process in stored.processes.values())
    sockets = sum(len(each.connections) for each in held.values())
    return (
        f"{len(held)} of {running} processes answered; {sockets} sockets, {len(stored.records)} open records,"
        f" {len(stored.memberships)} memberships"
    )


def _explained(difference: Difference, stored: Stored, done: str, repaired: bool | None) -> Explained:
    process = stored.processes.get(difference.process)
    return Explained(difference, process.name if process is not None else "", done, repaired)


def _in_order(found: Collection[Difference]) -> list[Difference]:
    order = list(Kind)
    return sorted(found, key=lambda each: (order.index(each.kind), each[1:]))
