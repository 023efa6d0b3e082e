"""The HTTP views for operators and probes."""

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from channels.layers import channel_layers
from django.db import OperationalError
from django.test import AsyncClient
from django.urls import path

from realtime import urls, views
from realtime.layers import groups
from realtime.records import process_rows

pytestmark = pytest.mark.urls(__name__)

#: The paths of the package, and a probe that waits 0.2 s instead of 5 s for each answer.
urlpatterns = [*urls.urlpatterns, path("impatient", views.ready, {"within": 0.2})]

#: Three times as many as the event loop's executor has threads.
PROBES = 3 * ((os.cpu_count() or 1) + 4)


@pytest.fixture
def client(memory_layer: None) -> AsyncClient:
    return AsyncClient()


class HangingDatabase:
    """Answers no call until `go_on`, and keeps the threads that ask."""

    def __init__(self) -> None:
        self.asked: list[threading.Thread] = []
        self._goes_on = threading.Event()

    def current_round(self) -> int:
        self.asked.append(threading.current_thread())
        assert self._goes_on.wait(60)
        return 0

    def go_on(self) -> None:
        self._goes_on.set()


@pytest.fixture
def hanging_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingDatabase]:
    database = HangingDatabase()
    monkeypatch.setattr(process_rows, "current_round", database.current_round)
    yield database
    database.go_on()
    for thread in database.asked:
        thread.join(10)


async def test_metrics_are_in_prometheus_text_format(client: AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert b"# HELP realtime_connections " in response.content


async def test_a_process_with_a_running_loop_is_live(client: AsyncClient) -> None:
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


async def test_a_process_is_not_ready_while_any_layer_is_down(client: AsyncClient, settings: Any) -> None:
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


async def test_a_probe_gets_its_answer_while_database_and_layer_hang(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, hanging_database: HangingDatabase
) -> None:
    async def hanging(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(groups.layer(), "group_send", hanging)
    async with asyncio.timeout(5):
        response = await client.get("/impatient")
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

    monkeypatch.setattr(process_rows, "current_round", failing)
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "database": "OperationalError"}


async def test_any_number_of_probes_ask_a_hung_database_once(
    client: AsyncClient, hanging_database: HangingDatabase
) -> None:
    async with asyncio.timeout(30):
        for _ in range(2):
            responses = await asyncio.gather(*(client.get("/impatient") for _ in range(PROBES)))
            assert {response.status_code for response in responses} == {503}
            assert responses[0].json() == {"ready": False, "database": "TimeoutError"}
        # Name resolution needs the loop's executor.
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: "free") == "free"
    assert len(hanging_database.asked) == 1


async def test_a_probe_is_answered_when_the_database_answers(
    client: AsyncClient, hanging_database: HangingDatabase
) -> None:
    probes = [asyncio.create_task(client.get("/health/ready")) for _ in range(3)]
    async with asyncio.timeout(30):
        while not hanging_database.asked:
            await asyncio.sleep(0.01)
        # If one load balancer hangs up, the others still get their answer.
        probes[0].cancel()
        await asyncio.wait([probes[0]])
        hanging_database.go_on()
        assert [(await probe).status_code for probe in probes[1:]] == [200, 200]
        assert len(hanging_database.asked) == 1
        assert (await client.get("/health/ready")).status_code == 200
    assert len(hanging_database.asked) == 2


async def test_an_exiting_process_does_not_wait_for_a_check(
    client: AsyncClient, hanging_database: HangingDatabase
) -> None:
    await client.get("/impatient")
    assert [thread.daemon for thread in hanging_database.asked] == [True]


async def test_any_number_of_probes_ask_a_hung_layer_once(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def hanging(*_: object) -> None:
        asked.append(True)
        await asyncio.sleep(60)

    monkeypatch.setattr(groups.layer(), "group_send", hanging)
    async with asyncio.timeout(30):
        for _ in range(2):
            responses = await asyncio.gather(*(client.get("/impatient") for _ in range(PROBES)))
            assert responses[0].json() == {"ready": False, "channel_layer": "TimeoutError"}
    assert len(asked) == 1
