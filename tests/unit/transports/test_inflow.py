"""`realtime.transports.inflow`, with a parser that keeps what it gets."""

import asyncio
from collections.abc import Callable

import pytest

from realtime.transports import inflow
from realtime.transports.inflow import SLICE, Inflow, Rest, Turn
from tests.support.assertions.eventually import eventually_async
from tests.support.clients.raw import frame

PING = frame('{"type":"ping","n":1}')


class Client:
    """A client's transport: `turn` says when what it sends is parsed."""

    def __init__(self, turn: Turn = Turn.NOW, name: str = "", parsed: list[str] | None = None) -> None:
        self.turn = turn
        self.name = name
        self.parsed = b""
        self.order = parsed if parsed is not None else []
        self.counted: list[tuple[int, int, int]] = []
        self.reads = True
        self.is_busy = False
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_parse: Callable[[], None] = lambda: None
        self.inflow = Inflow(self, 0.02)

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        self.counted.append((frames, size, waiting))
        self.on_arrival()
        return self.turn

    def parse(self, data: bytes) -> None:
        self.parsed += data
        self.order.append(self.name)
        self.on_parse()

    def become_busy(self) -> None:
        self.is_busy = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    async def has_parsed(self, data: bytes) -> None:
        await eventually_async(lambda: self.parsed == data, within=5)


async def test_the_first_frames_are_parsed_immediately() -> None:
    client = Client()
    client.inflow.received(PING)
    assert client.parsed == PING
    assert client.counted == [(1, len(PING) - 6, len(PING))]


@pytest.mark.parametrize("turn", [Turn.SOON, Turn.IN_TURN])
async def test_more_is_parsed_in_order_and_in_slices(turn: Turn) -> None:
    client = Client(turn)
    client.inflow.received(PING * 40)
    assert client.parsed == b""
    # Behind what waits, although it might be parsed immediately.
    client.turn = Turn.NOW
    client.inflow.received(PING)
    await client.has_parsed(PING * 41)
    assert len(client.order) >= 40 * len(PING) / SLICE
    assert client.inflow.waiting == 0


async def test_clients_that_wait_take_turns() -> None:
    order = list[str]()
    one, two = Client(Turn.IN_TURN, "one", order), Client(Turn.IN_TURN, "two", order)
    one.inflow.received(PING * 100)
    two.inflow.received(PING * 10)
    await two.has_parsed(PING * 10)
    await one.has_parsed(PING * 100)
    assert order[:4] == ["one", "two", "one", "two"]


async def test_a_little_is_parsed_before_much() -> None:
    much, little = Client(Turn.IN_TURN), Client(Turn.SOON)
    much.inflow.received(PING * 2000)
    little.inflow.received(PING * 10)
    await little.has_parsed(PING * 10)
    assert much.inflow.waiting
    much.inflow.close()


async def test_a_client_that_sends_ever_more_waits_longer() -> None:
    client = Client(Turn.SOON)
    client.inflow.received(PING * 100)
    client.turn = Turn.IN_TURN
    client.inflow.received(PING * 100)
    await client.has_parsed(PING * 200)


async def test_nothing_is_parsed_while_frames_wait_for_a_handler() -> None:
    client, other = Client(Turn.IN_TURN), Client(Turn.IN_TURN)
    client.is_busy = True
    client.inflow.received(PING * 20)
    other.inflow.received(PING * 20)
    await other.has_parsed(PING * 20)
    assert client.parsed == b""
    client.is_busy = False
    await client.has_parsed(PING * 20)


async def test_few_clients_are_at_their_handlers_together() -> None:
    clients = [Client(Turn.IN_TURN) for _ in range(30)]
    for client in clients:
        client.on_parse = client.become_busy
        client.inflow.received(PING)
    await asyncio.sleep(0.1)
    served = [client for client in clients if client.parsed]
    assert 0 < len(served) < 10
    for client in clients:
        client.on_parse = lambda: None
        client.is_busy = False
    for client in clients:
        await client.has_parsed(PING)


async def test_a_client_above_its_rate_is_not_read_for_a_while() -> None:
    client = Client(Turn.LATER)
    client.inflow.received(PING)
    assert (client.parsed, client.reads) == (b"", False)
    client.turn = Turn.NOW
    # This was read before the pause began.
    client.inflow.received(PING)
    await client.has_parsed(PING * 2)
    assert client.reads
    assert [frames for frames, _, _ in client.counted] == [1, 2]


async def test_a_client_that_goes_on_is_not_parsed_any_more() -> None:
    client = Client(Turn.LATER)
    client.inflow.received(PING)
    client.turn = Turn.NEVER
    await eventually_async(lambda: len(client.counted) == 2, within=5)
    client.turn = Turn.NOW
    client.inflow.received(PING)
    assert (client.parsed, client.reads, len(client.counted)) == (b"", False, 2)


async def test_each_of_a_crowd_is_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflow, "CROWD", 2)
    clients = [Client(Turn.IN_TURN) for _ in range(4)]
    for client in clients:
        client.inflow.received(PING * 20)
    assert [client.reads for client in clients] == [True, True, False, False]
    for client in clients:
        await client.has_parsed(PING * 20)
    await eventually_async(lambda: all(client.reads for client in clients), within=5)


async def test_what_waits_is_returned_at_the_end() -> None:
    client = Client(Turn.IN_TURN)
    client.inflow.received(PING * 2)
    client.turn = Turn.LATER
    client.inflow.received(PING)
    assert client.inflow.close() == PING * 3
    assert client.inflow.close() == b""
    await asyncio.sleep(0.05)
    assert client.parsed == b""


async def test_an_end_within_the_count_is_no_error() -> None:
    client = Client(Turn.NOW)
    client.on_arrival = lambda: client.inflow.close()
    client.inflow.received(PING)
    client.turn, client.on_arrival = Turn.NEVER, lambda: None
    client.inflow.received(PING)
    assert len(client.counted) == 1


def test_after_a_close_some_bytes_are_parsed() -> None:
    rest = Rest()
    assert rest.takes(b"x" * 60_000)
    assert not rest.takes(b"x" * 60_000)
    assert not rest.takes(b"x")
