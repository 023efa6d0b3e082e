"""The rights of the connections of one process: each is closed or asked about again when its right changes.

Other processes tell of ended sessions and of changes of users. The process reads what they told it, what its
new connections rely on, and more than once in each interval everything that all of its connections rely on:
no signal tells of rows that were changed by SQL, and a message may be lost.

No change is missed. A change before a connection was let in is in what is read after its record was
committed. A change after that is told, because the records say which processes must be told. And a change of
which nothing was told is found by the next comparison.

Connections of anonymous clients without a ticket are not here and cost nothing.
"""

import asyncio
import copy
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

from django.db import Error as DatabaseFailure

from realtime import conf
from realtime.closing import CloseReason
from realtime.fleet.database import Database
from realtime.hub.connection import Connection
from realtime.layers import messages
from realtime.process import tasks
from realtime.rights import sessions, users
from realtime.rights.authorization import digest
from realtime.rights.users import Known, Standing

logger = logging.getLogger("realtime.hub")

#: The part of an interval after which everything is read again.
CHECK_EVERY = 0.6
#: Seconds from the record of a connection to the reading of what it relies on. All that are admitted
#: meanwhile are read together. Django tells of a logout a moment before it ends the session, and so this
#: reading comes after the end.
CHECK_NEW_AFTER = 0.25
#: Users or sessions that one query reads.
BATCH = 500
#: Connections that are looked at before the loop gets a turn.
SLICE = 100
#: Connections of which policies are asked at the same time.
ASKED_TOGETHER = 20
#: Seconds until what could not be read is read again.
RETRY_AFTER = 1.0

Item = TypeVar("Item")


class Owner(Protocol):
    """The calls of rights that run upward, to the code that ends connections and asks policies."""

    def evict(self, connection: Connection, reason: CloseReason) -> object:
        """End a connection whose right has ended."""

    async def recheck(
        self, connection: Connection, groups: Collection[str] | None, *, tell_consumer: bool
    ) -> bool:
        """Ask the policy again about groups of a connection. Return False if that must be tried again."""

    def ask_for_refresh(self, connection: Connection, within: float) -> bool:
        """Ask a client to renew its right within some seconds.

        Returns:
            False if its handshake is not complete yet. Then ask again.
        """


class Rechecks:
    """Counts the rechecks of this process that are not about single users.

    A policy that was asked before such a recheck is asked again, also for connections without a record.
    """

    count = 0


@dataclass(slots=True)
class _User:
    """A user with connections here."""

    key: Any
    """The primary key."""
    readable: bool
    """False if the user is not in the table of the user model. Then only rechecks concern it."""
    connections: list[Connection] = field(default_factory=list)
    standing: Standing | None = None
    """As it was last read; None before."""


@dataclass(slots=True)
class _Asking:
    """A connection whose groups wait for the policy."""

    groups: set[str] | None
    """None for all groups."""
    tell_consumer: bool

    def add(self, other: "_Asking") -> None:
        self.groups = None if self.groups is None or other.groups is None else self.groups | other.groups
        self.tell_consumer = self.tell_consumer or other.tell_consumer


@dataclass(slots=True)
class _Todo:
    """What must be read soon."""

    new: dict[Connection, None] = field(default_factory=dict)
    """Connections whose records were just committed."""
    ending: dict[Connection, None] = field(default_factory=dict)
    """Connections whose session may end now."""
    users: dict[str, bool] = field(default_factory=dict)
    """Users that may have changed, and whether the policy is asked in any case."""
    members: dict[Connection, _Asking] = field(default_factory=dict)
    """Connections whose policy is asked with a new object of their user."""

    def __bool__(self) -> bool:
        return bool(self.new or self.ending or self.users or self.members)


class Rights:
    """The rights of the connections of one process.

    Args:
        database: Runs what reads users and sessions. It must be hung up by no writing of records.
        members: The members of each group.
        owner: Ends connections and asks policies.
        interval: The setting ROUND_INTERVAL, in seconds.
        checks: True if connections are checked unasked: new ones once, and all ones again and again.
    """

    def __init__(
        self,
        database: Database,
        members: Mapping[str, Collection[Connection]],
        owner: Owner,
        *,
        interval: float,
        checks: bool = True,
    ) -> None:
        self._database = database
        self._members = members
        self._owner = owner
        self._interval = interval
        self._checks = checks
        self._loop = asyncio.get_running_loop()
        self._known: dict[Connection, Known | None] = {}
        """All connections that rely on anything, each with what its handshake knew of its user."""
        self._users: dict[str, _User] = {}
        self._todo = _Todo()
        self._wake = asyncio.Event()
        self._due: float | None = None
        """The loop time at which the things to do are done; None if there are none."""
        self._near: dict[Connection, float | None] = {}
        """Connections whose right ends soon, each with the end for which its client was asked to refresh."""
        self._near_changed = asyncio.Event()
        self._asking: dict[Connection, _Asking] = {}
        self._askers = 0
        self._ask_later: dict[Connection, _Asking] = {}
        self._failing = False
        """True from a reading that failed until one that did not: an outage is logged once."""

    # -- connections -----------------------------------------------------------------------------------

    def added(self, connection: Connection) -> None:
        """Note a connection whose record is about to be written."""
        if connection.authorization is None:
            return
        user, user_id = connection.scope.get("user"), connection.authorization.user_id
        known = None
        if user_id and user is not None:
            entry = self._users.get(user_id)
            if entry is None:
                entry = self._users[user_id] = _User(user.pk, users.readable(user))
            entry.connections.append(connection)
            known = users.known_of(user) if entry.readable else None
        self._known[connection] = known
        self._note_end(connection)

    def admitted(self, connection: Connection) -> None:
        """Have everything read on which a connection relies whose record was committed."""
        if self._checks and connection in self._known:
            self._todo.new[connection] = None
            self._soon(CHECK_NEW_AFTER)

    def removed(self, connection: Connection) -> None:
        """Forget a connection that ended."""
        self._asking.pop(connection, None)
        self._ask_later.pop(connection, None)
        if connection not in self._known or connection.authorization is None:
            return
        del self._known[connection]
        self._near.pop(connection, None)
        entry = self._users.get(connection.authorization.user_id)
        if entry is not None:
            with suppress(ValueError):
                entry.connections.remove(connection)
            if not entry.connections:
                del self._users[connection.authorization.user_id]

    def changed(self, connection: Connection) -> None:
        """Take the new authorization of a connection, which has the same user.

        The policy is asked again about its groups, because the new right may be for fewer ones.
        """
        if connection in self._known:
            entry = self._users.get(connection.user_id)
            if entry is not None and entry.readable:
                # The new right may have been given after a change of the password.
                self._known[connection] = users.known_of(connection.scope["user"])
            self._near.pop(connection, None)
            self._note_end(connection)
            self._ask([connection], None, tell_consumer=False)

    async def read_session(self, connection: Connection) -> float | None:
        """Read the session of a connection now. If it has ended, the connection is evicted.

        Returns:
            The end of the right in seconds since the epoch; None if it is not known, or if there is none.

        Raises:
            Exception: The session could not be read.
        """
        if connection.authorization is not None and connection.authorization.session:
            await self._read_sessions([connection])
        return None if connection.authorization is None else connection.authorization.expires_at

    # -- what other processes say ------------------------------------------------------------------------

    def revoke(self, revoke: messages.Revoke) -> list[Connection]:
        """Return the connections that rely on a session that has ended. The caller evicts them."""
        entry = self._users.get(revoke.user)
        return [
            connection
            for connection in (entry.connections if entry is not None else ())
            if (held := connection.authorization) is not None
            and held.session
            and (not revoke.session or digest(held.session) == revoke.session)
        ]

    def recheck(self, recheck: messages.Recheck) -> None:
        """Have the rights of users read again, and the policy asked again."""
        if recheck.groups is None:
            self._note_users(
                self._users if recheck.users is None else recheck.users, not recheck.changed_only
            )
        if recheck.groups is None and recheck.users is None and not recheck.changed_only:
            Rechecks.count += 1
            anonymous = {each for members in self._members.values() for each in members if not each.user_id}
            self._ask(anonymous, None, tell_consumer=True)
        if recheck.groups is not None:
            Rechecks.count += 1
            for group in recheck.groups:
                self._note_members(group, recheck.users)
        self._soon(0.0)

    def _note_users(self, names: Iterable[str], ask: bool) -> None:
        for name in names:
            if (entry := self._users.get(name)) is not None:
                # Without an earlier reading, it cannot be known what has changed.
                self._todo.users[name] = ask or entry.standing is None or self._todo.users.get(name, False)

    def _note_members(self, group: str, names: Sequence[str] | None) -> None:
        """Have the policy asked about one group of its members, or of some users among them."""
        for connection in tuple(self._members.get(group, ())):
            if names is not None and connection.user_id not in names:
                continue
            asking = _Asking({group}, tell_consumer=True)
            if connection.user_id not in self._users:
                self._ask([connection], asking.groups, tell_consumer=True)
            elif connection in self._todo.members:
                self._todo.members[connection].add(asking)
            else:
                self._todo.members[connection] = asking

    def _soon(self, after: float) -> None:
        if not self._todo:
            return
        due = self._loop.time() + after
        if self._due is None or due < self._due:
            self._due = due
            self._wake.set()

    # -- read --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read what was told, and what new connections rely on, until cancelled."""
        while True:
            self._wake.clear()
            if self._due is None or self._due > self._loop.time():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due):
                        await self._wake.wait()
                continue
            self._due = None
            todo, self._todo = self._todo, _Todo()
            if not await self._try(self._do(todo)):
                self._take_back(todo)
                self._soon(RETRY_AFTER)

    def _take_back(self, todo: _Todo) -> None:
        """Note again what could not be read."""
        for mine, theirs in ((self._todo.new, todo.new), (self._todo.ending, todo.ending)):
            mine.update((each, None) for each in theirs if each in self._known)
        for name, ask in todo.users.items():
            self._note_users([name], ask)
        for connection, asking in todo.members.items():
            if connection in self._known:
                self._todo.members.setdefault(connection, asking).add(asking)

    async def _do(self, todo: _Todo) -> None:
        if todo.users:
            await self._read_users(todo.users)
        if todo.members:
            await self._ask_members(todo.members)
        if todo.new:
            await self._check_new([each for each in todo.new if each in self._known])
        if todo.ending:
            await self._read_sessions(todo.ending)

    async def check(self) -> None:
        """Read everything on which connections rely, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval * CHECK_EVERY)
            later, self._ask_later = self._ask_later, {}
            for connection, asking in later.items():
                self._queue(connection, asking)
            if self._known:
                await self._try(self._check_all())

    async def _check_all(self) -> None:
        await self._read_users(dict.fromkeys(self._users, False))
        await self._read_sessions(tuple(self._known))
        for connection in tuple(self._known):
            self._note_end(connection)

    async def _try(self, reading: Any) -> bool:
        """Await a reading. Return False if it failed: the connections stay, and the outage is logged once."""
        try:
            await reading
        except Exception as error:
            if not self._failing:
                self._failing = True
                detail = None if isinstance(error, DatabaseFailure) else error
                logger.error(
                    "Users and sessions cannot be read (%r). Their connections stay until they can be",
                    error,
                    exc_info=detail,
                )
            return False
        if self._failing:
            self._failing = False
            logger.warning("Users and sessions can be read again")
        return True

    async def _check_new(self, new: Collection[Connection]) -> None:
        """Check connections whose records were just committed.

        Their policies were asked before that, and the permissions that a policy has seen are not known. So
        they are asked once more, about users without the permissions that Django keeps in their objects.
        """
        names = [each.authorization.user_id for each in new if each.authorization is not None]
        await self._read_users({name: False for name in names if name in self._users})
        await self._read_sessions(new)
        for connection in new:
            if connection in self._known and not connection.gone and connection.user_id:
                if self._known[connection] is not None:
                    # Others are no objects of the user model, and may be of any type.
                    connection.scope["user"] = users.without_caches(connection.scope["user"])
                if connection.asks_policy:
                    self._ask([connection], None, tell_consumer=False)

    async def _read_users(self, names: Mapping[str, bool]) -> None:
        """Read users, and do what their standing demands.

        Args:
            names: The users, and whether the policy is asked even if nothing has changed.
        """
        groups: dict[Any, int] = {}
        for some in _batches(names, BATCH):
            entries = {name: entry for name in some if (entry := self._users.get(name)) is not None}
            # A connection that comes during the reading may know more than was read.
            before = {name: tuple(entry.connections) for name, entry in entries.items()}
            keys = [entry.key for entry in entries.values() if entry.readable]
            found = await self._database(users.read, keys, groups) if keys else {}
            ending: list[tuple[Connection, CloseReason]] = []
            to_ask = []
            for number, (name, entry) in enumerate(entries.items(), start=1):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                if entry.readable:
                    ending += self._ended(before[name], found.get(name))
                if self._has_changed(entry, before[name], found.get(name)) or names[name]:
                    to_ask.append(name)
            for number, (connection, reason) in enumerate(ending, start=1):
                self._owner.evict(connection, reason)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
            await self._ask_users(to_ask)

    def _ended(
        self, held: Iterable[Connection], found: Standing | None
    ) -> Iterator[tuple[Connection, CloseReason]]:
        """Return the connections of a user that lost the right to them."""
        for connection in held:
            if (reason := _verdict(self._known.get(connection), found)) is not None:
                yield connection, reason

    def _has_changed(self, entry: _User, held: Iterable[Connection], found: Standing | None) -> bool:
        """Note the standing of a user. Return True if rights changed on which a policy may rely."""
        before, entry.standing = entry.standing, found
        if found is None:
            return False
        if before is not None:
            return (before.flags, before.permissions) != (found.flags, found.permissions)
        known = (self._known.get(connection) for connection in held)
        return any(each is not None and each.flags not in (None, found.flags) for each in known)

    async def _ask_users(self, names: Iterable[str]) -> None:
        """Give all connections of users new objects of them, and ask their policies again."""
        concerned = [
            connection
            for name in names
            if (entry := self._users.get(name)) is not None
            for connection in entry.connections
        ]
        await self._ask_members({connection: _Asking(None, tell_consumer=True) for connection in concerned})

    async def _ask_members(self, concerned: Mapping[Connection, _Asking]) -> None:
        """Give connections new objects of their users, and ask their policies again."""
        for some in _batches(concerned, BATCH):
            entries = {each.user_id: self._users.get(each.user_id) for each in some}
            keys = [entry.key for entry in entries.values() if entry is not None and entry.readable]
            loaded = await self._database(users.load, keys) if keys else {}
            for number, connection in enumerate(some, start=1):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                if (fresh := loaded.get(connection.user_id)) is not None and connection in self._known:
                    # A copy, because a consumer may note something in the object of its own user.
                    connection.scope["user"] = copy.copy(fresh)
                    self._learn(connection, fresh)
                asking = concerned[connection]
                self._ask([connection], asking.groups, tell_consumer=asking.tell_consumer)

    def _learn(self, connection: Connection, fresh: Any) -> None:
        """Note what a connection knows of its user now. Its password and its activity stay those it had."""
        if (known := self._known.get(connection)) is not None:
            self._known[connection] = known._replace(flags=users.known_of(fresh).flags)

    async def _read_sessions(self, connections: Iterable[Connection]) -> None:
        """Read sessions, evict the connections whose session is gone, and note when the others end."""
        held: dict[str, list[Connection]] = defaultdict(list)
        for connection in connections:
            if (relies := connection.authorization) is not None and relies.session:
                held[relies.session].append(connection)
        for keys in _batches(held, BATCH):
            found = await self._database(sessions.read, keys)
            now = time.time()
            for number, key in enumerate(keys, start=1):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                end = found.get(key)
                gone = key not in found or (end is not None and end <= now)
                for connection in held[key]:
                    # It may have got another authorization during the reading.
                    if connection.authorization is None or connection.authorization.session != key:
                        continue
                    if gone:
                        self._owner.evict(connection, CloseReason.NOT_AUTHENTICATED)
                    elif connection.authorization.expires_at != end:
                        connection.authorization = replace(connection.authorization, expires_at=end)
                        self._note_end(connection)

    # -- ask the policy ----------------------------------------------------------------------------------

    def _ask(
        self, connections: Iterable[Connection], groups: set[str] | None, *, tell_consumer: bool
    ) -> None:
        """Have the policy asked about groups of connections; None means all of their groups.

        From now on, a policy that is being asked for one of them is asked again.
        """
        for connection in connections:
            connection.rights_read += 1
            if not connection.gone:
                self._queue(connection, _Asking(groups, tell_consumer))

    def _queue(self, connection: Connection, asking: _Asking) -> None:
        waiting = self._asking.get(connection)
        if waiting is None:
            self._asking[connection] = asking
        else:
            waiting.add(asking)
        if self._askers < ASKED_TOGETHER:
            self._askers += 1
            tasks.start(self._ask_waiting())

    async def _ask_waiting(self) -> None:
        try:
            while self._asking:
                connection = next(iter(self._asking))
                asking = self._asking.pop(connection)
                if connection.gone:
                    continue
                try:
                    done = await self._owner.recheck(
                        connection, asking.groups, tell_consumer=asking.tell_consumer
                    )
                except Exception:
                    logger.exception("A policy was not asked again", extra=connection.log_fields())
                    done = False
                if not done and not connection.gone:
                    self._ask_later[connection] = asking
                await asyncio.sleep(0)
        finally:
            self._askers -= 1

    # -- ends --------------------------------------------------------------------------------------------

    def _note_end(self, connection: Connection) -> None:
        """Watch a right that ends before it is looked at again."""
        relies = connection.authorization
        if relies is None or relies.expires_at is None:
            self._near.pop(connection, None)
            return
        horizon = conf.get().REFRESH_BEFORE + 2 * self._interval * CHECK_EVERY
        if relies.expires_at - time.time() > horizon:
            self._near.pop(connection, None)
        else:
            self._near.setdefault(connection, None)
            self._near_changed.set()

    async def expire(self) -> None:
        """Ask clients to renew rights that end soon, and evict those that did not, until cancelled."""
        while True:
            self._near_changed.clear()
            now = time.time()
            for number, connection in enumerate(tuple(self._near), start=1):
                self._look_at_end(connection, now)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
            with suppress(TimeoutError):
                # Bounded, because the clock of the machine may be set.
                async with asyncio.timeout(self._wait_for_ends(now)):
                    await self._near_changed.wait()

    def _wait_for_ends(self, now: float) -> float:
        """Return the seconds until a right must be looked at, from the time of the last look."""
        before = conf.get().REFRESH_BEFORE
        soonest = self._interval
        for connection, asked_for in self._near.items():
            relies = connection.authorization
            if relies is not None and relies.expires_at is not None:
                at = relies.expires_at if asked_for == relies.expires_at else relies.expires_at - before
                # What is due and still here waits for a reading.
                soonest = min(soonest, at - now if at > now else RETRY_AFTER)
        return max(soonest, 0.005)

    def _look_at_end(self, connection: Connection, now: float) -> None:
        relies = connection.authorization
        if relies is None or relies.expires_at is None or connection.gone:
            self._near.pop(connection, None)
            return
        rest = relies.expires_at - now
        if rest <= 0:
            if relies.session:
                # A request may have renewed it. If it cannot be read, the connection stays.
                self._todo.ending[connection] = None
                self._soon(0.0)
            else:
                self._owner.evict(connection, CloseReason.NOT_AUTHENTICATED)
        elif (
            rest <= conf.get().REFRESH_BEFORE
            and self._near.get(connection) != relies.expires_at
            and self._owner.ask_for_refresh(connection, rest)
        ):
            self._near[connection] = relies.expires_at


def _verdict(known: Known | None, found: Standing | None) -> CloseReason | None:
    """Return the reason to close a connection, from what its handshake knew and what was found now."""
    if found is None or (known is not None and known.is_active and not found.is_active):
        return CloseReason.FORBIDDEN
    if known is not None and known.password is not None and known.password != found.password:
        return CloseReason.NOT_AUTHENTICATED
    return None


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
