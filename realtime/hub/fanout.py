"""Local fan-out: write each message of a group to the members of the group in this process.

The reader of the channel layer puts messages in and goes on reading. One task takes them out. Messages that
come faster than they can be written wait here, and messages of one group leave together, without a timer:
the higher the load, the less each message costs. If nothing waits and the group is small, the message is
written immediately.
"""

import asyncio
import logging
from collections.abc import Mapping

from realtime import metrics
from realtime.hub.connection import Connection
from realtime.hub.heartbeat import Heartbeat
from realtime.hub.run_queue import Run, RunQueue
from realtime.hub.window import Window
from realtime.transports.asgi import Shared

logger = logging.getLogger("realtime.hub")

#: Seconds of writing after which the loop gets a turn. If the turn takes longer, the next slice is as long as
#: the turn, up to the second value: clients that talk all the time must not starve those that listen.
SLICE, LONGEST_SLICE = 0.005, 0.1
#: Members that are written to between two readings of the clock.
STRIDE = 8
#: If more characters wait here, further messages stay in the channel layer: the pub/sub layer keeps up to
#: MAX_QUEUED_BYTES of them in this process, the core layer up to its `capacity` in Redis.
MAX_WAITING = 4 * 1024 * 1024

Members = Mapping[Connection, None]


class Fanout:
    """The writer of group messages.

    Args:
        members: The members of each group. It is read at the time of each write.
        heartbeat: Notes what is written, and pings.
        window: The setting COALESCE_WINDOW, in seconds.
        slice: Seconds of writing after which the loop gets a turn.
        max_waiting: If more characters wait, `put` waits.
    """

    def __init__(
        self,
        members: Mapping[str, Members],
        heartbeat: Heartbeat,
        window: float,
        *,
        slice: float = SLICE,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._members = members
        self._heartbeat = heartbeat
        self._slice = slice
        self._max_waiting = max_waiting
        self._waiting: RunQueue[Connection] = RunQueue()
        # The members that get the messages of a group in another way, by group.
        self._held: dict[str, set[Connection]] = {}
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._window = Window(window)
        self._pause_at = 0.0
        self._idle = False
        """True while `run` waits for a message."""

    async def put(self, group: str, text: str) -> None:
        """Write a message to the members of the group, now or in its turn. If too much waits, wait.

        The message has its place before this waits for the first time.
        """
        members = self._members.get(group)
        if not members:
            return
        if len(members) <= STRIDE and self._is_quiet(group):
            # To wake the task would take longer than the writes.
            self._write_to_few(group, members, text)
            await self._pause()
            return
        self._waiting.put(group, text, self._held.get(group, ()))
        self._something.set()
        while self._waiting.length > self._max_waiting:
            self._room.clear()
            await self._room.wait()

    def hold(self, connection: Connection, group: str) -> None:
        """Write no message of the group to this member until `release`, and none that waits now."""
        self._held.setdefault(group, set()).add(connection)
        self._waiting.skip(connection, group)

    def release(self, connection: Connection, group: str) -> None:
        """Write to this member again what is put from now on."""
        held = self._held.get(group)
        if held is not None:
            held.discard(connection)
            if not held:
                del self._held[group]

    def write(self, connection: Connection, shared: Shared, messages: int) -> None:
        """Write messages to one connection, after those that wait for it."""
        self.flush(connection)
        self._write(connection, shared, messages)
        metrics.deliveries.inc(messages)

    def flush(self, connection: Connection) -> None:
        """Write to a connection the group messages that wait for it, before the caller writes a frame."""
        if self._waiting:
            for run in self._waiting.serve(connection, connection.groups, connection.last_run):
                self._write(connection, _prepared(run), len(run.texts))
                metrics.deliveries.inc(len(run.texts))

    async def quiet(self, within: float) -> None:
        """Give the loop a turn, and wait until no message waits, for at most `within` seconds."""
        until = self._loop.time() + within
        await asyncio.sleep(0)
        # Checked periodically, so that messages are not delayed by telling others that they were written.
        while self._waiting and self._loop.time() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(SLICE / 5)

    def _is_quiet(self, group: str) -> bool:
        """Return True if no message waits and this group was not just written to.

        A message right after another one is queued, so that both can leave in one write.
        """
        return self._idle and not self._waiting and self._window.is_quiet(group, self._loop.time())

    def _write_to_few(self, group: str, members: Members, text: str) -> None:
        shared, count, began = Shared((text,)), 0, self._loop.time()
        held = self._held.get(group, ())
        try:
            for connection in tuple(members):
                # A write may end other connections.
                if connection in members and connection not in held:
                    self._write(connection, shared, 1)
                    count += 1
        except Exception:
            _log_unwritten(group)
        metrics.deliveries.inc(count)
        self._window.wrote(group, began, self._loop.time())

    async def _pause(self) -> None:
        """Give the loop a turn if it has had none for a while."""
        if (began := self._loop.time()) > self._pause_at:
            await asyncio.sleep(0)
            now = self._loop.time()
            self._pause_at = now + min(LONGEST_SLICE, max(self._slice, now - began))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if (run := self._waiting.first) is None:
                self._something.clear()
                self._idle = True
                await self._something.wait()
                self._idle = False
                self._pause_at = self._loop.time() + self._slice
                continue
            if (wait := self._window.left(run.group, self._loop.time())) > 0:
                await asyncio.sleep(wait)
                self._pause_at = self._loop.time() + self._slice
            run = self._waiting.take()
            self._room.set()
            began, asked_at = self._loop.time(), self._heartbeat.now()
            to_ask: list[Connection] = []
            try:
                await self._write_to_all(run, to_ask)
            except Exception:
                _log_unwritten(run.group)
            finally:
                self._waiting.finish()
            self._window.wrote(run.group, began, self._loop.time())
            for start in range(0, len(to_ask), STRIDE):
                for connection in to_ask[start : start + STRIDE]:
                    self._heartbeat.ask(connection, since=asked_at)
                await self._pause()

    async def _write_to_all(self, run: Run[Connection], to_ask: list[Connection]) -> None:
        """Write a run to each member of its group.

        Args:
            run: The messages.
            to_ask: Receives the members to which a ping must follow. The caller sends the pings after all
                writes: pongs come back while other members are written to, and would delay them.
        """
        members = self._members.get(run.group)
        if not members:
            return
        shared, messages, served, number = _prepared(run), len(run.texts), run.served, run.number
        # The loop below runs for every member, so it looks up nothing twice and counts at the end. A write to
        # a socket costs as much as about fifty lines of Python.
        present, size, count = tuple(members), shared.size, 0
        for start in range(0, len(present), STRIDE):
            now = self._heartbeat.now()
            for connection in present[start : start + STRIDE]:
                # Check the membership at the time of the write: it may have ended during the loop's turn.
                if connection not in members or (served and connection in served):
                    continue
                liveness = connection.liveness
                if (
                    liveness is not None
                    and (then := liveness.wrote(size, now, messages))
                    and self._heartbeat.follow_up(connection, liveness, then)
                ):
                    to_ask.append(connection)
                # Set before the write and before the loop's turn: a frame that goes to this member directly
                # must neither overtake the run nor repeat it.
                connection.last_run = number
                connection.transport.write_shared(shared)
                count += 1
            await self._pause()
        metrics.deliveries.inc(count * messages)

    def _write(self, connection: Connection, shared: Shared, messages: int) -> None:
        to_ask = self._heartbeat.wrote(connection, shared.size, messages)
        connection.transport.write_shared(shared)
        if to_ask:
            self._heartbeat.ask(connection)


def _prepared(run: Run[Connection]) -> Shared:
    """Return the messages of a run as bytes and events. The first member that receives them makes them."""
    if run.prepared is None:
        run.prepared = Shared(run.texts)
    shared: Shared = run.prepared
    return shared


def _log_unwritten(group: str) -> None:
    """Log that a message could not be written. The other messages must still be written."""
    logger.exception("A message to group %s could not be written", group)
