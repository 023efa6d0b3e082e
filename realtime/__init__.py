"""Connection liveness for Django Channels: proven alive, or gone within a bound that you choose."""

from realtime.closing import CloseReason
from realtime.errors import BadGroup, LayerUnavailable, NoHistory, RealtimeError, UnpublishableData
from realtime.history.positions import Position
from realtime.publishing import apublish, publish

__all__ = [
    "BadGroup",
    "CloseReason",
    "LayerUnavailable",
    "NoHistory",
    "Position",
    "RealtimeError",
    "UnpublishableData",
    "apublish",
    "publish",
]

__version__ = "0.1.0"
