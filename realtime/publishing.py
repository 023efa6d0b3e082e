"""Publish to a group from synchronous and asynchronous code.

Private: docs/reference.md lists the public names.
"""

import logging
from dataclasses import dataclass
from functools import partial

from asgiref.sync import sync_to_async
from channels import DEFAULT_CHANNEL_LAYER
from django.db import transaction
from msgspec import UNSET, UnsetType

from realtime import conf, metrics
from realtime.errors import BadId, LayerUnavailable, NoHistory, RealtimeError
from realtime.history.positions import Position
from realtime.history.retention import Retention
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS, KeptUnsent, Layer, Message
from realtime.process import background_loop, greenlets, tasks
from realtime.wire import frames
from realtime.wire.payload import encode_data

logger = logging.getLogger("realtime.publishing")

#: Characters in the longest publish id.
LONGEST_ID = 64


async def apublish(
    group: str,
    data: object,
    *,
    id: str | None = None,
    alias: str = DEFAULT_CHANNEL_LAYER,
    on_commit: bool | None = None,
    using: str | None = None,
    sender: str | UnsetType | None = UNSET,
) -> Position | None:
    """Send data to every connection in a group. The frame is encoded once for all receivers.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        id: In a group that keeps history, a publish that repeats an id within the `ttl` of the group sends
            nothing, and returns the position of the first message. 1 to 64 characters.
        alias: The alias of the channel layer in CHANNEL_LAYERS.
        on_commit: If a transaction is open in the thread where `sync_to_async` runs synchronous code, send
            after its commit, and send nothing after a rollback. Otherwise send immediately. None means the
            setting PUBLISH_ON_COMMIT.
        using: The alias of the database of that transaction, as in Django's `transaction.on_commit`.
        sender: The user of a client that published, or None if that client is anonymous. Leave it out for
            data of the server. Ids of the server and of each user are kept apart.

    Returns:
        The position of the message in the history of the group. None if the group keeps no history, or if the
        message waits for a commit.

    Raises:
        BadGroup: No group can have this name.
        BadId: No publish id can look like this.
        NoHistory: There is an id, but the group keeps no history.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message. After a commit, that is only logged.
    """
    publication = _publication(group, data, sender, id, alias)
    # The transaction belongs to the thread that runs the caller's synchronous code.
    if _waits(on_commit) and await sync_to_async(_after_commit)(publication, using):
        return None
    return await _send(publication)


def publish(
    group: str,
    data: object,
    *,
    id: str | None = None,
    alias: str = DEFAULT_CHANNEL_LAYER,
    on_commit: bool | None = None,
    using: str | None = None,
) -> Position | None:
    """Send data to every connection in a group, from synchronous code.

    The function returns when the channel layer has taken the message. In a process that gevent or eventlet
    has patched, other greenlets run while this one waits.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        id: In a group that keeps history, a publish that repeats an id within the `ttl` of the group sends
            nothing, and returns the position of the first message. 1 to 64 characters.
        alias: The alias of the channel layer in CHANNEL_LAYERS.
        on_commit: If a transaction is open, return immediately, send after its commit, and send nothing after
            a rollback. None means the setting PUBLISH_ON_COMMIT.
        using: The alias of the database of that transaction, as in Django's `transaction.on_commit`.

    Returns:
        The position of the message in the history of the group. None if the group keeps no history, or if the
        message waits for a commit.

    Raises:
        BadGroup: No group can have this name.
        BadId: No publish id can look like this.
        NoHistory: There is an id, but the group keeps no history.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message. After a commit, that is only logged.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    background_loop.require_blocking("publish", "apublish")
    # Everything except the call to the layer happens in this thread. The loop has a native thread, and locks
    # that gevent or eventlet has patched, such as those of the metrics, do not work between native threads.
    publication = _publication(group, data, UNSET, id, alias)
    if _waits(on_commit) and _after_commit(publication, using):
        return None
    return _send_now(publication)


# -- after the commit ----------------------------------------------------------------------------------


def _waits(on_commit: bool | None) -> bool:
    return conf.get().PUBLISH_ON_COMMIT if on_commit is None else on_commit


def _after_commit(publication: "_Publication", using: str | None) -> bool:
    """Have the message sent after the commit of the transaction that is open in this thread.

    Returns:
        False if no transaction is open.

    Raises:
        django.db.transaction.TransactionManagementError: The database has no autocommit, so Django cannot
            tell when a transaction is committed.
    """
    database = transaction.get_connection(using)
    # A database that was not connected to has no transaction, and must not be connected to for a message.
    if not database.in_atomic_block and (database.connection is None or database.get_autocommit()):
        return False
    transaction.on_commit(partial(_committed, publication), using=using)
    return True


def _committed(publication: "_Publication") -> None:
    """Send a message after a commit. A failure is logged.

    What was committed is done. If the exception left the block of the transaction, the caller would take the
    transaction for failed: a view would answer with the status 500, and a task would run again.
    """
    if greenlets.runs_below_a_loop():
        # With DJANGO_ALLOW_ASYNC_UNSAFE, transactions run on a loop, which must not be blocked.
        tasks.start(_send_committed(publication))
        return
    try:
        _send_now(publication)
    except RealtimeError as error:
        _not_sent(publication, error)


async def _send_committed(publication: "_Publication") -> None:
    try:
        await _send(publication)
    except LayerUnavailable as error:
        _not_sent(publication, error)


def _not_sent(publication: "_Publication", error: RealtimeError) -> None:
    logger.error("After a commit, a message to the group %s was not published: %s", publication.group, error)


# -- sending -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Publication:
    """One message on its way to the layer."""

    home: Layer
    group: str
    message: Message
    keep: Retention | None
    """None if the group keeps no history."""
    once: str | None
    """The publish id, with the publisher to which it belongs."""

    async def send(self) -> tuple[Position, bool] | None:
        """Make the call to the layer. Return what `append` does; None if the group keeps no history."""
        if self.keep is not None:
            return await self.home.append(self.group, self.message, self.keep, self.once)
        await self.home.group_send(self.group, self.message)
        return None


def _publication(
    group: str, data: object, sender: str | UnsetType | None, id_: str | None, alias: str
) -> _Publication:
    """Encode a message to a group."""
    groups.require_valid(group)
    keep = conf.get().retention(group)
    once = None
    if id_ is not None:
        _require_valid_id(id_)
        if keep is None:
            raise NoHistory(group)
        once = f"s:{id_}" if sender is UNSET else f"c:{sender or ''}:{id_}"
    text = frames.build(frames.Message(group=group, data=encode_data(data), from_=sender))
    message = messages.encode(messages.GroupMessage(text))
    return _Publication(groups.layer(alias), group, message, keep, once)


def _require_valid_id(id_: object) -> None:
    # Every text except one with a lone surrogate has a UTF-8 form.
    if isinstance(id_, str) and 1 <= len(id_) <= LONGEST_ID and id_.encode(errors="replace").decode() == id_:
        return
    raise BadId(f"{id_!r} cannot be a publish id; use a str of 1 to {LONGEST_ID} characters.")


async def _send(publication: _Publication) -> Position | None:
    try:
        return _sent(await groups.call("publish", publication.send()))
    except KeptUnsent as error:
        return _kept_unsent(error)


def _send_now(publication: _Publication) -> Position | None:
    try:
        return _sent(background_loop.shared.run(groups.bounded(publication.send())))
    except KeptUnsent as error:
        return _kept_unsent(error)
    except LAYER_ERRORS as error:
        raise groups.unavailable("publish", error) from error


def _sent(appended: tuple[Position, bool] | None) -> Position | None:
    """Count a message that the layer has taken, and return its position."""
    if appended is None:
        metrics.published.inc()
        return None
    position, repeated = appended
    if not repeated:
        metrics.published.inc()
        metrics.history_appended.inc()
    return position


def _kept_unsent(error: KeptUnsent) -> Position | None:
    """Count and log a message that is in the history, but was not sent, and return its position."""
    metrics.history_unsent.inc()
    cause = f"{type(error.__cause__).__name__}: {error.__cause__}".rstrip(": ")
    logger.warning("%s The members get it within a round. The reason: %s", error, cause)
    return _sent((error.position, False))
