"""The channel layers to set in CHANNEL_LAYERS: two on Redis, and one in memory for tests and one process."""

from realtime.layers.core import CoreLayer
from realtime.layers.memory import MemoryLayer
from realtime.layers.pubsub import PubSubLayer

__all__ = ["CoreLayer", "MemoryLayer", "PubSubLayer"]

#: The layers that tell a receiver which group a message was sent to.
OURS = (CoreLayer, MemoryLayer, PubSubLayer)
