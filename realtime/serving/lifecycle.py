"""The life of a connection as sequences of writes, and why they stand in that order.

    admit          record (committed) → hub
    group_add      membership row (committed) → layer's group → receives
    group_discard  receives no more → layer's group → membership row says left
    evict          out of the hub, at once → close frame → layer's groups → rows say left and closed

A membership row outlives the membership: it is committed before the layer's `group_add`, and `left_at` is
set only after a `group_discard` that returned. Whoever dies between two steps leaves rows behind that say
what is still to be done.
"""

import asyncio
import logging
import random
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from channels import DEFAULT_CHANNEL_LAYER
from django.dispatch import Signal

from realtime import conf, metrics, signals
from realtime.closing import CloseReason, by_label
from realtime.errors import ConnectionGone, LayerUnavailable, RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.hub.hub import Hub
from realtime.hub.supervisor import Supervisor
from realtime.layers import groups
from realtime.process import tasks
from realtime.records.entries import Closing, Join, Opening
from realtime.transports.asgi import Event
from realtime.wire import frames

logger = logging.getLogger("realtime.lifecycle")

#: Seconds after which an eviction goes on without a clean-up step that hangs; the step itself goes on too.
CLEANUP_TIMEOUT = 10.0
#: How often an eviction tries to leave a group before it is left to a round.
LEAVE_TRIES = 2
#: Groups that a clean-up step leaves in one go, and connections that a kick evicts in one go; the event loop
#: gets a turn in between.
SLICE = 100
#: Seconds for the receivers of a signal, for whom admission and eviction wait.
RECEIVERS_TIMEOUT = 5.0


# -- the hub of this process -----------------------------------------------------------------------

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Supervisor] = weakref.WeakKeyDictionary()


async def hub(alias: str = DEFAULT_CHANNEL_LAYER) -> Hub:
    """The hub of this event loop for the channel layer of this alias, started when first asked for.

    Raises LayerUnavailable, RecordsUnavailable.
    """
    return await _hubs_here().get(alias)


async def stop() -> None:
    """End this loop's hubs as planned: evict every connection, then record that the process has stopped."""
    await _hubs_here().stop()


def ending() -> CloseReason | None:
    """Why this process takes nobody in any more, or None."""
    return _hubs_here().ending


def serving(consumer: "asyncio.Task[Any]") -> None:
    """This task serves a connection: a planned stop waits until its handlers are done."""
    tasks.keep(consumer, _hubs_here().consumers)


def _hubs_here() -> Supervisor:
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _hubs[loop] = Supervisor(evict=evict, kick=_kick)
    return _hubs[loop]


# -- in --------------------------------------------------------------------------------------------


async def admit(connection: Connection) -> None:
    """Record the connection and put it in the hub; repeated calls wait for the same admission.

    Raises LayerUnavailable or RecordsUnavailable when it cannot be let in, ConnectionGone when it ended
    meanwhile.
    """
    # Shielded: a consumer that is cancelled here leaves a write in flight, whose outcome eviction has to
    # know.
    if not connection.admitted:
        await tasks.uninterrupted(_admission(connection))
    if connection.gone:
        raise ConnectionGone


def _admission(connection: Connection) -> asyncio.Task[None]:
    """Only for a connection that is not admitted."""
    if connection.admission is None:
        connection.admission = tasks.start(_admit(connection))
    return connection.admission


async def _admit(connection: Connection) -> None:
    if (reason := ending()) is None:
        home = await hub(connection.alias)
        reason = home.ending
    if reason is not None:
        evict(connection, reason)
    if connection.gone:
        return
    scope = connection.scope
    opening = Opening(
        id=connection.id,
        process_id=home.process,
        user_id=connection.user_id,
        path=scope.get("path", ""),
        remote_address=connection.remote_address,
        user_agent=connection.user_agent,
        subprotocol=connection.subprotocol,
    )
    connection.hub = home
    # Set before the write: once it is under way the record may exist, whatever the answer, and eviction has
    # to close it.
    connection.opening = opening
    home.admitting.add(connection)
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
        metrics.opened.inc()
        connection.announced = True
        await _tell(signals.connection_opened, connection=opening)
    # A task that is done would be kept, with all its names, for as long as the connection.
    connection.admitted = True
    connection.admission = None


def accepted(connection: Connection) -> None:
    """The handshake is complete: from now on the connection has to prove that it lives."""
    if connection.hub is not None and not connection.gone:
        connection.hub.pulse.watch(connection)


async def group_add(connection: Connection, group: str) -> None:
    """Returns when the connection receives what is sent to the group.

    Raises BadGroup, LayerUnavailable, RecordsUnavailable, ConnectionGone.
    """
    groups.require_valid(group)
    if connection.admitted or connection.admission is not None:
        await admit(connection)
        _require_home(connection)
        if group in connection.groups:
            return
    else:
        # Not waited for here, so that record and membership are written in one batch.
        _admission(connection)
    # Now, so that a `group_discard` that follows finds it, and an eviction leaves it.
    connection.joined.add(group)
    # A task of its own, like every sequence here: cancelled half-way, nobody would know whether the layer
    # has the membership.
    await tasks.uninterrupted(tasks.start(_group_add(connection, group)))
    if connection.gone:
        raise ConnectionGone
    _require_home(connection)


async def _group_add(connection: Connection, group: str) -> None:
    async with _turn(connection):
        admission = connection.admission
        if connection.hub is None and admission is not None:
            # The process's first hub is starting.
            await asyncio.shield(admission)
        if connection.gone:
            # It ended while an earlier change had its turn, and its eviction may be done with this group.
            return
        home = _home(connection)
        # The row goes first. After a crash between the two there is a row for a membership that never was,
        # and to discard that does no harm; the other way round there would be a membership that nobody
        # knows of.
        try:
            await home.ledger.join(_join(connection, group))
            if admission is not None:
                await asyncio.shield(admission)
            await home.add_member(connection, group)
        except Exception:
            # The database or the layer may have done it all the same, so this is left like any other
            # membership.
            _clean(home, _leave(connection, group))
            raise


# -- writing ------------------------------------------------------------------------------------------


def send(connection: Connection, event: Event) -> None:
    """Hand one `websocket.send` event to the connection, without waiting; what cannot be sent evicts it."""
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
        await connection.hub.pulse.drained(connection)


def write(connection: Connection, frame: frames.ServerFrame) -> None:
    """`send` for a frame of the protocol."""
    send(connection, {"type": "websocket.send", "text": frames.build(frame)})


# -- out -------------------------------------------------------------------------------------------


async def group_discard(connection: Connection, group: str) -> None:
    """Nothing more from this group is written to the connection, from the moment of the call.

    The membership that the layer fails to discard stays on the to-do list: the connection's eviction tries
    again, and rounds after that. A database that hangs is waited for a few seconds at most.
    """
    if connection.hub is None or connection.gone or group not in connection.joined:
        # Once it is gone, its eviction leaves all.
        return
    connection.hub.remove_member(connection, group)
    leaving = _clean(connection.hub, _leave(connection, group))
    done, _ = await asyncio.wait([leaving], timeout=CLEANUP_TIMEOUT)
    for each in done:
        each.result()


def evict(connection: Connection, reason: CloseReason, event: Event | None = None) -> asyncio.Task[None]:
    """The only way out. The first reason counts; a second call gets the same task.

    `event` is the ASGI event that began it, where there is one: the application's close, or the server's
    disconnect.

    The connection is out of the hub when this returns, so nothing is sent to it between an error and the
    close event. The rest runs in a task of its own, which no cancellation of the consumer can stop.
    """
    if connection.eviction is None:
        connection.reason = reason
        # Begins to run when this has returned, and whatever happens below.
        connection.eviction = tasks.start(_evict(connection))
        connection.close_code = reason.code if event is None else event.get("code", reason.code)
        if connection.hub is not None:
            connection.hub.remove(connection)
            tasks.keep(connection.eviction, connection.hub.evictions)
        # The socket goes before the slow, shared clean-up: a client that waits behind a slow Redis to be
        # closed opens a second connection meanwhile, and a third (centrifuge-js#371).
        if event is not None and event["type"] == "websocket.disconnect":
            connection.transport.abandon()
        else:
            close = event or {"type": "websocket.close", "code": reason.code}
            connection.transport.close(close, _last_words(connection))
        connection.on_event({"type": "realtime.evicted"})
    elif event is not None and event["type"] == "websocket.disconnect":
        # Closed here before, and now the client is gone: nothing waits to be sent any more.
        connection.transport.abandon()
    return connection.eviction


async def _evict(connection: Connection) -> None:
    if connection.admission is not None:
        await asyncio.wait([connection.admission])
    opening, reason = connection.opening, connection.reason
    if opening is None or reason is None:
        return
    home, fields = _home(connection), connection.log_fields()
    closing = Closing(id=opening.id, reason=reason, code=connection.close_code)
    # Side by side, because neither may wait for the other: a hung Redis must not keep the record open, nor
    # a hung database the membership alive.
    steps = [
        _clean(home, _close_record(home, closing)),
        _clean(home, _leave_all(home, dict.fromkeys(connection.joined, (connection.id,)))),
    ]
    done, _ = await asyncio.wait(steps, timeout=CLEANUP_TIMEOUT)
    for step in done:
        if error := step.exception():
            logger.error("An eviction left something undone", exc_info=error, extra=fields)
    logger.info("Connection closed: %s", reason.value, extra=fields)
    if connection.announced:
        await _tell(signals.connection_closed, connection=opening, reason=reason)


async def _close_record(home: Hub, closing: Closing) -> None:
    # Who closed the record counts the death, so that none is counted twice.
    if await home.ledger.close(closing):
        metrics.closed.labels(reason=closing.reason.value).inc()


async def _leave_all(home: Hub, leaving: Mapping[str, Collection[UUID]]) -> None:
    """Leave groups of connections that are gone: the layer first, the rows after it, because a row that says
    left must be true.

    A slice at a time, because a connection may have twenty thousand groups. After a slice in which the layer
    failed, the rest stays on the to-do list: the healer and the rounds find it there.

    It takes no turn of the connection's: nothing is joined any more, a `group_add` under way holds the lock
    of its group, and an earlier change may be waiting for a database that hangs.

    Args:
        leaving: by group, the ids of the connections that leave it.
    """
    names, writes = tuple(leaving), []
    for first in range(0, len(names), SLICE):
        some = names[first : first + SLICE]
        outcomes = await asyncio.gather(*(_left(home, group) for group in some))
        joins = [
            Join(connection_id, home.process, group)
            for group, was_left in zip(some, outcomes, strict=True)
            if was_left
            for connection_id in leaving[group]
        ]
        rest = len(names) - first - len(some)
        if rest and not all(outcomes):
            # A layer that hangs is waited for once, and not once for each slice.
            logger.warning("%d more groups were not left; a later round will", rest)
            home.left_undone = True
            rest = 0
        if not rest:
            await home.ledger.leave(joins)
            break
        # Not waited for here: a database that hangs must not keep the other memberships alive.
        writes.append(_clean(home, home.ledger.leave(joins)))
        writes[-1].add_done_callback(tasks.heard)
    await asyncio.gather(*writes)


async def _left(home: Hub, group: str, tries: int = LEAVE_TRIES) -> bool:
    """Whether the process could leave the group, or need not, because it has other members there."""
    for attempt in range(1, tries + 1):
        try:
            await home.leave(group)
        except LayerUnavailable as error:
            if attempt == tries:
                logger.warning("Group %s was not left; a later round will: %s", group, error)
        else:
            return True
    return False


async def _leave(connection: Connection, group: str) -> None:
    """Leave one group of a connection that may go on."""
    home = _home(connection)
    async with connection.changing:
        # Again, because a `group_add` that had its turn until now may have brought it back.
        home.remove_member(connection, group)
        if await _left(home, group):
            connection.joined.discard(group)
            # Within the turn: a `group_add` that follows must find the row left, or it would take it for its
            # own.
            await home.ledger.leave([_join(connection, group)])


async def _kick(home: Hub, event: Event) -> None:
    """Somebody else's word about connections of this process: evict those that are here, settle the groups of
    all.
    """
    reason = by_label(event["reason"])
    for number, connection_id in enumerate(event["connections"], start=1):
        connection = home.connections.get(UUID(connection_id))
        if connection is not None:
            evict(connection, reason)
        if number % SLICE == 0:
            await asyncio.sleep(0)
    # Once for each connection, because to parse a UUID costs ten times what the rest of the loop does.
    ids = {text: UUID(text) for text in {text for text, _ in event["memberships"]}}
    leaving: dict[str, list[UUID]] = defaultdict(list)
    for connection_id, group in event["memberships"]:
        leaving[group].append(ids[connection_id])
    await _leave_all(home, leaving)


# -- small parts -----------------------------------------------------------------------------------


def _last_words(connection: Connection) -> Event | None:
    reason = connection.reason
    if reason is None or not reason.goodbye or not connection.speaks_v1:
        return None
    return goodbye(reason)


def goodbye(reason: CloseReason) -> Event:
    """The frame that tells a client why it is closed, whether to come back, and when."""
    # Spread, because all clients of a process that stops would otherwise come back in the same instant.
    after = round(random.uniform(0.0, conf.get().RECONNECT_WINDOW), 3) if reason.reconnect else None  # noqa: S311 - not a secret
    text = frames.build(frames.Goodbye(reason=reason.value, reconnect=reason.reconnect, retry_after=after))
    return {"type": "websocket.send", "text": text}


def _require_home(connection: Connection) -> None:
    """Raises ConnectionGone when its hub ends, and all memberships with it: nobody joins a group there."""
    if (reason := _home(connection).ending) is not None:
        evict(connection, reason)
        raise ConnectionGone


def _home(connection: Connection) -> Hub:
    assert connection.hub is not None, "an admission comes before every membership and every record"  # noqa: S101
    return connection.hub


def _join(connection: Connection, group: str) -> Join:
    return Join(connection_id=connection.id, process_id=_home(connection).process, group=group)


@asynccontextmanager
async def _turn(connection: Connection) -> AsyncIterator[None]:
    """Changes of one connection's groups take turns. Raises RecordsUnavailable when the one before hangs."""
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


async def _tell(signal: Signal, **what: Any) -> None:
    if not signal.receivers:
        return
    try:
        async with asyncio.timeout(RECEIVERS_TIMEOUT):
            answers = await signal.asend_robust(Connection, **what)
    except TimeoutError:
        logger.error(
            "The receivers of a signal took more than %s s; nobody waits for them", RECEIVERS_TIMEOUT
        )
        return
    for receiver, error in answers:
        if isinstance(error, Exception):
            logger.error("A receiver of a signal failed: %r", receiver, exc_info=error)


def _clean(home: Hub, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin a clean-up step; it goes on when whoever began it waits no more, for as long as the hub lives."""
    task = tasks.start(step)
    tasks.keep(task, home.cleanups)
    return task
