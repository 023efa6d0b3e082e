"""Runs on the database of DATABASE_URL; `test_postgresql.py` repeats it on PostgreSQL."""

import threading
import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import F

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, PresentUser
from realtime.records import client_rows, connection_rows, presence_rows
from realtime.records.entries import Client, Closing, Join, Opening, Place
from realtime.records.ledger import Ledger
from tests.integration.records.test_query_plans import full_scans
from tests.support.doubles.rows import USER_KEY, a_process, an_opening, joins
from tests.support.racing import race

pytestmark = pytest.mark.django_db(transaction=True)  # other threads must see the rows

PHONE, LAPTOP = "phone-id", "laptop-id"


def opened(process: uuid.UUID, client: str = PHONE, **changes: object) -> Opening:
    """Open one record, in a statement of its own."""
    opening = an_opening(process, client_id=client, **changes)
    connection_rows.open_connections([opening])
    return opening


def found(*clients: Client) -> list[Opening]:
    return [each.opening for each in client_rows.superseded(clients or [Client(USER_KEY, PHONE)])]


def supersede(*openings: Opening) -> list[uuid.UUID]:
    """Do what the ledger does for new connections."""
    clients = client_rows.clients_of(openings)
    closings = [
        Closing(each.opening.id, CloseReason.SUPERSEDED, 4509) for each in client_rows.superseded(clients)
    ]
    return sorted(connection_rows.end_connections(closings, uuid.uuid4()))


def with_user(memberships: Iterable[Join]) -> list[Join]:
    return [replace(each, user_id=USER_KEY) for each in memberships]


def open_ids() -> set[uuid.UUID]:
    return set(Connection.objects.open().values_list("pk", flat=True))


def test_all_open_connections_but_the_newest_are_found():
    one, other = a_process(channel_name="specific.one"), a_process(channel_name="specific.other")
    older = [opened(one), opened(other), opened(one)]
    opened(other)

    result = client_rows.superseded([Client(USER_KEY, PHONE)])

    assert {each.opening.id: each.address for each in result} == {
        older[0].id: "specific.one",
        older[1].id: "specific.other",
        older[2].id: "specific.one",
    }
    assert {each.opening for each in result} == set(older)


def test_other_users_and_other_clients_are_not_found():
    process = a_process()
    opened(process, LAPTOP)
    opened(process, user_id="another")
    opened(process, user_id="")
    connection_rows.open_connections([an_opening(process), an_opening(process)])
    opened(process)

    assert found() == []


def test_a_closed_connection_supersedes_none():
    process = a_process()
    opened(process)
    newer = opened(process)
    connection_rows.close_connections([Closing(newer.id, CloseReason.CLIENT_CLOSED, 1000)], uuid.uuid4())

    assert found() == []


def test_anonymous_clients_are_told_apart_by_their_ids():
    process = a_process()
    older = opened(process, user_id="")
    opened(process, LAPTOP, user_id="")
    opened(process, user_id="")

    assert found(Client("", PHONE), Client("", LAPTOP)) == [older]


def test_connections_in_one_batch_have_the_order_of_the_calls():
    process = a_process()
    batch = [an_opening(process, client_id=PHONE) for _ in range(20)]

    connection_rows.open_connections(batch)

    assert {each.id for each in found()} == {each.id for each in batch[:-1]}


def test_different_clients_are_opened_in_one_statement(django_assert_num_queries):
    process = a_process()
    batch = [an_opening(process, client_id=f"client-{i}") for i in range(20)]
    with django_assert_num_queries(3):  # BEGIN, INSERT, COMMIT
        connection_rows.open_connections([*batch, an_opening(process), an_opening(process)])


def test_clients_are_compared_as_the_database_stores_them():
    long = "9" * 300
    process = a_process()
    older, newer = opened(process, user_id=long), opened(process, user_id=long)

    assert supersede(newer) == [older.id]
    assert client_rows.clients_of([an_opening(process)]) == set()


def test_of_racing_writers_all_find_the_same_newest_connection():
    processes = [a_process(pid=pid) for pid in range(4)]

    def open_and_supersede(process: uuid.UUID) -> list[uuid.UUID]:
        opening = an_opening(process, client_id=PHONE)
        connection_rows.open_connections([opening])
        return supersede(opening)

    for _ in range(10):
        closed = race(*(lambda process=process: open_and_supersede(process) for process in processes))  # type: ignore[misc]
        ids = [id for some in closed for id in some]
        assert len(ids) == len(set(ids)), "two writers have closed one record"
        assert len(open_ids()) == 1

    rows = Connection.objects.closed().values_list("close_reason", "close_code").distinct()
    assert list(rows) == [("superseded", 4509)]


def test_memberships_of_a_superseded_connection_do_not_count():
    process = a_process()
    older = opened(process)
    connection_rows.open_memberships(with_user(joins(process, [older.id], "news", "sport")))
    presence_rows.settle([Place("", USER_KEY), Place("news", USER_KEY), Place("sport", USER_KEY)])
    newer = opened(process)
    connection_rows.open_memberships(with_user(joins(process, [newer.id], "news")))

    assert supersede(newer) == [older.id]

    assert set(Membership.objects.filter(connection_closed=True).values_list("group", flat=True)) == {
        "news",
        "sport",
    }
    gone = PresentUser.objects.filter(gone_at__isnull=False).values_list("group", flat=True)
    assert list(gone) == ["sport"], "the user is still online, and in news by the newer connection"
    assert [each.reason for each in connection_rows.leftovers()] == ["superseded", "superseded"]


@pytest.mark.only_on("postgresql")  # SQLite has one writer at a time
def test_an_eviction_at_the_same_time_is_no_deadlock():
    process = a_process()
    older = opened(process)
    left = joins(process, [older.id], "news")
    connection_rows.open_memberships(left)
    newer = opened(process)
    has_left = threading.Event()

    def end() -> list[uuid.UUID]:
        """Write the batch of an eviction: it leaves the group, and then closes the record."""
        with transaction.atomic():
            connection_rows.mark_memberships_left(left)
            has_left.set()
            # The other one has locked the record, or will, and wants the membership.
            threading.Event().wait(0.3)
            closed = connection_rows.close_connections(
                [Closing(older.id, CloseReason.CLIENT_CLOSED, 1000)], uuid.uuid4()
            )
        return sorted(closed)

    def take_over() -> list[uuid.UUID]:
        assert has_left.wait(10)
        return supersede(newer)

    ended, superseded_ids = race(end, take_over)

    assert [*ended, *superseded_ids] == [older.id]
    assert open_ids() == {newer.id}
    assert not Membership.objects.to_leave().exists()


def test_a_process_finds_what_was_superseded_lately():
    mine, other = a_process(pid=1), a_process(pid=2)
    older = [opened(mine), opened(other), opened(mine)]
    supersede(opened(mine))
    Connection.objects.filter(pk=older[2].id).update(closed_at=F("closed_at") - timedelta(minutes=2))
    another = opened(mine, LAPTOP)
    connection_rows.close_connections([Closing(another.id, CloseReason.CLIENT_CLOSED, 1000)], uuid.uuid4())

    assert client_rows.superseded_of(mine, 60.0) == [older[0].id]
    assert set(client_rows.superseded_of(mine, 600.0)) == {older[0].id, older[2].id}


def test_finding_the_connections_of_clients_uses_an_index():
    process = a_process()
    old = [
        an_opening(process, client_id=f"client-{i}", user_id=USER_KEY if i % 2 else "") for i in range(6000)
    ]
    connection_rows.open_connections(old)
    Connection.objects.update(
        closed_at=F("opened_at") - timedelta(days=1), close_reason="client_closed", closed_by=uuid.uuid4()
    )
    connection_rows.open_connections([replace(each, id=uuid.uuid4()) for each in old[:500]])
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    clients = [Client(USER_KEY, "client-1"), Client("", "client-2")]

    scans = full_scans(lambda: client_rows.superseded(clients))
    # The clients themselves are a table of constants.
    assert [line for line in scans if "CONSTANT ROWS" not in line] == []
    assert full_scans(lambda: client_rows.superseded_of(process, 20.0)) == []


async def test_a_close_with_a_lost_answer_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger()
    process = await ledger.call(a_process)
    older, newer = await ledger.call(opened, process), await ledger.call(opened, process)
    end, results = connection_rows.end_connections, []

    def lose_the_first_answer(closings: list[Closing], stamp: uuid.UUID) -> object:
        results.append(end(closings, stamp))
        if len(results) == 1:
            raise OperationalError("the answer was lost")
        return results[-1]

    monkeypatch.setattr(connection_rows, "end_connections", lose_the_first_answer)

    closed = await ledger.supersede(client_rows.clients_of([newer]))

    assert [each.opening for each in closed] == [older]
    assert len(results) == 2
    assert await ledger.supersede(client_rows.clients_of([newer])) == []
    ledger.shut()
