"""Recover: write to a connection every message that it missed, once and in order, or refuse.

A connection that joins a group with history catches up first. It is written the messages after its position,
from the memory of this process if that reaches far enough, as fast as its client reads. Meanwhile fan-out
leaves it out. When it has caught up, fan-out includes it in the same turn of the event loop, so that nothing
is missed or repeated between the two.

More than once in each interval the positions of all groups are compared with those in Redis, because the loss
of the last message of a group shows in no other way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable
from realtime.history.positions import Joined, Position
from realtime.history.tail import Delivery
from realtime.hub.connection import Connection
from realtime.hub.fanout import Fanout, Members
from realtime.hub.follower import CatchingUp, Follower, Unreachable, reset_frame
from realtime.layers import groups
from realtime.process import tasks
from realtime.transports.asgi import Shared
from realtime.wire import frames

logger = logging.getLogger("realtime.hub")

#: The part of an interval after which positions are compared again. A lost message is delivered within the
#: interval, also if the reading takes a while.
CHECK_EVERY = 0.6
#: The part of an interval, and the most seconds, for which a message that Redis has may be on its way.
GRACE, LONGEST_GRACE = 0.1, 0.25
#: Seconds after which a member that cannot catch up tries again.
RETRY_AFTER = 0.5
#: Groups whose positions are asked for together.
GROUPS_PER_CHECK = 500


class Recovery:
    """The followers of all groups of this process that keep history.

    Args:
        address: The address of this process in its channel layer.
        members: The local members of each group.
        fanout: Writes to all members of a group.
        drained: Waits until a connection may be written more.
        evict: Ends a connection.
        interval: The setting ROUND_INTERVAL, in seconds.
        max_size: The setting HISTORY_TAIL_BYTES.
    """

    def __init__(
        self,
        address: str,
        members: Mapping[str, Members],
        fanout: Fanout,
        *,
        drained: Callable[[Connection], Awaitable[None]],
        evict: Callable[[Connection, CloseReason], object],
        interval: float,
        max_size: int,
    ) -> None:
        self._address = address
        self._members = members
        self._fanout = fanout
        self._drained = drained
        self._evict = evict
        self._interval = interval
        self._max_size = max_size
        self._followers: dict[str, Follower] = {}
        # The groups in which a connection catches up.
        self._catching_up: dict[Connection, set[str]] = {}
        # Connections that catch up when their handshake is complete.
        self._waiting: dict[Connection, asyncio.Event] = {}
        self._wake = asyncio.Event()
        # Characters that arrived since the memory was last counted.
        self._uncounted = 0

    # -- what the channel layer brings -----------------------------------------------------------------

    async def put(self, group: str, position: Position, text: str) -> None:
        """Deliver a message with a position. If too much waits in fan-out, wait.

        Args:
            group: The group that it was sent to.
            position: Its place in the history.
            text: The frame for clients, without its position.
        """
        frame = frames.with_position(text, position)
        follower = self._followers.get(group)
        if follower is None:
            # The group has no members here, or this process is configured to keep no history of it.
            await self._fanout.put(group, frame)
            return
        self._uncounted += len(frame)
        if self._uncounted > self._max_size // 16:
            self._bound_size()
        await follower.put(position, frame)

    def _bound_size(self) -> None:
        """Forget the older half of the largest tails until all are within the bound."""
        self._uncounted = 0
        tails = [follower.tail for follower in self._followers.values()]
        total = sum(tail.size for tail in tails)
        metrics.history_tail_bytes.set(total)
        while total > self._max_size:
            largest = max(tails, key=lambda tail: tail.size)
            total -= largest.size
            largest.halve()
            total += largest.size

    # -- join ------------------------------------------------------------------------------------------

    def hold(self, connection: Connection, group: str) -> None:
        """Have fan-out leave a connection out, before it becomes a member of a group with history.

        A call of `resume` or `release` must follow.
        """
        follower = self._follow(group)
        if follower is None or connection in follower.catching_up:
            return
        at = follower.tail.position if follower.is_fresh else None
        follower.catching_up[connection] = CatchingUp(at)
        self._catching_up.setdefault(connection, set()).add(group)
        self._fanout.hold(connection, group)

    def release(self, connection: Connection, group: str) -> None:
        """Have fan-out write to a connection again, or forget one that has left."""
        follower = self._followers.get(group)
        state = follower.catching_up.pop(connection, None) if follower is not None else None
        if follower is None or state is None:
            return
        names = self._catching_up[connection]
        names.discard(group)
        if not names:
            del self._catching_up[connection]
        state.ended.set()
        self._fanout.release(connection, group)
        self._forget_if_unneeded(follower)

    def joined_layer(self, group: str) -> None:
        """Note that this process joined the group in the layer: what was sent before did not come."""
        if (follower := self._follow(group)) is not None:
            follower.stale()

    def emptied(self, group: str) -> None:
        """Note that the last member in this process left the group."""
        if (follower := self._followers.get(group)) is not None:
            follower.stale()
            self._forget_if_unneeded(follower)

    def _follow(self, group: str) -> Follower | None:
        follower = self._followers.get(group)
        if follower is None and (keep := conf.get().retention(group)) is not None:
            follower = Follower(group, keep, self._address, self._members, self._fanout)
            self._followers[group] = follower
        return follower

    def _forget_if_unneeded(self, follower: Follower) -> None:
        if not follower.is_needed:
            follower.stop()
            del self._followers[follower.group]

    async def resume(
        self,
        connection: Connection,
        group: str,
        since: Position | None,
        on_joined: Callable[[Joined], None],
    ) -> Joined:
        """Write to a new member what it missed, then what is sent from now on.

        Args:
            connection: The member, which `hold` was called for.
            group: The group.
            since: The last message that the client has. None if it wants only what is sent from now on.
            on_joined: Called before the first message is written.

        Returns:
            The outcome, when the connection has caught up. If its handshake is not complete, it catches up
            after that, and this returns before.

        Raises:
            LayerUnavailable: The history could not be read.
        """
        state = await self._turn(connection, group, since)
        follower = self._follow(group)
        assert follower is not None, "only groups that keep history are resumed"  # noqa: S101
        await follower.ready()
        if state is None:
            joined = Joined(follower.tail.position)
            on_joined(joined)
            return joined
        joined, at, batch = await self._start(follower, state, since)
        if follower.catching_up.get(connection) is not state:
            # It left the group, or ended, meanwhile.
            return joined
        on_joined(joined)
        if since is not None and not connection.transport.accepted:
            # What waits for a handshake is bounded, and a history may be larger.
            tasks.start(self._catch_up_after_accept(connection, follower, state, at))
        else:
            await self._catch_up(connection, follower, state, at, batch)
        return joined

    async def _turn(self, connection: Connection, group: str, since: Position | None) -> CatchingUp | None:
        """Wait until earlier calls of `resume` for this member are done.

        Returns:
            None if the connection is a member like all others, and wants only what is sent from now on.
        """
        while True:
            follower = self._followers.get(group)
            state = follower.catching_up.get(connection) if follower is not None else None
            if state is None and since is None:
                return None
            if state is None:
                self.hold(connection, group)
            elif state.resumes:
                await state.ended.wait()
            else:
                state.resumes = True
                return state

    async def _start(
        self, follower: Follower, state: CatchingUp, since: Position | None
    ) -> tuple[Joined, Position, list[Delivery] | None]:
        """Decide from where a member catches up.

        Returns:
            The outcome for the client; the position after which the first message is written; the first
            messages, if they were found already.
        """
        if since is None:
            # From the call on, as for everything that is sent to a group.
            at = state.at if state.at is not None and follower.tail.log.reaches(state.at) else None
            joined = Joined(at or follower.tail.position)
            return joined, joined.position, None
        try:
            batch = follower.missed(since)
            if batch is None:
                batch = await follower.read_missed(since)
        except Unreachable:
            metrics.history_recoveries.labels(outcome="refused").inc()
            joined = Joined(follower.tail.position, recovered=False)
            return joined, joined.position, None
        metrics.history_recoveries.labels(outcome="recovered").inc()
        return Joined(follower.tail.position, recovered=True), since, batch

    def accepted(self, connection: Connection) -> None:
        """Begin to write what the connection missed: its handshake is complete."""
        if (waiting := self._waiting.pop(connection, None)) is not None:
            waiting.set()

    def removed(self, connection: Connection) -> None:
        """Forget a connection that ended."""
        self.accepted(connection)
        for group in tuple(self._catching_up.get(connection, ())):
            self.release(connection, group)

    async def _catch_up_after_accept(
        self, connection: Connection, follower: Follower, state: CatchingUp, at: Position
    ) -> None:
        if not connection.gone:
            await self._waiting.setdefault(connection, asyncio.Event()).wait()
        await self._catch_up(connection, follower, state, at, None)

    async def _catch_up(
        self,
        connection: Connection,
        follower: Follower,
        state: CatchingUp,
        at: Position,
        batch: list[Delivery] | None,
    ) -> None:
        """Write what a connection missed, as fast as its client reads, and make it a member like all others.

        Args:
            connection: The connection.
            follower: The follower of the group.
            state: The entry of the connection in `catching_up`. If it is another one, the connection left.
            at: The last message that the client has.
            batch: The first messages after it, if they were read already.
        """
        while follower.catching_up.get(connection) is state and not connection.gone:
            if batch is None and (batch := follower.missed(at)) is None:
                at, batch = await self._read_missed(connection, follower, at)
                continue
            if not batch:
                # Nothing is awaited between this and the release.
                break
            at = batch[-1].position
            self._write(connection, follower.encoded(batch), len(batch))
            metrics.history_recovered.inc(len(batch))
            batch = None
            await self._drained(connection)
            if at.offset < follower.tail.offset:
                # A client that reads fast must not keep the event loop.
                await asyncio.sleep(0)
        if follower.catching_up.get(connection) is state:
            self.release(connection, follower.group)

    async def _read_missed(
        self, connection: Connection, follower: Follower, at: Position
    ) -> tuple[Position, list[Delivery] | None]:
        """Read the first messages after a position that memory does not reach.

        Returns:
            The position to go on from, and the messages after it. None instead of the messages if the caller
            must look again, or if the connection is evicted.
        """
        try:
            return at, await follower.read_missed(at)
        except Unreachable as refused:
            if refused.known:
                # Its place in the history is gone: it could not take the messages while they were kept.
                self._evict(connection, CloseReason.SLOW_CONSUMER)
                return at, None
            at = follower.tail.position
            self._write(connection, Shared((frames.build(reset_frame(follower.group, at)),)), 0)
        except LayerUnavailable:
            # The client may have a part already, so it must get the rest, or nothing more.
            await asyncio.sleep(RETRY_AFTER)
        except Exception:
            logger.exception("A connection could not catch up", extra=connection.log_fields())
            self._evict(connection, CloseReason.SERVER_UNAVAILABLE)
        return at, None

    def _write(self, connection: Connection, shared: Shared, messages: int) -> None:
        if not connection.gone:
            self._fanout.write(connection, shared, messages)

    # -- positions ---------------------------------------------------------------------------------------

    def check_now(self) -> None:
        """Compare the positions immediately: the layer is back after an outage."""
        self._wake.set()

    async def run(self) -> None:
        """Compare the positions of all groups with those in Redis, several times in an interval."""
        layer, _ = groups.at(self._address)
        layer.on_back.add(self.check_now)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_EVERY * self._interval):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self._check()
                except LayerUnavailable as error:
                    # The layer calls `on_back` when it is up again.
                    logger.warning("The positions of this process could not be checked: %s", error)
                except Exception:
                    # Go on after any error: lost messages would stay lost.
                    logger.exception("The positions of this process could not be checked")
        finally:
            layer.on_back.discard(self.check_now)
            for follower in self._followers.values():
                follower.stop()

    async def _check(self) -> None:
        self._bound_size()
        before = {
            group: follower.tail.position
            for group, follower in self._followers.items()
            if follower.tail.is_open
        }
        names = tuple(before)
        suspects: dict[str, Position] = {}
        for first in range(0, len(names), GROUPS_PER_CHECK):
            some = names[first : first + GROUPS_PER_CHECK]
            for group, log in (await groups.positions(some, self._address)).items():
                if (follower := self._followers.get(group)) is None:
                    continue
                tail = follower.tail
                if log.epoch == tail.epoch:
                    # Memory offers no more than Redis does.
                    tail.trim(log.first)
                if (log.epoch, log.offset) != (tail.epoch, tail.offset):
                    suspects[group] = log.position
        if suspects:
            await asyncio.sleep(min(LONGEST_GRACE, GRACE * self._interval))
        for group, found in suspects.items():
            follower = self._followers.get(group)
            if follower is not None and not _goes_on(before[group], found, follower.tail.position):
                follower.read("check")


def _goes_on(before: Position, found: Position, now: Position) -> bool:
    """Return True if a process has delivered all that Redis had, and Redis had all that was delivered.

    Args:
        before: The position of the process before it asked Redis.
        found: The position in Redis.
        now: The position of the process a moment later.
    """
    return before.epoch == found.epoch == now.epoch and before.offset <= found.offset <= now.offset
