"""Messages between processes do not wait behind messages of groups, and a program knows if it receives."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import channel_layers, get_channel_layer

from realtime.fleet.mailbox import Mailbox
from realtime.layers import groups, messages
from realtime.layers.messages import Answer, Ask, EchoPart, Heal, Kick
from tests.support.assertions.eventually import eventually_async
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


class Open:
    """An open mailbox, and what it received."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.address = mailbox.address
        self.received = asyncio.Queue[messages.Control]()
        mailbox.listen(self.received.put_nowait)

    async def next(self) -> messages.Control:
        async with asyncio.timeout(5):
            return await self.received.get()


@pytest_asyncio.fixture
async def opened(layer: Any) -> AsyncIterator[Callable[..., Awaitable[Open]]]:
    mailboxes = []

    async def open(address: str | None = None) -> Open:
        mailboxes.append(await Mailbox.open(address))
        assert await mailboxes[-1].hears_itself(5.0)
        return Open(mailboxes[-1])

    yield open
    for mailbox in mailboxes:
        await mailbox.close()


async def test_a_message_to_an_address_comes_to_its_mailbox(opened: Callable[..., Any]) -> None:
    address = await groups.new_address("default")
    mailbox = await opened(address)
    await groups.tell(address, Heal(["g"]))
    assert await mailbox.next() == Heal(["g"])


async def test_a_mailbox_does_not_wait_behind_group_messages(layer: Any, opened: Callable[..., Any]) -> None:
    address = await groups.new_address("default")
    mailbox = await opened(address)
    for _ in range(500):
        await layer.send(address, {"type": "message"})
    await groups.tell(address, Kick([], [], "kicked"))
    assert isinstance(await mailbox.next(), Kick)


async def test_a_program_without_a_channel_has_an_address(opened: Callable[..., Any]) -> None:
    asked, asker = await opened(), await opened()
    await groups.tell(asked.address, Ask(3, asker.address))
    question = await asked.next()
    answer = Answer(question.round, uuid.uuid4())
    await groups.tell(question.reply_to, answer)
    assert await asker.next() == answer


async def test_messages_before_the_listener_wait_for_it(layer: Any) -> None:
    mailbox = await Mailbox.open()
    assert await mailbox.hears_itself(5.0)
    await groups.tell(mailbox.address, Heal(["g"]))
    await groups.tell(mailbox.address, Heal(["h"]))
    await eventually_async(lambda: len(mailbox._waiting) == 2, within=5)
    opened = Open(mailbox)
    assert [await opened.next(), await opened.next()] == [Heal(["g"]), Heal(["h"])]
    await mailbox.close()


async def test_a_lost_echo_is_missed_after_the_patience(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(groups, "received", lambda *_: [next(heard)])
    echo = await mailbox.echo()
    waiting = asyncio.ensure_future(echo.is_back(0.05))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    mailbox.returned(EchoPart(echo.number, 0))
    async with asyncio.timeout(5):
        assert await waiting
    await mailbox.close()


async def test_an_echo_after_the_next_one_is_ignored(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = await Mailbox.open()

    async def lost(*_: Any) -> int:
        return 1

    monkeypatch.setattr(groups, "echo", lost)
    first, second = await mailbox.echo(), await mailbox.echo()
    mailbox.returned(EchoPart(first.number, 0))
    assert second.missing == {0}
    await mailbox.close()


@pytest.mark.parametrize(
    "event",
    [
        {"type": "realtime.echo"},
        {"type": "realtime.kick", "connections": [1], "memberships": [], "reason": "kicked"},
        {"type": "realtime.ask", "round": "1", "reply_to": "a"},
        {"type": "realtime.superseded", "by": "the next version"},
        {"type": 1},
        {},
    ],
)
async def test_a_bad_event_is_logged_once_and_dropped(
    layer: Any, opened: Callable[..., Any], event: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = await opened()
    for _ in range(3):
        await layer.send(mailbox.address, event)
    await groups.tell(mailbox.address, Heal(["g"]))
    assert await mailbox.next() == Heal(["g"])
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "realtime.fleet")
    assert record.getMessage().startswith("Another process sent a")


async def test_a_listener_that_fails_receives_the_next_message(
    opened: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = await opened()

    def fail_once(message: messages.Control) -> None:
        mailbox.mailbox.listen(mailbox.received.put_nowait)
        raise RuntimeError("a bug")

    mailbox.mailbox.listen(fail_once)
    await groups.tell(mailbox.address, Heal(["g"]))
    await groups.tell(mailbox.address, Heal(["h"]))
    assert await mailbox.next() == Heal(["h"])
    assert "a bug" in caplog.text


async def test_a_mailbox_that_is_closed_leaves_nothing_in_redis(layer: Any, server: RedisServer) -> None:
    with server.client() as client:
        before = client.pubsub_channels("*"), client.keys("*")
        mailbox = await Mailbox.open()
        assert await mailbox.hears_itself(5.0)
        await mailbox.close()
        assert (client.pubsub_channels("*"), client.keys("*")) == before


def test_the_control_channel_follows_from_the_channel() -> None:
    unique = "0123456789abcdef0123456789abcdef"
    for name in (f"specific.{unique}", f"asgispecific.{unique}", f"specific.{'f' * 32}!{unique}"):
        assert groups.control_of(name) == f"realtime.control.{unique}"
    assert groups.control_of(groups.control_of("specific.a!b")) == "realtime.control.b"
