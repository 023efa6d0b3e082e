"""Publish to a group from synchronous and asynchronous code, and disconnect from synchronous code.

Private: docs/reference.md lists the public names.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

from asgiref.sync import sync_to_async
from channels import DEFAULT_CHANNEL_LAYER
from django.db import transaction
from msgspec import UNSET, UnsetType

from realtime import conf, metrics
from realtime.errors import LayerUnavailable, RealtimeError
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS, Layer, Message
from realtime.process import greenlets, tasks
from realtime.process.background_loop import BackgroundLoop
from realtime.wire import frames
from realtime.wire.payload import encode_data

logger = logging.getLogger("realtime.publishing")


async def apublish(
    group: str,
    data: object,
    *,
    alias: str = DEFAULT_CHANNEL_LAYER,
    on_commit: bool | None = None,
    using: str | None = None,
    sender: str | UnsetType | None = UNSET,
) -> None:
    """Send data to every connection in a group. The frame is encoded once for all receivers.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        alias: The alias of the channel layer in CHANNEL_LAYERS.
        on_commit: If a transaction is open in the thread where `sync_to_async` runs synchronous code, send
            after its commit, and send nothing after a rollback. Otherwise send immediately. None means the
            setting PUBLISH_ON_COMMIT.
        using: The alias of the database of that transaction, as in Django's `transaction.on_commit`.
        sender: The user of a client that published, or None if that client is anonymous. Leave it out for
            data of the server.

    Raises:
        BadGroup: No group can have this name.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message. After a commit, that is only logged.
    """
    message, home = _message(group, data, sender), groups.layer(alias)
    # The transaction belongs to the thread that runs the caller's synchronous code.
    if _waits(on_commit) and await sync_to_async(_after_commit)(home, group, message, using):
        return
    await groups.call("publish", home.group_send(group, message))
    metrics.published.inc()


def publish(
    group: str,
    data: object,
    *,
    alias: str = DEFAULT_CHANNEL_LAYER,
    on_commit: bool | None = None,
    using: str | None = None,
) -> None:
    """Send data to every connection in a group, from synchronous code.

    The function returns when the channel layer has taken the message. In a process that gevent or eventlet
    has patched, other greenlets run while this one waits.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        alias: The alias of the channel layer in CHANNEL_LAYERS.
        on_commit: If a transaction is open, return immediately, send after its commit, and send nothing after
            a rollback. None means the setting PUBLISH_ON_COMMIT.
        using: The alias of the database of that transaction, as in Django's `transaction.on_commit`.

    Raises:
        BadGroup: No group can have this name.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message. After a commit, that is only logged.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    if greenlets.runs_below_a_loop():
        raise RealtimeError(
            "publish() would block the event loop that is running here; use `await apublish(…)`."
        )
    library = greenlets.patched()
    if library is not None and library.in_hub():
        raise RealtimeError(
            f"publish() would block every greenlet, because it was called in a callback of {library.name}'s "
            f"hub; use `{library.name}.spawn(publish, …)`."
        )
    # Everything except the call to the layer happens in this thread. The loop has a native thread, and locks
    # that gevent or eventlet has patched, such as those of the metrics, do not work between native threads.
    message, home = _message(group, data, UNSET), groups.layer(alias)
    if not (_waits(on_commit) and _after_commit(home, group, message, using)):
        _send_now(home, group, message)


def _send_now(home: Layer, group: str, message: Message) -> None:
    try:
        _background.run(_send_to_group(home, group, message))
    except LAYER_ERRORS as error:
        raise groups.unavailable("publish", error) from error
    metrics.published.inc()


# -- after the commit ----------------------------------------------------------------------------------


def _waits(on_commit: bool | None) -> bool:
    return conf.get().PUBLISH_ON_COMMIT if on_commit is None else on_commit


def _after_commit(home: Layer, group: str, message: Message, using: str | None) -> bool:
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
    transaction.on_commit(partial(_committed, home, group, message), using=using)
    return True


def _committed(home: Layer, group: str, message: Message) -> None:
    """Send a message after a commit. A failure is logged.

    What was committed is done. If the exception left the block of the transaction, the caller would take the
    transaction for failed: a view would answer with the status 500, and a task would run again.
    """
    if greenlets.runs_below_a_loop():
        # With DJANGO_ALLOW_ASYNC_UNSAFE, transactions run on a loop, which must not be blocked.
        tasks.start(_send_committed(home, group, message))
        return
    try:
        _send_now(home, group, message)
    except RealtimeError as error:
        _not_sent(group, error)


async def _send_committed(home: Layer, group: str, message: Message) -> None:
    try:
        await groups.call("publish", home.group_send(group, message))
    except LayerUnavailable as error:
        _not_sent(group, error)
    else:
        metrics.published.inc()


def _not_sent(group: str, error: RealtimeError) -> None:
    logger.error("After a commit, a message to the group %s was not published: %s", group, error)


# -- sending -------------------------------------------------------------------------------------------


async def _send_to_group(home: Layer, group: str, message: Message) -> None:
    await groups.bounded(home.group_send(group, message))


def _message(group: str, data: object, sender: str | UnsetType | None) -> Message:
    """Encode a message to a group."""
    groups.require_valid(group)
    text = frames.build(frames.Message(group=group, data=encode_data(data), from_=sender))
    return messages.encode(messages.GroupMessage(text))


def disconnect(connections: Mapping[str, Sequence[UUID]], reason: str) -> dict[str, LayerUnavailable]:
    """Tell processes to evict connections, from synchronous code in a thread without an event loop.

    The function does not wait until the processes have evicted them.

    Args:
        connections: The ids of the connections, by the address of the living process that holds them.
        reason: The `value` of a `CloseReason`.

    Returns:
        The addresses of the processes that could not be told, each with the reason.
    """
    try:
        kicks = {address: messages.Kick(ids, [], reason) for address, ids in connections.items()}
        return _background.run(groups.tell_all(kicks))
    except LAYER_ERRORS as error:
        return {address: groups.unavailable("kick", error) for address in connections}


_background = BackgroundLoop()
