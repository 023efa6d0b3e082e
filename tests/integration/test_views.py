"""What operators and probes see."""

import asyncio
import threading
from typing import Any

import pytest
from channels.layers import channel_layers
from django.db import OperationalError
from django.test import AsyncClient

from realtime import groups, process_records


@pytest.fixture
def client(memory_layer: None) -> AsyncClient:
    return AsyncClient()


async def test_metrics_are_in_prometheus_text_format(client: AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert b"# HELP realtime_connections " in response.content


async def test_a_process_that_turns_its_loop_is_live(client: AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"live": True}


async def test_a_process_with_database_and_layer_is_ready(client: AsyncClient) -> None:
    response = await client.get("/health/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True})


async def test_a_process_without_its_layer_is_not_ready(client: AsyncClient, settings: Any) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "realtime.layers.CoreLayer",
            "CONFIG": {"hosts": ["unix:///nowhere/redis.sock"]},
        }
    }
    channel_layers.backends.clear()
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["channel_layer"] == "ConnectionError"


async def test_a_process_is_not_ready_while_any_layer_of_ours_is_down(
    client: AsyncClient, settings: Any
) -> None:
    nowhere = {"hosts": ["unix:///nowhere/redis.sock"]}
    settings.CHANNEL_LAYERS = {
        **settings.CHANNEL_LAYERS,
        "other": {"BACKEND": "realtime.layers.PubSubLayer", "CONFIG": nowhere},
        "foreign": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": nowhere},
    }
    channel_layers.backends.clear()
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "channel_layer:other": "ConnectionError"}


async def test_a_probe_gets_its_answer_although_all_hangs(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    async def hanging(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("realtime.views.DATABASE_TIMEOUT", 0.1)
    monkeypatch.setattr(groups, "CALL_TIMEOUT", 0.1)
    monkeypatch.setattr(groups.layer(), "group_send", hanging)
    monkeypatch.setattr(process_records, "current_round", lambda: release.wait(60))
    try:
        async with asyncio.timeout(5):
            response = await client.get("/health/ready")
    finally:
        release.set()
    assert response.json() == {
        "ready": False,
        "database": "TimeoutError",
        "channel_layer": "TimeoutError",
    }


async def test_a_process_without_its_database_is_not_ready(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> int:
        raise OperationalError("secret words of the database")

    monkeypatch.setattr(process_records, "current_round", failing)
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "database": "OperationalError"}
