"""The frames and bytes per second of one client, and the publishes per second of one user."""

import asyncio
import json
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from redis.exceptions import ConnectionError as RedisConnectionError

from realtime.consumers import RealtimeConsumer
from realtime.limits import publishes, rates
from realtime.metrics import limited
from realtime.models import Connection as Record
from realtime.serving import lifecycle
from realtime.serving.runner import Runner, Times
from realtime.wire import frames
from tests.integration.serving.test_consumers import closed, communicator, ended, groups_app
from tests.integration.serving.test_consumers import receive as receive_any

pytestmark = pytest.mark.usefixtures("site")

#: Frames per second, and those that may come together.
RATE = 4
BURST = round(rates.BURST * RATE)
PING = frames.build(frames.ClientPing(n=1))


@pytest.fixture(autouse=True)
def _no_server_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "times", Times(server_report=0.2))


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "GRACE", 0.3)
    monkeypatch.setattr("realtime.serving.inbox.GRACE", 0.1)


def count(limit: str) -> float:
    """Return how often this limit was exceeded."""
    return float(limited.labels(limit=limit)._value.get())


async def receive(client: WebsocketCommunicator) -> Any:
    """Return the next frame that is no ping: every write may be followed by one."""
    while (frame := await receive_any(client))["type"] == "ping":
        pass
    return frame


async def send(client: WebsocketCommunicator, **frame: Any) -> Any:
    """Send a frame and return the next one from the server."""
    await client.send_to(text_data=json.dumps(frame))
    return await receive(client)


async def opened(client: WebsocketCommunicator) -> WebsocketCommunicator:
    await client.connect()
    if client.scope["subprotocols"]:
        assert (await receive(client))["type"] == "welcome"
    return client


async def answers(client: WebsocketCommunicator, number: int) -> list[Any]:
    return [await receive(client) for _ in range(number)]


class TestFramesPerSecond:
    @pytest.fixture(autouse=True)
    def _limit(self, realtime_settings: Any) -> None:
        realtime_settings(MAX_FRAMES_PER_SECOND=RATE)

    async def test_a_client_above_the_rate_is_told_and_nothing_is_dropped(self) -> None:
        before = count("MAX_FRAMES_PER_SECOND")
        client = await opened(groups_app("/ws/", v1=True))
        for _ in range(BURST):
            await client.send_to(text_data=PING)
        await client.send_to(text_data=json.dumps({"type": "leave", "group": "public.a", "ref": "above"}))
        assert await answers(client, BURST) == [{"type": "pong", "n": 1}] * BURST
        told, answered = await answers(client, 2)
        assert (told["type"], told["code"], "ref" in told) == ("error", "rate_limited", False)
        assert (answered["code"], answered["ref"]) == ("not_joined", "above")
        assert count("MAX_FRAMES_PER_SECOND") == before + 1
        await client.disconnect()

    async def test_a_client_that_goes_on_is_closed(self) -> None:
        before = count("MAX_FRAMES_PER_SECOND")
        client = await opened(groups_app("/ws/", v1=True))
        for _ in range(3 * BURST):
            await client.send_to(text_data=PING)
        seen = list[Any]()
        while (event := await client.receive_output(timeout=5))["type"] == "websocket.send":
            seen.append(json.loads(event["text"]))
        assert (event["type"], event["code"]) == ("websocket.close", 4029)
        assert [each["code"] for each in seen if each["type"] == "error"] == ["rate_limited"]
        assert seen[-1]["reason"] == "rate_limited"
        assert seen[-1]["reconnect"] is True
        assert (await ended()).close_reason == "rate_limited"
        assert count("MAX_FRAMES_PER_SECOND") == before + 2

    async def test_a_client_without_the_protocol_is_closed_immediately(self) -> None:
        class Author(RealtimeConsumer):
            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                await self.send("taken")

        client = await opened(communicator(Author.as_asgi()))
        for _ in range(BURST + 1):
            await client.send_to(text_data="frame")
        assert await closed(client) == 4029

    async def test_awaited_pongs_do_not_count(self) -> None:
        client = await opened(groups_app("/ws/", v1=True))
        connection = await the_connection()
        for _ in range(3 * BURST):
            connection.hub.heartbeat.ask(connection)
            ping = await receive_any(client)
            await client.send_to(text_data=frames.build(frames.ClientPong(n=ping["n"])))
            await asyncio.sleep(0)
        assert await client.receive_nothing()
        await client.disconnect()

    async def test_pongs_that_nobody_awaits_count(self) -> None:
        client = await opened(groups_app("/ws/", v1=True))
        for _ in range(3 * BURST):
            await client.send_to(text_data=frames.build(frames.ClientPong(n=7)))
        assert (await receive(client))["code"] == "rate_limited"
        assert await closed(client) == 4029


async def test_bytes_per_second_are_counted_before_parsing(realtime_settings: Any) -> None:
    realtime_settings(MAX_BYTES_PER_SECOND=1000, MAX_MESSAGE_BYTES=1000)
    client = await opened(groups_app("/ws/", v1=True))
    # Each of them is no JSON. The sixth has no answer of its own, because it is not parsed.
    for _ in range(15):
        await client.send_to(text_data="x" * 1000)
    codes = [(await receive(client))["code"] for _ in range(6)]
    assert sorted(codes) == ["bad_frame"] * 5 + ["rate_limited"]
    assert await closed(client) == 4029


async def test_none_switches_the_rates_off(realtime_settings: Any) -> None:
    realtime_settings(MAX_FRAMES_PER_SECOND=None, MAX_BYTES_PER_SECOND=None)
    client = await opened(groups_app("/ws/", v1=True))
    for _ in range(1000):
        await client.send_to(text_data=PING)
    assert await answers(client, 1000) == [{"type": "pong", "n": 1}] * 1000
    await client.disconnect()


async def the_connection() -> Any:
    (connection,) = (await lifecycle.hub()).connections.values()
    return connection


class TestPublishesPerSecond:
    RATE = 2
    BURST = round(rates.BURST * RATE)

    @pytest.fixture(autouse=True)
    def _limit(self, realtime_settings: Any) -> None:
        realtime_settings(MAX_PUBLISHES_PER_SECOND=self.RATE, MAX_FRAMES_PER_SECOND=None)

    @staticmethod
    async def opened() -> WebsocketCommunicator:
        """Connect a user who may publish."""
        user = await User.objects.acreate_user("karl")
        return await opened(groups_app("/ws/", v1=True, user=user))

    async def publish(self, client: WebsocketCommunicator, number: int) -> list[Any]:
        """Publish that many messages, and return the answers."""
        for ref in range(number):
            frame = {"type": "publish", "group": "public.a", "data": ref, "ref": ref}
            await client.send_to(text_data=json.dumps(frame))
        return await answers(client, number)

    @staticmethod
    def kinds(answered: list[Any]) -> list[str]:
        return [each.get("code", each["type"]) for each in answered]

    async def test_connections_of_one_user_share_the_rate(self) -> None:
        user = await User.objects.acreate_user("anne")
        one, two = [await opened(groups_app("/ws/", v1=True, user=user)) for _ in range(2)]
        assert self.kinds(await self.publish(one, 6)) == ["published"] * 6
        answered = await self.publish(two, 6)
        assert self.kinds(answered)[:4] == ["published"] * 4
        assert self.kinds(answered)[5] == "rate_limited"
        assert answered[5]["ref"] == 5
        for client in (one, two):
            await client.disconnect()

    async def test_another_user_has_a_rate_of_its_own(self) -> None:
        anne, otto = [await User.objects.acreate_user(name) for name in ("anne", "otto")]
        one, two = [await opened(groups_app("/ws/", v1=True, user=user)) for user in (anne, otto)]
        assert "rate_limited" in self.kinds(await self.publish(one, 15))
        assert self.kinds(await self.publish(two, 10)) == ["published"] * 10
        for client in (one, two):
            await client.disconnect()

    async def test_refused_publishes_are_no_errors_of_the_protocol(self) -> None:
        client = await self.opened()
        assert self.kinds(await self.publish(client, 60)).count("rate_limited") > 40
        assert (await send(client, type="ping", n=5)) == {"type": "pong", "n": 5}
        await client.disconnect()

    async def test_too_many_refused_publishes_close_the_connection(self) -> None:
        client = await self.opened()
        for ref in range(150):
            frame = {"type": "publish", "group": "public.a", "data": ref, "ref": ref}
            await client.send_to(text_data=json.dumps(frame))
        assert await closed(client) == 4029

    async def test_few_questions_are_asked_for_many_publishes(
        self, monkeypatch: pytest.MonkeyPatch, realtime_settings: Any
    ) -> None:
        realtime_settings(MAX_PUBLISHES_PER_SECOND=50)
        asked = list[object]()
        layer: Any = get_channel_layer()
        run = layer.run_script

        async def counted(script: Any, *arguments: Any) -> Any:
            if script is publishes.TAKE:
                asked.append(arguments)
            return await run(script, *arguments)

        monkeypatch.setattr(layer, "run_script", counted)
        client = await self.opened()
        assert self.kinds(await self.publish(client, 100)) == ["published"] * 100
        assert len(asked) == 10
        await client.disconnect()

    @pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
    async def test_without_redis_a_process_counts_alone(
        self, hangs: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        break_scripts(monkeypatch, hangs=hangs)
        client = await self.opened()
        assert self.kinds(await self.publish(client, 11)) == ["published"] * 10 + ["rate_limited"]
        await client.disconnect()

    async def test_without_redis_publishes_can_be_refused(
        self, monkeypatch: pytest.MonkeyPatch, realtime_settings: Any
    ) -> None:
        realtime_settings(LIMITS_WITHOUT_REDIS="refuse")
        break_scripts(monkeypatch, hangs=True)
        client = await self.opened()
        assert self.kinds(await self.publish(client, 2)) == ["internal"] * 2
        await client.disconnect()

    async def test_when_redis_is_back_it_counts_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publishes, "RETRY", 0.05)
        with monkeypatch.context() as broken:
            break_scripts(broken, hangs=False)
            client = await self.opened()
            assert self.kinds(await self.publish(client, 3)) == ["published"] * 3
        await asyncio.sleep(0.1)
        await self.publish(client, 1)
        layer: Any = get_channel_layer()
        assert any("realtime.limits:publishes:" in key for key in layer._store)
        await client.disconnect()


def break_scripts(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    """Let the script about publishes fail, or hang."""
    layer: Any = get_channel_layer()
    run = layer.run_script

    async def run_script(script: Any, *arguments: Any) -> Any:
        if script is not publishes.TAKE:
            return await run(script, *arguments)
        if hangs:
            await asyncio.Event().wait()
        raise RedisConnectionError("gone")

    monkeypatch.setattr(publishes, "PATIENCE", 0.1)
    monkeypatch.setattr(layer, "run_script", run_script)


async def test_a_connection_that_only_answers_pings_has_no_buckets() -> None:
    client = await opened(groups_app("/ws/", v1=True))
    connection = await the_connection()
    connection.hub.heartbeat.ask(connection)
    ping = await receive_any(client)
    await client.send_to(text_data=frames.build(frames.ClientPong(n=ping["n"])))
    await client.receive_nothing()
    assert connection.on_event.__self__._inbox._rates is None
    await client.disconnect()
    assert await Record.objects.acount() == 1
