"""Writes while the database hangs, refuses, and works again."""

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
from realtime.records import batch, connection_rows, presence_rows, process_rows
from realtime.records.entries import Closed, Closing, Opening
from realtime.records.ledger import Ledger
from realtime.records.retry import Retry
from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.threads import is_alive


@pytest.fixture
def retry() -> Retry:
    return Retry(longest=0.1)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, retry: Retry) -> Iterator[Ledger]:
    monkeypatch.setattr(batch, "close_old_connections", lambda: None)
    monkeypatch.setattr(connection_rows, "in_one_transaction", nullcontext)
    made = Ledger(open_timeout=0.2, retry=retry)
    yield made
    made._writer.join(10)
    assert not is_alive(made._writer)


class Database:
    """Stands in for `connection_rows`: counts the written rows, and hangs or refuses on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        self.closed: list[Any] = []
        self.tries = 0
        self.asked: list[int] = []
        """The number of rows of each try."""
        self.hangs = threading.Event()
        self.refuses = False
        self.refused_row: uuid.UUID | None = None
        """The connection that the database refuses because of its row, while it takes all others."""
        self.fault: Exception | None = None
        """The next error of a write that is no error of the database."""
        self.goes_on = threading.Event()
        monkeypatch.setattr(connection_rows, "open_connections", self._open)
        monkeypatch.setattr(connection_rows, "close_connections", self._close)
        monkeypatch.setattr(presence_rows, "settle", lambda *_: ([], set()))

    def _open(self, openings: list[Opening]) -> None:
        self._answer(len(openings))
        self.opened += openings

    def _close(self, closings: list[Closing], stamp: uuid.UUID) -> dict[uuid.UUID, str]:
        self._answer(len(closings))
        if self.refused_row in {closing.id for closing in closings}:
            raise IntegrityError("this row breaks a rule")
        self.closed += closings
        return {closing.id: "" for closing in closings}

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


async def test_a_round_is_answered_before_all_waiting_writes(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(process_rows, "answer_round", lambda *_, **__: bool(written.append("answer")) or True)
    monkeypatch.setattr(
        connection_rows, "open_connections", lambda some: written.append(f"{len(some)} records")
    )
    # A batch has taken the first record when the others are asked for.
    first = asyncio.ensure_future(ledger.open(an_opening()))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(ledger.open(an_opening())) for _ in range(3)]
    answer = asyncio.ensure_future(ledger.answer_round(uuid.uuid4(), 7, connections=0, loop_lag=0.0))
    await asyncio.gather(first, answer, *waiting)
    assert written.index("answer") < written.index("3 records")


async def test_a_late_open_is_withdrawn_unless_its_batch_began(ledger: Ledger, database: Database) -> None:
    database.hangs.set()
    began, waits = an_opening(), an_opening()
    first = asyncio.create_task(ledger.open(began))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    outcomes = await asyncio.gather(first, ledger.open(waits), return_exceptions=True)
    assert [isinstance(error, RecordsUnavailable) for error in outcomes] == [True, True]
    assert [error.never_written for error in outcomes] == [False, True]  # type: ignore[union-attr]

    database.hangs.clear()
    database.goes_on.set()
    last = an_opening()
    await ledger.open(last)
    assert database.opened == [began, last]


async def test_writes_asked_for_during_a_batch_are_the_next_batch(ledger: Ledger, database: Database) -> None:
    database.hangs.set()
    first = asyncio.create_task(ledger.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    others = [asyncio.create_task(ledger.open(an_opening())) for _ in range(50)]
    await asyncio.sleep(0)
    database.hangs.clear()
    database.goes_on.set()
    await asyncio.gather(first, *others)
    assert (database.tries, len(database.opened)) == (2, 51)


async def test_a_cancelled_caller_does_not_cancel_its_write(ledger: Ledger, database: Database) -> None:
    database.hangs.set()
    first = asyncio.create_task(ledger.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    opening = an_opening()
    waiter = asyncio.create_task(ledger.open(opening))
    await asyncio.sleep(0)
    waiter.cancel()
    database.hangs.clear()
    database.goes_on.set()
    await asyncio.wait([first, waiter])
    await eventually_async(lambda: opening in database.opened, within=5, every=0.01)
    assert waiter.cancelled()


async def test_waiting_writes_are_written_before_the_thread_ends(ledger: Ledger, database: Database) -> None:
    database.hangs.set()
    closes = [asyncio.create_task(ledger.close(a_closing()))]
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    closes += [asyncio.create_task(ledger.close(a_closing())) for _ in range(3)]
    await asyncio.sleep(0)
    ledger.shut()
    database.hangs.clear()
    database.goes_on.set()
    assert await asyncio.gather(*closes) == [Closed(was_first=True)] * 4
    await eventually_async(lambda: not is_alive(ledger._writer), within=5)


async def test_a_close_waits_until_a_hung_database_answers(ledger: Ledger, database: Database) -> None:
    database.hangs.set()
    closes = [asyncio.create_task(ledger.close(a_closing())) for _ in range(20)]
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    with pytest.raises(RecordsUnavailable):
        await ledger.open(an_opening())
    assert not any(close.done() for close in closes)
    database.hangs.clear()
    database.goes_on.set()
    assert await asyncio.wait_for(asyncio.gather(*closes), 5) == [Closed(was_first=True)] * 20
    assert database.opened == []


async def test_one_of_many_closes_retries_while_the_database_is_down(
    ledger: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.refuses = True
    closes = [asyncio.create_task(ledger.close(a_closing())) for _ in range(100)]
    await eventually_async(lambda: database.tries >= 5, within=5, every=0.01)
    # All have tried once, in one batch; after that, one alone.
    assert database.asked[0] == 100
    assert set(database.asked[1:]) == {1}
    database.refuses = False
    assert await asyncio.wait_for(asyncio.gather(*closes), 5) == [Closed(was_first=True)] * 100
    assert len(caplog.records) == 1


async def test_the_retrying_close_may_be_cancelled(ledger: Ledger, database: Database) -> None:
    database.refuses = True
    closes = [asyncio.create_task(ledger.close(a_closing())) for _ in range(3)]
    await eventually_async(lambda: database.tries >= 4, within=5, every=0.01)
    closes[0].cancel()
    database.refuses = False
    assert await asyncio.wait_for(asyncio.gather(*closes[1:]), 5) == [Closed(was_first=True)] * 2


async def closes_that_wait_for_the_first(
    ledger: Ledger, database: Database, *closings: Closing
) -> list[asyncio.Task[bool]]:
    """Begin closes in an outage, and return when only the first one retries."""
    database.refuses = True
    closes = [asyncio.create_task(ledger.close(closing)) for closing in closings]
    # All have failed together, and the first has tried again alone.
    await eventually_async(lambda: database.asked[-2:] == [1, 1], within=5, every=0.01)
    return closes


async def test_waiting_closes_go_on_after_a_refused_row(ledger: Ledger, database: Database) -> None:
    closings = [a_closing() for _ in range(3)]
    first, *others = await closes_that_wait_for_the_first(ledger, database, *closings)
    database.refused_row = closings[0].id
    database.refuses = False
    with pytest.raises(IntegrityError):
        await asyncio.wait_for(first, 5)
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [Closed(was_first=True)] * 2


async def test_waiting_closes_go_on_after_an_unexpected_error(ledger: Ledger, database: Database) -> None:
    first, *others = await closes_that_wait_for_the_first(ledger, database, *(a_closing() for _ in range(3)))
    database.fault = RuntimeError("a fault")
    database.refuses = False
    with pytest.raises(RuntimeError, match="a fault"):
        await asyncio.wait_for(first, 5)
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [Closed(was_first=True)] * 2


async def test_waiting_closes_go_on_after_a_cancelled_try(ledger: Ledger, database: Database) -> None:
    first, *others = await closes_that_wait_for_the_first(ledger, database, *(a_closing() for _ in range(3)))
    tries = database.tries
    database.hangs.set()
    await eventually_async(lambda: database.tries > tries, within=5, every=0.01)
    # Its try hangs in the database.
    first.cancel()
    await asyncio.wait([first])
    database.hangs.clear()
    database.refuses = False
    database.goes_on.set()
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [Closed(was_first=True)] * 2


@pytest.mark.parametrize("retry", [Retry(shortest=60.0, longest=60.0)], ids=["no try for a minute"])
async def test_any_successful_write_ends_the_waiting(ledger: Ledger, database: Database) -> None:
    database.refuses = True
    close = asyncio.create_task(ledger.close(a_closing()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    database.refuses = False
    await asyncio.sleep(0)
    await ledger.open(an_opening())
    assert await asyncio.wait_for(close, 5)


async def test_the_failure_of_a_cancelled_write_is_not_logged(
    ledger: Ledger, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.hangs.set()
    database.refuses = True
    opening = asyncio.create_task(ledger.open(an_opening()))
    await eventually_async(lambda: database.tries == 1, within=5, every=0.01)
    opening.cancel()
    await asyncio.wait([opening])
    database.goes_on.set()
    database.hangs.clear()
    with pytest.raises(RecordsUnavailable):
        await ledger.open(an_opening())
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("no such table: realtime_process", True),
        ('relation "realtime_process" does not exist', True),
        ("database is locked", False),
    ],
)
async def test_a_missing_table_is_named_with_its_remedy(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, error: str, remedy: bool
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError(error)

    monkeypatch.setattr(process_rows, "stop_process", fail)
    with pytest.raises(RecordsUnavailable) as raised:
        await ledger.stop_process(uuid.uuid4())
    assert error in str(raised.value)
    assert ("Run `manage.py migrate`." in str(raised.value)) is remedy
    ledger.shut()
