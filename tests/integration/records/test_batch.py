"""One batch in the database; `test_postgresql.py` repeats it on PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_asyncio
from channels.db import database_sync_to_async
from django.db import IntegrityError, OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from realtime.closing import CloseReason
from realtime.errors import RecordsUnavailable
from realtime.models import Connection, Membership, Process
from realtime.records import batch, connection_rows
from realtime.records.batch import write_batch
from realtime.records.entries import Closed, Closing, Join, Opening
from realtime.records.ledger import Ledger
from realtime.records.retry import Retry
from realtime.records.write_queue import Kind, Write
from tests.support.assertions.threads import is_alive
from tests.support.doubles.rows import a_process, an_opening, open_connections

pytestmark = pytest.mark.django_db(transaction=True)  # the ledger's thread must see the rows


def opening(row: Opening) -> Write:
    return Write(Kind.OPEN, (row,), (row.id,))


def joining(process: uuid.UUID, id: uuid.UUID, group: str = "g") -> Write:
    return Write(Kind.JOIN, (Join(id, process, group),), (id,))


def closing(id: uuid.UUID) -> Write:
    return Write(Kind.CLOSE, (Closing(id, CloseReason.CLIENT_LOST, None),), (id,))


@pytest_asyncio.fixture
async def ledger() -> AsyncIterator[Ledger]:
    made = Ledger(retry=Retry(longest=0.05))
    yield made
    made.shut()
    await asyncio.to_thread(made._writer.join, 10)
    assert not is_alive(made._writer)
    # The connection of the thread for async tests would keep PostgreSQL from dropping the database.
    await database_sync_to_async(connections.close_all)()


def statements(verb: str, captured: CaptureQueriesContext) -> list[str]:
    return [query["sql"] for query in captured.captured_queries if query["sql"].startswith(verb)]


def test_opens_joins_and_users_online_are_three_statements() -> None:
    process = a_process()
    rows = [an_opening(process) for _ in range(70)]
    writes = [opening(row) for row in rows] + [joining(process, row.id) for row in rows]

    with CaptureQueriesContext(connection) as captured:
        assert write_batch(writes).results == [None] * 140

    assert len(statements("INSERT", captured)) == 3
    assert len(statements("BEGIN", captured)) <= 1  # Django logs it on SQLite only
    assert Connection.objects.open().count() == Membership.objects.to_leave().count() == 70


def test_a_row_that_is_refused_fails_alone() -> None:
    process = a_process()
    good, poisoned = [an_opening(process) for _ in range(9)], an_opening(uuid.uuid4())
    (to_close,) = open_connections(process, 1)
    rows = [*good[:4], poisoned, *good[4:]]
    writes = [
        *(opening(row) for row in rows),
        *(joining(process, row.id) for row in rows),
        closing(to_close),
    ]

    *outcomes, closed = write_batch(writes).results

    refused = [writes[position] for position, outcome in enumerate(outcomes) if outcome is not None]
    assert [write.connections for write in refused] == [(poisoned.id,), (poisoned.id,)]
    assert all(isinstance(outcome, IntegrityError) for outcome in outcomes if outcome is not None)
    assert closed == (True, False)
    assert set(Connection.objects.open().values_list("pk", flat=True)) == {row.id for row in good}
    assert Membership.objects.to_leave().count() == 9


@pytest.mark.parametrize(
    "group",
    [pytest.param("g\0", id="NUL"), pytest.param("g\ud800", id="lone surrogate")],
)
def test_text_that_no_database_takes_fails_alone(group: str) -> None:
    process = a_process()
    ids = open_connections(process, 4)
    writes = [joining(process, id) for id in ids]
    writes[2] = joining(process, ids[2], group)

    outcomes = write_batch(writes).results

    if connection.vendor == "sqlite" and "\0" in group:
        assert outcomes == [None] * 4
        return
    assert [outcome is None for outcome in outcomes] == [True, True, False, True]
    assert set(Membership.objects.values_list("connection", flat=True)) == {ids[0], ids[1], ids[3]}


def test_opens_of_a_removed_process_fail_alone() -> None:
    gone, process = a_process(pid=1), a_process(pid=2)
    Process.objects.filter(pk=gone).delete()
    writes = [opening(an_opening(each)) for each in (gone, process) * 20]

    outcomes = write_batch(writes).results

    assert [isinstance(outcome, IntegrityError) for outcome in outcomes] == [True, False] * 20
    assert Connection.objects.open().count() == 20


def test_a_database_error_fails_the_batch_after_one_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, tries = a_process(), []

    def refuse(_: list[Opening]) -> None:
        tries.append(1)
        raise OperationalError("the database is starting up")

    monkeypatch.setattr(connection_rows, "open_connections", refuse)
    outcomes = write_batch([opening(an_opening(process)) for _ in range(10)]).results

    assert len(tries) == 1
    assert [type(outcome) for outcome in outcomes] == [OperationalError] * 10


@contextmanager
def _answer_lost_at(monkeypatch: pytest.MonkeyPatch, commits: set[int]) -> Iterator[list[int]]:
    """Lose the answers to the commits with the given numbers, although they succeed."""
    done: list[int] = []
    transaction: Callable[[], Any] = connection_rows.in_one_transaction

    @contextmanager
    def losing() -> Iterator[None]:
        with transaction():
            yield
        done.append(len(done) + 1)
        if done[-1] in commits:
            raise OperationalError("the server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(connection_rows, "in_one_transaction", losing)
        yield done


async def test_a_close_repeated_after_a_lost_commit_answer_was_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await database_sync_to_async(a_process)()
    ids = await database_sync_to_async(open_connections)(process, 5)
    with _answer_lost_at(monkeypatch, {1, 2}) as commits:
        closes = [ledger.close(Closing(id, CloseReason.CLIENT_LOST, None)) for id in ids]
        assert await asyncio.gather(*closes) == [Closed(was_first=True)] * 5
    assert len(commits) >= 3
    # A later close of another caller is not the first.
    assert await ledger.close(Closing(ids[0], CloseReason.IDLE, None)) == (False, False)


async def test_an_open_with_a_lost_commit_answer_may_be_written(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = an_opening(await database_sync_to_async(a_process)())
    with _answer_lost_at(monkeypatch, {1}), pytest.raises(RecordsUnavailable) as caught:
        await ledger.open(row)
    assert caught.value.never_written is False
    # So the caller closes it.
    assert await ledger.close(Closing(row.id, CloseReason.SERVER_UNAVAILABLE, None))


async def test_a_connection_that_ends_immediately_leaves_nothing_open(ledger: Ledger) -> None:
    process = await database_sync_to_async(a_process)()
    rows = [an_opening(process) for _ in range(30)]

    async def live(row: Opening) -> bool:
        join = Join(row.id, process, "g")
        steps = [ledger.open(row), ledger.join(join), ledger.leave([join])]
        *_, closed = await asyncio.gather(
            *steps, ledger.close(Closing(row.id, CloseReason.CLIENT_LOST, None))
        )
        return bool(closed)

    assert await asyncio.gather(*map(live, rows)) == [True] * 30

    assert await Connection.objects.closed().acount() == 30
    assert await Connection.objects.open().acount() == 0
    assert await Membership.objects.acount() == 30
    assert await Membership.objects.to_leave().acount() == 0


async def test_a_close_with_a_refused_row_is_not_repeated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await database_sync_to_async(a_process)()
    ids = await database_sync_to_async(open_connections)(process, 3)
    close = connection_rows.close_connections

    def refuse_one(closings: list[Closing], stamp: uuid.UUID) -> set[uuid.UUID]:
        if ids[1] in {each.id for each in closings}:
            raise IntegrityError("this row breaks a rule")
        return close(closings, stamp)

    monkeypatch.setattr(connection_rows, "close_connections", refuse_one)
    closes = [ledger.close(Closing(id, CloseReason.CLIENT_LOST, None)) for id in ids]
    outcomes = await asyncio.wait_for(asyncio.gather(*closes, return_exceptions=True), 5)
    assert [type(outcome) for outcome in outcomes] == [Closed, IntegrityError, Closed]


def test_debug_keeps_only_the_queries_of_the_last_batch(settings: Any) -> None:
    settings.DEBUG = True
    process = a_process()
    kept = []
    for _ in range(3):
        batch.write_batch_outside_requests([opening(an_opening(process))])
        kept.append(len(connection.queries_log))

    # The first began with the queries that made the process.
    assert kept[1] == kept[2] > 0


def test_any_exception_on_the_thread_answers_every_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SystemExit

    monkeypatch.setattr(batch, "close_old_connections", fail)
    outcomes = batch.write_batch_outside_requests(
        [opening(an_opening(uuid.uuid4())) for _ in range(2)]
    ).results
    assert [type(outcome) for outcome in outcomes] == [SystemExit] * 2
