"""The details of clients in old records; `test_postgresql.py` repeats it on PostgreSQL."""

import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from realtime.models import Connection
from realtime.records import connection_rows, detail_rows, rows
from realtime.records.detail_rows import Details
from tests.support.doubles.rows import a_process, an_opening, closings

pytestmark = pytest.mark.django_db

FULL = [
    ("192.0.2.77", "Mozilla/5.0"),
    ("2001:db8:1:2:3:4:5:6", ""),
    ("192.0.2.0", "okhttp/4.12.0"),
    ("", "curl/8"),
    ("", ""),
    ("not an address", ""),
]
REDUCED = {
    "full": FULL,
    "network": [("192.0.2.0", ""), ("2001:db8:1::", ""), ("192.0.2.0", ""), ("", ""), ("", ""), ("", "")],
    "none": [("", "")] * len(FULL),
}


def insert(process: uuid.UUID, *details: tuple[str, str], old: float = 3600.0) -> list[uuid.UUID]:
    """Insert records with these addresses and user agents, all with one time."""
    openings = [an_opening(process, remote_address=each, user_agent=agent) for each, agent in details]
    connection_rows.open_connections(openings)
    ids = [opening.id for opening in openings]
    Connection.objects.filter(pk__in=ids).update(opened_at=Now() - timedelta(seconds=old))
    return ids


def recorded(ids: list[uuid.UUID]) -> list[tuple[str, str]]:
    found = {
        pk: details
        for pk, *details in Connection.objects.filter(pk__in=ids).values_list(
            "pk", "remote_address", "user_agent"
        )
    }
    return [tuple(found[id]) for id in ids]


def visit_all(details: str, way: Details | None = None, limit: int = 500) -> Details:
    way = way or Details()
    while way.visit(details, limit):
        pass
    return way


@pytest.mark.parametrize("details", REDUCED)
def test_old_records_keep_no_more_than_the_setting_allows(details: str) -> None:
    ids = insert(a_process(), *FULL)
    closed = insert(a_process(pid=2), *FULL)
    connection_rows.close_connections(closings(closed), uuid.uuid4())

    way = visit_all(details)

    assert recorded(ids) == recorded(closed) == REDUCED[details]
    changed = sum(old != new for old, new in zip(FULL, REDUCED[details], strict=True))
    assert way.reduced == 2 * changed


@pytest.mark.parametrize("details", ["network", "none"])
def test_a_second_way_finds_nothing_to_reduce(details: str) -> None:
    insert(a_process(), *FULL)
    visit_all(details)

    assert visit_all(details).reduced == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 500])
def test_every_record_is_visited_once(limit: int) -> None:
    """Also of records with one time, of which a batch takes only a part."""
    process = a_process()
    for number in range(4):
        insert(process, *[("192.0.2.7", "x")] * 5, old=3600.0 - number)
    # Times that went through Python have more digits in SQLite.
    for each in Connection.objects.all()[:7]:
        Connection.objects.filter(pk=each.pk).update(opened_at=each.opened_at)
    way = Details()

    visited = sum(iter(lambda: way.visit("none", limit), 0))

    assert (visited, way.reduced) == (20, 20)


def test_a_record_waits_until_it_is_settled_and_is_not_missed() -> None:
    process = a_process()
    (old,) = insert(process, ("192.0.2.7", "x"))
    way = visit_all("none")
    (young,) = insert(process, ("192.0.2.8", "x"), old=detail_rows.SETTLED - 30.0)

    visit_all("none", way)
    assert recorded([old, young]) == [("", ""), ("192.0.2.8", "x")]

    Connection.objects.filter(pk=young).update(opened_at=F("opened_at") - timedelta(seconds=31))
    visit_all("none", way)
    assert recorded([young]) == [("", "")]


def test_with_nothing_to_do_a_visit_is_one_query() -> None:
    insert(a_process(), *FULL)
    way = visit_all("network")

    with CaptureQueriesContext(connection) as captured:
        assert way.visit("network") == 0
    assert len(captured) == 1


def test_a_visit_reads_an_index_and_sorts_no_table() -> None:
    insert(a_process(), *[("192.0.2.7", "x")] * 3)
    way = Details()
    way.visit("full", 1)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
    with CaptureQueriesContext(connection) as captured:
        way.visit("full", 1)

    (statement,) = [each["sql"] for each in captured]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {'' if connection.vendor == 'postgresql' else 'QUERY PLAN '}{statement}")
        plan = " ".join(str(part) for row in cursor.fetchall() for part in row)
    assert "realtime_connection_opened" in plan or "realtime_connection_newest" in plan, plan


def test_a_user_who_is_forgotten_meanwhile_stays_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    (id,) = insert(a_process(), ("192.0.2.7", "x"))
    lock = rows.lock

    def lock_too_late(chosen):
        Connection.objects.filter(pk=id).update(remote_address="", user_agent="")
        lock(chosen)

    monkeypatch.setattr(rows, "lock", lock_too_late)
    visit_all("network")

    assert recorded([id]) == [("", "")]


def test_records_that_are_deleted_meanwhile_do_no_harm() -> None:
    insert(a_process(), *[("192.0.2.7", "x")] * 4)
    way = Details()
    way.visit("none", 2)
    Connection.objects.exclude(remote_address="192.0.2.7").delete()

    visit_all("none", way)

    assert set(recorded(list(Connection.objects.values_list("pk", flat=True)))) == {("", "")}
    assert Connection.objects.count() == 2
