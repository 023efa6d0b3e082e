"""Tell the members of groups who comes and who leaves.

A process keeps a picture of each group that one of its connections watches. It reads the group from the
database once, when the first of them begins to watch, and is told of each change after that. More than once
in each interval it compares its pictures with the database, because a message between processes may be lost.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error as DatabaseFailure

from realtime import metrics
from realtime.errors import RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.fanout import Fanout
from realtime.hub.recovery import CHECK_EVERY
from realtime.presence.asking import MAX_USERS
from realtime.presence.picture import Picture
from realtime.process import tasks
from realtime.records import presence_rows
from realtime.records.entries import Changes, Stay
from realtime.records.ledger import Ledger
from realtime.records.presence_rows import Summary
from realtime.transports.asgi import Shared
from realtime.wire import frames

logger = logging.getLogger("realtime.hub")

#: Seconds between two changes that the members of a group are told.
TELL_EVERY = 1.0
#: Seconds from an arrival or departure of an anonymous connection until they are counted again.
COUNT_AFTER = 1.0
#: Intervals for which a picture is kept after the last connection stopped to watch.
KEPT_FOR = 2
#: Seconds of writing after which the loop gets a turn, and members that are written to in between.
SLICE, STRIDE = 0.002, 8
#: The longest time in seconds for which presence waits at a turn until no message waits.
YIELD_FOR = 0.05

Result = TypeVar("Result")


class _Watched:
    """One group that connections of this process watch."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.picture = Picture()
        self.anonymous = 0
        self.told_anonymous: int | None = 0
        """The number that all members know; None if they know different ones."""
        self.members: dict[Connection, bool | None] = {}
        """The connections that are told, and whether by an event for their consumer instead of a frame; None
        if the answer to their join must be written first."""
        self.loading: asyncio.Task[None] | None = None
        self.tell_at = 0.0
        """The loop time before which members are told nothing more."""
        self.idle_since = 0.0
        """The loop time at which the last connection stopped to watch."""

    @property
    def has_change(self) -> bool:
        return self.picture.has_change or self.anonymous != self.told_anonymous

    def present(self) -> frames.Present:
        """Return what a new member is told."""
        return frames.Present(self.picture.users(MAX_USERS), self.anonymous, len(self.picture))

    def show(self) -> frames.Present:
        """Return what a new member is told, and have changes told that it may know and others do not."""
        self.picture.show()
        if self.anonymous != self.told_anonymous:
            self.told_anonymous = None
        return self.present()

    def differs(self, summary: Summary) -> bool:
        """Return True if the picture is another one than the rows."""
        return (len(self.picture), self.picture.sum_of_ids) != (summary.users, summary.sum_of_ids)


class Watches:
    """The groups that connections of this process watch.

    Args:
        process: The id of the row of this process.
        ledger: Runs each query in its turn.
        fanout: Writes to a connection after the messages that wait for it.
        interval: The setting ROUND_INTERVAL, in seconds.
    """

    def __init__(self, process: uuid.UUID, ledger: Ledger, fanout: Fanout, *, interval: float) -> None:
        self._process = process
        self._ledger = ledger
        self._fanout = fanout
        self._interval = interval
        self._watched: dict[str, _Watched] = {}
        # The groups that a connection watches.
        self._groups: dict[Connection, set[str]] = {}
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        # The groups where anonymous connections came or left here, and when to count them.
        self._uncounted: set[str] = set()
        self._count_at = 0.0
        self._check_soon = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    # -- watch ---------------------------------------------------------------------------------------------

    async def watch(self, connection: Connection, group: str, *, by_event: bool = False) -> frames.Present:
        """Tell a member of a group who is there, and from now on who comes and leaves.

        Args:
            connection: The connection.
            group: The group. If the connection is no member when it was read, it is told nothing more.
            by_event: Tell its consumer by the event `presence.changed` instead of its client by a frame.

        Raises:
            RecordsUnavailable: The group could not be read.
        """
        watched = await self._prepare(connection, group)
        return self.begin(connection, group, by_event=by_event) or watched.present()

    async def prepare(self, connection: Connection, group: str) -> None:
        """Read a group for a member, so that `begin` can say immediately who is there.

        Raises:
            RecordsUnavailable: The group could not be read.
        """
        await self._prepare(connection, group)

    def begin(self, connection: Connection, group: str, *, by_event: bool = False) -> frames.Present | None:
        """Return who is in a group, and tell its member from now on who comes and leaves.

        The caller writes the answer before anything else happens. A change that were written before the
        answer would be missing in the picture of the client, which begins with the answer.

        Args:
            connection: The connection, for which `prepare` has read the group.
            group: The group.
            by_event: Tell its consumer by the event `presence.changed` instead of its client by a frame.

        Returns:
            None if the connection has left the group meanwhile.
        """
        watched = self._watched.get(group)
        if watched is None or connection not in watched.members:
            return None
        watched.members[connection] = by_event
        return watched.show()

    async def _prepare(self, connection: Connection, group: str) -> _Watched:
        watched = self._watched.get(group)
        if watched is None:
            watched = self._watched[group] = _Watched(group)
            watched.loading = tasks.start(self._load(watched))
        if watched.loading is not None:
            await asyncio.shield(watched.loading)
        if group in connection.groups and not connection.gone:
            watched.members.setdefault(connection, None)
            self._groups.setdefault(connection, set()).add(group)
        elif not watched.members:
            watched.idle_since = self._loop.time()
        return watched

    def present(self, group: str) -> frames.Present | None:
        """Return who is in a group; None if no connection of this process watches it."""
        watched = self._watched.get(group)
        return watched.present() if watched is not None and watched.loading is None else None

    def is_told(self, connection: Connection, group: str) -> bool:
        """Return True if the client of a connection is told who comes to a group and who leaves."""
        watched = self._watched.get(group)
        return watched is not None and watched.members.get(connection) is False

    def unwatch(self, connection: Connection, group: str) -> None:
        """Tell a connection that leaves a group nothing more of it."""
        self.touched(connection, group)
        watched = self._watched.get(group)
        if watched is None or watched.members.pop(connection, None) is None:
            return
        names = self._groups[connection]
        names.discard(group)
        if not names:
            del self._groups[connection]
        if not watched.members:
            watched.idle_since = self._loop.time()

    def removed(self, connection: Connection) -> None:
        """Forget a connection that ended. It is still in its groups."""
        if self._watched:
            # It may be in thousands of groups, of which few are watched.
            for group in (connection.groups & self._watched.keys()).union(self._groups.get(connection, ())):
                self.unwatch(connection, group)

    def touched(self, connection: Connection, group: str) -> None:
        """Note that a connection came to a group or left it. If it is anonymous, count them soon."""
        if group in self._watched and not connection.user_id:
            if not self._uncounted:
                self._count_at = self._loop.time() + COUNT_AFTER
            self._uncounted.add(group)
            self._check_soon.set()

    async def _load(self, watched: _Watched) -> None:
        """Read a group for the first time."""
        group = watched.group
        try:
            # The watch is committed before the rows are read. So a stay is in the rows, or told, or both.
            await self._call(presence_rows.watch, self._process, group)
            await self._read(watched)
            watched.anonymous = (await self._call(presence_rows.summaries, [group]))[group].anonymous
        except BaseException:
            del self._watched[group]
            raise
        watched.told_anonymous = watched.anonymous
        watched.picture.take_as_told()
        # From now on: the connections that wait for this become members in a later turn of the loop.
        watched.idle_since = self._loop.time()
        watched.loading = None

    async def _read(self, watched: _Watched) -> None:
        watched.picture.begin_reading()
        watched.picture.read(await self._call(presence_rows.stays, watched.group))

    async def _call(self, call: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await self._ledger.call(call, *arguments)
        except DatabaseFailure as error:
            raise RecordsUnavailable(f"Who is present could not be read ({error!r}).") from error

    # -- changes -------------------------------------------------------------------------------------------

    def take(self, changes: Changes) -> None:
        """Take the stays that began and ended by a write of this process."""
        self.note(changes.began, changes.ended)

    def note(self, began: Iterable[Stay], ended: Iterable[Stay]) -> None:
        """Take the stays that began and ended, as far as they are of interest here."""
        if not self._watched:
            return
        for stay in began:
            if (watched := self._watched.get(stay.group)) is not None:
                watched.picture.began(stay.user_id, stay.id)
                self._note_change(watched)
        for stay in ended:
            if (watched := self._watched.get(stay.group)) is not None:
                watched.picture.ended(stay.user_id, stay.id)
                self._note_change(watched)

    def _note_change(self, watched: _Watched) -> None:
        if watched.group not in self._changed and watched.has_change:
            self._changed[watched.group] = None
            self._wake.set()

    async def run(self) -> None:
        """Tell members of changes until cancelled."""
        while True:
            now = self._loop.time()
            waiting = [
                watched for group in self._changed if (watched := self._watched.get(group)) is not None
            ]
            due = [watched for watched in waiting if watched.tell_at <= now and watched.loading is None]
            for watched in due:
                del self._changed[watched.group]
                try:
                    await self._tell(watched)
                except Exception:
                    logger.exception("The members of group %s could not be told who is there", watched.group)
            if due:
                continue
            self._changed = {watched.group: None for watched in waiting}
            self._wake.clear()
            # A group that is still read has no time yet.
            at = min((max(watched.tell_at, now + 0.05) for watched in waiting), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(at):
                    await self._wake.wait()

    async def _tell(self, watched: _Watched) -> None:
        watched.tell_at = self._loop.time() + TELL_EVERY
        change = watched.picture.take_change(MAX_USERS)
        if not (change.joined or change.left or watched.anonymous != watched.told_anonymous):
            return
        watched.told_anonymous = watched.anonymous
        frame = frames.Presence(
            watched.group,
            watched.anonymous,
            len(watched.picture),
            joined=change.joined,
            left=change.left,
        )
        shared = Shared((frames.build(frame),))
        event = {
            "type": "presence.changed",
            "group": watched.group,
            "joined": change.joined,
            "left": change.left,
            "anonymous": frame.anonymous,
            "total": frame.total,
        }
        metrics.presence_changes.inc(len(change.joined) + len(change.left))
        await self._write(watched, shared, event)
        if watched.has_change:
            self._changed[watched.group] = None

    async def _write(self, watched: _Watched, shared: Shared, event: dict[str, Any]) -> None:
        """Write to all members, behind the messages of groups."""
        pause_at = self._loop.time() + SLICE
        for position, (connection, by_event) in enumerate(tuple(watched.members.items()), start=1):
            # Check again: the connection may have left during the loop's turn.
            if by_event is None or connection not in watched.members:
                continue
            if by_event:
                connection.on_event({**event, "joined": [*event["joined"]], "left": [*event["left"]]})
            else:
                self._fanout.write(connection, shared, 0)
            if position % STRIDE == 0 and self._loop.time() > pause_at:
                await self._fanout.quiet(YIELD_FOR)
                pause_at = self._loop.time() + SLICE

    # -- comparison ----------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Compare all pictures with the database, again and again, until cancelled."""
        check_at = self._loop.time() + self._interval * CHECK_EVERY
        while True:
            at = min(check_at, self._count_at) if self._uncounted else check_at
            if (now := self._loop.time()) < at:
                self._check_soon.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(at):
                        await self._check_soon.wait()
                continue
            try:
                if now >= check_at:
                    check_at = now + self._interval * CHECK_EVERY
                    await self._forget_idle()
                    await self._compare()
                else:
                    await self._count(self._uncounted)
            except (RecordsUnavailable, DatabaseFailure) as error:
                logger.warning("Who is present could not be compared with the database: %s", error)

    async def _count(self, groups: Collection[str]) -> dict[str, Summary]:
        self._uncounted = set()
        loaded = [group for group in groups if self.present(group) is not None]
        if not loaded:
            return {}
        summaries = await self._call(presence_rows.summaries, loaded)
        for group, summary in summaries.items():
            if (watched := self._watched.get(group)) is not None:
                watched.anonymous = summary.anonymous
                self._note_change(watched)
        return summaries

    async def _compare(self) -> None:
        for group, summary in (await self._count(tuple(self._watched))).items():
            watched = self._watched.get(group)
            if watched is None:
                continue
            watched.picture.age()
            if watched.differs(summary):
                await self._read(watched)
                self._note_change(watched)

    async def _forget_idle(self) -> None:
        """Stop to watch the groups that no connection has watched for a while."""
        before = self._loop.time() - KEPT_FOR * self._interval
        idle = [
            group
            for group, watched in self._watched.items()
            if watched.loading is None and not watched.members and watched.idle_since < before
        ]
        for group in idle:
            # Before the write: a connection that begins to watch now queues its own write behind this one.
            del self._watched[group]
        if idle:
            await self._call(presence_rows.unwatch, self._process, idle)
