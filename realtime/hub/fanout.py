"""Local fan-out: what came in for a group is written to each of its members in this process.

The hub puts messages in and goes on reading the channel layer; one task takes them out. So messages that
come faster than they can be written wait here, and those of one group leave together, without a timer: the
more there is to do, the less each message costs. Where nothing waits and few are to be written to, that is
done at once.
"""

import asyncio
import logging
from collections.abc import Mapping

from realtime import metrics
from realtime.hub.connection import Connection
from realtime.hub.heartbeat import Heartbeat
from realtime.hub.run_queue import Run, RunQueue
from realtime.transports.asgi import Shared

logger = logging.getLogger("realtime.fanout")

#: Seconds of writing after which the loop gets a turn.
SLICE = 0.005
#: Members written to between two looks at the clock.
STRIDE = 8
#: Seconds below which sleeping is not worth it.
SHORTEST_SLEEP = 0.001
#: Characters above which the hub leaves further messages to the channel layer: on the pub/sub layer they wait
#: in this process up to MAX_QUEUED_BYTES, on the core layer in Redis up to its `capacity`.
MAX_WAITING = 4 * 1024 * 1024

Members = Mapping[Connection, None]


class Fanout:
    """Writes to `members`, the hub's own record of who is in which group, asked at the time of each write.

    `window` is the setting COALESCE_WINDOW.
    """

    def __init__(self, members: Mapping[str, Members], heartbeat: Heartbeat, window: float) -> None:
        self._members = members
        self._heartbeat = heartbeat
        self._window = window
        self._waiting: RunQueue[Connection] = RunQueue()
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._last = ("", 0.0, 0.0)
        """The group that was written to last, when that was done, and how long it took."""
        self._pause_at = 0.0
        self._idle = False
        """Whether `run` waits for something to write."""

    async def put(self, group: str, text: str) -> None:
        """Have this message written to the members of the group; waits while too much waits already."""
        members = self._members.get(group)
        if not members:
            return
        if len(members) <= STRIDE and self._is_quiet(group):
            # Waking the task would take longer than the writes.
            self._write_to_few(group, members, text)
            await self._pause()
            return
        self._waiting.put(group, text)
        self._something.set()
        while self._waiting.length > MAX_WAITING:
            self._room.clear()
            await self._room.wait()

    def flush(self, connection: Connection) -> None:
        """Write to a connection what it has still to receive from its groups, before something else."""
        if self._waiting:
            for run in self._waiting.serve(connection, connection.groups, connection.last_run):
                self._write(connection, _prepared(run), len(run.texts))
                metrics.deliveries.inc(len(run.texts))

    def _is_quiet(self, group: str) -> bool:
        """Whether nothing is to be written before a message of this group, nor has it just had one: what
        follows at once waits, to leave together.
        """
        if self._waiting or not self._idle:
            return False
        last, ended, _ = self._last
        return group != last or self._loop.time() - ended > max(self._window, SHORTEST_SLEEP)

    def _write_to_few(self, group: str, members: Members, text: str) -> None:
        shared, count, began = Shared((text,)), 0, self._loop.time()
        try:
            for connection in tuple(members):
                # A write may end others.
                if connection in members:
                    self._write(connection, shared, 1)
                    count += 1
        except Exception:
            _log_unwritten(group)
        metrics.deliveries.inc(count)
        ended = self._loop.time()
        self._last = (group, ended, ended - began)

    async def _pause(self) -> None:
        """Give the loop a turn, where that was long ago."""
        if self._loop.time() > self._pause_at:
            await asyncio.sleep(0)
            self._pause_at = self._loop.time() + SLICE

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if (run := self._waiting.first) is None:
                self._something.clear()
                self._idle = True
                await self._something.wait()
                self._idle = False
                self._pause_at = self._loop.time() + SLICE
                continue
            if (wait := self._window_of(run.group)) > 0:
                await asyncio.sleep(wait)
                self._pause_at = self._loop.time() + SLICE
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
            ended = self._loop.time()
            self._last = (run.group, ended, ended - began)
            for start in range(0, len(to_ask), STRIDE):
                for connection in to_ask[start : start + STRIDE]:
                    self._heartbeat.ask(connection, since=asked_at)
                await self._pause()

    def _window_of(self, group: str) -> float:
        """Seconds for which more may come for this group before it is written to.

        None for a group that is quiet or small: what is waited is never more than half of what the last
        write took, because a second one for what came meanwhile would take as long again.
        """
        last, ended, took = self._last
        window = min(self._window, took / 2)
        # Selectors sleep whole milliseconds.
        if group != last or window < SHORTEST_SLEEP:
            return 0.0
        return ended + window - self._loop.time()

    async def _write_to_all(self, run: Run[Connection], to_ask: list[Connection]) -> None:
        """Write a run to each member; adds to `to_ask` the members to which a ping has to follow.

        The pings follow when all have their messages: pongs come back while others are still written to, and
        would keep them waiting.
        """
        members = self._members.get(run.group)
        if not members:
            return
        shared, messages, served, number = _prepared(run), len(run.texts), run.served, run.number
        # Nothing is looked up twice below, and nothing counted that can be counted afterwards: this is done
        # for every member, and a write to a socket costs as much as some fifty lines of Python.
        everybody, size, count = tuple(members), shared.size, 0
        for start in range(0, len(everybody), STRIDE):
            now = self._heartbeat.now()
            for connection in everybody[start : start + STRIDE]:
                # Membership is asked for at the time of the write: anything may have ended while the loop
                # had its turn.
                if connection not in members or (served and connection in served):
                    continue
                liveness = connection.liveness
                if (
                    liveness is not None
                    and (then := liveness.wrote(size, now, messages))
                    and self._heartbeat.follow_up(connection, liveness, then)
                ):
                    to_ask.append(connection)
                # Before the write, and before the loop has its turn: a frame that goes to this member
                # directly must neither overtake the run nor repeat it.
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
    """The messages of a run as bytes and events, made for the first member that receives them."""
    if run.prepared is None:
        run.prepared = Shared(run.texts)
    shared: Shared = run.prepared
    return shared


def _log_unwritten(group: str) -> None:
    """One message that cannot be written must not keep all others from being written."""
    logger.exception("A message to group %s could not be written", group)
