"""`realtime.layers.bounded_queue`: waiting messages take a bounded number of bytes, and the newest stay."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import metrics
from realtime.layers.bounded_queue import OVERHEAD, BoundedQueue, Received
from tests.support.assertions.in_process import value_of


def a_queue(messages: int, size: int = 10) -> BoundedQueue:
    """Return a queue with room for this number of messages of this size."""
    return BoundedQueue(messages * (size + OVERHEAD))


def message(content: bytes) -> Received:
    return Received("g", content)


def content(queue: BoundedQueue) -> list[bytes]:
    return [queue.get_nowait().content for _ in range(queue.qsize())]


def test_messages_below_the_bound_come_out_in_order() -> None:
    queue = a_queue(3)
    for number in range(3):
        queue.put_nowait(message(b"%10d" % number))
    assert content(queue) == [b"%10d" % number for number in range(3)]


def test_above_the_bound_the_oldest_are_dropped_and_counted() -> None:
    queue, before = a_queue(3), value_of(metrics.messages_dropped)
    for number in range(10):
        queue.put_nowait(message(b"%10d" % number))
    assert content(queue) == [b"%10d" % number for number in (7, 8, 9)]
    assert value_of(metrics.messages_dropped) - before == 7


def test_a_message_above_the_bound_is_kept_alone() -> None:
    queue = a_queue(3)
    queue.put_nowait(message(b"small"))
    queue.put_nowait(message(b"x" * 1000))
    assert content(queue) == [b"x" * 1000]


def test_dropping_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    queue = a_queue(4)
    with caplog.at_level(logging.INFO, logger="realtime.layers"):
        for _ in range(2):
            for number in range(10):
                queue.put_nowait(message(b"%10d" % number))
            content(queue)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        f"This process cannot keep up: more than {4 * (10 + OVERHEAD)} bytes of messages wait "
        "(MAX_QUEUED_BYTES)",
        "This process keeps up again",
    ] * 2
    assert "6 messages were dropped" in caplog.text


def test_all_queues_together_are_shown_by_the_metric() -> None:
    def shown() -> float:
        ((sample,),) = (family.samples for family in metrics.queued_bytes.collect())
        return float(sample.value)

    queues, before = [a_queue(5), a_queue(5)], shown()
    for queue in queues:
        queue.put_nowait(message(b"0123456789"))
    assert shown() - before == 2 * (10 + OVERHEAD)
    assert content(queues[0])
    assert shown() - before == 10 + OVERHEAD


@given(
    bound=st.integers(min_value=1, max_value=1000),
    steps=st.lists(st.one_of(st.none(), st.integers(min_value=0, max_value=400)), max_size=60),
)
def test_a_queue_never_exceeds_its_bound_and_keeps_the_order(bound: int, steps: list[int | None]) -> None:
    """A step puts a message of this size in bytes, or takes one."""
    queue = BoundedQueue(bound)
    put, taken = [], []
    for number, size in enumerate(steps):
        if size is not None:
            put.append(b"%d:" % number + b"x" * size)
            queue.put_nowait(message(put[-1]))
        elif not queue.empty():
            taken.append(queue.get_nowait().content)
        assert queue.held <= bound or queue.qsize() == 1
    taken += content(queue)
    assert queue.held == 0
    positions = [put.index(each) for each in taken]
    assert positions == sorted(set(positions))
    assert not put or taken[-1] == put[-1], "the newest is never dropped"


def test_a_waiting_getter_is_woken() -> None:
    async def exchange() -> bytes:
        queue = a_queue(1)
        getting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.put_nowait(message(b"news"))
        return (await getting).content

    assert asyncio.run(exchange()) == b"news"
