"""Messages between processes: their types, and their form as the dicts that a channel layer carries.

While a new version is rolled out, processes of two versions exchange these messages. Therefore a receiver
ignores fields that it does not know, and drops messages of a type that it does not know. A new field needs a
default, because processes of the previous version do not send it. A field keeps its name and its meaning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, get_args
from uuid import UUID

import msgspec

from realtime.errors import BadMessage

# The types of events that come over the channel for messages of groups. The hub tells them apart before it
# decodes anything.
MESSAGE = "realtime.message"
ECHO = "realtime.echo"
#: Processes of older versions send it through a group that they join. Processes of this version send none and
#: ignore it, because processes of two versions run side by side during a deploy.
MARK = "realtime.mark"


class _Message(msgspec.Struct, frozen=True, tag_field="type"):
    """A message is sent with all of its fields, also the fields that have their default.

    `GroupMessage` is an exception, because most groups keep no history.
    """


class _Control(_Message, frozen=True):
    """A message to the mailbox of one process."""

    purpose: ClassVar[str]
    """The words for sending it, in the text of errors and as the label `call` of `realtime_layer_errors`."""


# To a server process.


class Ask(_Control, frozen=True, tag="realtime.ask"):
    """Asks a process to answer a round.

    Attributes:
        round: The number of the round. 0 asks for an answer and writes nothing.
        reply_to: The address of the reaper that asks.
        interval: Seconds between two rounds of this reaper; 0 if they are not known.
    """

    purpose = "ask a process"

    round: int
    reply_to: str
    interval: float = 0.0


class Kick(_Control, frozen=True, tag="realtime.kick"):
    """Tells a process to evict connections, and to finish leaving groups.

    Attributes:
        connections: The ids of the connections to evict.
        memberships: Pairs of the id of a connection and the name of a group that it has to leave.
        reason: The `value` of a `CloseReason`.
    """

    purpose = "kick"

    connections: Sequence[UUID]
    memberships: Sequence[tuple[UUID, str]]
    reason: str


class Explain(_Control, frozen=True, tag="realtime.explain"):
    """Asks a process for its connections and their groups. The process answers with `Holdings`.

    Attributes:
        request: An id that every answer repeats.
        reply_to: The address of the program that asks.
    """

    purpose = "ask a process"

    request: str
    reply_to: str


class Heal(_Control, frozen=True, tag="realtime.heal"):
    """Tells a process to re-add its memberships to the channel layer.

    Attributes:
        stray: Groups that the process has to leave, because it has no members there.
    """

    purpose = "tell a process to heal"

    stray: Sequence[str]


class Revoke(_Control, frozen=True, tag="realtime.revoke"):
    """Tells a process that a session of a user has ended. The process evicts the connections that rely on it.

    Attributes:
        user: The primary key of the user as text.
        session: The digest of the session's key (`realtime.rights.authorization.digest`); empty for every
            session of the user.
    """

    purpose = "revoke a session"

    user: str
    session: str


class Recheck(_Control, frozen=True, tag="realtime.recheck"):
    """Tells a process that rights may have changed. The process reads them again and asks the policy again.

    Attributes:
        users: The primary keys of the users as text; None for all users.
        groups: The groups to ask the policy about; None for all groups.
        changed_only: Ask the policy only if the rights of a user differ from those that were read before.
    """

    purpose = "ask for a recheck"

    users: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    changed_only: bool = False


class PresenceChanges(_Control, frozen=True, tag="realtime.presence"):
    """Tells a process that watches groups who has come to them and who has left.

    Attributes:
        began: For each stay that began: its id, the group and the user.
        ended: The same for each stay that ended.
    """

    purpose = "tell of presence"

    began: Sequence[tuple[int, str, str]]
    ended: Sequence[tuple[int, str, str]]


class Notify(_Control, frozen=True, tag="realtime.notify"):
    """Tells a process to write a frame to connections of a user. The process answers with `Notified`.

    Attributes:
        request: An id that the answer repeats.
        reply_to: The address of the program that notifies.
        connections: The ids of the connections.
        text: The frame, as `realtime.wire.frames.build` makes it.
        confirm: Ask the clients for a pong, and answer when one came.
        within: Seconds for which the program waits for the answer.
    """

    purpose = "notify"

    request: str
    reply_to: str
    connections: Sequence[UUID]
    text: str
    confirm: bool
    within: float


# To a reaper, or to another program that asked.


class Answer(_Control, frozen=True, tag="realtime.answer"):
    """Answers a round.

    Attributes:
        round: The number of the round.
        process: The id of the process that answers.
    """

    purpose = "answer a round"

    round: int
    process: UUID


class Holdings(_Control, frozen=True, tag="realtime.holdings"):
    """One page of the connections of a process, with their groups. Ids are text, as they are compared.

    Attributes:
        request: The id of the request that the page answers.
        process: The id of the process that answers.
        connections: Pairs of the id of a connection and the names of its groups.
        page: The number of the page, from 0.
        pages: The number of pages in the whole answer.
    """

    purpose = "say what is held"

    request: str
    process: str
    connections: Sequence[tuple[str, Sequence[str]]]
    page: int
    pages: int


class Notified(_Control, frozen=True, tag="realtime.notified"):
    """Answers a `Notify`.

    Attributes:
        request: The id of the request.
        process: The id of the process that answers.
        taken: True if one of the connections took the frame.
    """

    purpose = "say what was taken"

    request: str
    process: UUID
    taken: bool


# To the process that sends it.


class EchoPart(_Message, frozen=True, tag=ECHO):
    """One part of an echo, which a process sends to itself to find out if it receives anything.

    Attributes:
        number: The number of the echo.
        part: The number of the part, from 0. Each connection to the channel layer carries one part.
    """

    number: int
    part: int


# To all members of a group.


class GroupMessage(_Message, frozen=True, tag=MESSAGE, omit_defaults=True):
    """A message that was published to a group.

    The hub reads the fields from the dict without `decode`, because it does so for every published message.
    The dict has a position only if the group keeps history.

    Attributes:
        text: The frame for clients, as `realtime.wire.frames.build` makes it, without its position.
        epoch: The epoch of its position.
        offset: The offset of its position.
    """

    text: str
    epoch: str | None = None
    offset: int | None = None


Control: TypeAlias = (
    Ask | Kick | Explain | Heal | PresenceChanges | Revoke | Recheck | Notify | Answer | Holdings | Notified
)
AnyMessage: TypeAlias = Control | EchoPart | GroupMessage

_TYPES: dict[str, type[AnyMessage]] = {str(each.__struct_config__.tag): each for each in get_args(AnyMessage)}


def encode(message: AnyMessage) -> dict[str, Any]:
    """Return the dict that a channel layer carries."""
    event: dict[str, Any] = msgspec.to_builtins(message)
    return event


def decode(event: Mapping[str, Any]) -> AnyMessage:
    """Return the message in a dict that came from a channel layer.

    Raises:
        BadMessage: This version knows no message of this type, or a field is missing or has a wrong type.
    """
    kind = event.get("type")
    declared = _TYPES.get(kind) if isinstance(kind, str) else None
    if declared is None:
        raise BadMessage(f"Another process sent an event of the unknown type {kind!r}.")
    try:
        return msgspec.convert(event, declared)
    except msgspec.ValidationError as error:
        raise BadMessage(f"Another process sent a {kind} event that cannot be read: {error}.") from None
