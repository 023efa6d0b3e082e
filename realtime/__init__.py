"""Connection liveness for Django Channels: proven alive, or gone within a bound that you choose."""

from realtime.closing import CloseReason
from realtime.errors import BadGroup, LayerUnavailable, RealtimeError, UnpublishableData
from realtime.publishing import apublish, publish

__all__ = [
    "BadGroup",
    "CloseReason",
    "LayerUnavailable",
    "RealtimeError",
    "UnpublishableData",
    "apublish",
    "publish",
]

__version__ = "0.1.0"
