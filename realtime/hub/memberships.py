"""The groups of one process: their members here, and the process's own membership in the channel layer.

The process is a member of a group in the layer while it has a local member of that group whose row is
committed. Changes of one group take turns, so a membership that is left never removes one that is joined at
the same moment.

A connection that joins a group which the process is in receives from the moment of the call: it rides on the
members whose rows are committed. A rider holds nothing in the layer. When the last recorded member leaves,
the process leaves the group. The riders receive again when their own rows are committed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, nullcontext

from realtime import metrics
from realtime.errors import LayerUnavailable
from realtime.hub.connection import Connection
from realtime.layers import groups


def _ignore(group: str) -> None:
    """Do nothing with the name of a group."""


class Memberships:
    """The local members of each group, and the groups that this process is in.

    Args:
        address: The address of this process in its channel layer.
        joined: Called with the name of each group that this process has joined in the layer.
        emptied: Called with the name of each group that its last local member has left.
    """

    def __init__(
        self,
        address: str,
        *,
        joined: Callable[[str], None] = _ignore,
        emptied: Callable[[str], None] = _ignore,
    ) -> None:
        self.address = address
        self._joined = joined
        self._emptied = emptied
        self.groups: dict[str, dict[Connection, None]] = {}
        """The local members of each group. A dict keeps their order and may be read while members leave."""
        # Members whose rows are not committed yet.
        self._riders: dict[str, set[Connection]] = {}
        self.leave_failed = False
        """True if the layer failed to let this process leave a group: some membership rows are still open."""
        # Groups that the layer may have this process in: from before it is asked to add the process until a
        # discard has returned.
        self._in_layer: set[str] = set()
        self._closed = False
        self._locks: dict[str, _Lock] = {}

    # -- join --------------------------------------------------------------------------------------

    def is_recorded(self, connection: Connection, group: str) -> bool:
        """Return True if the connection is a member of the group, and its row is committed."""
        return group in connection.groups and connection not in self._riders.get(group, ())

    def ride(self, connection: Connection, group: str) -> None:
        """Let the connection receive from now on, if the process is in the group for a recorded member.

        A layer in the memory of this process ends with it, so no row has to name a membership there: the
        process joins the group now. The caller commits the row and then calls `add`, or calls `stop_riding`.
        """
        if group in connection.groups or self._closed:
            return
        if not self._has_recorded(group):
            if not groups.add_now(group, self.address):
                return
            self._in_layer.add(group)
        self._riders.setdefault(group, set()).add(connection)
        self._put(connection, group)

    def stop_riding(self, connection: Connection, group: str) -> bool:
        """Remove a member whose row could not be committed.

        Returns:
            False if it is none: the caller need not call `leave`.
        """
        rides = connection in self._riders.get(group, ())
        if rides:
            self.remove(connection, group)
        return rides

    def _has_recorded(self, group: str) -> bool:
        return len(self.groups.get(group, ())) > len(self._riders.get(group, ()))

    def _put(self, connection: Connection, group: str) -> None:
        if group not in self.groups:
            self.groups[group] = {}
            metrics.groups.inc()
        self.groups[group][connection] = None
        connection.groups.add(group)

    def _end_ride(self, connection: Connection, group: str) -> None:
        riders = self._riders.get(group)
        if riders is not None:
            riders.discard(connection)
            if not riders:
                del self._riders[group]

    async def add(self, connection: Connection, group: str) -> None:
        """Add the connection, whose row is committed, to the group; return when it receives.

        Raises:
            LayerUnavailable: The layer did not take the membership.
        """
        async with self.locked(group):
            if connection.gone:
                # Its eviction may have left the group already.
                return
            if not self._has_recorded(group):
                self._in_layer.add(group)
                await groups.add(group, self.address)
                self._joined(group)
            if connection.gone or self._closed:
                # It ended while the layer worked. Its eviction waits for this lock to leave the group.
                return
            self._end_ride(connection, group)
            self._put(connection, group)
            # Added again: a `group_discard` that held the lock until now has removed it.
            connection.joined.add(group)

    # -- leave -------------------------------------------------------------------------------------

    def remove(self, connection: Connection, group: str) -> None:
        """Stop writing to this member; `leave` tells the layer."""
        connection.groups.discard(group)
        self._end_ride(connection, group)
        members = self.groups.get(group)
        if members is not None:
            members.pop(connection, None)
            if not members:
                del self.groups[group]
                metrics.groups.dec()
                self._emptied(group)

    def remove_from_all(self, connection: Connection) -> None:
        """Remove the connection from all of its groups without waiting. There may be thousands."""
        emptied = 0
        for group in connection.groups:
            if self._riders:
                self._end_ride(connection, group)
            members = self.groups.get(group)
            if members is not None:
                members.pop(connection, None)
                if not members:
                    del self.groups[group]
                    emptied += 1
                    self._emptied(group)
        connection.groups.clear()
        metrics.groups.dec(emptied)

    def close(self, connections: Iterable[Connection]) -> None:
        """Add no member from now on, and remove these connections from their groups."""
        self._closed = True
        for connection in connections:
            self.remove_from_all(connection)

    async def leave(self, group: str) -> None:
        """Leave the layer's group unless it has a local member whose row is committed.

        Raises:
            LayerUnavailable: The layer did not let this process leave.
        """
        try:
            async with self.locked(group):
                # Check again under the lock: a connection may have joined while this call waited. If many
                # members end together, the first of them leaves for all.
                if self._has_recorded(group):
                    return
                if self.groups.get(group) and groups.ends_with_process(self.address):
                    return
                # The caller writes that the last recorded member has left. A membership that only riders kept
                # alive would then be named by no row, if the process were killed before theirs are committed.
                for rider in tuple(self._riders.get(group, ())):
                    self.remove(rider, group)
                if group in self._in_layer:
                    await groups.discard(group, self.address)
                    self._in_layer.discard(group)
        except LayerUnavailable:
            self.leave_failed = True
            raise

    def unfinished(self) -> list[str]:
        """List the groups that the layer failed to let this process leave, and that no task changes now."""
        return [group for group in self._in_layer - self.groups.keys() if group not in self._locks]

    def note_strays(self, names: Iterable[str]) -> None:
        """Note groups that the layer has this process in. The healer leaves those without a local member."""
        self._in_layer.update(group for group in names if group not in self.groups)

    # -- turns -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def locked(self, group: str) -> AsyncIterator[None]:
        """Hold the lock of the group. It exists while a task holds it or waits for it.

        Raises:
            LayerUnavailable: The tasks that hold the lock wait for the layer for too long.
        """
        lock = self._locks.setdefault(group, _Lock())
        lock.users += 1
        try:
            try:
                # A timer costs more than the lock, so a task that is alone sets none.
                async with nullcontext() if lock.users == 1 else asyncio.timeout(groups.CALL_TIMEOUT):
                    await lock.acquire()
            except TimeoutError as error:
                raise LayerUnavailable(
                    f"Earlier changes of group {group} still wait for the channel layer."
                ) from error
            try:
                yield
            finally:
                lock.release()
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[group]


class _Lock(asyncio.Lock):
    """A lock that counts the tasks that hold it or wait for it."""

    users = 0
