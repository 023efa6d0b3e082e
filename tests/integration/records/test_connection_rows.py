"""Runs on the database of DATABASE_URL; `test_postgresql.py` repeats it on PostgreSQL."""

import uuid
from collections import Counter
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.db.models import F
from django.db.models.functions import Now

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process
from realtime.records import connection_rows, process_rows
from realtime.records.connection_rows import Held
from realtime.records.entries import Closing
from tests.support.doubles.rows import (
    USER_KEY,
    a_process,
    an_opening,
    closings,
    joins,
    make_lost,
    open_connections,
)
from tests.support.racing import race

pytestmark = pytest.mark.django_db(transaction=True)  # other threads and processes must see the rows

DAY = 86400.0


def open_rows() -> tuple[int, int, int]:
    """The numbers of running processes, open connections and memberships that are not left."""
    return (
        Process.objects.running().count(),
        Connection.objects.open().count(),
        Membership.objects.to_leave().count(),
    )


# Connections


def test_an_opened_connection_is_open_and_has_been_seen_now():
    opening = an_opening(a_process())

    connection_rows.open_connections([opening])

    row = Connection.objects.get()
    assert (row.id, row.process_id, row.user_id) == (opening.id, opening.process_id, USER_KEY)
    assert (row.path, row.remote_address, row.user_agent) == ("/ws/", "192.0.2.1", "Mozilla/5.0")
    assert (row.subprotocol, row.opened_at) == ("realtime.v1", row.last_seen_at)
    assert (row.closed_at, row.close_reason, row.close_code, row.closed_by) == (None, "", None, None)


def test_opening_again_changes_nothing():
    opening = an_opening(a_process())
    connection_rows.open_connections([opening])
    before = Connection.objects.values().get()

    connection_rows.open_connections([opening, opening])

    assert Connection.objects.values().get() == before


def test_opening_again_does_not_reopen_a_closed_record():
    opening = an_opening(a_process())
    connection_rows.open_connections([opening])
    connection_rows.close_connections(closings([opening.id]), uuid.uuid4())

    connection_rows.open_connections([opening])

    assert Connection.objects.open().count() == 0


def test_text_from_a_client_is_cleaned_and_cut_to_its_column():
    opening = an_opening(
        a_process(host="h" * 300),
        path="/ws/\0/" + "p" * 600,
        user_agent="lone \ud800 surrogate",
        remote_address="r" * 100,
        subprotocol="s" * 200,
        user_id="u" * 300,
    )

    connection_rows.open_connections([opening])

    row = Connection.objects.select_related("process").get()
    assert row.path == ("/ws/\ufffd/" + "p" * 600)[:512]
    assert row.user_agent == "lone ? surrogate"
    lengths = map(len, (row.remote_address, row.subprotocol, row.user_id, row.process.host))
    assert list(lengths) == [64, 100, 255, 255]


def test_a_connection_of_an_unknown_process_is_refused():
    with pytest.raises(IntegrityError):
        connection_rows.open_connections([an_opening(uuid.uuid4())])


def test_a_storm_larger_than_a_batch_is_recorded():
    process = a_process()
    count = connection_rows.BATCH * 2 + 1

    ids = open_connections(process, count)
    connection_rows.open_memberships(joins(process, ids, "news"))
    assert open_rows() == (1, count, count)

    connection_rows.touch_connections(ids)
    assert Connection.objects.filter(last_seen_at__gt=F("opened_at")).count() == count
    assert connection_rows.mark_memberships_left(joins(process, ids, "news")) == count
    assert connection_rows.close_connections(closings(ids), uuid.uuid4()).keys() == set(ids)
    assert open_rows() == (1, 0, 0)


def test_a_close_records_reason_code_and_stamp():
    closed, lost = open_connections(a_process(), 2)
    stamp = uuid.uuid4()

    endings = [
        Closing(closed, CloseReason.CLIENT_CLOSED, 1001),
        Closing(lost, CloseReason.PING_TIMEOUT, None),
    ]
    assert connection_rows.close_connections(endings, stamp).keys() == {closed, lost}

    rows = {row.id: row for row in Connection.objects.all()}
    assert (rows[closed].close_reason, rows[closed].close_code) == ("client_closed", 1001)
    assert (rows[lost].close_reason, rows[lost].close_code) == ("ping_timeout", None)
    assert all(row.closed_by == stamp and row.closed_at >= row.opened_at for row in rows.values())


def test_the_first_reason_for_a_close_counts():
    (id,) = open_connections(a_process(), 1)
    connection_rows.close_connections(closings([id], CloseReason.SEND_FAILED), uuid.uuid4())
    before = Connection.objects.values().get()

    assert connection_rows.close_connections(closings([id], CloseReason.CLIENT_CLOSED), uuid.uuid4()) == {}

    assert Connection.objects.values().get() == before


def test_a_close_repeated_with_its_stamp_returns_the_same_ids():
    ids = open_connections(a_process(), 3)
    stamp = uuid.uuid4()

    first = connection_rows.close_connections(closings(ids), stamp)
    again = connection_rows.close_connections(closings(ids), stamp)

    assert first == again
    assert first.keys() == set(ids)


@pytest.mark.parametrize("code", [-1, 0, 999, 5000, 65535])
def test_a_close_code_outside_rfc_6455_is_not_stored(code):
    (id,) = open_connections(a_process(), 1)

    connection_rows.close_connections([Closing(id, CloseReason.CLIENT_CLOSED, code)], uuid.uuid4())

    assert Connection.objects.get().close_code is None


def test_of_racing_writers_one_closes_each_connection():
    process = a_process()
    process_rows.stop_process(process)

    def race_for(ids):
        stamps = [uuid.uuid4() for _ in range(3)]
        # Each reason is a statement of its own, so the first two writers update the rows in opposite orders.
        endings = closings(ids[::2], CloseReason.IDLE) + closings(ids[1::2], CloseReason.KICKED)

        forwards, backwards, reaped = race(
            lambda: connection_rows.close_connections(endings, stamps[0]),
            lambda: connection_rows.close_connections(endings[::-1], stamps[1]),
            lambda: sum(
                len(closed)
                for closed in iter(
                    lambda: connection_rows.close_lost_records(process, stamps[2], limit=30), []
                )
            ),
        )

        assert not forwards.keys() & backwards.keys()
        assert len(forwards) + len(backwards) + reaped == len(ids)
        stored = Counter(Connection.objects.filter(pk__in=ids).values_list("closed_by", flat=True))
        counted = dict(zip(stamps, [len(forwards), len(backwards), reaped], strict=True))
        assert stored == +Counter(counted)

    for _ in range(5):
        race_for(open_connections(process, 100))


def test_a_closed_connection_is_not_touched():
    ids = open_connections(a_process(), 1)
    connection_rows.close_connections(closings(ids), uuid.uuid4())
    before = Connection.objects.values().get()

    connection_rows.touch_connections(ids)

    assert Connection.objects.values().get() == before


# Memberships


def test_joining_an_open_membership_again_changes_nothing():
    process = a_process()
    joining = joins(process, open_connections(process, 1), "news")
    connection_rows.open_memberships(joining)
    before = Membership.objects.values().get()

    connection_rows.open_memberships(joining * 2)

    assert Membership.objects.values().get() == before


def test_leaving_counts_what_this_call_left_and_happens_once():
    process = a_process()
    first, second = open_connections(process, 2)
    connection_rows.open_memberships(joins(process, [first, second], "news", "sport"))

    leaving = [*joins(process, [first], "news", "sport"), *joins(process, [second], "news")]
    assert connection_rows.mark_memberships_left(leaving) == 3
    assert connection_rows.mark_memberships_left(leaving) == 0

    remaining = Membership.objects.to_leave().get()
    assert (remaining.connection_id, remaining.group) == (second, "sport")


def test_a_group_that_was_left_can_be_joined_again():
    process = a_process()
    joining = joins(process, open_connections(process, 1), "news")
    connection_rows.open_memberships(joining)
    connection_rows.mark_memberships_left(joining)

    connection_rows.open_memberships(joining)

    assert Membership.objects.count() == 2
    assert Membership.objects.to_leave().count() == 1


def test_leaving_nothing_leaves_nothing():
    process = a_process()
    connection_rows.open_memberships(joins(process, open_connections(process, 1), "news"))

    assert connection_rows.mark_memberships_left([]) == 0

    assert Membership.objects.to_leave().count() == 1


# Sweeping


def test_an_ended_process_is_swept_until_it_holds_nothing():
    running, lost, stopped, clean = (a_process(pid=pid) for pid in range(4))
    for process in (running, lost):
        connection_rows.open_memberships(joins(process, open_connections(process, 1), "news"))
    open_connections(stopped, 1)
    make_lost(lost, clean)
    process_rows.stop_process(stopped)

    assert {process.id for process in process_rows.lost_processes_to_sweep()} == {lost, stopped}
    for process in (lost, stopped):
        assert len(connection_rows.close_lost_records(process, uuid.uuid4())) == 1
    assert {process.id for process in process_rows.lost_processes_to_sweep()} == {lost}
    assert connection_rows.mark_groups_left(lost, connection_rows.groups_to_leave(lost)) == {"news"}
    assert process_rows.lost_processes_to_sweep() == []

    assert open_rows() == (1, 1, 1)


def test_what_a_lost_process_held_is_closed_in_batches():
    process = a_process()
    ids = open_connections(process, 7)
    connection_rows.close_connections(closings(ids[:1]), uuid.uuid4())
    make_lost(process)
    stamp = uuid.uuid4()

    batches = [connection_rows.close_lost_records(process, stamp, limit=4) for _ in range(3)]

    assert [len(batch) for batch in batches] == [4, 2, 0]
    assert {opening.id for batch in batches for opening in batch} == set(ids[1:])
    by_stamp = connection_rows.lost_records_closed_by(process, stamp)
    assert sorted(map(str, by_stamp)) == sorted(str(opening) for batch in batches for opening in batch)

    reaped = Connection.objects.filter(closed_by=stamp)
    assert set(reaped.values_list("close_reason", "close_code")) == {("server_lost", None)}
    assert reaped.count() == 6


def test_the_open_records_of_one_process_are_counted():
    process, other = a_process(), a_process()
    ids = open_connections(process, 3)
    open_connections(other, 1)
    connection_rows.close_connections(closings(ids[:1]), uuid.uuid4())

    assert connection_rows.count_open_records(process) == 2


def test_the_records_of_a_running_process_are_not_swept():
    process = a_process()
    open_connections(process, 1)

    assert connection_rows.close_lost_records(process, uuid.uuid4()) == []

    assert Connection.objects.open().count() == 1


def test_the_groups_of_a_lost_process_come_once_in_batches():
    process, other = a_process(), a_process()
    connection_rows.open_memberships(joins(process, open_connections(process, 3), "b", "a", "c"))
    connection_rows.open_memberships(joins(other, open_connections(other, 1), "d"))

    assert connection_rows.groups_to_leave(process, limit=2) == ["a", "b"]
    assert connection_rows.mark_groups_left(process, ["a", "b"]) == {"a", "b"}
    assert connection_rows.mark_groups_left(process, ["a", "b"]) == set()
    assert connection_rows.groups_to_leave(process, limit=2) == ["c"]
    assert connection_rows.mark_groups_left(process, ["c", "d"]) == {"c"}
    assert connection_rows.groups_to_leave(process) == []
    assert connection_rows.groups_to_leave(other) == ["d"]


def test_leftovers_are_of_closed_connections():
    process, lost = a_process(channel_name="specific.abc"), a_process()
    still_open, closed = open_connections(process, 2)
    orphan = open_connections(lost, 1)
    connection_rows.open_memberships(joins(process, [still_open, closed], "news", "sport"))
    connection_rows.open_memberships(joins(lost, orphan, "news"))
    connection_rows.mark_memberships_left(joins(process, [closed], "sport"))
    connection_rows.close_connections(closings([closed, *orphan]), uuid.uuid4())
    make_lost(lost)

    assert connection_rows.leftovers() == [
        connection_rows.Leftover(process, "specific.abc", closed, "news", "ping_timeout")
    ]

    connection_rows.mark_memberships_left(joins(process, [closed], "news"))
    assert connection_rows.leftovers() == []


def test_leftovers_come_in_batches_with_the_oldest_first():
    process = a_process()
    ids = open_connections(process, 3)
    for id in ids:
        connection_rows.open_memberships(joins(process, [id], "news"))
    connection_rows.close_connections(closings(ids), uuid.uuid4())

    assert [leftover.connection_id for leftover in connection_rows.leftovers(limit=2)] == ids[:2]


# Purging


def test_a_purge_deletes_old_closed_records_with_memberships():
    process = a_process()
    old, recent, held, still_open = open_connections(process, 4)
    connection_rows.open_memberships(joins(process, [old, held], "news"))
    connection_rows.mark_memberships_left(joins(process, [old], "news"))
    connection_rows.close_connections(closings([old, recent, held]), uuid.uuid4())
    Connection.objects.filter(pk__in=[old, held]).update(closed_at=Now() - timedelta(days=8))

    assert connection_rows.purge_closed(7 * DAY, limit=10) == 1

    assert set(Connection.objects.values_list("pk", flat=True)) == {recent, held, still_open}
    assert set(Membership.objects.values_list("connection_id", flat=True)) == {held}


def test_a_purge_is_limited_and_begins_with_the_oldest():
    ids = open_connections(a_process(), 3)
    connection_rows.close_connections(closings(ids), uuid.uuid4())
    for days, id in enumerate(ids, start=10):
        Connection.objects.filter(pk=id).update(closed_at=Now() - timedelta(days=days))

    assert connection_rows.purge_closed(DAY, limit=2) == 2

    assert Connection.objects.get().pk == ids[0]


def test_a_user_is_reached_in_running_processes_only():
    running, stopped = a_process(channel_name="specific.a"), a_process(channel_name="specific.b")
    here = an_opening(running)
    others = [an_opening(running), an_opening(running, user_id=""), an_opening(running, user_id="1")]
    connection_rows.open_connections([here, *others, an_opening(stopped)])
    connection_rows.close_connections(closings([others[0].id]), uuid.uuid4())
    process_rows.stop_process(stopped)

    assert connection_rows.open_of_user(USER_KEY) == [Held(running, "specific.a", here.id)]


def test_the_connections_of_a_user_with_a_long_key_are_found():
    opening = an_opening(a_process(), user_id="k" * 300)
    connection_rows.open_connections([opening])

    assert [held.connection_id for held in connection_rows.open_of_user("k" * 300)] == [opening.id]


def test_anonymous_clients_are_not_found_together():
    with pytest.raises(ValueError, match="every anonymous client"):
        connection_rows.open_of_user("")


def test_no_record_names_a_forgotten_user():
    process = a_process()
    closed, held, still_open = open_connections(process, 3)
    other = an_opening(process, user_id="8", remote_address="198.51.100.8")
    connection_rows.open_connections([other])
    connection_rows.open_memberships(joins(process, [held], "news"))
    connection_rows.close_connections(closings([closed, held, other.id]), uuid.uuid4())

    assert connection_rows.forget_user(USER_KEY) == (1, 2)

    kept = Connection.objects.exclude(pk=other.id)
    assert set(kept.values_list("pk", flat=True)) == {held, still_open}
    assert set(kept.values_list("user_id", "remote_address", "user_agent")) == {("", "", "")}
    assert Membership.objects.to_leave().filter(connection=held).exists()
    assert Connection.objects.get(pk=other.id).remote_address == "198.51.100.8"
    assert connection_rows.forget_user(USER_KEY) == (0, 0)


def test_many_records_of_a_user_are_forgotten_in_batches():
    ids = open_connections(a_process(), 5)
    connection_rows.close_connections(closings(ids), uuid.uuid4())

    assert connection_rows.forget_user(USER_KEY, limit=2) == (5, 0)
    assert not Connection.objects.exists()


def test_anonymous_clients_are_not_forgotten_together():
    connection_rows.open_connections([an_opening(a_process(), user_id="")])

    with pytest.raises(ValueError, match="anonymous"):
        connection_rows.forget_user("")
    with pytest.raises(CommandError, match="give a user's primary key"):
        call_command("forget_user", "")
    assert Connection.objects.get().remote_address == "192.0.2.1"


def test_the_command_says_what_it_forgot(capsys):
    process = a_process()
    closed, _still_open = open_connections(process, 2)
    connection_rows.close_connections(closings([closed]), uuid.uuid4())

    call_command("forget_user", USER_KEY)

    assert capsys.readouterr().out == "records deleted: 1; emptied, because they are still needed: 1\n"


def test_purges_that_race_delete_each_record_once():
    ids = open_connections(a_process(), 60)
    connection_rows.close_connections(closings(ids), uuid.uuid4())
    Connection.objects.update(closed_at=Now() - timedelta(days=2))

    def purge_all():
        return sum(iter(lambda: connection_rows.purge_closed(DAY, limit=10), 0))

    assert sum(race(purge_all, purge_all)) == 60


def test_old_memberships_of_a_living_connection_are_purged():
    process = a_process()
    (living,) = open_connections(process, 1)
    connection_rows.open_memberships(joins(process, [living], "old", "recent", "held"))
    connection_rows.mark_memberships_left(joins(process, [living], "old", "recent"))
    long_ago = Now() - timedelta(days=8)
    Membership.objects.update(joined_at=long_ago)
    Membership.objects.filter(group="old").update(left_at=long_ago)

    assert connection_rows.purge_left(7 * DAY) == 1
    assert connection_rows.purge_left(7 * DAY) == 0

    assert set(Membership.objects.values_list("group", flat=True)) == {"recent", "held"}
    assert Connection.objects.open().count() == 1


def test_a_purge_of_memberships_begins_with_the_oldest():
    process = a_process()
    (living,) = open_connections(process, 1)
    for days, group in enumerate(("c", "b", "a"), start=10):
        connection_rows.open_memberships(joins(process, [living], group))
        Membership.objects.filter(group=group).update(left_at=Now() - timedelta(days=days))

    assert connection_rows.purge_left(DAY, limit=2) == 2

    assert Membership.objects.get().group == "c"


def test_a_racing_purge_deletes_no_open_membership():
    process = a_process()
    joining = joins(process, open_connections(process, 1), "news")
    goes_on = True

    def come_and_go():
        nonlocal goes_on
        held = []
        for _ in range(100):
            connection_rows.open_memberships(joining)
            held.append(Membership.objects.to_leave().count())
            connection_rows.mark_memberships_left(joining)
        connection_rows.open_memberships(joining)
        goes_on = False
        return held

    def purge():
        purged, last = 0, False
        while not last:
            last = not goes_on
            purged += connection_rows.purge_left(0.0)
        return purged

    held, purged = race(come_and_go, purge)

    assert held == [1] * 100
    assert purged == 100
    assert Membership.objects.get().left_at is None


def test_purges_of_memberships_that_race_delete_each_once():
    process = a_process()
    ids = open_connections(process, 60)
    connection_rows.open_memberships(joins(process, ids, "news"))
    connection_rows.mark_memberships_left(joins(process, ids, "news"))
    Membership.objects.update(left_at=Now() - timedelta(days=2))

    def purge_all():
        return sum(iter(lambda: connection_rows.purge_left(DAY, limit=10), 0))

    assert sum(race(purge_all, purge_all)) == 60


# Constraints of the tables


@pytest.mark.parametrize(
    "change",
    [{"closed_at": Now()}, {"close_reason": "idle"}],
    ids=["time without reason", "reason without time"],
)
def test_a_record_is_not_half_closed(change):
    open_connections(a_process(), 1)

    with pytest.raises(IntegrityError):
        Connection.objects.update(**change)


def test_deleting_a_user_leaves_the_record(django_user_model):
    user = django_user_model.objects.create_user("ada")
    connection_rows.open_connections([an_opening(a_process(), user_id=str(user.pk))])

    user.delete()

    assert Connection.objects.get().user_id != ""
    assert connection.is_usable()
