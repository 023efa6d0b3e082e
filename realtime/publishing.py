"""Publish to a group from synchronous and asynchronous code, and disconnect from synchronous code."""

from collections.abc import Mapping, Sequence

from channels import DEFAULT_CHANNEL_LAYER
from msgspec import UNSET, UnsetType

from realtime import metrics
from realtime.errors import LayerUnavailable, RealtimeError
from realtime.layers import LAYER_ERRORS, Layer, Message, groups, messages
from realtime.process import greenlets
from realtime.process.background_loop import BackgroundLoop
from realtime.wire import frames
from realtime.wire.payload import encode_data

__all__ = ["apublish", "publish"]


async def apublish(
    group: str,
    data: object,
    *,
    alias: str = DEFAULT_CHANNEL_LAYER,
    sender: str | UnsetType | None = UNSET,
) -> None:
    """Send `data`, anything that JSON can carry, to every connection in `group` of the layer `alias`.

    The frame is encoded here, once for all receivers. `sender` is set for what a client published: its
    user, or None. Raises BadGroup, UnpublishableData, LayerUnavailable.
    """
    message = _message(group, data, sender)
    await groups.call("publish", groups.layer(alias).group_send(group, message))
    metrics.published.inc()


def publish(group: str, data: object, *, alias: str = DEFAULT_CHANNEL_LAYER) -> None:
    """`apublish` for synchronous code: returns when the channel layer has taken the message.

    In a process that gevent or eventlet has patched, other greenlets run while this one waits.

    Raises:
        BadGroup, UnpublishableData, LayerUnavailable: As `apublish` does.
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
    # Everything but the call to the layer happens here. The loop has a native thread, and locks that gevent
    # or eventlet has patched, such as those of the metrics, are not made for two of these.
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


def disconnect(connections: Mapping[str, Sequence[str]], reason: str) -> dict[str, LayerUnavailable]:
    """`kick` for synchronous code, in a thread without an event loop: the connections to evict, by the
    address of the living process that holds them.

    Returns the addresses that could not be told, and why. A process that was told does it in its own time.
    """
    try:
        kicks = {address: messages.Kick(ids, [], reason) for address, ids in connections.items()}
        return _background.run(groups.tell_all(kicks))
    except LAYER_ERRORS as error:
        return {address: groups.unavailable("kick", error) for address in connections}


_background = BackgroundLoop()
