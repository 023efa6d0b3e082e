"""The queries of rounds and of the admin use an index, so that history in the tables does not slow them."""

import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from realtime.admin import ConnectionAdmin
from realtime.models import Connection, Process
from realtime.records import connection_rows, process_rows
from tests.support.doubles.rows import a_process, closings, joins, make_lost, open_connections


@pytest.fixture(scope="module")
def processes(django_db_setup, django_db_blocker):
    """Three processes with thousands of closed records, few open ones and their memberships; two are lost."""
    with django_db_blocker.unblock():
        ids = [a_process(pid=pid) for pid in range(3)]
        for process in ids:
            old = open_connections(process, 1500)
            connection_rows.open_memberships(joins(process, old, "news"))
            connection_rows.mark_memberships_left(joins(process, old, "news"))
            connection_rows.close_connections(closings(old), uuid.uuid4())
            connection_rows.open_memberships(joins(process, open_connections(process, 30), "news", "sport"))
        Connection.objects.closed().update(closed_at=Now() - timedelta(days=1))
        make_lost(*ids[:2])
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
        yield ids
        Process.objects.all().delete()


@pytest.fixture
def some_connections(processes, db):
    return list(Connection.objects.order_by("opened_at").values_list("pk", flat=True)[:100])


def full_scans(call: Callable[[], object]) -> list[str]:
    """Return the lines of the query plans of a call that read a whole table with history."""
    return [line for line in plan_of(call) if is_full_scan(line)]


def plan_of(call: Callable[[], object], *, apart_from: str = "nothing") -> list[str]:
    """Return the lines of the query plans of a call, except of statements that contain a text."""
    with CaptureQueriesContext(connection) as captured:
        call()
    found = []
    with connection.cursor() as cursor:
        for query in captured:
            if query["sql"].startswith(("SELECT", "UPDATE", "DELETE")) and apart_from not in query["sql"]:
                how = "" if connection.vendor == "postgresql" else "QUERY PLAN "
                cursor.execute(f"EXPLAIN {how}{query['sql']}")
                found += [row[-1] for row in cursor.fetchall()]
    return found


def is_full_scan(line: str) -> bool:
    if connection.vendor == "postgresql":
        return "Seq Scan on realtime_connection" in line or "Seq Scan on realtime_membership" in line
    # SQLite names the alias of a table if it has one. The table of processes has none, and a round may read
    # all of it.
    of_something_else = line == "SCAN realtime_process" or line.startswith(
        ("SCAN subquery", "SCAN (subquery")
    )
    return line.startswith("SCAN") and "USING" not in line and not of_something_else


def test_a_full_scan_is_told_from_the_use_of_an_index(processes, db):
    assert full_scans(lambda: list(Connection.objects.filter(path="/elsewhere/")))


def test_finding_what_to_sweep_uses_an_index(processes, db):
    assert full_scans(process_rows.lost_processes_to_sweep) == []


def test_closing_what_a_lost_process_held_uses_an_index(processes, db):
    assert full_scans(lambda: connection_rows.close_lost_records(processes[0], uuid.uuid4())) == []


def test_the_to_do_list_of_a_lost_process_uses_an_index(processes, db):
    assert full_scans(lambda: connection_rows.groups_to_leave(processes[0])) == []
    assert full_scans(lambda: connection_rows.mark_groups_left(processes[0], ["news"])) == []


def test_finding_leftovers_uses_an_index(processes, db):
    assert full_scans(connection_rows.leftovers) == []


def test_closing_and_leaving_use_an_index(processes, some_connections):
    leaving = joins(processes[2], some_connections, "news", "sport")
    assert full_scans(lambda: connection_rows.mark_memberships_left(leaving)) == []
    assert (
        full_scans(lambda: connection_rows.close_connections(closings(some_connections), uuid.uuid4())) == []
    )


def test_purging_uses_an_index(processes, db):
    assert full_scans(lambda: connection_rows.purge_closed(7 * 86400.0)) == []


@pytest.fixture
def whenever_possible(db):
    """Make PostgreSQL use every possible index. With so few rows, it would read a whole table as quickly."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")


@pytest.mark.usefixtures("whenever_possible")
def test_purging_memberships_reads_its_index_in_order(processes):
    plan = plan_of(lambda: connection_rows.purge_left(-1.0))  # all that were left
    assert any("realtime_membership_left " in f"{line} " for line in plan), plan
    assert not [line for line in plan if is_full_scan(line) or "Sort" in line or "TEMP B-TREE" in line]


@pytest.mark.usefixtures("whenever_possible")
@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({}, "connection_opened"),
        ({"state": "open"}, "connection_newest"),
        ({"state": "closed"}, "connection_closed"),
        ({"reason": "ping_timeout"}, "connection_reason"),
        ({"process": "PROCESS"}, "connection_process"),
        ({"process": "PROCESS", "state": "open"}, "connection_open"),
        ({"group": "news"}, "membership_to_leave"),
        ({"opened_at__year": "2026"}, "connection_opened"),
        ({"q": "7"}, "connection_user"),
        ({"q": "192.0.2.1"}, "connection_opened"),
        ({"q": "/nowhere/"}, "connection_opened"),
    ],
    ids=str,
)
def test_each_list_of_the_admin_uses_its_index(processes, admin_client, monkeypatch, query, index):
    monkeypatch.setattr(ConnectionAdmin, "search_limit", 100)  # of thousands
    query = {name: value.replace("PROCESS", str(processes[0])) for name, value in query.items()}

    def look() -> None:
        assert admin_client.get(reverse("admin:realtime_connection_changelist"), query).status_code == 200

    # Without a filter, the first rows are counted in the table itself, which is as quick.
    plan = plan_of(look, apart_from="nothing" if query else "COUNT(")

    assert [line for line in plan if is_full_scan(line)] == []
    # PostgreSQL may choose another index that is as good.
    assert connection.vendor == "postgresql" or any(f"realtime_{index} " in f"{line} " for line in plan)


@pytest.mark.usefixtures("whenever_possible")
def test_the_admins_suspects_are_found_by_their_processes(processes, admin_client):
    def look() -> None:
        admin_client.get(reverse("admin:realtime_connection_changelist"), {"state": "suspect"})

    plan = plan_of(look)

    assert connection.vendor == "postgresql" or any("realtime_connection_open " in line for line in plan)
    assert not any("Seq Scan on realtime_connection" in line for line in plan)


def test_the_admins_page_of_a_connection_uses_an_index(processes, some_connections, admin_client):
    page = reverse("admin:realtime_connection_change", args=[some_connections[0]])
    assert full_scans(lambda: admin_client.get(page)) == []
