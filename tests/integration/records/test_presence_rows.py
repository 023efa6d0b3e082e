"""Runs on the database of DATABASE_URL; `test_postgresql.py` repeats it on PostgreSQL."""

import itertools
import random
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import pytest
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, PresenceWatch, PresentUser
from realtime.records import batch, connection_rows, presence_rows, process_rows, rows
from realtime.records.batch import write_batch
from realtime.records.entries import ONLINE, Changes, Closed, Place, Stay
from realtime.records.presence_rows import Summary, end_stays, is_online, read
from realtime.records.write_queue import Write
from tests.support.doubles.rows import a_process, make_lost
from tests.support.doubles.visits import (
    began,
    closing,
    end,
    joining,
    leaving,
    let_pass,
    opening,
    places,
    visit,
    write,
)
from tests.support.racing import race

pytestmark = pytest.mark.django_db(transaction=True)  # other threads must see the rows

GRACE = 60.0
IN_G = Place("g", "u")
IS_ONLINE = Place(ONLINE, "u")


def users(group: str = "g", grace: float = GRACE) -> list[str]:
    return read(group, grace, 1000)[0]


def stay(group: str = "g", user: str = "u") -> PresentUser:
    return PresentUser.objects.get(group=group, user_id=user)


def lost_commits(monkeypatch: pytest.MonkeyPatch, lost: set[int]) -> None:
    """Lose the answers to the commits with the given numbers, although they succeed."""
    numbers, transaction = itertools.count(1), connection_rows.in_one_transaction

    @contextmanager
    def losing():
        with transaction():
            yield
        if next(numbers) in lost:
            raise OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(connection_rows, "in_one_transaction", losing)


# Arrivals and departures


def test_a_user_is_online_from_the_first_connection_on():
    process = a_process()

    assert began(write(opening(process, "u"))) == {IS_ONLINE}
    assert began(write(opening(process, "u"))) == set()

    assert is_online("u", GRACE)
    assert not is_online("v", GRACE)
    assert users(ONLINE) == ["u"]


def test_a_user_is_present_once_in_many_tabs_and_processes():
    ids = [visit(a_process(pid=pid), "u", "g") for pid in (1, 2, 2)]

    assert read("g", GRACE, 1000) == (["u"], 1, 0)
    for id in ids[:2]:
        end(id)
    assert end_stays(0.0) == []
    end(ids[2])
    assert places(end_stays(0.0)) == {IN_G, IS_ONLINE}
    assert read("g", GRACE, 1000) == ([], 0, 0)


def test_a_batch_reports_each_stay_that_began_once():
    process = a_process()
    opened = [opening(process, user) for user in "abab"]
    joined = [joining(process, each.rows[0].id, each.rows[0].user_id) for each in opened]

    assert began(write(*opened, *joined)) == {Place(group, user) for group in ("g", ONLINE) for user in "ab"}


def test_a_user_who_is_gone_is_present_until_the_grace_is_over():
    id = visit(a_process(), "u", "g")
    end(id)

    assert not presence_rows.any_gone(GRACE)
    assert end_stays(GRACE) == []
    assert users() == ["u"]
    assert is_online("u", GRACE)
    let_pass(GRACE + 1)
    # Before any process has ended the stays.
    assert users() == []
    assert not is_online("u", GRACE)
    assert presence_rows.any_gone(GRACE)
    assert places(end_stays(GRACE)) == {IN_G, IS_ONLINE}
    assert end_stays(GRACE) == []
    assert not PresentUser.objects.exists()


def test_a_user_who_comes_back_within_the_grace_was_never_away():
    process = a_process()
    end(visit(process, "u", "g"))
    before = {row.group: row.pk for row in PresentUser.objects.all()}
    opened = opening(process, "u")

    written = write(opened, joining(process, opened.rows[0].id, "u"))

    assert began(written) == set()
    let_pass(GRACE + 1)
    assert end_stays(GRACE) == []
    assert {row.group: row.pk for row in PresentUser.objects.all()} == before
    assert stay().gone_at is None


def test_a_user_who_comes_back_later_begins_a_new_stay():
    process = a_process()
    end(visit(process, "u", "g"))
    first = stay().pk
    end_stays(0.0)

    visit(process, "u", "g")

    assert stay().pk > first


def test_a_close_and_an_open_in_one_batch_are_no_departure():
    process = a_process()
    id = visit(process, "u", "g")
    opened = opening(process, "u")

    written = write(opened, joining(process, opened.rows[0].id, "u"), closing(id))

    assert began(written) == set()
    assert set(PresentUser.objects.values_list("gone_at", flat=True)) == {None}


def test_a_visit_within_one_batch_begins_and_ends():
    process = a_process()
    opened = opening(process, "u")
    (id,) = opened.connections

    written = write(opened, joining(process, id, "u"), leaving(process, id, "u"))
    assert began(written) == {IN_G, IS_ONLINE}
    end(id)

    assert places(end_stays(0.0)) == {IN_G, IS_ONLINE}


def test_a_user_who_leaves_a_group_stays_online():
    process = a_process()
    id = visit(process, "u", "g", "h")

    write(leaving(process, id, "u", "g"))

    assert places(end_stays(0.0)) == {IN_G}
    assert users("h") == ["u"]
    assert is_online("u", 0.0)


def test_leaving_the_group_in_one_of_two_tabs_is_no_departure():
    process = a_process()
    first, _second = visit(process, "u", "g"), visit(process, "u", "g")

    write(leaving(process, first, "u"))

    assert end_stays(0.0) == []


@pytest.mark.parametrize("leaves_first", [True, False], ids=["after leaving", "without leaving"])
def test_a_close_ends_all_memberships_of_its_connection(leaves_first):
    process = a_process()
    id = visit(process, "u", "g", "h")
    if leaves_first:
        write(*(leaving(process, id, "u", group) for group in "gh"))

    end(id)

    assert places(end_stays(0.0)) == {Place(group, "u") for group in ("g", "h", ONLINE)}


def test_a_later_leave_of_a_closed_connection_changes_nothing():
    process = a_process()
    id, _other = visit(process, "u", "g"), visit(process, "u", "g")
    end(id)

    write(leaving(process, id, "u"))

    assert end_stays(0.0) == []
    assert users() == ["u"]


def test_the_departure_of_many_users_is_noted_in_parts():
    process = a_process()
    number = presence_rows.BATCH * 2 + 1
    opened = [opening(process, f"u{n}") for n in range(number)]
    ids = [each.rows[0].id for each in opened]
    assert (
        len(began(write(*opened, *(joining(process, id, f"u{n}") for n, id in enumerate(ids))))) == 2 * number
    )

    write(*map(closing, ids))

    ended = [stay for some in iter(lambda: end_stays(0.0, limit=100), []) for stay in some]
    assert len(places(ended)) == 2 * number


def test_users_are_read_in_the_order_in_which_they_came():
    process = a_process()
    for user in "cab":
        visit(process, user, "g")
    visit(process, "c", "g")

    assert read("g", GRACE, 1000) == (["c", "a", "b"], 3, 0)
    assert read("g", GRACE, 2) == (["c", "a"], 3, 0)
    assert read("g", GRACE, 3) == (["c", "a", "b"], 3, 0)


def test_users_beyond_the_limit_count_without_those_who_left():
    process = a_process()
    ids = [visit(process, user, "g") for user in "abcd"]
    end(ids[0])
    end(ids[3])

    assert read("g", GRACE, 2) == (["a", "b"], 4, 0)
    let_pass(GRACE + 1)
    assert read("g", GRACE, 1) == (["b"], 2, 0)


def test_anonymous_connections_are_counted():
    process = a_process()
    opened = [opening(process, "") for _ in range(3)]
    ids = [each.rows[0].id for each in opened]

    written = write(*opened, *(joining(process, id, "") for id in ids))

    assert written.changes is None
    assert read("g", GRACE, 1000) == ([], 0, 3)
    end(ids[0])
    write(leaving(process, ids[1], ""))
    assert read("g", GRACE, 1000) == ([], 0, 1)
    assert not PresentUser.objects.exists()


# Dormant users


@pytest.mark.parametrize("reason", [CloseReason.PING_TIMEOUT, CloseReason.SEND_FAILED])
def test_a_user_whose_last_connection_fell_silent_is_dormant(reason):
    id = visit(a_process(), "u", "g")

    assert end(id, reason) == Closed(was_first=True, is_dormant=True)

    assert stay(ONLINE).dormant_since is not None
    assert stay().dormant_since is None
    assert is_online("u", GRACE)


def test_a_user_with_another_connection_is_not_dormant():
    process = a_process()
    silent, other = visit(process, "u"), visit(process, "u")

    assert end(silent, CloseReason.PING_TIMEOUT) == Closed(was_first=True)
    assert end(other) == Closed(was_first=True)

    assert stay(ONLINE).dormant_since is None


def test_a_user_whose_tabs_fall_silent_together_is_dormant_once():
    process = a_process()
    ids = [visit(process, user) for user in "uvuv"]

    closed = write(*(closing(id, CloseReason.PING_TIMEOUT) for id in ids)).results

    assert [each.is_dormant for each in closed] == [False, False, True, True]


def test_anonymous_clients_are_not_dormant():
    id = visit(a_process(), "", "g")

    assert end(id, CloseReason.PING_TIMEOUT) == Closed(was_first=True)


def test_the_row_of_a_dormant_user_outlives_the_grace():
    end(visit(a_process(), "u", "g"), CloseReason.PING_TIMEOUT)

    assert places(end_stays(0.0)) == {IN_G, IS_ONLINE}
    assert end_stays(0.0) == []
    assert not is_online("u", 0.0)
    assert users(ONLINE, 0.0) == []
    assert list(PresentUser.objects.users()) == [stay(ONLINE)]
    assert stay(ONLINE).left_at is not None
    assert presence_rows.stays(ONLINE) == {}


def test_a_dormant_user_who_comes_back_within_the_grace_goes_on():
    process = a_process()
    end(visit(process, "u"), CloseReason.PING_TIMEOUT)
    first = stay(ONLINE)

    assert began(write(opening(process, "u"))) == set()

    again = stay(ONLINE)
    assert (again.pk, again.since) == (first.pk, first.since)
    assert (again.gone_at, again.dormant_since) == (None, None)


def test_a_dormant_user_who_comes_back_later_begins_a_new_stay():
    process = a_process()
    end(visit(process, "u"), CloseReason.PING_TIMEOUT)
    end_stays(0.0)
    first = stay(ONLINE)

    written = write(opening(process, "u"))

    assert began(written) == {IS_ONLINE}
    again = stay(ONLINE)
    assert again.pk > first.pk
    assert [each.id for each in written.changes.began] == [again.pk]
    assert again.since > first.since
    assert (again.gone_at, again.dormant_since, again.left_at) == (None, None, None)
    visit(process, "v")
    assert stay(ONLINE, "v").pk > again.pk


def test_old_rows_of_dormant_users_are_purged():
    process = a_process()
    for user in "uvw":
        end(visit(process, user), CloseReason.PING_TIMEOUT)
    end_stays(0.0)
    visit(process, "v")
    let_pass(100.0)

    assert presence_rows.purge_dormant(200.0) == 0
    assert presence_rows.purge_dormant(50.0, limit=1) == 1
    assert presence_rows.purge_dormant(50.0) == 1

    assert list(PresentUser.objects.values_list("user_id", flat=True)) == ["v"]


# Endings that other processes write


def test_the_users_of_a_lost_process_have_left():
    lost, running = a_process(pid=1), a_process(pid=2)
    visit(lost, "u", "g")
    visit(lost, "v", "g")
    visit(running, "v", "g")
    make_lost(lost)

    assert len(connection_rows.close_lost_records(lost, uuid.uuid4())) == 2

    assert places(end_stays(0.0)) == {IN_G, IS_ONLINE}
    assert users() == ["v"]
    assert connection_rows.mark_groups_left(lost, ["g"]) == {"g"}
    assert end_stays(0.0) == []
    assert PresentUser.objects.filter(dormant_since__isnull=False).count() == 0


def test_a_membership_of_an_open_record_leaves_with_its_group():
    process = a_process()
    visit(process, "u", "g", "h")
    make_lost(process)

    assert connection_rows.mark_groups_left(process, ["g"]) == {"g"}

    assert places(end_stays(0.0)) == {IN_G}
    assert users("h") == ["u"]


def test_departures_that_no_write_noted_are_found_in_parts():
    process = a_process()
    ids = [visit(process, user, "g") for user in "abcd"]
    Connection.objects.filter(pk__in=ids[::2]).delete()

    after, parts = 0, 0
    while after is not None:
        after, parts = presence_rows.note_departed(after, limit=3), parts + 1

    assert parts == 3
    assert places(end_stays(0.0)) == {Place(group, user) for group in ("g", ONLINE) for user in "ac"}
    assert presence_rows.note_departed(0) is None
    assert end_stays(0.0) == []


def test_a_departure_brings_no_deleted_row_back():
    process = a_process()
    id = visit(process, "u", "g")
    PresentUser.objects.all().delete()

    write(leaving(process, id, "u"), closing(id))

    assert not PresentUser.objects.exists()


def test_a_forgotten_user_leaves_immediately():
    process = a_process()
    id = visit(process, "u", "g", "h")
    visit(process, "v", "g")
    end(visit(process, "u"), CloseReason.PING_TIMEOUT)

    connection_rows.forget_user("u")

    assert users() == ["v"]
    assert places(end_stays(GRACE)) == {IN_G, Place("h", "u"), IS_ONLINE}
    assert not PresentUser.objects.filter(user_id="u").exists()
    assert set(Membership.objects.filter(connection=id).values_list("user_id", flat=True)) == {""}
    assert set(Membership.objects.exclude(connection=id).values_list("user_id", flat=True)) == {"v"}


def test_a_forgotten_user_leaves_no_dormant_row():
    end(visit(a_process(), "u"), CloseReason.PING_TIMEOUT)
    end_stays(0.0)

    connection_rows.forget_user("u")

    assert not PresentUser.objects.exists()
    assert end_stays(GRACE) == []


# The setting PRESENCE


def test_only_groups_that_match_a_pattern_are_tracked(settings):
    settings.REALTIME = {"PRESENCE": ("room.*",)}
    process = a_process()
    id = visit(process, "u", "room.1", "feed")

    assert set(PresentUser.objects.values_list("group", flat=True)) == {ONLINE, "room.1"}
    write(leaving(process, id, "u", "feed"))
    end(id)
    assert places(end_stays(0.0)) == {Place("room.1", "u"), IS_ONLINE}


def test_without_patterns_nothing_is_tracked(settings):
    settings.REALTIME = {"PRESENCE": ()}
    process = a_process()
    opened = opening(process, "u")
    (id,) = opened.connections

    with CaptureQueriesContext(connection) as captured:
        written = write(opened, joining(process, id, "u"))
        write(leaving(process, id, "u"))
        assert end(id, CloseReason.PING_TIMEOUT) == Closed(was_first=True)

    assert written.changes is None
    assert not [query for query in captured if "present" in query["sql"]]


# Watches


def test_the_processes_that_watch_are_told_of_their_groups():
    first, second = a_process(channel_name="one"), a_process(channel_name="two")
    for process, group in ((first, "g"), (first, "h"), (second, "h"), (first, "h")):
        presence_rows.watch(process, group)
    opened = opening(second, "u")
    (id,) = opened.connections

    told = write(opened, *(joining(second, id, "u", group) for group in "ghi")).changes

    assert told.watchers == {"one": {"g", "h"}, "two": {"h"}}
    end(id)
    assert presence_rows.changes(ended=end_stays(0.0)).watchers == told.watchers


def test_only_running_processes_are_told():
    stopped, running = a_process(channel_name="one"), a_process(channel_name="two")
    for process in (stopped, running):
        presence_rows.watch(process, "g")
    process_rows.stop_process(stopped)

    assert presence_rows.changes([Stay(1, "g", "u")]).watchers == {"two": {"g"}}


def test_a_process_that_does_not_watch_any_more_is_not_told():
    process = a_process(channel_name="one")
    for group in "ghi":
        presence_rows.watch(process, group)
    gone = [Stay(1, group, "u") for group in "ghi"]

    presence_rows.unwatch(process, ["g", "k"])
    assert presence_rows.changes((), gone).watchers == {"one": {"h", "i"}}
    presence_rows.unwatch(process)
    assert presence_rows.changes((), gone) == Changes((), tuple(gone), {})
    assert not PresenceWatch.objects.exists()


def test_who_is_online_is_told_to_no_process_that_watches_groups():
    with CaptureQueriesContext(connection) as captured:
        assert presence_rows.changes([Stay(1, ONLINE, "u")]).watchers == {}
    assert len(captured) == 0


def test_a_summary_shows_each_difference_of_a_picture():
    process = a_process()
    ids = [visit(process, user, "g", "h") for user in "uv"]
    visit(process, "", "g")

    summaries = presence_rows.summaries(["g", "h", "nowhere"])

    picture = presence_rows.stays("g")
    assert list(picture) == ["u", "v"]
    assert summaries["g"] == Summary(2, sum(picture.values()), 1)
    assert summaries["h"] == Summary(2, sum(presence_rows.stays("h").values()), 0)
    assert summaries["nowhere"] == Summary()
    assert all(type(each.sum_of_ids) is int for each in summaries.values())
    # A user in the grace belongs to the picture until the stay is ended.
    end(ids[0])
    assert presence_rows.summaries(["g"])["g"].users == 2
    end_stays(0.0)
    visit(process, "w", "g")
    after = presence_rows.summaries(["g"])["g"]
    assert (after.users, after.sum_of_ids > summaries["g"].sum_of_ids) == (2, True)


# Failures


def test_a_refused_row_costs_no_stay_of_the_others():
    process = a_process()
    good = [opening(process, f"u{n}") for n in range(8)]
    poisoned = opening(uuid.uuid4(), "poisoned")
    writes = [*good[:5], poisoned, *good[5:]]
    writes += [joining(process, each.rows[0].id, each.rows[0].user_id) for each in writes]

    written = write_batch(writes)

    assert [isinstance(result, Exception) for result in written.results].count(True) == 2
    assert began(written) == {Place(group, f"u{n}") for group in ("g", ONLINE) for n in range(8)}
    assert set(users()) == {f"u{n}" for n in range(8)}


def test_a_refused_row_that_is_tried_twice_reports_no_stay_twice():
    # The user of the poisoned row has another connection in the same batch.
    process = a_process()
    writes = [opening(process, "u"), opening(uuid.uuid4(), "u"), opening(process, "u"), opening(process, "v")]

    assert began(write_batch(writes)) == {IS_ONLINE, Place(ONLINE, "v")}


def test_a_close_repeated_after_a_lost_answer_tells_the_dormant(monkeypatch):
    process = a_process()
    ids = [visit(process, user) for user in "uuv"]
    lost_commits(monkeypatch, {1})
    closes = [closing(id, CloseReason.PING_TIMEOUT) for id in ids]

    first = write_batch(closes)
    assert [type(result) for result in first.results] == [OperationalError] * 3
    # In another order, and in two batches.
    again = [*write(closes[0]).results, *write(*closes[1:]).results]

    assert again == [Closed(True, False), Closed(True, True), Closed(True, True)]
    assert end(ids[1], CloseReason.PING_TIMEOUT) == Closed(False, False)


def test_a_lost_answer_makes_no_user_dormant_twice(monkeypatch):
    process = a_process()
    first, second = visit(process, "u"), visit(process, "u")
    lost_commits(monkeypatch, {1})
    close = closing(first, CloseReason.PING_TIMEOUT)
    write_batch([close])

    assert end(second, CloseReason.PING_TIMEOUT) == Closed(True, True)
    assert write(close).results == [Closed(True, False)]


def test_stays_of_a_lost_answer_are_told_with_the_next_batch(monkeypatch):
    process = a_process()
    unsure: list[batch.Arrivals] = []
    visit(process, "v")
    opened, other = opening(process, "u"), opening(process, "v")
    lost_commits(monkeypatch, {1})

    first = write_batch([opened, other], unsure)
    assert (began(first), len(unsure)) == (set(), 1)
    # The client was told that it is not connected, so its record is closed.
    second = write_batch([closing(opened.rows[0].id)], unsure)

    assert began(second) == {IS_ONLINE}
    assert unsure == []
    assert places(end_stays(0.0)) == {IS_ONLINE}


def test_arrivals_that_failed_before_the_commit_are_dropped(monkeypatch):
    unsure: list[batch.Arrivals] = []

    def fail(*_: object) -> None:
        raise OperationalError("the database is starting up")

    monkeypatch.setattr(presence_rows, "settle", fail)
    write_batch([opening(a_process(), "u")], unsure)

    assert unsure == []


class Deadlock(Exception):
    sqlstate = "40P01"


class SerializationFailure(Exception):
    sqlstate = "40001"


@pytest.mark.parametrize("cause", [Deadlock, SerializationFailure])
def test_a_batch_is_written_again_after_a_conflict(monkeypatch, cause):
    settle, failures = presence_rows.settle, iter([True] * (rows.TRIES - 1))

    def fail_first(*arguments: object) -> object:
        done = settle(*arguments)
        if next(failures, False):
            raise OperationalError("rolled back") from cause()
        return done

    monkeypatch.setattr(presence_rows, "settle", fail_first)

    assert began(write(opening(a_process(), "u"))) == {IS_ONLINE}
    assert Connection.objects.count() == 1


def test_a_batch_is_not_written_again_without_end(monkeypatch):
    tries = []

    def fail(*_: object) -> None:
        tries.append(1)
        raise OperationalError("rolled back") from Deadlock()

    monkeypatch.setattr(presence_rows, "settle", fail)

    written = write_batch([opening(a_process(), "u")] * 2)

    assert [type(result) for result in written.results] == [OperationalError] * 2
    assert len(tries) == rows.TRIES


# Transactions of SQLite without IMMEDIATE


def lost_with_records() -> uuid.UUID:
    process = a_process()
    visit(process, "u", "g")
    make_lost(process)
    return process


@pytest.mark.parametrize(
    ("prepare", "call"),
    [
        (lambda: visit(a_process(), "u", "g"), end),
        (lambda: lost_with_records(), lambda lost: connection_rows.close_lost_records(lost, uuid.uuid4())),
        (lambda: lost_with_records(), lambda lost: connection_rows.mark_groups_left(lost, ["g"])),
        (lambda: visit(a_process(), "u", "g"), lambda _: presence_rows.note_departed(0)),
        (lambda: visit(a_process(), "u", "g"), lambda _: end_stays(0.0)),
        (lambda: visit(a_process(), "u", "g"), lambda _: presence_rows.purge_dormant(0.0)),
        (lambda: visit(a_process(), "u", "g"), lambda _: connection_rows.forget_user("u")),
    ],
    ids=["close", "close_lost", "mark_left", "note_departed", "end_stays", "purge", "forget"],
)
@pytest.mark.only_on("sqlite")  # a transaction of PostgreSQL may read first
def test_no_transaction_begins_with_a_read(prepare, call):
    prepared = prepare()
    with CaptureQueriesContext(connection) as captured:
        call(prepared)

    statements = [query["sql"] for query in captured]
    firsts = [after for before, after in itertools.pairwise(statements) if before.startswith("BEGIN")]
    assert firsts
    assert [sql for sql in firsts if sql.startswith("SELECT")] == []


def test_deferred_transactions_of_two_writers_both_succeed(monkeypatch):
    if connection.vendor == "sqlite":
        options = connections["default"].settings_dict["OPTIONS"]
        monkeypatch.setitem(options, "transaction_mode", "DEFERRED")
    processes = [a_process(pid=pid) for pid in range(2)]

    def come_and_go(process: uuid.UUID) -> list[Stay]:
        ended = []
        for _ in range(25):
            id = visit(process, "u", "g")
            presence_rows.note_departed(0)
            write(leaving(process, id, "u"), closing(id))
            ended += end_stays(0.0)
        return ended

    found = race(*[lambda process=process: come_and_go(process) for process in processes])

    alternating_ids = [stay.id for stays in found for stay in stays]
    assert len(alternating_ids) == len(set(alternating_ids))
    end_stays(0.0)
    assert not PresentUser.objects.exists()


# Races

ROUNDS = 25


def test_of_two_ends_at_the_same_time_the_last_one_is_noted():
    processes = [a_process(pid=pid) for pid in range(2)]
    for n in range(ROUNDS):
        first, second = [visit(process, f"u{n}", "g") for process in processes]
        leave = leaving(processes[1], second, f"u{n}")
        race(partial(end, first), partial(write, leave, closing(second)))

        rows_of_user = PresentUser.objects.filter(user_id=f"u{n}")
        assert rows_of_user.filter(gone_at__isnull=False).count() == rows_of_user.count() == 2


def test_a_user_who_joins_while_the_other_tab_closes_is_present():
    processes = [a_process(pid=pid) for pid in range(2)]
    for n in range(ROUNDS):
        user = f"u{n}"
        first, second = visit(processes[0], user, "g"), visit(processes[1], user)
        _, joined = race(partial(end, first), partial(write, joining(processes[1], second, user)))

        assert not isinstance(joined, Closed)
        assert began(joined) == set()
        assert end_stays(0.0) == []
        assert user in users()


def test_a_join_and_the_end_of_the_grace_agree():
    process = a_process()
    for n in range(ROUNDS):
        user = f"u{n}"
        first = visit(process, user, "g")
        second = visit(process, user)
        write(leaving(process, first, user))
        before = stay(user=user).pk
        joined, ended = race(partial(write, joining(process, second, user)), partial(end_stays, 0.0))

        new = [each.id for each in joined.changes.began] if joined.changes else []
        gone = [each.id for each in ended]
        assert user in users()
        if gone:
            assert (gone, new) == ([before], [stay(user=user).pk])
            assert new[0] > before
        else:
            assert new == []
            assert stay(user=user).pk == before
        assert end_stays(0.0) == []


def test_a_dormant_user_comes_back_while_the_grace_ends():
    process = a_process()
    for n in range(ROUNDS):
        user = f"u{n}"
        end(visit(process, user), CloseReason.PING_TIMEOUT)
        before = stay(ONLINE, user).pk
        opened, ended = race(partial(write, opening(process, user)), partial(end_stays, 0.0))

        new = [each.id for each in opened.changes.began] if opened.changes else []
        assert [each.id for each in ended] == ([before] if new else [])
        row = stay(ONLINE, user)
        assert row.pk == (new[0] if new else before)
        assert (row.gone_at, row.left_at, row.dormant_since) == (None, None, None)


def test_two_callers_that_end_stays_end_each_once():
    process = a_process()
    for n in range(5):
        ids = [visit(process, f"u{n}.{m}", "g") for m in range(20)]
        write(*(closing(id, CloseReason.PING_TIMEOUT) for id in ids))

        def end_all():
            return [stay.id for some in iter(lambda: end_stays(0.0, limit=7), []) for stay in some]

        ended = [id for found in race(end_all, end_all, end_all) for id in found]
        assert len(ended) == len(set(ended)) == 40


@pytest.mark.parametrize("seed", range(2))
def test_many_writers_of_the_same_users_never_deadlock(seed, monkeypatch):
    conflicts = []
    again = rows.again_after_conflict

    def counted(transact: Callable[[], object]) -> object:
        tries = itertools.count()

        def transact_and_count() -> object:
            if next(tries):
                conflicts.append(1)
            return transact()

        return again(transact_and_count)

    monkeypatch.setattr(batch, "again_after_conflict", counted)
    processes = [a_process(pid=pid) for pid in range(4)]
    names = [f"u{n}" for n in range(30)]

    def live(number: int) -> list[tuple[str, Stay]]:
        chance = random.Random(f"{seed}.{number}")
        process, held, told = processes[number], {}, []
        for _ in range(40):
            writes: list[Write] = []
            for id in chance.sample(list(held), min(len(held), chance.randrange(12))):
                user = held.pop(id)
                if chance.random() < 0.5:
                    writes.append(leaving(process, id, user, chance.choice("gh")))
                writes.append(closing(id, chance.choice([CloseReason.PING_TIMEOUT, CloseReason.IDLE])))
            for user in chance.sample(names, chance.randrange(12)):
                opened = opening(process, user)
                (id,) = opened.connections
                held[id] = user
                writes += [opened, *(joining(process, id, user, group) for group in "gh")]
            if writes:
                writes.sort(key=lambda write: write.kind)
                changes = write(*writes).changes
                told += [("began", stay) for stay in changes.began] if changes else []
            if chance.random() < 0.3:
                told += [("ended", stay) for stay in end_stays(0.0, limit=20)]
        write(*map(closing, held))
        return told

    found = race(*[lambda number=number: live(number) for number in range(4)])

    found.append([("ended", stay) for some in iter(lambda: end_stays(0.0), []) for stay in some])
    told = [each for some in found for each in some]
    starts = sorted((stay.group, stay.user_id, stay.id) for what, stay in told if what == "began")
    ends = sorted((stay.group, stay.user_id, stay.id) for what, stay in told if what == "ended")
    assert len(starts) == len(set(starts)) > 100
    assert starts == ends
    assert not PresentUser.objects.filter(left_at__isnull=True).exists()
    assert conflicts == []


def test_a_user_is_forgotten_while_the_users_records_change():
    processes = [a_process(pid=pid) for pid in range(2)]

    def live(process: uuid.UUID) -> None:
        for _ in range(20):
            ids = [visit(process, "u", *"ghi") for _ in range(3)]
            write(*(leaving(process, id, "u", group) for id in ids for group in "ig"))
            write(*map(closing, ids))

    def forget() -> None:
        for _ in range(20):
            connection_rows.forget_user("u")

    race(partial(live, processes[0]), partial(live, processes[1]), forget)

    # The user may have come back after the last call.
    connection_rows.forget_user("u")
    end_stays(0.0)
    assert not PresentUser.objects.exists()
    assert not Membership.objects.filter(user_id="u").exists()
