"""The wire protocol `realtime.v1`: text frames, each one JSON object with its kind in the field `type`.

Both sides ignore fields that they do not know. A client ignores types that it does not know. The server
answers them with an error frame.

Applications send `data` to each other. The server checks this JSON text but does not encode it again. So
numbers, the order of keys and escapes reach the receiver unchanged.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from realtime.errors import BadFrame, ErrorCode
from realtime.wire.payload import MAX_DEPTH, nested_deeper_than

SUBPROTOCOL = "realtime.v1"

# The largest integer that JavaScript represents exactly (ECMA-262, Number.MAX_SAFE_INTEGER).
_MAX_SAFE_INTEGER = 2**53 - 1

Count: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_SAFE_INTEGER)]
ShortText: TypeAlias = Annotated[str, Meta(max_length=64)]
TicketText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]
PublishId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Ref: TypeAlias = Annotated[int, Meta(ge=-_MAX_SAFE_INTEGER, le=_MAX_SAFE_INTEGER)] | ShortText


class _Position(Protocol):
    """A position, as `realtime.history.positions` has it."""

    @property
    def epoch(self) -> str: ...
    @property
    def offset(self) -> int: ...


class _Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """The base of all frames. An absent field is None, or UNSET if null has a meaning of its own."""


# From the server.


class Since(msgspec.Struct, frozen=True):
    """A position in the history of a group.

    In a join, it is that of the last message that the client has seen.
    """

    epoch: ShortText
    offset: Count


class Welcome(_Frame, frozen=True, tag="welcome"):
    """The first frame. If the server sends nothing at all for `max_silence` seconds, the socket is dead.

    `positions` has the latest message of each of the groups that keeps history.
    """

    connection: str
    max_silence: float
    groups: list[str]
    positions: dict[str, Since] = {}


class Reset(_Frame, frozen=True, tag="reset"):
    """Tells the members of a group that its history cannot be continued.

    They have missed messages, and must load their state anew. The next message follows this position.
    """

    group: str
    epoch: ShortText
    offset: Count


class Ping(_Frame, frozen=True, tag="ping"):
    """Asks for a pong with the same `n`."""

    n: Count


class Message(_Frame, frozen=True, tag="message"):
    """Published data. `from` is absent when server code published it, null when an anonymous client did.

    The last two fields are set if the group keeps history.
    """

    group: str
    data: msgspec.Raw
    from_: str | UnsetType | None = msgspec.field(default=UNSET, name="from")
    offset: Count | None = None
    epoch: ShortText | None = None


class Present(msgspec.Struct, frozen=True):
    """The users in a group.

    Attributes:
        users: The ids of the users, each once, in the order in which they came. At most the first 1,000.
        anonymous: The number of anonymous connections.
        total: The number of all users.
    """

    users: Sequence[str]
    anonymous: Count
    total: Count


class Joined(_Frame, frozen=True, tag="joined"):
    """Answers a join.

    `epoch`, `offset` and `recovered` are set if the group keeps history, `presence` if the client asked.
    """

    ref: Ref
    group: str
    epoch: ShortText | None = None
    offset: Count | None = None
    recovered: bool | None = None
    presence: Present | None = None


class Left(_Frame, frozen=True, tag="left"):
    """Answers a leave."""

    ref: Ref
    group: str


class Published(_Frame, frozen=True, tag="published"):
    """Answers a publish. The last two fields are set if the group keeps history."""

    ref: Ref
    group: str
    offset: Count | None = None
    epoch: ShortText | None = None


class Error(_Frame, frozen=True, tag="error"):
    """Answers a frame that was refused. It has the `ref` of that frame if one could be read."""

    code: str
    detail: str
    ref: Ref | None = None


class Pong(_Frame, frozen=True, tag="pong"):
    """Answers a client's ping."""

    n: Count


class Goodbye(_Frame, frozen=True, tag="goodbye"):
    """Precedes a close that the server chose.

    `reason` is a `CloseReason.value`. `retry_after` is in seconds.
    """

    reason: str
    reconnect: bool
    retry_after: float | None = None


class Presence(_Frame, frozen=True, tag="presence"):
    """The users in a group: the answer to a client that asked, or what has changed since the last frame.

    An answer has `ref` and `users`. A change has `joined` or `left`, or only another `anonymous`. In one
    frame, no user is in both. `Present` says what the other fields are.
    """

    group: str
    anonymous: Count
    total: Count
    ref: Ref | None = None
    users: Sequence[str] | None = None
    joined: list[str] = []
    left: list[str] = []


class Notification(_Frame, frozen=True, tag="notification"):
    """Data for the user of the connection, which `realtime.notifying.notify` sent."""

    data: msgspec.Raw


class Refresh(_Frame, frozen=True, tag="refresh"):
    """Asks the client to renew its right to the connection within some seconds, by a `refresh` of its own."""

    within: float


class Refreshed(_Frame, frozen=True, tag="refreshed"):
    """Answers a refresh. `expires_in` is in seconds; it is absent if the right does not end by itself."""

    ref: Ref
    expires_in: float | None = None


class Removed(_Frame, frozen=True, tag="removed"):
    """Tells the client that the server removed it from a group.

    The reason `forbidden` says that the policy does not allow it any more.
    """

    group: str
    reason: str


ServerFrame: TypeAlias = (
    Welcome
    | Ping
    | Message
    | Joined
    | Left
    | Published
    | Reset
    | Error
    | Pong
    | Goodbye
    | Presence
    | Notification
    | Refresh
    | Refreshed
    | Removed
)


# From the client.


class ClientPong(_Frame, frozen=True, tag="pong"):
    """Answers a ping."""

    n: Count


class ClientPing(_Frame, frozen=True, tag="ping"):
    """Asks for a pong. A phone that wakes up checks its socket with this."""

    n: Count


class Join(_Frame, frozen=True, tag="join"):
    """Asks to become a member of a group, and for the messages that were missed since a message.

    With `presence`, the answer says who is in the group, and `presence` frames say who comes and leaves.
    """

    group: str
    ref: Ref
    since: Since | None = None
    presence: bool = False


class Leave(_Frame, frozen=True, tag="leave"):
    """Asks to leave a group."""

    group: str
    ref: Ref


class Publish(_Frame, frozen=True, tag="publish"):
    """Asks to send data to a group. The client need not be a member.

    In a group that keeps history, a repeated frame with the same `id` is the same message.
    """

    group: str
    data: msgspec.Raw
    ref: Ref
    id: PublishId | None = None


class ClientPresence(_Frame, frozen=True, tag="presence"):
    """Asks for the users in a group. The client need not be a member."""

    group: str
    ref: Ref


class ClientRefresh(_Frame, frozen=True, tag="refresh"):
    """Renews the right to the connection.

    With a ticket, the right is that of the ticket, which must be for the same user. Without one, the server
    reads again when the session of the connection ends.
    """

    ref: Ref
    ticket: TicketText | None = None


ClientFrame: TypeAlias = ClientPong | ClientPing | Join | Leave | Publish | ClientPresence | ClientRefresh


def build(frame: ServerFrame | ClientFrame) -> str:
    """Return the text of a frame, for a WebSocket text message."""
    return msgspec.json.encode(frame).decode()


def with_position(text: str, position: _Position) -> str:
    """Return a frame with the two fields of a position added. The frame is not encoded again.

    Args:
        text: A frame from `build` which has no position.
        position: A position whose epoch this package made, so that it needs no escapes.
    """
    return f'{text[:-1]},"offset":{position.offset},"epoch":"{position.epoch}"}}'


def parse(text: str) -> ClientFrame:
    """Read a frame that a client sent.

    Raises:
        BadFrame: The text is not a valid frame. No text raises any other exception.
    """
    frame = _decode(_client_decoder, text)
    if isinstance(frame, Join | Leave | Publish | ClientPresence) and not valid_group(frame.group):
        raise BadFrame(ErrorCode.BAD_GROUP, _GROUP_RULE, frame.ref)
    if isinstance(frame, Publish):
        try:
            # The grammar alone accepts numbers that no receiver can hold, such as 1e400.
            msgspec.json.decode(frame.data)
        except msgspec.DecodeError as error:
            raise BadFrame(ErrorCode.BAD_FRAME, f"In `data`: {error}", frame.ref) from None
    return frame


def pong_number(payload: bytes) -> int | None:
    """Return the number in a `pong` frame as clients usually write it; None for any other text.

    `parse` reads every form of the frame, and costs several times as much.
    """
    pong = _PONG.fullmatch(payload)
    return int(pong[1]) if pong is not None else None


def parse_server(text: str) -> ServerFrame | None:
    """Read a frame that a server sent.

    Returns:
        None for a frame of an unknown type.

    Raises:
        BadFrame: The text is not a valid frame.
    """
    try:
        return _decode(_server_decoder, text)
    except BadFrame as error:
        if error.code is ErrorCode.UNKNOWN_TYPE:
            return None
        raise


def valid_group(name: str) -> bool:
    """Return True for a group name of Channels, unless it is reserved for `realtime`."""
    return _GROUP.fullmatch(name) is not None and not name.startswith("realtime.")


_PONG = re.compile(rb'\{"type": ?"pong", ?"n": ?(0|[1-9][0-9]{0,14})\}')
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,99}")
_GROUP_RULE = (
    "A group is 1 to 99 ASCII letters, digits, '-', '_' or '.'; names under `realtime.` are reserved."
)
_DEPTH_RULE = f"Arrays and objects may be nested {MAX_DEPTH} levels deep."

_Decoded = TypeVar("_Decoded")
_client_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_server_decoder: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)


class _OnlyType(msgspec.Struct):
    type: str


class _OnlyRef(msgspec.Struct):
    ref: Ref


def _decode(decoder: msgspec.json.Decoder[_Decoded], text: str) -> _Decoded:
    try:
        encoded = text.encode()
        frame = decoder.decode(encoded)
    except UnicodeEncodeError:
        raise BadFrame(ErrorCode.BAD_FRAME, "The text holds a lone surrogate.") from None
    except RecursionError:
        raise BadFrame(ErrorCode.BAD_FRAME, _DEPTH_RULE) from None
    except msgspec.DecodeError as error:
        envelope, question = _read(_OnlyType, encoded), _read(_OnlyRef, encoded)
        ref = question.ref if question else None
        known_types = sorted(frame_type.__struct_config__.tag for frame_type in get_args(decoder.type))
        if envelope and envelope.type not in known_types:
            detail = f"The known types are {', '.join(known_types)}."
            raise BadFrame(ErrorCode.UNKNOWN_TYPE, detail, ref) from None
        # Cut off, because the message may quote the client's text.
        raise BadFrame(ErrorCode.BAD_FRAME, str(error)[:200], ref) from None
    if nested_deeper_than(MAX_DEPTH, encoded):
        raise BadFrame(ErrorCode.BAD_FRAME, _DEPTH_RULE)
    return frame


def _read(struct: type[_Decoded], encoded: bytes) -> _Decoded | None:
    """Read the fields of this struct from a text that is not a valid frame; None if they are not there."""
    try:
        return msgspec.json.decode(encoded, type=struct)
    except (msgspec.DecodeError, RecursionError):
        return None
