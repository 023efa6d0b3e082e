"""Publishing from async code, sync code and the command line, and the errors for bad input."""

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from channels.layers import channel_layers, get_channel_layer
from django.core.management import CommandError, call_command

import realtime
from realtime.errors import BadGroup, LayerUnavailable, RealtimeError, UnpublishableData
from realtime.layers import groups
from tests.support.programs.servers import CHECKOUT, RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["CoreLayer", "PubSubLayer"])
def redis_layer(request: pytest.FixtureRequest, settings: Any, server: RedisServer) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": f"realtime.layers.{request.param}", "CONFIG": {"hosts": [server.url]}}
    }
    channel_layers.backends.clear()


class Listener:
    """A member of a group, on a loop of its own, as a server process would be."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.frames: list[dict[str, Any]] = []
        self.wanted = 1

    def hear(self, wanted: int, publish: Any) -> list[dict[str, Any]]:
        ready = threading.Event()

        async def listen() -> None:
            layer = get_channel_layer()
            channel = await layer.new_channel()
            await layer.group_add(self.group, channel)
            await asyncio.sleep(0.2)
            ready.set()
            async with asyncio.timeout(10):
                while len(self.frames) < wanted:
                    self.frames.append(json.loads((await layer.receive_stamped(channel))["text"]))
            await layer.group_discard(self.group, channel)

        thread = threading.Thread(target=asyncio.run, args=[listen()])
        thread.start()
        assert ready.wait(10)
        publish()
        thread.join(15)
        return self.frames


@pytest.mark.acceptance
@pytest.mark.usefixtures("redis_layer")
def test_synchronous_code_publishes() -> None:
    def publish() -> None:
        realtime.publish("g", {"at": datetime(2026, 1, 2, tzinfo=UTC)})
        realtime.publish("g", None)

    heard = Listener("g").hear(2, publish)
    assert [frame["data"] for frame in heard] == [{"at": "2026-01-02T00:00:00Z"}, None]


@pytest.mark.acceptance
@pytest.mark.usefixtures("redis_layer")
def test_the_command_publishes_its_argument() -> None:
    heard = Listener("g").hear(1, lambda: call_command("publish", "g", '{"hello": 1}'))
    assert heard[0]["data"] == {"hello": 1}


@pytest.mark.acceptance
@pytest.mark.usefixtures("redis_layer")
def test_the_command_publishes_standard_input_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('1\n\n"two"\n'))
    output = io.StringIO()
    heard = Listener("g").hear(2, lambda: call_command("publish", "g", stdout=output))
    assert [frame["data"] for frame in heard] == [1, "two"]
    assert output.getvalue() == "2 published to g\n"


@pytest.mark.acceptance
@pytest.mark.usefixtures("redis_layer")
def test_a_line_that_is_no_json_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nhello\n2\n"))
    with pytest.raises(CommandError, match=r"line 2: 'hello' is not JSON .* 1 published before it"):
        call_command("publish", "g")


@pytest.mark.parametrize("group", ["", "a b", "ä", "realtime.x", "x" * 100])
async def test_an_impossible_group_name_is_refused(group: str) -> None:
    with pytest.raises(BadGroup, match="ASCII letters"):
        await realtime.apublish(group, 1)


def test_the_group_rule_is_shown_without_docstrings() -> None:
    program = 'import realtime, django; django.setup(); realtime.publish("a b", 1)'
    refused = subprocess.run(
        [sys.executable, "-OO", "-c", program],
        cwd=CHECKOUT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.support.settings"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.stderr.splitlines()[-1] == (
        "realtime.errors.BadGroup: 'a b' cannot be a group's name; use 1 to 99 ASCII letters, digits, "
        '"-", "_" and ".", not starting with "realtime.".'
    )


async def test_data_without_json_is_refused() -> None:
    with pytest.raises(UnpublishableData, match="object"):
        await realtime.apublish("g", object())


async def test_publish_refuses_to_block_a_running_loop() -> None:
    with pytest.raises(RealtimeError, match="await apublish"):
        realtime.publish("g", 1)


@pytest.mark.usefixtures("redis_is_down")
def test_a_redis_that_is_down_is_a_clear_error() -> None:
    with pytest.raises(LayerUnavailable, match="failed to publish"):
        realtime.publish("g", 1)
    with pytest.raises(CommandError, match="failed to publish"):
        call_command("publish", "g", "1")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "no default layer"),
        ({"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}, "does not say which group"),
        (
            {"default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"}},
            "does not say which group",
        ),
    ],
)
def test_a_layer_of_another_package_is_refused(settings: Any, layers: dict[str, Any], words: str) -> None:
    settings.CHANNEL_LAYERS = layers
    channel_layers.backends.clear()
    with pytest.raises(LayerUnavailable, match=r"realtime\.layers\.PubSubLayer") as refused:
        groups.layer()
    assert words in str(refused.value).replace('"', "")
