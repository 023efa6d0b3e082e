"""Writes while the database hangs, refuses, and comes back."""

import asyncio
import gc
import threading
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError

from realtime.closing import CloseReason
from realtime.errors import RecordsUnavailable
from realtime.records import batch, connection_rows, process_rows
from realtime.records.entries import Closing, Opening
from realtime.records.ledger import Ledger
from realtime.records.retry import Retry
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.threads import is_alive


@pytest.fixture
def retry() -> Retry:
    return Retry(longest=0.1)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, retry: Retry) -> Iterator[Ledger]:
    monkeypatch.setattr(batch, "close_old_connections", lambda: None)
    monkeypatch.setattr(connection_rows, "in_one_transaction", nullcontext)
    made = Ledger(open_timeout=0.2, retry=retry)
    yield made
    made._writer.join(10)
    assert not is_alive(made._writer)


class Database:
    """Stands in for `records`: counts what is written, hangs or refuses when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        self.closed: list[Any] = []
        self.tries = 0
        self.asked: list[int] = []
        """How many rows each try had."""
        self.hangs = threading.Event()
        self.refuses = False
        self.refused_row: uuid.UUID | None = None
        """The connection whose row breaks a rule, while the database is well."""
        self.fault: Exception | None = None
        """What a write raises that is no error of the database."""
        self.goes_on = threading.Event()
        monkeypatch.setattr(connection_rows, "open_connections", self._open)
        monkeypatch.setattr(connection_rows, "close_connections", self._close)

    def _open(self, openings: list[Opening]) -> None:
        self._answer(len(openings))
        self.opened += openings

    def _close(self, closings: list[Closing], stamp: uuid.UUID) -> set[uuid.UUID]:
        self._answer(len(closings))
        if self.refused_row in {closing.id for closing in closings}:
            raise IntegrityError("this row breaks a rule")
        self.closed += closings
        return {closing.id for closing in closings}

    def _answer(self, rows: int) -> None:
        self.tries += 1
        self.asked.append(rows)
        if self.hangs.is_set():
            assert self.goes_on.wait(10)
        if self.refuses:
            raise OperationalError("the database is starting up")
        if self.fault is not None:
            error, self.fault = self.fault, None
            raise error


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    return Database(monkeypatch)


def an_opening() -> Opening:
    return Opening(uuid.uuid4(), uuid.uuid4(), "", "/", "", "", "")


def a_closing() -> Closing:
    return Closing(uuid.uuid4(), CloseReason.CLIENT_LOST, None)


async def test_a_round_is_answered_before_everything_that_waits(
    writer: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(process_rows, "answer_round", lambda *_, **__: bool(written.append("answer")) or True)
    monkeypatch.setattr(
        connection_rows, "open_connections", lambda some: written.append(f"{len(some)} records")
    )
    # The first record is in a batch already when the others are asked for.
    first = asyncio.ensure_future(writer.open(an_opening()))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(writer.open(an_opening())) for _ in range(3)]
    answer = asyncio.ensure_future(writer.answer_round(uuid.uuid4(), 7, connections=0, loop_lag=0.0))
    await asyncio.gather(first, answer, *waiting)
    assert written.index("answer") < written.index("3 records")


async def test_an_open_that_began_may_be_done_yet_and_one_that_waits_is_withdrawn(
    writer: Ledger, database: Database
) -> None:
    database.hangs.set()
    began, waits = an_opening(), an_opening()
    first = asyncio.create_task(writer.open(began))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    outcomes = await asyncio.gather(first, writer.open(waits), return_exceptions=True)
    assert [isinstance(error, RecordsUnavailable) for error in outcomes] == [True, True]
    assert [error.never_written for error in outcomes] == [False, True]  # type: ignore[union-attr]

    database.hangs.clear()
    database.goes_on.set()
    last = an_opening()
    await writer.open(last)
    assert database.opened == [began, last]


async def test_what_is_asked_for_while_a_batch_is_written_becomes_the_next_one(
    writer: Ledger, database: Database
) -> None:
    database.hangs.set()
    first = asyncio.create_task(writer.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    others = [asyncio.create_task(writer.open(an_opening())) for _ in range(50)]
    await asyncio.sleep(0)
    database.hangs.clear()
    database.goes_on.set()
    await asyncio.gather(first, *others)
    assert (database.tries, len(database.opened)) == (2, 51)


async def test_a_waiter_that_is_cancelled_does_not_cancel_its_write(
    writer: Ledger, database: Database
) -> None:
    database.hangs.set()
    first = asyncio.create_task(writer.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    opening = an_opening()
    waiter = asyncio.create_task(writer.open(opening))
    await asyncio.sleep(0)
    waiter.cancel()
    database.hangs.clear()
    database.goes_on.set()
    await asyncio.wait([first, waiter])
    await eventually_async(lambda: opening in database.opened, within=5, every=0.01)
    assert waiter.cancelled()


async def test_what_waits_is_written_before_the_thread_ends(writer: Ledger, database: Database) -> None:
    database.hangs.set()
    closes = [asyncio.create_task(writer.close(a_closing()))]
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    closes += [asyncio.create_task(writer.close(a_closing())) for _ in range(3)]
    await asyncio.sleep(0)
    writer.shut()
    database.hangs.clear()
    database.goes_on.set()
    assert await asyncio.gather(*closes) == [True] * 4
    await eventually_async(lambda: not is_alive(writer._writer), within=5)


async def test_a_close_waits_for_a_database_that_hangs_and_its_turn_comes(
    writer: Ledger, database: Database
) -> None:
    database.hangs.set()
    closes = [asyncio.create_task(writer.close(a_closing())) for _ in range(20)]
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    with pytest.raises(RecordsUnavailable):
        await writer.open(an_opening())
    assert not any(close.done() for close in closes)
    database.hangs.clear()
    database.goes_on.set()
    assert await asyncio.wait_for(asyncio.gather(*closes), 5) == [True] * 20
    assert database.opened == []


async def test_while_the_database_refuses_one_of_many_tries_again(
    writer: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.refuses = True
    closes = [asyncio.create_task(writer.close(a_closing())) for _ in range(100)]
    await eventually_async(lambda: database.tries >= 5, within=5, every=0.01)
    # All have tried once, in one batch; after that, one alone.
    assert database.asked[0] == 100
    assert set(database.asked[1:]) == {1}
    database.refuses = False
    assert await asyncio.wait_for(asyncio.gather(*closes), 5) == [True] * 100
    assert len(caplog.records) == 1


async def test_who_tries_for_all_may_be_cancelled(writer: Ledger, database: Database) -> None:
    database.refuses = True
    closes = [asyncio.create_task(writer.close(a_closing())) for _ in range(3)]
    await eventually_async(lambda: database.tries >= 4, within=5, every=0.01)
    closes[0].cancel()
    database.refuses = False
    assert await asyncio.wait_for(asyncio.gather(*closes[1:]), 5) == [True, True]


async def closes_that_wait_for_the_first(
    writer: Ledger, database: Database, *closings: Closing
) -> list[asyncio.Task[bool]]:
    """Closes of these in an outage of which only the first still tries."""
    database.refuses = True
    closes = [asyncio.create_task(writer.close(closing)) for closing in closings]
    # All have failed together, and the first has tried again alone.
    await eventually_async(lambda: database.asked[-2:] == [1, 1], within=5, every=0.01)
    return closes


async def test_writes_that_wait_for_one_go_on_when_its_row_is_refused(
    writer: Ledger, database: Database
) -> None:
    closings = [a_closing() for _ in range(3)]
    first, *others = await closes_that_wait_for_the_first(writer, database, *closings)
    database.refused_row = closings[0].id
    database.refuses = False
    with pytest.raises(IntegrityError):
        await asyncio.wait_for(first, 5)
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [True, True]


async def test_writes_that_wait_for_one_go_on_when_its_try_ends_by_a_fault(
    writer: Ledger, database: Database
) -> None:
    first, *others = await closes_that_wait_for_the_first(writer, database, *(a_closing() for _ in range(3)))
    database.fault = RuntimeError("a fault")
    database.refuses = False
    with pytest.raises(RuntimeError, match="a fault"):
        await asyncio.wait_for(first, 5)
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [True, True]


async def test_writes_that_wait_for_one_go_on_when_it_is_cancelled_in_its_try(
    writer: Ledger, database: Database
) -> None:
    first, *others = await closes_that_wait_for_the_first(writer, database, *(a_closing() for _ in range(3)))
    tries = database.tries
    database.hangs.set()
    await eventually_async(lambda: database.tries > tries, within=5, every=0.01)
    # It hangs in the database.
    first.cancel()
    await asyncio.wait([first])
    database.hangs.clear()
    database.refuses = False
    database.goes_on.set()
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [True, True]


@pytest.mark.parametrize("retry", [Retry(shortest=60.0, longest=60.0)], ids=["no try for a minute"])
async def test_any_write_that_succeeds_ends_the_waiting(writer: Ledger, database: Database) -> None:
    database.refuses = True
    close = asyncio.create_task(writer.close(a_closing()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    database.refuses = False
    await asyncio.sleep(0)
    await writer.open(an_opening())
    assert await asyncio.wait_for(close, 5)


async def test_a_write_that_fails_when_nobody_waits_any_more_is_no_complaint(
    writer: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.hangs.set()
    database.refuses = True
    opening = asyncio.create_task(writer.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    opening.cancel()
    await asyncio.wait([opening])
    database.goes_on.set()
    database.hangs.clear()
    with pytest.raises(RecordsUnavailable):
        await writer.open(an_opening())
    gc.collect()
    assert "never retrieved" not in caplog.text
