"""The life of a connection as sequences of writes, and why they stand in that order.

    admit          record (committed) → hub
    group_add      receives, if others here do → membership row (committed) → layer's group → receives
                   (→ who is present) (with history: → position or what was missed → receives messages)
    group_discard  receives no more → layer's group → membership row says left
    evict          out of the hub, immediately → close frame → layer's groups → rows say left and closed

A membership row outlives the membership: it is committed before the layer's `group_add`, and `left_at` is
set only after a `group_discard` that returned. A process that dies between two steps leaves rows that say
what must still be done. If the process is in the group already, a new member receives before its own row is
committed, because the rows of the others name the membership in the layer.
"""

import asyncio
import logging
import random
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from channels import DEFAULT_CHANNEL_LAYER
from django.db import InterfaceError, OperationalError
from django.dispatch import Signal

from realtime import conf, metrics, signals
from realtime.closing import CloseReason
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable, TooManyGroups
from realtime.history.positions import Joined, Position
from realtime.hub.connection import Connection, State
from realtime.hub.hub import Hub
from realtime.hub.supervisor import Supervisor
from realtime.layers import groups, messages
from realtime.limits import admission
from realtime.process import tasks
from realtime.records import connection_rows
from realtime.records.entries import Closing, Join, Opening
from realtime.rights import sessions
from realtime.serving import permitting
from realtime.transports.asgi import Event
from realtime.wire import frames

logger = logging.getLogger("realtime.serving")

#: Seconds after which an eviction stops waiting for a clean-up step that hangs. The step itself goes on.
CLEANUP_TIMEOUT = 10.0
#: How often an eviction tries to leave a group before it leaves the rest to a round.
LEAVE_TRIES = 2
#: Groups that a clean-up step leaves together, and connections that a kick evicts together. Between two
#: slices the event loop gets a turn.
SLICE = 100
#: Seconds for which `connection_closed` waits until the groups were left, in case the layer hangs.
LEAVING_TIMEOUT = 1.0
#: Seconds for the policy when it is asked again.
POLICY_TIMEOUT = 10.0


Key = TypeVar("Key")
Result = TypeVar("Result")


# -- the hub of this process -----------------------------------------------------------------------

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Supervisor] = weakref.WeakKeyDictionary()


async def hub(alias: str = DEFAULT_CHANNEL_LAYER) -> Hub:
    """Return the hub of this event loop for the channel layer of this alias. The first call starts it.

    Raises:
        LayerUnavailable: The layer is down, or has no layer of this alias.
        RecordsUnavailable: The database is down.
    """
    return await _hubs_here().get(alias)


async def stop() -> None:
    """End this loop's hubs as planned: evict every connection, then record that the process has stopped."""
    await _hubs_here().stop()


def ending() -> CloseReason | None:
    """Return the reason for which this process admits no more connections, or None."""
    return _hubs_here().ending


def track_consumer(consumer: "asyncio.Task[Any]") -> None:
    """Note a task that serves a connection: a planned stop waits until its handlers are done."""
    tasks.keep_reference(consumer, _hubs_here().consumers)


def _hubs_here() -> Supervisor:
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _hubs[loop] = Supervisor(evict=evict, kick=_kick, recheck=_recheck, ask_for_refresh=_ask_for_refresh)
    return _hubs[loop]


# -- in --------------------------------------------------------------------------------------------


async def admit(connection: Connection) -> None:
    """Record the connection and put it in the hub. Repeated calls wait for the same admission.

    Raises:
        LayerUnavailable: The channel layer is down.
        RecordsUnavailable: The database took no record.
        ConnectionGone: The connection ended meanwhile.
    """
    # Shielded: a consumer that is cancelled here leaves a write in flight, and the eviction must know its
    # outcome.
    if connection.state is State.CONNECTING or connection.admission is not None:
        await tasks.shielded(_admission(connection))
    if connection.gone:
        raise ConnectionGone


def _admission(connection: Connection) -> asyncio.Task[None]:
    """Return the task that admits this connection. The first call starts it."""
    if connection.admission is None:
        connection.admission = tasks.start(_admit(connection))
    return connection.admission


async def _admit(connection: Connection) -> None:
    if (reason := ending()) is not None:
        evict(connection, reason)
        return
    home = await hub(connection.alias)
    if home.ending is not None:
        evict(connection, home.ending)
    if connection.gone:
        return
    connection.hub = home
    # Set before the write: once that is under way the record may exist, and the eviction must close it.
    opening = connection.opening = _opening(connection, home)
    if connection.authorization is None:
        connection.authorization = sessions.authorization_of(connection.scope, connection.user_id)
    home.admitting.add(connection)
    # Before the write, so that its process knows it when its record says that the process must be told.
    home.rights.added(connection)
    try:
        await home.ledger.open(opening)
    except RecordsUnavailable as error:
        if error.never_written:
            connection.opening = None
        raise
    finally:
        home.admitting.discard(connection)
    if not connection.gone:
        home.add(connection)
        connection.state = State.OPEN
        home.rights.admitted(connection)
        metrics.opened.inc()
        if opening.client_id:
            # Not for a connection that is gone: its client may have a newer one, which it waits for.
            _supersede(home, opening)
        await _send_signal(signals.connection_opened, opening)
    # Removed, because a finished task would keep all its local names alive as long as the connection.
    connection.admission = None


def _supersede(home: Hub, opening: Opening) -> None:
    """Close the older connections of the client of a new one, soon."""
    if home.superseding.add(opening):
        # A stop waits for it, as for every step that closes records and announces their ends.
        tasks.keep_reference(_clean(home, home.superseding.run()), home.endings)


def _opening(connection: Connection, home: Hub) -> Opening:
    return Opening(
        id=connection.id,
        process_id=home.process,
        user_id=connection.user_id,
        path=connection.scope.get("path", ""),
        remote_address=connection.remote_address,
        user_agent=connection.user_agent,
        subprotocol=connection.subprotocol,
        client_id=connection.client_id,
    )


def accepted(connection: Connection) -> None:
    """Note that the handshake is complete: from now on the client must prove that it lives."""
    if connection.hub is not None and not connection.gone:
        connection.hub.heartbeat.watch(connection)
        connection.hub.recovery.accepted(connection)


#: The joins under way, counted. An earlier `group_discard` may have removed their group from `joined`, and a
#: later one must still have its turn.
_joining: Counter[tuple[Connection, str]] = Counter()
#: The leaves under way, counted. Between the call of a `group_discard` and its turn, an earlier `group_add`
#: may be done. A later `group_add` must not take the connection for a member then.
_leaving: Counter[tuple[Connection, str]] = Counter()


def _ignore(joined: Joined) -> None:
    """Do nothing when a group with history is joined."""


async def group_add(
    connection: Connection,
    group: str,
    since: Position | None = None,
    on_joined: Callable[[Joined], None] = _ignore,
    on_member: Callable[[], Awaitable[None]] | None = None,
) -> Joined | None:
    """Add the connection to a group; return when it receives what is sent there.

    If another connection of this process is in the group, the connection receives from the call on, before it
    waits for the first time. In a group that keeps history, messages are an exception: the connection is
    written those since the call, or since a position, when it has joined.

    Args:
        connection: The connection.
        group: The name of the group.
        since: The last message that the client has, if the group keeps history.
        on_joined: Called before the first message is written, if the group keeps history.
        on_member: Awaited before that, when the connection is a member.

    Returns:
        The outcome, if the group keeps history. The connection has caught up then, unless its handshake is
        not complete yet.

    Raises:
        BadGroup: No group can have this name.
        TooManyGroups: The connection is in MAX_GROUPS groups already.
        LayerUnavailable: The channel layer is down.
        RecordsUnavailable: The database took no membership.
        ConnectionGone: The connection ended meanwhile.
    """
    groups.require_valid(group)
    keeps_history = conf.get().retention(group) is not None
    if connection.state is State.CONNECTING and connection.admission is None:
        # Not awaited here, so that record and membership are written in one batch.
        _admission(connection)
    elif connection.state is not State.OPEN:
        await admit(connection)
    _require_room(connection, group)
    is_member = False
    if connection.state is State.OPEN:
        _require_home(connection)
        home = _home(connection)
        is_member = home.memberships.is_recorded(connection, group) and (connection, group) not in _leaving
        if is_member and not keeps_history:
            if on_member is not None:
                await on_member()
            return None
        # Nothing is awaited from here until the task below exists. It commits the row, or ends the ride.
        if keeps_history and (since is not None or not is_member):
            home.recovery.hold(connection, group)
        if not is_member:
            home.memberships.ride(connection, group)
    if not is_member:
        # Added now, so that a `group_discard` that follows finds it and an eviction leaves it.
        connection.joined.add(group)
    _joining[connection, group] += 1
    # In a task of its own, like every sequence here: if it were cancelled half-way, it would be unknown
    # whether the layer has the membership, or what the client has received.
    joining = _group_add(
        connection, group, since, on_joined, on_member, is_member=is_member, keeps_history=keeps_history
    )
    joined = await tasks.shielded(tasks.start(joining))
    if connection.gone:
        raise ConnectionGone
    _require_home(connection)
    return joined


async def _group_add(
    connection: Connection,
    group: str,
    since: Position | None,
    on_joined: Callable[[Joined], None],
    on_member: Callable[[], Awaitable[None]] | None,
    *,
    is_member: bool,
    keeps_history: bool,
) -> Joined | None:
    joined = None
    try:
        if not is_member:
            await _record_and_add(connection, group, keeps_history=keeps_history)
            if connection.hub is not None:
                # Otherwise it ended before its process had a hub for it.
                connection.hub.watches.touched(connection, group)
        if on_member is not None and not connection.gone:
            await on_member()
        if keeps_history and not connection.gone:
            joined = await _resume(connection, group, since, on_joined)
    finally:
        _count_down(_joining, (connection, group))
        home = connection.hub
        if home is not None and keeps_history and (joined is None or connection.gone):
            home.recovery.release(connection, group)
        # It still rides only if this failed.
        if home is not None and home.memberships.stop_riding(connection, group):
            _clean(home, _try_leave_layer(home, group))
    return joined


async def _record_and_add(connection: Connection, group: str, *, keeps_history: bool) -> None:
    async with _turn(connection):
        admission = connection.admission
        if connection.hub is None and admission is not None:
            # The process's first hub is starting.
            await asyncio.shield(admission)
        if connection.gone:
            # It ended during an earlier change, and its eviction may be done with this group.
            return
        home = _home(connection)
        # Added again: an earlier `group_discard` that had its turn until now has removed it.
        connection.joined.add(group)
        # The row goes first. After a crash between the two, a row names a membership that does not exist,
        # and to discard that is harmless. In the other order, a membership would exist that no row names.
        try:
            await home.ledger.join(_join(connection, group))
            if admission is not None:
                await asyncio.shield(admission)
            if keeps_history:
                # Before the connection is a member: fan-out must not write to it before it has caught up.
                home.recovery.hold(connection, group)
            await home.memberships.add(connection, group)
        except Exception:
            # The database or the layer may have done it nevertheless, so the group is left like any other.
            _clean(home, _leave_one(connection, group))
            raise


async def _resume(
    connection: Connection, group: str, since: Position | None, on_joined: Callable[[Joined], None]
) -> Joined:
    """Write to a member of a group with history what it missed."""
    home = _home(connection)
    try:
        joined = await home.recovery.resume(connection, group, since, on_joined)
    except LayerUnavailable:
        # The client got no position. As a member it would miss messages without a sign of it.
        _remove(home, connection, group)
        _clean(home, _leave_one(connection, group))
        raise
    if not connection.transport.accepted:
        # For the welcome frame, which is written before all messages.
        connection.positions = {
            **connection.positions,
            group: since if joined.recovered and since else joined.position,
        }
    return joined


async def watch(connection: Connection, group: str, *, by_event: bool = False) -> frames.Present:
    """Return who is in a group, and tell the connection from now on who comes and leaves.

    Args:
        connection: A member of the group.
        group: The group, whose users are tracked.
        by_event: Tell its consumer by the event `presence.changed` instead of its client by a frame.

    Raises:
        RecordsUnavailable: The database is down.
    """
    return await _home(connection).watches.watch(connection, group, by_event=by_event)


async def prepare_watch(connection: Connection, group: str) -> None:
    """Read who is in a group, so that `begin_watch` can say it immediately.

    Args:
        connection: A member of the group.
        group: The group, whose users are tracked.

    Raises:
        RecordsUnavailable: The database is down.
    """
    await _home(connection).watches.prepare(connection, group)


def begin_watch(connection: Connection, group: str) -> frames.Present | None:
    """Return who is in a group, and tell the client from now on who comes and leaves.

    Write the answer before anything else is awaited, so that no change is written before it.

    Returns:
        None if the connection has left the group since `prepare_watch`.
    """
    return connection.hub.watches.begin(connection, group) if connection.hub is not None else None


def present(connection: Connection, group: str) -> frames.Present | None:
    """Return who is in a group, if this process knows it without asking the database."""
    return connection.hub.watches.present(group) if connection.hub is not None else None


# -- writing ------------------------------------------------------------------------------------------


def send(connection: Connection, event: Event) -> None:
    """Hand one `websocket.send` event to the connection, without waiting. A failure evicts the connection."""
    text = event.get("text")
    size = len(event.get("bytes") or b"") if text is None else len(text.encode())
    if connection.hub is None:
        connection.transport.write(event, size)
    else:
        connection.hub.write(connection, event, size)


async def drained(connection: Connection) -> None:
    """Wait until a handler of this connection may send more."""
    if connection.hub is None:
        await connection.transport.drained()
    else:
        await connection.hub.heartbeat.drained(connection)


def write(connection: Connection, frame: frames.ServerFrame) -> None:
    """Send a frame of the protocol."""
    send(connection, {"type": "websocket.send", "text": frames.build(frame)})


# -- rights ------------------------------------------------------------------------------------------


async def _recheck(connection: Connection, groups: Collection[str] | None, *, tell_consumer: bool) -> bool:
    """Ask the policy again about groups that the connection has joined, and leave those that it forbids.

    Nothing here waits for the handlers of the connection or for the frames that its client has sent.

    Args:
        connection: The connection.
        groups: The groups; None for all groups.
        tell_consumer: Call the consumer's handler `rights_changed`, too.

    Returns:
        False if the policy could not be asked, because the database is down or it took too long.
    """
    if tell_consumer and connection.hears_rights and not connection.gone:
        named = None if groups is None else sorted(groups)
        connection.on_event({"type": "rights.changed", "groups": named})
    if not connection.asks_policy:
        return True
    asked = True
    for group in connection.joined - (connection.unasked or set()):
        if groups is not None and group not in groups:
            continue
        try:
            async with asyncio.timeout(POLICY_TIMEOUT):
                if not await permitting.may(connection, "join", group):
                    await remove_from(connection, group)
                elif await _may_not_watch(connection, group):
                    _home(connection).watches.unwatch(connection, group)
        except ConnectionGone:
            return True
        except (OperationalError, InterfaceError, TimeoutError) as error:
            logger.warning("The policy could not be asked again: %r", error, extra=connection.log_fields())
            asked = False
        except Exception:
            # An exception means no.
            logger.exception("The policy failed", extra=connection.log_fields())
            await remove_from(connection, group)
    return asked


async def _may_not_watch(connection: Connection, group: str) -> bool:
    """Return True if a client that is told who is in a group may not know it any more."""
    watches = _home(connection).watches
    return watches.is_told(connection, group) and not await permitting.may(connection, "presence", group)


async def remove_from(connection: Connection, group: str) -> None:
    """Remove a connection from a group that the policy does not allow any more, and tell its client.

    If the URL names the group, the connection was for that group alone, and it ends.
    """
    if connection.gone:
        return
    if group == group_of_url(connection):
        evict(connection, CloseReason.FORBIDDEN)
        return
    leaving = tasks.start(group_discard(connection, group))
    # From its first step on, nothing more of the group is written. The rest may wait for the database.
    await asyncio.sleep(0)
    if connection.transport.accepted and not permitting.leave_to_join(connection, group):
        write(connection, frames.Removed(group=group, reason=CloseReason.FORBIDDEN.value))
    await leaving


def group_of_url(connection: Connection) -> str | None:
    """Return the group that the URL names."""
    group: str | None = connection.scope.get("url_route", {}).get("kwargs", {}).get("group")
    return group


def _ask_for_refresh(connection: Connection, within: float) -> bool:
    if not connection.transport.accepted:
        return False
    if connection.takes_refresh and connection.speaks_v1:
        write(connection, frames.Refresh(within=round(within, 3)))
    return True


# -- out -------------------------------------------------------------------------------------------


async def group_discard(connection: Connection, group: str) -> None:
    """Remove the connection from a group. From the call on, nothing more is written to it from there.

    If the layer fails to discard the membership, it stays on the to-do list: the connection's eviction tries
    again, and rounds after that. The call waits at most `CLEANUP_TIMEOUT` for a database that hangs.
    """
    is_joined = group in connection.joined or (connection, group) in _joining
    if connection.hub is None or connection.gone or not is_joined:
        # The eviction of a connection that is gone leaves all of its groups.
        return
    _remove(connection.hub, connection, group)
    connection.hub.recovery.release(connection, group)
    _leaving[connection, group] += 1
    leaving = _clean(connection.hub, _leave_one(connection, group))
    leaving.add_done_callback(lambda _: _count_down(_leaving, (connection, group)))
    done, _ = await asyncio.wait([leaving], timeout=CLEANUP_TIMEOUT)
    for each in done:
        each.result()


def evict(connection: Connection, reason: CloseReason, event: Event | None = None) -> asyncio.Task[None]:
    """End the connection. This is the only way out.

    When this returns, the connection is out of the hub, so nothing is sent to it between an error and the
    close event. The rest runs in a task of its own, which no cancellation of the consumer can stop.

    Args:
        connection: The connection to end.
        reason: Why. The first reason counts.
        event: The ASGI event that began it, if there is one: the application's close, or the server's
            disconnect.

    Returns:
        The task that cleans up. A second call gets the same task.
    """
    if connection.eviction is None:
        was_open = connection.state is State.OPEN
        connection.end(reason)
        if connection.place is not None:
            admission.here().give_back(connection)
        # The task begins to run when this function has returned, even if a line below raises.
        evicting = _evict(connection, reason, was_open=was_open)
        connection.eviction = tasks.start(evicting, context=tasks.outliving())
        connection.close_code = reason.code if event is None else event.get("code", reason.code)
        if connection.hub is not None:
            connection.hub.remove(connection)
            tasks.keep_reference(connection.eviction, connection.hub.evictions)
        # The socket is closed before the slow clean-up: a client that waits for its close behind a slow Redis
        # opens a second connection meanwhile, and a third (centrifuge-js#371).
        if event is not None and event["type"] == "websocket.disconnect":
            connection.transport.abandon()
        else:
            close = event or {"type": "websocket.close", "code": reason.code}
            connection.transport.close(close, goodbye(reason) if _says_goodbye(connection, reason) else None)
        connection.on_event({"type": "realtime.evicted"})
    elif event is not None and event["type"] == "websocket.disconnect":
        # This process closed it before, and now the client is gone: drop what still waits to be sent.
        connection.transport.abandon()
    return connection.eviction


async def _evict(connection: Connection, reason: CloseReason, *, was_open: bool) -> None:
    try:
        if connection.admission is not None:
            await asyncio.wait([connection.admission])
        if connection.opening is not None:
            await _clean_up(connection, connection.opening, reason, was_open=was_open)
    finally:
        connection.state = State.CLOSED


async def _clean_up(connection: Connection, opening: Opening, reason: CloseReason, *, was_open: bool) -> None:
    """Close the record and leave all groups."""
    home, fields = _home(connection), connection.log_fields()
    closing = Closing(id=opening.id, reason=reason, code=connection.close_code)
    # Side by side, because neither may wait for the other: a hung Redis must not keep the record open, and
    # a hung database must not keep the membership alive.
    member = (connection.id, connection.user_id)
    leaving = _clean(home, _leave_many(home, dict.fromkeys(connection.joined, (member,))))
    ending = _clean(home, _close_record(home, opening, closing, leaving, was_announced=was_open))
    tasks.keep_reference(ending, home.endings)
    steps = [ending, leaving]
    done, _ = await asyncio.wait(steps, timeout=CLEANUP_TIMEOUT)
    for step in done:
        if error := step.exception():
            logger.error("An eviction left something undone", exc_info=error, extra=fields)
    logger.info("Connection closed: %s", reason.value, extra=fields)


async def _close_record(
    home: Hub, opening: Opening, closing: Closing, leaving: asyncio.Task[None], *, was_announced: bool
) -> None:
    """Close a record, however long that takes, and announce the end if this call closed it.

    Args:
        home: The hub that the connection was admitted to.
        opening: The values of the record.
        closing: The end of the connection.
        leaving: The task that leaves the groups.
        was_announced: True if `connection_opened` was sent.
    """
    # Only the process that closed the record counts the ending and announces it, so that none is counted or
    # announced twice. If the database is down, the end is announced when it is recorded, here or elsewhere.
    closed = await home.ledger.close(closing)
    if closed.was_first:
        metrics.closed.labels(reason=closing.reason.value).inc()
    else:
        is_recorded = await _is_recorded(home, opening)
        if is_recorded and not was_announced:
            # The process that closed it announces the end only.
            await _send_signal(signals.connection_opened, opening)
        if is_recorded or not was_announced:
            # Another process closed it, or it was never written.
            return
        # A record that was deleted while it was open is closed by no other process.
    if not was_announced:
        # The connection ended during the write of its record. A receiver that counts must see both signals.
        await _send_signal(signals.connection_opened, opening)
    if signals.connection_closed.receivers:
        await asyncio.wait([leaving], timeout=LEAVING_TIMEOUT)
        await _send_signal(signals.connection_closed, opening, reason=closing.reason)
    if closed.is_dormant:
        await _send_signal(signals.connection_dormant, opening)


async def _is_recorded(home: Hub, opening: Opening) -> bool:
    return bool(await home.ledger.call(connection_rows.openings, (opening.id,)))


async def _leave_many(home: Hub, leaving: Mapping[str, Collection[tuple[UUID, str]]]) -> None:
    """Leave groups of connections that are gone: first in the layer, then in the rows.

    In this order, because a row that says left must be true. A connection may have twenty thousand groups,
    so this works on a slice at a time. If the layer fails in a slice, the rest stays on the to-do list, where
    the healer and the rounds find it.

    This does not wait for `connection.changing`: nothing is joined any more, a `group_add` under way holds
    the lock of its group, and an earlier change may wait for a database that hangs.

    Args:
        home: The hub that the connections were admitted to.
        leaving: For each group, the ids of the connections that leave it, each with its user.
    """
    names, writes = tuple(leaving), []
    for first in range(0, len(names), SLICE):
        some = names[first : first + SLICE]
        outcomes = await asyncio.gather(*(_try_leave_layer(home, group) for group in some))
        joins = [
            Join(connection_id, home.process, group, user_id)
            for group, was_left in zip(some, outcomes, strict=True)
            if was_left
            for connection_id, user_id in leaving[group]
        ]
        rest = len(names) - first - len(some)
        if rest and not all(outcomes):
            # Wait once for a layer that hangs, and not once for each slice.
            logger.warning("%d more groups were not left; a later round will", rest)
            home.memberships.leave_failed = True
            rest = 0
        if not rest:
            await home.ledger.leave(joins)
            break
        # Not awaited here: a database that hangs must not keep the other memberships alive.
        writes.append(_clean(home, home.ledger.leave(joins)))
        writes[-1].add_done_callback(tasks.retrieve_exception)
    await asyncio.gather(*writes)


def _remove(home: Hub, connection: Connection, group: str) -> None:
    """Write no more of a group to a connection that may go on, neither messages nor who is there."""
    home.memberships.remove(connection, group)
    home.watches.unwatch(connection, group)


async def _try_leave_layer(home: Hub, group: str, tries: int = LEAVE_TRIES) -> bool:
    """Return True if the process left the group, or must not because it has other members there."""
    for attempt in range(1, tries + 1):
        try:
            await home.memberships.leave(group)
        except LayerUnavailable as error:
            if attempt == tries:
                logger.warning("Group %s was not left; a later round will: %s", group, error)
        else:
            return True
    return False


async def _leave_one(connection: Connection, group: str) -> None:
    """Leave one group of a connection that may go on."""
    home = _home(connection)
    async with connection.changing:
        # Removed again, because a `group_add` that held the lock until now may have added it. A rider was
        # added by a later call, whose turn comes after this one.
        if home.memberships.is_recorded(connection, group):
            _remove(home, connection, group)
        if await _try_leave_layer(home, group):
            connection.joined.discard(group)
            # Before the lock is released: a `group_add` that follows must find the row left, or it would take
            # the row for its own.
            await home.ledger.leave([_join(connection, group)])


def _reason_of(kick: messages.Kick) -> CloseReason:
    """Return the reason of a KICK. A newer version may send one that this version does not know."""
    try:
        return CloseReason(kick.reason)
    except ValueError:
        logger.warning("Another process kicks for the unknown reason %r", kick.reason)
        return CloseReason.KICKED


async def _kick(home: Hub, kick: messages.Kick) -> None:
    """Handle a KICK: evict the named connections held here, and leave the named memberships."""
    reason = _reason_of(kick)
    # The answer of the database for a new connection may be on its way.
    admitting = {connection.id: connection for connection in home.admitting}
    for number, connection_id in enumerate(kick.connections, start=1):
        connection = home.connections.get(connection_id) or admitting.get(connection_id)
        if connection is not None:
            evict(connection, reason)
        if number % SLICE == 0:
            await asyncio.sleep(0)
    leaving: dict[str, list[tuple[UUID, str]]] = defaultdict(list)
    for connection_id, group in kick.memberships:
        # Presence does not count the memberships of closed connections any more.
        user_id = connection.user_id if (connection := home.connections.get(connection_id)) else ""
        leaving[group].append((connection_id, user_id))
    await _leave_many(home, leaving)


# -- small parts -----------------------------------------------------------------------------------


def _says_goodbye(connection: Connection, reason: CloseReason) -> bool:
    return reason.goodbye and connection.speaks_v1


def goodbye(reason: CloseReason) -> Event:
    """Build the frame that tells a client why it is closed, whether it may come back, and when."""
    # The times are spread. Otherwise all clients of a process that stops would come back in the same instant.
    after = round(random.uniform(0.0, conf.get().RECONNECT_WINDOW), 3) if reason.reconnect else None  # noqa: S311 - not a secret
    text = frames.build(frames.Goodbye(reason=reason.value, reconnect=reason.reconnect, retry_after=after))
    return {"type": "websocket.send", "text": text}


def _count_down(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _require_home(connection: Connection) -> None:
    """Raise ConnectionGone if its hub ends: no connection joins a group there any more."""
    if (reason := _home(connection).ending) is not None:
        evict(connection, reason)
        raise ConnectionGone


def _require_room(connection: Connection, group: str) -> None:
    """Raise TooManyGroups if one more group is too many. A group that is being left still counts."""
    most = conf.get().MAX_GROUPS
    if most is not None and len(connection.joined) >= most and group not in connection.joined:
        raise TooManyGroups(most)


def _home(connection: Connection) -> Hub:
    assert connection.hub is not None, "an admission comes before every membership and every record"  # noqa: S101
    return connection.hub


def _join(connection: Connection, group: str) -> Join:
    return Join(connection.id, _home(connection).process, group, connection.user_id)


@asynccontextmanager
async def _turn(connection: Connection) -> AsyncIterator[None]:
    """Wait until earlier changes of this connection's groups are done.

    Raises:
        RecordsUnavailable: The change before hangs.
    """
    try:
        async with asyncio.timeout(CLEANUP_TIMEOUT):
            await connection.changing.acquire()
    except TimeoutError as error:
        raise RecordsUnavailable(
            "The last change of this connection's groups is not recorded yet."
        ) from error
    try:
        yield
    finally:
        connection.changing.release()


async def _send_signal(signal: Signal, opening: Opening, **what: Any) -> None:
    if not await signals.send(signal, Opening, connection=opening, **what):
        logger.error(signals.TOO_SLOW, signals.RECEIVERS_TIMEOUT)


def _clean(home: Hub, step: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """Begin a clean-up step. It goes on when its caller stops waiting, as long as the hub lives."""
    task = tasks.start(step)
    tasks.keep_reference(task, home.cleanups)
    return task
