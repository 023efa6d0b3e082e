"""The demo project on a channel layer that silently drops some messages.

A test must not import this module: it changes the layers of its process.
"""

from project.asgi import application
from realtime.layers.core import CoreLayer
from realtime.layers.pubsub import PubSubLoopLayer
from tests.support.faults.forgetting import make_forgetful

__all__ = ["application"]

for _layer in (CoreLayer, PubSubLoopLayer):
    make_forgetful(_layer)
