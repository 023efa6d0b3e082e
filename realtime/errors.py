"""All exceptions of this package: `except RealtimeError` catches everything that it raises on purpose."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the pure packages above build on this file
    from realtime.wire.frames import ErrorCode, Ref

__all__ = [
    "BadFrame",
    "BadGroup",
    "ConnectionGone",
    "LayerUnavailable",
    "NoSuchLayer",
    "RealtimeError",
    "RecordsUnavailable",
    "RoundFailed",
    "UnpublishableData",
]


class RealtimeError(Exception):
    """`realtime` refuses to do something or cannot do it; the message says what to do about it."""


class LayerUnavailable(RealtimeError):
    """The channel layer did not do what it was asked; look at the Redis behind CHANNEL_LAYERS, then try
    again.
    """


class NoSuchLayer(LayerUnavailable):
    """CHANNEL_LAYERS has no layer of this package under the alias; waiting for Redis does not help."""


class BadGroup(RealtimeError, TypeError, ValueError):
    """No group can have this name; the message says which names are possible."""


class UnpublishableData(RealtimeError, TypeError):
    """A value that has no JSON form, or one that no client could read; the message names its type."""

    def __init__(self, value: object, reason: str) -> None:
        module, name = type(value).__module__, type(value).__qualname__
        if module != "builtins":
            name = f"{module}.{name}"
        super().__init__(f"A value of type {name} cannot be published: {reason}.")


class BadFrame(RealtimeError):
    """A text that is no frame. `code`, `detail` and `ref` are those of the error frame that answers it."""

    def __init__(self, code: "ErrorCode", detail: str, ref: "Ref | None" = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.ref = ref


class RecordsUnavailable(RealtimeError):
    """The database did not take a record in time; look at DATABASES, the client is told to come back."""

    never_written = False
    """Whether it is certain that nothing was written; else the write may have been done, or be done yet."""


class ConnectionGone(RealtimeError):
    """The connection ended while something was being done for it; there is nobody left to do it for."""


class RoundFailed(RealtimeError, ExceptionGroup[Exception]):
    """Everything that kept a sweep or a purge from its end. As text, each cause once."""

    @classmethod
    def of(cls, failures: Sequence[Exception]) -> "RoundFailed":
        return cls("; ".join(dict.fromkeys(str(each).rstrip(".") for each in failures)) + ".", failures)

    def __str__(self) -> str:
        return self.message
