"""What processes say to each other does not wait behind messages, and a program knows whether it hears."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import channel_layers, get_channel_layer

from realtime.fleet.mailbox import Mailbox
from realtime.layers import groups
from tests.support.programs.servers import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest_asyncio.fixture(params=["MemoryLayer", "PubSubLayer", "CoreLayer"])
async def layer(request: pytest.FixtureRequest, settings: Any, server: RedisServer) -> AsyncIterator[Any]:
    config = {} if request.param == "MemoryLayer" else {"CONFIG": {"hosts": [server.url]}}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": f"realtime.layers.{request.param}", **config}}
    channel_layers.backends.clear()
    made = get_channel_layer()
    yield made
    await (made.close_pools() if hasattr(made, "close_pools") else made.flush())
    channel_layers.backends.clear()


async def soon(mailbox: Mailbox) -> dict[str, Any]:
    async with asyncio.timeout(5):
        return await mailbox.next()


async def test_what_is_said_to_an_address_comes_to_its_mailbox(layer: Any) -> None:
    address = await groups.new_address("default")
    mailbox = await Mailbox.open(address)
    assert await mailbox.hears_itself(5.0)
    await groups.heal(address, ["g"])
    assert await soon(mailbox) == {"type": groups.HEAL, "stray": ["g"]}
    await mailbox.close()


async def test_messages_that_nobody_takes_keep_nothing_from_the_mailbox(layer: Any) -> None:
    address = await groups.new_address("default")
    mailbox = await Mailbox.open(address)
    assert await mailbox.hears_itself(5.0)
    for _ in range(500):
        await layer.send(address, {"type": "message"})
    await groups.kick(address, [], [], "kicked")
    assert (await soon(mailbox))["type"] == groups.KICK
    await mailbox.close()


async def test_a_program_without_a_channel_has_an_address_too(layer: Any) -> None:
    asked, asker = await Mailbox.open(), await Mailbox.open()
    assert await asked.hears_itself(5.0)
    assert await asker.hears_itself(5.0)
    await groups.ask(asked.address, 3, asker.address)
    question = await soon(asked)
    await groups.answer(question["reply_to"], question["round"], "it")
    assert await soon(asker) == {"type": groups.ANSWER, "round": 3, "process": "it"}
    await asked.close()
    await asker.close()


async def test_an_echo_that_is_lost_is_missed_after_the_patience(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = await Mailbox.open()
    assert await mailbox.hears_itself(5.0)

    async def lost(*_: Any) -> int:
        return 1

    monkeypatch.setattr(layer if not hasattr(layer, "_get_layer") else layer._get_layer(), "echo", lost)
    began = time.monotonic()
    echo = await mailbox.echo()
    assert not await echo.is_back(0.2)
    assert 0.2 <= time.monotonic() - began < 2
    assert echo.missing == {0}
    assert not await mailbox.hears_itself(0.3)
    await mailbox.close()


async def test_an_echo_is_not_missed_while_other_messages_arrive(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = await Mailbox.open()
    assert await mailbox.hears_itself(5.0)
    heard = iter(range(100))

    async def late(*_: Any) -> int:
        return 1

    monkeypatch.setattr(groups, "echo", late)
    monkeypatch.setattr(groups, "heard", lambda *_: [next(heard)])
    echo = await mailbox.echo()
    waiting = asyncio.ensure_future(echo.is_back(0.05))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    mailbox.returned({"number": echo.number, "part": 0})
    async with asyncio.timeout(5):
        assert await waiting
    await mailbox.close()


async def test_an_echo_that_comes_after_the_next_one_was_sent_is_ignored(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = await Mailbox.open()

    async def lost(*_: Any) -> int:
        return 1

    monkeypatch.setattr(groups, "echo", lost)
    first, second = await mailbox.echo(), await mailbox.echo()
    mailbox.returned({"number": first.number, "part": 0})
    assert second.missing == {0}
    await mailbox.close()


async def test_an_event_that_makes_no_sense_does_not_make_a_mailbox_deaf(
    layer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = await Mailbox.open()
    assert await mailbox.hears_itself(5.0)
    await layer.send(mailbox.address, {"type": groups.ECHO})
    await layer.send(mailbox.address, {"type": "x"})
    assert await soon(mailbox) == {"type": "x"}
    assert "could not be read" in caplog.text
    await mailbox.close()


async def test_a_mailbox_that_is_closed_leaves_nothing_in_redis(layer: Any, server: RedisServer) -> None:
    with server.client() as client:
        before = client.pubsub_channels("*"), client.keys("*")
        mailbox = await Mailbox.open()
        assert await mailbox.hears_itself(5.0)
        await mailbox.close()
        assert (client.pubsub_channels("*"), client.keys("*")) == before


def test_the_channel_for_what_is_said_follows_from_that_for_messages() -> None:
    unique = "0123456789abcdef0123456789abcdef"
    for name in (f"specific.{unique}", f"asgispecific.{unique}", f"specific.{'f' * 32}!{unique}"):
        assert groups.control_of(name) == f"realtime.control.{unique}"
    assert groups.control_of(groups.control_of("specific.a!b")) == "realtime.control.b"
