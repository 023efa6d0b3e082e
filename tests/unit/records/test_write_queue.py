"""The choice of the waiting writes that become one batch, for any writes in any order."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from realtime.records.write_queue import Kind, Write, WriteQueue

ROWS = st.integers(min_value=1, max_value=4)
KINDS = st.sampled_from(list(Kind))
CONNECTIONS = st.sets(st.integers(min_value=0, max_value=3), min_size=1, max_size=3)
WRITES = st.lists(st.tuples(KINDS, CONNECTIONS, ROWS), max_size=30)


def a_write(kind: Kind, *connections: int, rows: int = 1) -> Write:
    # A call has no connections.
    return Write(kind, range(rows), () if kind is Kind.CALL else connections)


def drained(queue: WriteQueue, limit: int) -> list[list[Write]]:
    batches = []
    while batch := queue.take(limit):
        batches.append(batch)
    return batches


@given(WRITES, st.integers(min_value=1, max_value=10))
def test_every_write_is_taken_once_in_order_of_its_connection(
    asked: list[tuple[Kind, set[int], int]], limit: int
) -> None:
    queue = WriteQueue()
    writes = [a_write(kind, *connections, rows=rows) for kind, connections, rows in asked]
    for write in writes:
        queue.put(write)

    batches = drained(queue, limit)

    assert len(queue) == 0
    taken = [write for batch in batches for write in batch]
    assert sorted(map(id, taken)) == sorted(map(id, writes))
    for connection in range(4):
        asked_for = [write for write in writes if connection in write.connections]
        assert [write for write in taken if connection in write.connections] == asked_for


def test_a_call_can_go_before_all_waiting_writes() -> None:
    queue = WriteQueue()
    waiting, urgent = a_write(Kind.OPEN, 1), a_write(Kind.CALL)
    queue.put(waiting)
    queue.put_first(urgent)
    assert drained(queue, 10) == [[urgent], [waiting]]


@given(WRITES, st.integers(min_value=1, max_value=10))
def test_a_batch_is_bounded_and_written_kind_by_kind(
    asked: list[tuple[Kind, set[int], int]], limit: int
) -> None:
    queue = WriteQueue()
    for kind, connections, rows in asked:
        queue.put(a_write(kind, *connections, rows=rows))

    for batch in drained(queue, limit):
        assert sum(len(write.rows) for write in batch) <= limit or len(batch) == 1
        kinds = [write.kind for write in batch]
        assert kinds == sorted(kinds)
        assert Kind.CALL not in kinds or len(batch) == 1
        closes = defaultdict(int)
        for write in batch:
            for connection in write.connections:
                closes[connection] += write.kind is Kind.CLOSE
        assert max(closes.values(), default=0) <= 1


@given(WRITES, st.integers(min_value=1, max_value=10))
def test_a_call_keeps_its_place_among_all_writes(asked: list[tuple[Kind, set[int], int]], limit: int) -> None:
    queue = WriteQueue()
    writes = [a_write(kind, *connections, rows=rows) for kind, connections, rows in asked]
    for write in writes:
        queue.put(write)

    taken = [write for batch in drained(queue, limit) for write in batch]

    for call in (write for write in writes if write.kind is Kind.CALL):
        assert set(taken[: taken.index(call)]) == set(writes[: writes.index(call)])


def test_a_storm_of_connects_is_one_batch() -> None:
    queue = WriteQueue()
    for connection in range(50):
        queue.put(a_write(Kind.OPEN, connection))
        queue.put(a_write(Kind.JOIN, connection))

    (batch,) = drained(queue, 100)

    assert [write.kind for write in batch] == [Kind.OPEN] * 50 + [Kind.JOIN] * 50


def test_a_join_after_a_leave_waits_for_the_next_batch() -> None:
    queue = WriteQueue()
    for kind in (Kind.LEAVE, Kind.JOIN):
        queue.put(a_write(kind, 1))
    queue.put(a_write(Kind.OPEN, 2))

    kinds = [[write.kind for write in batch] for batch in drained(queue, 100)]

    assert kinds == [[Kind.OPEN, Kind.LEAVE], [Kind.JOIN]]


def test_a_write_can_be_withdrawn_until_a_batch_takes_it() -> None:
    queue = WriteQueue()
    early, late = a_write(Kind.OPEN, 1), a_write(Kind.OPEN, 2)
    queue.put(early)
    queue.put(late)

    assert queue.withdraw(late)
    assert queue.take(100) == [early]
    assert not queue.withdraw(early)
    assert len(queue) == 0
