"""Send data to the connections of one user, and learn if one of them took it.

If none did, the application reaches the user in another way, such as a push message.
"""

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from realtime import conf, metrics
from realtime.errors import LayerUnavailable
from realtime.fleet.mailbox import Mailbox
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS, Layer
from realtime.process import background_loop, tasks
from realtime.records import connection_rows, rows, transactions
from realtime.records.connection_rows import Held
from realtime.wire import frames
from realtime.wire.payload import encode_data

__all__ = ["anotify", "notify"]

logger = logging.getLogger("realtime.notifying")

#: Seconds for the answers of processes, beyond the time that a client has to confirm.
ANSWER_TIMEOUT = 2.0
#: A mailbox for answers is closed when it was not used for this many seconds.
CLOSE_AFTER = 60.0
#: Seconds within which a mailbox must hear itself, after a process that was told has not answered.
ECHO_TIMEOUT = 0.5


async def anotify(
    user: object,
    data: object,
    *,
    confirm: bool = False,
    timeout: float | None = None,  # noqa: ASYNC109 - the answer False is part of the contract
) -> bool:
    """Send data to every open connection of a user that takes notifications.

    Clients receive the frame `notification`. If the result is True, a live connection took it. If it is
    False, perhaps no client has it: send a push message.

    Args:
        user: A user, or the primary key of one.
        data: Anything that JSON can carry.
        confirm: Count a connection only when its client has answered a ping that was sent after the data. A
            client that vanished a moment ago does not answer. Without it, a connection counts if its
            transport accepted the data, which may be in the buffers of a dead connection.
        timeout: Seconds until the call gives up. None means 2 seconds, and with `confirm` the setting
            PONG_TIMEOUT in addition. The query of the database comes before that.

    Returns:
        True as soon as one connection took the data. False if none did in time, if the user has no open
        connection, or if the channel layer is down.

    Raises:
        ValueError: The user is anonymous or not saved, the key is empty, or the timeout is not above 0.
        UnpublishableData: JSON cannot carry the data.
        NoSuchLayer: There is no default channel layer of this package.
        django.db.Error: The database cannot be reached.
    """
    notification = _notification(user, data, confirm, timeout)
    held = await transactions.call(connection_rows.open_of_user, notification.user_id)
    outcome = await _sent(notification, held) if held else _Outcome(False)
    return _told(outcome)


def notify(user: object, data: object, *, confirm: bool = False, timeout: float | None = None) -> bool:
    """Do what `anotify` does, from synchronous code.

    The calling thread waits for the result. In a process that gevent or eventlet has patched, other greenlets
    run meanwhile.

    Args:
        user: A user, or the primary key of one.
        data: Anything that JSON can carry.
        confirm: Count a connection only when its client has answered a ping that was sent after the data.
        timeout: Seconds until the call gives up. None means 2 seconds, and with `confirm` the setting
            PONG_TIMEOUT in addition.

    Returns:
        True as soon as one connection took the data. False if none did in time, if the user has no open
        connection, or if the channel layer is down.

    Raises:
        ValueError: The user is anonymous or not saved, the key is empty, or the timeout is not above 0.
        UnpublishableData: JSON cannot carry the data.
        NoSuchLayer: There is no default channel layer of this package.
        django.db.Error: The database cannot be reached.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    background_loop.require_blocking("notify", "anotify")
    # As in `publish`, everything except the calls to the layer happens in this thread, because locks that
    # gevent or eventlet has patched do not work between native threads.
    notification = _notification(user, data, confirm, timeout)
    held = connection_rows.open_of_user(notification.user_id)
    return _told(_sent_now(notification, held) if held else _Outcome(False))


@dataclass(frozen=True, slots=True)
class _Notification:
    """One notification on its way to the processes that hold connections of its user."""

    user_id: str
    text: str
    confirm: bool
    timeout: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    taken: bool
    failures: Collection[LayerUnavailable] = ()
    """The reasons for which processes could not be told."""


def _notification(user: Any, data: object, confirm: bool, timeout: float | None) -> _Notification:
    user_id = rows.user_key(user)
    if timeout is None:
        timeout = ANSWER_TIMEOUT + (conf.get().PONG_TIMEOUT if confirm else 0.0)
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; set a number of seconds above zero.")
    groups.layer()
    text = frames.build(frames.Notification(data=encode_data(data)))
    return _Notification(user_id, text, confirm, timeout)


def _told(outcome: _Outcome) -> bool:
    """Count a notification, and return if it was taken."""
    for error in outcome.failures:
        logger.warning("A process could not be told of a notification: %s", error)
    metrics.notifications.labels(outcome="taken" if outcome.taken else "not_taken").inc()
    return outcome.taken


def _sent_now(notification: _Notification, held: Collection[Held]) -> _Outcome:
    try:
        return background_loop.shared.run(_sent(notification, held), within=notification.timeout)
    except TimeoutError:
        return _Outcome(False)
    except LAYER_ERRORS as error:
        return _Outcome(False, [groups.unavailable("notify", error)])


async def _sent(notification: _Notification, held: Collection[Held]) -> _Outcome:
    """Tell the processes, and wait for the first that says that it was taken, until all have answered."""
    call = _Call({each.process_id for each in held})
    try:
        async with asyncio.timeout(notification.timeout) as limit:
            await _asker().ask(call, notification, held, limit)
    except TimeoutError:
        pass
    except LayerUnavailable as error:
        call.failures.append(error)
    return _Outcome(call.taken, tuple(call.failures))


# -- questions and answers -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """A question to processes that waits for their answers."""

    pending: set[uuid.UUID]
    """The ids of the processes that have not answered yet."""
    taken: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[LayerUnavailable] = field(default_factory=list)

    def answered(self, process: uuid.UUID, taken: bool) -> None:
        self.pending.discard(process)
        self.taken = self.taken or taken
        if self.taken or not self.pending:
            self.done.set()


class _AnswerBox(Mailbox):
    """A mailbox for answers, which counts nothing.

    It may be read on the background loop, where locks that gevent or eventlet has patched do not work. The
    metrics have such locks.
    """

    def _count(self, kind: str) -> None:
        pass


class _Asker:
    """Asks processes from one event loop, through one channel layer. All calls share a mailbox.

    The mailbox is opened for the first call, and closed when there was none for a while.
    """

    def __init__(self, home: Layer, loop: asyncio.AbstractEventLoop) -> None:
        self.home = home
        self._loop = loop
        self._opening: asyncio.Task[_AnswerBox] | None = None
        self._calls: dict[str, _Call] = {}
        self._closing: asyncio.TimerHandle | None = None
        self._doubtful = False
        """True if an answer was missing: perhaps the mailbox receives nothing any more."""

    async def ask(
        self, call: _Call, notification: _Notification, held: Collection[Held], limit: asyncio.Timeout
    ) -> None:
        """Tell the processes that hold these connections, and wait for their answers.

        Args:
            call: Receives the answers.
            notification: The notification.
            held: The connections of its user.
            limit: The time limit of the caller.

        Raises:
            LayerUnavailable: This process cannot receive answers.
        """
        request = uuid.uuid4().hex
        self._calls[request] = call
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        try:
            mailbox = await self._mailbox()
            within = max(0.0, (limit.when() or 0.0) - self._loop.time())
            by_process: dict[tuple[str, uuid.UUID], list[uuid.UUID]] = defaultdict(list)
            for each in held:
                by_process[each.channel_name, each.process_id].append(each.connection_id)
            told = {
                address: messages.Notify(
                    request, mailbox.address, ids, notification.text, notification.confirm, within
                )
                for (address, _), ids in by_process.items()
            }
            # In a task: a process that cannot be told must not delay the answer of another one, and all are
            # told even if the first answer comes early.
            tasks.start(_tell(call, told, dict(by_process.keys())))
            await call.done.wait()
        finally:
            del self._calls[request]
            self._doubtful = self._doubtful or bool(call.pending and not call.taken)
            if not self._calls:
                self._closing = self._loop.call_later(CLOSE_AFTER, self._close)

    async def _mailbox(self) -> _AnswerBox:
        if self._opening is None:
            self._opening = tasks.start(self._open())
        mailbox = await tasks.shielded(self._opening)
        if self._doubtful:
            self._doubtful = False
            if missing := await mailbox.missing_parts(patience=ECHO_TIMEOUT):
                await groups.rebuild(mailbox.address, missing)
        return mailbox

    async def _open(self) -> _AnswerBox:
        mailbox = None
        try:
            mailbox = await _AnswerBox.open()
            mailbox.listen(self._take)
            if not await mailbox.hears_itself():
                raise LayerUnavailable("The channel layer brings this process no answers.")
        except BaseException:
            self._opening = None
            if mailbox is not None:
                await mailbox.close()
            raise
        return mailbox

    def _take(self, message: messages.Control) -> None:
        match message:
            case messages.Notified(request, process, taken) if request in self._calls:
                self._calls[request].answered(process, taken)

    def _close(self) -> None:
        if self._opening is not None and self._opening.done():
            tasks.start(self._opening.result().close())
            self._opening = None


async def _tell(call: _Call, told: Mapping[str, messages.Notify], processes: Mapping[str, uuid.UUID]) -> None:
    for address, error in (await groups.tell_all(told)).items():
        call.failures.append(error)
        call.answered(processes[address], False)


#: The asker of each event loop.
_askers: dict[asyncio.AbstractEventLoop, _Asker] = {}


def _asker() -> _Asker:
    loop, home = asyncio.get_running_loop(), groups.layer()
    asker = _askers.get(loop)
    if asker is None or asker.home is not home:
        # `async_to_sync` makes a loop for each call.
        for ended in [each for each in tuple(_askers) if each.is_closed()]:
            _askers.pop(ended, None)
        asker = _askers[loop] = _Asker(home, loop)
    return asker
