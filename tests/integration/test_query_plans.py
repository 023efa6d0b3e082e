"""What a round asks of the database stays cheap when the tables are full of history: it uses an index."""

import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from realtime import records
from realtime.models import Connection, Process
from tests.support.rows import a_process, closings, joins, make_lost, open_connections


@pytest.fixture(scope="module")
def processes(django_db_setup, django_db_blocker):
    """Three processes with thousands of closed records, few open ones, memberships of both; two are lost."""
    with django_db_blocker.unblock():
        ids = [a_process(pid=pid) for pid in range(3)]
        for process in ids:
            old = open_connections(process, 1500)
            records.open_memberships(joins(process, old, "news"))
            records.leave_memberships(joins(process, old, "news"))
            records.close_connections(closings(old), uuid.uuid4())
            records.open_memberships(joins(process, open_connections(process, 30), "news", "sport"))
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
    """The lines in the plans of a call's statements that read all of a table that history grows."""
    with CaptureQueriesContext(connection) as captured:
        call()
    found = []
    with connection.cursor() as cursor:
        for query in captured:
            if query["sql"].startswith(("SELECT", "UPDATE", "DELETE")):
                how = "" if connection.vendor == "postgresql" else "QUERY PLAN "
                cursor.execute(f"EXPLAIN {how}{query['sql']}")
                found += [row[-1] for row in cursor.fetchall() if is_full_scan(row[-1])]
    return found


def is_full_scan(line: str) -> bool:
    if connection.vendor == "postgresql":
        return "Seq Scan on realtime_connection" in line or "Seq Scan on realtime_membership" in line
    # SQLite names a table's alias, if it has one; the processes, which a round may read whole, have none.
    return line.startswith("SCAN") and "USING" not in line and line != "SCAN realtime_process"


def test_a_full_scan_is_told_from_the_use_of_an_index(processes, db):
    assert full_scans(lambda: list(Connection.objects.filter(path="/elsewhere/")))


def test_finding_what_to_sweep_uses_an_index(processes, db):
    assert full_scans(records.lost_processes_to_sweep) == []


def test_closing_what_a_lost_process_held_uses_an_index(processes, db):
    assert full_scans(lambda: records.close_lost_records(processes[0], uuid.uuid4())) == []


def test_the_to_do_list_of_a_lost_process_uses_an_index(processes, db):
    assert full_scans(lambda: records.groups_to_leave(processes[0])) == []
    assert full_scans(lambda: records.left_groups(processes[0], ["news"])) == []


def test_finding_leftovers_uses_an_index(processes, db):
    assert full_scans(records.leftovers) == []


def test_closing_and_leaving_use_an_index(processes, some_connections):
    leaving = joins(processes[2], some_connections, "news", "sport")
    assert full_scans(lambda: records.leave_memberships(leaving)) == []
    assert full_scans(lambda: records.close_connections(closings(some_connections), uuid.uuid4())) == []


def test_purging_uses_an_index(processes, db):
    assert full_scans(lambda: records.purge_closed(7 * 86400.0)) == []


def test_counting_what_is_open_uses_an_index(processes, db):
    assert full_scans(records.counts) == []
