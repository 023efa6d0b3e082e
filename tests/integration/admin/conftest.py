"""The messages to processes that the admin sends."""

import pytest

from realtime.errors import LayerUnavailable
from realtime.layers import groups, messages


@pytest.fixture
def told(monkeypatch):
    """The kicks that were sent: the channel of each process and the connections in the message."""
    kicks = []

    async def tell(address, kick):
        assert kick == messages.Kick(kick.connections, [], "kicked")
        if address.endswith("unreachable"):
            raise LayerUnavailable("The channel layer failed to kick (it is full).")
        kicks.append((address, sorted(map(str, kick.connections))))

    monkeypatch.setattr(groups, "tell", tell)
    return kicks
