"""The library's two Redis layers, and Channels' in-memory one, each with the few lines that a hub needs."""

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

#: The layers that say which group a message was sent to.
OURS = (CoreLayer, MemoryLayer, PubSubLayer)
