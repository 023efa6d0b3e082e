"""All exceptions of this package. `except RealtimeError` catches everything that it raises on purpose."""

import enum
from collections.abc import Sequence

__all__ = [
    "BadFrame",
    "BadGroup",
    "BadId",
    "BadMessage",
    "BadTicket",
    "ConnectionGone",
    "ErrorCode",
    "LayerUnavailable",
    "NoHistory",
    "NoPresence",
    "NoSuchLayer",
    "RealtimeError",
    "RecordsUnavailable",
    "RoundFailed",
    "TooManyGroups",
    "UnpublishableData",
]


class RealtimeError(Exception):
    """`realtime` refuses to do something or cannot do it; the message says what to do about it."""


class LayerUnavailable(RealtimeError):
    """The channel layer failed. Look at the Redis behind CHANNEL_LAYERS, then try again."""


class NoSuchLayer(LayerUnavailable):
    """CHANNEL_LAYERS has no layer of this package under this alias. Waiting for Redis does not help."""


class BadGroup(RealtimeError, TypeError, ValueError):
    """No group can have this name. The message says which names are possible."""


class BadId(RealtimeError, TypeError, ValueError):
    """No publish id can look like this. The message says which ids are possible."""


class NoHistory(RealtimeError):
    """The group keeps no history. Add a pattern that matches its name to HISTORY."""

    def __init__(self, group: str) -> None:
        super().__init__(
            f'The group {group!r} keeps no history: no pattern in REALTIME["HISTORY"] matches its name.'
        )


class NoPresence(RealtimeError):
    """The users of the group are not tracked. Add a pattern that matches its name to PRESENCE."""

    def __init__(self, group: str) -> None:
        what = f"the group {group!r} are" if group else "this project are"
        pattern = "that matches its name" if group else "for the groups whose users it shall track"
        super().__init__(f'The users of {what} not tracked: add a pattern {pattern} to REALTIME["PRESENCE"].')


class BadTicket(RealtimeError):
    """A ticket gives no right to connect. The message says why, and has nothing of the ticket."""


class TooManyGroups(RealtimeError):
    """A connection is in as many groups as it may be. Raise MAX_GROUPS if your clients need more."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The connection is in {limit} groups already: leave one first, or raise "
            'REALTIME["MAX_GROUPS"] if your clients need more.'
        )
        self.limit = limit


class UnpublishableData(RealtimeError, TypeError):
    """A value has no JSON form, or one that no client could read. The message names its type."""

    def __init__(self, value: object, reason: str) -> None:
        module, name = type(value).__module__, type(value).__qualname__
        if module != "builtins":
            name = f"{module}.{name}"
        super().__init__(f"A value of type {name} cannot be published: {reason}.")


class ErrorCode(enum.StrEnum):
    """The field `code` of an error frame."""

    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    FORBIDDEN = "forbidden"
    BAD_GROUP = "bad_group"
    RATE_LIMITED = "rate_limited"
    NOT_JOINED = "not_joined"
    NO_PRESENCE = "no_presence"
    TOO_MANY_GROUPS = "too_many_groups"
    BAD_TICKET = "bad_ticket"
    INTERNAL = "internal"


class BadFrame(RealtimeError):
    """A text is no frame. `code`, `detail` and `ref` are those of the error frame that answers it."""

    def __init__(self, code: ErrorCode, detail: str, ref: int | str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.ref = ref


class BadMessage(RealtimeError, ValueError):
    """An event is no message between processes. The text says why."""


class RecordsUnavailable(RealtimeError):
    """The database did not take a record in time. Look at DATABASES. The client is told to come back."""

    never_written = False
    """True if certainly nothing was written. Otherwise the write may be done already, or later."""


class ConnectionGone(RealtimeError):
    """The connection ended while a call worked for it."""


class RoundFailed(RealtimeError, ExceptionGroup[Exception]):
    """A sweep or a purge did not reach its end. The text names each cause once."""

    @classmethod
    def of(cls, failures: Sequence[Exception]) -> "RoundFailed":
        return cls("; ".join(dict.fromkeys(str(each).rstrip(".") for each in failures)) + ".", failures)

    def __str__(self) -> str:
        return self.message
