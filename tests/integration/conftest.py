"""The integration tests use the database and a real channel layer, in one process."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import channel_layers
from django.contrib.auth.models import AnonymousUser

from realtime import conf
from realtime.serving import lifecycle


@pytest.fixture
def memory_layer(settings: Any, transactional_db: None) -> None:
    """Our memory layer, and a database that every thread sees."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "realtime.layers.MemoryLayer"}}
    channel_layers.backends.clear()


@pytest.fixture
def redis_is_down(settings: Any) -> None:
    """A pub/sub layer on a Redis that cannot be reached."""
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "realtime.layers.PubSubLayer",
            "CONFIG": {"hosts": ["unix:///nowhere/redis.sock"]},
        }
    }
    channel_layers.backends.clear()


@pytest_asyncio.fixture
async def site(memory_layer: None) -> AsyncIterator[None]:
    """A process as consumers see it: its hub starts with the first connection, and stops at the end."""
    yield
    await lifecycle.stop()


@pytest.fixture
def realtime_settings(settings: Any) -> Any:
    """`realtime_settings(PING_INTERVAL=…)` changes settings of REALTIME for one test."""

    def change(**values: object) -> None:
        settings.REALTIME = {**getattr(settings, "REALTIME", {}), **values}
        conf.get.cache_clear()

    yield change
    conf.get.cache_clear()


@pytest.fixture
def anonymous() -> AnonymousUser:
    return AnonymousUser()
