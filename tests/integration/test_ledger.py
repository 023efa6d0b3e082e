"""Writes while the database hangs, refuses, and comes back."""

import asyncio
import gc
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError

from realtime import ledger, records
from realtime.closing import CloseReason
from realtime.ledger import Ledger, RecordsUnavailable
from realtime.records import Closing, Opening
from tests.support.eventually import eventually_async


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(ledger, "OPEN_TIMEOUT", 0.2)
    monkeypatch.setattr(ledger, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(ledger, "_fresh", lambda write: write())
    made = Ledger()
    yield made
    made._thread.shutdown()


class Database:
    """Stands in for `records`: counts what is written, hangs or refuses when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        self.closed: list[Any] = []
        self.tries = 0
        self.hangs = threading.Event()
        self.refuses = False
        self.goes_on = threading.Event()
        monkeypatch.setattr(records, "open_connections", self._open)
        monkeypatch.setattr(records, "close_connections", self._close)

    def _open(self, openings: list[Opening]) -> None:
        self._answer()
        self.opened += openings

    def _close(self, closings: list[Closing], stamp: uuid.UUID) -> set[uuid.UUID]:
        self._answer()
        self.closed += closings
        return {closing.id for closing in closings}

    def _answer(self) -> None:
        self.tries += 1
        if self.hangs.is_set():
            assert self.goes_on.wait(10)
        if self.refuses:
            raise OperationalError("the database is starting up")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    return Database(monkeypatch)


def an_opening() -> Opening:
    return Opening(uuid.uuid4(), uuid.uuid4(), "", "/", "", "", "")


def a_closing() -> Closing:
    return Closing(uuid.uuid4(), CloseReason.CLIENT_LOST, None)


async def test_an_open_that_began_may_be_done_yet_and_one_that_waits_is_withdrawn(
    writer: Ledger, database: Database
) -> None:
    database.hangs.set()
    began, waits = an_opening(), an_opening()
    outcomes = await asyncio.gather(writer.open(began), writer.open(waits), return_exceptions=True)
    assert [isinstance(error, RecordsUnavailable) for error in outcomes] == [True, True]
    assert [error.never_written for error in outcomes] == [False, True]  # type: ignore[union-attr]

    database.hangs.clear()
    database.goes_on.set()
    last = an_opening()
    await writer.open(last)
    assert database.opened == [began, last]


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
    await eventually_async(lambda: database.tries >= 105, within=5, every=0.01)
    # Each has tried once; after that, a hundred that tried again would have made a hundred more by now.
    assert database.tries < 120
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


async def test_any_write_that_succeeds_ends_the_waiting(
    writer: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LONGEST_PAUSE", 60.0)
    monkeypatch.setattr(ledger, "SHORTEST_PAUSE", 60.0)
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
