"""A channel layer that silently drops every message with the word `FORGET`, as a layer may lose one.

Redis has taken the message, and the sender has no error. It does not reach the process that receives.
"""

from typing import Any

FORGET = "forget this"


def make_forgetful(layer: Any) -> None:
    """Have every layer of this class in this process drop such messages."""
    receive = layer.receive_stamped

    async def receive_stamped(self: Any, channel: str) -> Any:
        while True:
            event = await receive(self, channel)
            if FORGET not in event.get("text", ""):
                return event

    layer.receive_stamped = receive_stamped
