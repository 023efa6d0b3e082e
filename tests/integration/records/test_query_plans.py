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
from realtime.models import Connection, PresentUser, Process
from realtime.records import connection_rows, presence_rows, process_rows
from realtime.records.entries import ONLINE, Join, Place, Stay
from tests.support.doubles.rows import a_process, an_opening, closings, joins, make_lost, open_connections

STAY = "presentuser_1"
"""The end of SQLite's name for the index of `realtime_present_user_once`."""
LARGE_TABLES = ("connection", "membership", "presentuser")


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
        users = [str(2_000_000_100 + number) for number in range(1500)]
        presence_rows.settle([Place(group, user) for user in users for group in (ONLINE, "news")])
        silent = {user: uuid.uuid4() for user in users[30:]}
        presence_rows.settle((), [Place(ONLINE, user) for user in silent], silent)
        presence_rows.end_stays(-1.0, limit=len(users))
        make_lost(*ids[:2])
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
        yield ids
        Process.objects.all().delete()
        PresentUser.objects.all().delete()


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
        return any(f"Seq Scan on realtime_{table}" in line for table in LARGE_TABLES)
    # SQLite names the alias of a table if it has one. The table of processes has none, and a round may read
    # all of it.
    of_something_else = (
        line == "SCAN realtime_process"
        or line.startswith(("SCAN subquery", "SCAN (subquery", "SCAN named"))
        or "CONSTANT ROW" in line
    )
    by_index = "USING" in line and "presentuser" not in line
    return line.startswith("SCAN") and not by_index and not of_something_else


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


def test_purging_dormant_users_uses_an_index(processes, db):
    assert full_scans(lambda: presence_rows.purge_dormant(-1.0)) == []


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
def test_the_open_connections_of_a_user_are_found_by_their_index(processes):
    # Another user than the one of all rows, for which PostgreSQL would take any index of open ones.
    plan = plan_of(lambda: connection_rows.open_of_user("7"))
    assert any("realtime_connection_client " in f"{line} " for line in plan), plan
    assert not [line for line in plan if is_full_scan(line)]


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
        ({"user_id": "7", "state": "open"}, "connection_client"),
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
@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({}, "present_user_group"),
        ({"state": "online"}, "present_user_online"),
        ({"state": "dormant"}, "present_user_left"),
        ({"group": "news"}, "present_user_group"),
        ({"q": "2000000101"}, STAY),
    ],
    ids=str,
)
def test_each_list_of_users_uses_its_index(processes, admin_client, query, index):
    def look() -> None:
        assert admin_client.get(reverse("admin:realtime_presentuser_changelist"), query).status_code == 200

    plan = plan_of(look)

    assert [line for line in plan if is_full_scan(line)] == []
    if connection.vendor == "sqlite":
        # Two more find the groups of each user, and the open connections.
        for name in (index, STAY, "connection_client"):
            assert any(f"realtime_{name} " in f"{line} " for line in plan), plan
        if query.keys() <= {"state"}:
            assert not any("TEMP B-TREE" in line for line in plan), plan


@pytest.mark.usefixtures("whenever_possible")
def test_the_admins_page_of_a_user_uses_an_index(processes, admin_client):
    for user in ("2000000101", "2000000200"):  # online, dormant
        row = PresentUser.objects.users().get(user_id=user)
        page = reverse("admin:realtime_presentuser_change", args=[row.pk])
        assert full_scans(lambda page=page: admin_client.get(page)) == []


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


# Presence


@pytest.fixture(scope="module")
def present(processes, django_db_blocker):
    """A thousand users with a connection each, half of them in the group "lobby"; some are gone or dormant.

    SQLite has no statistics here, so it chooses as in a project that never asked for them.
    """
    with django_db_blocker.unblock():
        return _make_present(processes)


def _make_present(processes: list[uuid.UUID]) -> list[Join]:
    openings = [an_opening(processes[2], user_id=f"user{n}", client_id="tab") for n in range(1000)]
    connection_rows.open_connections(openings)
    rows = [
        Join(opening.id, processes[2], "lobby" if n % 2 else f"room{n}", opening.user_id)
        for n, opening in enumerate(openings)
    ]
    connection_rows.open_memberships(rows)
    places = {Place(row.group, row.user_id) for row in rows}
    presence_rows.settle(places | {Place(ONLINE, row.user_id) for row in rows})
    some = PresentUser.objects.filter(pk__in=PresentUser.objects.order_by("pk").values("pk")[:100])
    some.update(gone_at=Now() - timedelta(hours=1))
    dormant = PresentUser.objects.users().exclude(gone_at=None)
    dormant.update(dormant_since=Now(), left_at=Now() - timedelta(minutes=1))
    for number in range(100):
        presence_rows.watch(processes[2], f"room{number}")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    return rows


PRESENCE = {
    "arrivals": lambda rows: presence_rows.settle(_places_of(rows)),
    "departures": lambda rows: presence_rows.settle((), _places_of(rows), {rows[0].user_id: uuid.uuid4()}),
    "departures of one": lambda rows: presence_rows.settle((), _places_of(rows[:1])),
    "stays begun": lambda rows: presence_rows.stays_begun_by(uuid.uuid4(), _places_of(rows)),
    "places of connections": lambda rows: connection_rows.places_of(
        {row.connection_id: row.user_id for row in rows}
    ),
    "any gone": lambda _: presence_rows.any_gone(15.0),
    "end of stays": lambda _: presence_rows.end_stays(15.0),
    "unnoted departures": lambda _: presence_rows.note_departed(0, limit=100),
    "forgotten user": lambda rows: presence_rows.forget_user(rows[0].user_id),
    "purge": lambda _: presence_rows.purge_dormant(0.0),
    "is online": lambda rows: presence_rows.is_online(rows[0].user_id, 15.0),
    "users of a group": lambda _: presence_rows.read("lobby", 15.0, 10),
    "stays of a group": lambda _: presence_rows.stays("lobby"),
    "summaries": lambda _: presence_rows.summaries(["lobby", "room2"]),
    "watchers": lambda _: presence_rows.changes([Stay(1, "room2", "u")]),
    "end of a watch": lambda rows: presence_rows.unwatch(rows[0].process_id, ["room2"]),
}


def _places_of(rows: list[Join]) -> set[Place]:
    return {Place(row.group, row.user_id) for row in rows} | {Place(ONLINE, row.user_id) for row in rows}


@pytest.mark.parametrize("name", PRESENCE)
@pytest.mark.usefixtures("whenever_possible")
def test_presence_uses_indexes(present, db, name):
    plan = plan_of(lambda: PRESENCE[name](present[:150]))
    assert [line for line in plan if is_full_scan(line) or "Seq Scan on realtime_pres" in line] == []
    if connection.vendor == "sqlite" and name not in ("users of a group", "stays of a group", "summaries"):
        # It would read all users of a group, or all users online. PostgreSQL knows how many they are.
        assert [line for line in plan if "realtime_present_user_group" in line] == []


@pytest.mark.usefixtures("whenever_possible")
@pytest.mark.parametrize(
    "read",
    [lambda: presence_rows.read("lobby", 15.0, 10), lambda: presence_rows.summaries(["lobby"])],
    ids=["users of a group", "summaries"],
)
@pytest.mark.only_on("sqlite")  # PostgreSQL decides by the state of the table
def test_users_are_counted_in_an_index_alone(present, db, read):
    plan = plan_of(read)
    assert [line for line in plan if "COVERING INDEX" not in line] == []
    for index in ("present_user_group", "membership_present"):
        assert any(f"realtime_{index} " in line for line in plan)
