"""The channel layers to set in CHANNEL_LAYERS: two on Redis, and one in memory for tests and one process."""

from realtime.layers.core import CoreLayer
from realtime.layers.memory import MemoryLayer
from realtime.layers.messages import MARK, MESSAGE
from realtime.layers.pubsub import PubSubLayer
from realtime.layers.stamped import CAPACITY, LAYER_ERRORS, STAMP, Layer, Message

__all__ = [
    "CAPACITY",
    "LAYER_ERRORS",
    "MARK",
    "MESSAGE",
    "OURS",
    "STAMP",
    "CoreLayer",
    "Layer",
    "MemoryLayer",
    "Message",
    "PubSubLayer",
]

#: The layers that tell a receiver which group a message was sent to.
OURS = (CoreLayer, MemoryLayer, PubSubLayer)
