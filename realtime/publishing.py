"""Publish to a group from synchronous and asynchronous code, and disconnect from synchronous code.

Private: docs/reference.md lists the public names.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from channels import DEFAULT_CHANNEL_LAYER
from msgspec import UNSET, UnsetType

from realtime import metrics
from realtime.errors import LayerUnavailable, RealtimeError
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS, Layer, Message
from realtime.process import greenlets
from realtime.process.background_loop import BackgroundLoop
from realtime.wire import frames
from realtime.wire.payload import encode_data


async def apublish(
    group: str,
    data: object,
    *,
    alias: str = DEFAULT_CHANNEL_LAYER,
    sender: str | UnsetType | None = UNSET,
) -> None:
    """Send data to every connection in a group. The frame is encoded once for all receivers.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        alias: The alias of the channel layer in CHANNEL_LAYERS.
        sender: The user of a client that published, or None if that client is anonymous. Leave it out for
            data of the server.

    Raises:
        BadGroup: No group can have this name.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message.
    """
    message = _message(group, data, sender)
    await groups.call("publish", groups.layer(alias).group_send(group, message))
    metrics.published.inc()


def publish(group: str, data: object, *, alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Send data to every connection in a group, from synchronous code.

    The function returns when the channel layer has taken the message. In a process that gevent or eventlet
    has patched, other greenlets run while this one waits.

    Args:
        group: The name of the group.
        data: Anything that JSON can carry.
        alias: The alias of the channel layer in CHANNEL_LAYERS.

    Raises:
        BadGroup: No group can have this name.
        UnpublishableData: JSON cannot carry the data.
        LayerUnavailable: The channel layer did not take the message.
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
    message = _message(group, data, UNSET)
    home = groups.layer(alias)
    try:
        _background.run(_send_to_group(home, group, message))
    except LAYER_ERRORS as error:
        raise groups.unavailable("publish", error) from error
    metrics.published.inc()


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
