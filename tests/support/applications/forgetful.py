"""The demo project on a channel layer that silently drops every message with the word `FORGET`.

Redis has taken the message, and the sender has no error. It does not reach this process.
"""

from typing import Any

from project.asgi import application
from realtime.layers.core import CoreLayer
from realtime.layers.pubsub import PubSubLoopLayer

__all__ = ["FORGET", "application"]

FORGET = "forget this"


def _forget(layer: Any) -> None:
    receive = layer.receive_stamped

    async def receive_stamped(self: Any, channel: str) -> Any:
        while True:
            event = await receive(self, channel)
            if FORGET not in event.get("text", ""):
                return event

    layer.receive_stamped = receive_stamped


for _layer in (CoreLayer, PubSubLoopLayer):
    _forget(_layer)
