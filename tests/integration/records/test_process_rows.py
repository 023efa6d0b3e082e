"""Runs on the database of DATABASE_URL; `test_postgresql.py` repeats it on PostgreSQL."""

import itertools
import time
import uuid
from collections import Counter
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from realtime.models import Process, Round
from realtime.records import connection_rows, process_rows
from tests.support.assertions.eventually import eventually
from tests.support.doubles.rows import a_process, closings, make_lost, open_connections
from tests.support.racing import race, race_processes

pytestmark = pytest.mark.django_db(transaction=True)  # other threads and processes must see the rows

DAY = 86400.0


# Processes


def test_a_new_process_runs_and_has_answered_no_round():
    process = Process.objects.get(pk=process_rows.start_process("specific.abc", "web-1", 4711))

    assert (process.channel_name, process.host, process.pid) == ("specific.abc", "web-1", 4711)
    assert (process.last_round, process.missed, process.answered_at) == (0, 0, None)
    assert (process.stopped_at, process.lost) == (None, False)


def test_an_answer_forgives_the_rounds_that_were_missed():
    process = a_process()
    process_rows.judge(1, [process], misses_allowed=1)

    assert process_rows.answer_round(process, 2, connections=12, loop_lag=0.25) is True

    row = Process.objects.get(pk=process)
    assert (row.last_round, row.missed, row.connections, row.loop_lag) == (2, 0, 12, 0.25)
    assert row.answered_at is not None


def test_a_late_answer_does_not_replace_a_later_one():
    process = a_process()
    process_rows.answer_round(process, 7, connections=1, loop_lag=0.0)

    assert process_rows.answer_round(process, 6, connections=1, loop_lag=0.0) is True

    assert Process.objects.get(pk=process).last_round == 7


@pytest.mark.parametrize("ending", ["stopped", "lost", "removed"])
def test_a_process_that_has_ended_cannot_answer(ending):
    process = a_process()
    if ending == "stopped":
        process_rows.stop_process(process)
    elif ending == "lost":
        make_lost(process)
    else:
        Process.objects.all().delete()

    assert process_rows.answer_round(process, 1, connections=0, loop_lag=0.0) is False


def test_a_planned_stop_happens_once():
    process = a_process()

    assert process_rows.stop_process(process) is True
    stopped_at = Process.objects.get(pk=process).stopped_at
    assert process_rows.stop_process(process) is False

    row = Process.objects.get(pk=process)
    assert (row.stopped_at, row.lost) == (stopped_at, False)


def test_only_running_processes_are_asked():
    running, stopped, lost = (a_process(pid=pid) for pid in (1, 2, 3))
    process_rows.stop_process(stopped)
    make_lost(lost)
    process_rows.judge(2, [running], misses_allowed=1)

    assert process_rows.processes_to_ask() == [
        process_rows.Asked(running, "specific.0123456789abcdef", "web-1", 1, missed=1)
    ]


# Looking for rounds without a question


def test_a_process_finds_the_last_round_and_its_interval():
    process = a_process()
    assert process_rows.look_for_rounds(process) == process_rows.Look(True, 0, 0.0)

    process_rows.claim_round(2.5)

    assert process_rows.look_for_rounds(process) == process_rows.Look(True, 1, 2.5)


@pytest.mark.parametrize("ending", ["stopped", "removed"])
def test_a_process_that_ended_finds_that_it_does_not_run(ending):
    process = a_process()
    process_rows.claim_round(2.5)
    if ending == "stopped":
        process_rows.stop_process(process)
    else:
        Process.objects.all().delete()

    assert process_rows.look_for_rounds(process).running is False


def test_another_process_hears_when_it_has_said_so_lately():
    deaf, hearing = a_process(), a_process()
    process_rows.note_heard(deaf)
    assert process_rows.others_hear(deaf, within=60.0) is False

    process_rows.answer_round(hearing, 1, connections=0, loop_lag=0.0, hears=False)
    assert process_rows.others_hear(deaf, within=60.0) is False

    process_rows.answer_round(hearing, 1, connections=0, loop_lag=0.0, hears=True)
    assert process_rows.others_hear(deaf, within=60.0) is True

    Process.objects.filter(pk=hearing).update(heard_at=Now() - timedelta(seconds=61))
    assert process_rows.others_hear(deaf, within=60.0) is False

    process_rows.note_heard(hearing)
    process_rows.stop_process(hearing)
    assert process_rows.others_hear(deaf, within=60.0) is False


# Claiming a round


def test_the_first_round_may_be_claimed_immediately():
    assert process_rows.claim_round(3600.0) == 1


def test_the_next_round_waits_for_the_interval():
    process_rows.claim_round(10.0)
    Round.objects.update(started_at=Now() - timedelta(seconds=9))
    assert process_rows.claim_round(10.0) is None

    Round.objects.update(started_at=Now() - timedelta(seconds=10))
    assert process_rows.claim_round(10.0) == 2
    assert process_rows.claim_round(10.0) is None


def test_the_databases_clock_keeps_intervals_below_a_second():
    starts = []
    for _ in range(5):
        eventually(lambda: process_rows.claim_round(0.2), within=5, every=0.005)
        starts.append(Round.objects.get().started_at)

    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert min(gaps) >= timedelta(seconds=0.199)  # SQLite's clock has milliseconds


def test_the_clock_goes_on_inside_a_transaction():
    with transaction.atomic():
        process_rows.claim_round(0.2)
        assert eventually(lambda: process_rows.claim_round(0.2), within=5, every=0.01) == 2


def test_rounds_go_on_when_the_databases_clock_was_set_back():
    process_rows.claim_round(10.0)
    Round.objects.update(started_at=Now() + timedelta(hours=1))

    assert process_rows.claim_round(10.0) == 2
    assert process_rows.claim_round(10.0) is None


def test_of_many_reapers_one_gets_the_first_round():
    for _ in range(5):
        Round.objects.all().delete()

        claims = race(*[lambda: process_rows.claim_round(3600.0)] * 4)

        assert Counter(claims) == {1: 1, None: 3}


def test_the_current_round_is_the_last_one_that_was_claimed():
    assert process_rows.current_round() == 0
    process_rows.claim_round(0.0)
    assert process_rows.current_round() == 1


def claim_rounds() -> list[int]:
    """Claim rounds 20 ms apart, for a second."""
    deadline = time.monotonic() + 1.0
    claimed = []
    while time.monotonic() < deadline:
        number = process_rows.claim_round(0.02)
        if number is not None:
            claimed.append(number)
    return claimed


@pytest.mark.parametrize("racers", ["threads", pytest.param("processes", marks=pytest.mark.acceptance)])
def test_each_round_is_claimed_once_and_none_before_its_time(racers):
    process_rows.claim_round(0.0)
    first = Round.objects.get()

    claims = race(*[claim_rounds] * 4) if racers == "threads" else race_processes(3, claim_rounds)

    last = Round.objects.get()
    numbers = sorted(number for claimed in claims for number in claimed)
    assert numbers == list(range(2, last.number + 1))
    assert len(numbers) >= 3, "too few for a race"
    assert last.started_at - first.started_at >= len(numbers) * timedelta(seconds=0.019)


def test_the_highest_round_that_was_carried_through_is_known():
    assert process_rows.finished_round() == 0
    numbers = [process_rows.claim_round(0.0) for _ in range(3)]
    assert process_rows.finished_round() == 0

    # A long round may end after a later one.
    for number, highest in ((2, 2), (3, 3), (1, 3), (3, 3)):
        process_rows.finish_round(numbers[number - 1])
        assert process_rows.finished_round() == highest


# Judging


def test_a_process_that_has_yet_to_look_for_rounds_is_spared():
    process = a_process(look_every=60.0)

    for number in (1, 2, 3):
        assert process_rows.judge(number, [process], misses_allowed=1) == []
    assert process_rows.has_spared(misses_allowed=1) is True
    Process.objects.update(spared_until=Now())

    assert [each.id for each in process_rows.judge(4, [process], misses_allowed=1)] == [process]
    assert process_rows.has_spared(misses_allowed=1) is False


def test_the_time_to_look_begins_with_the_first_missed_round():
    process = a_process(look_every=0.2)
    process_rows.judge(1, [process], misses_allowed=1)
    time.sleep(0.25)

    assert [each.id for each in process_rows.judge(2, [process], misses_allowed=1)] == [process]


def test_an_answer_restarts_the_time_to_look():
    process = a_process(look_every=0.2)
    process_rows.judge(1, [process], misses_allowed=1)
    time.sleep(0.25)
    process_rows.answer_round(process, 1, connections=0, loop_lag=0.0, look_every=60.0)

    process_rows.judge(2, [process], misses_allowed=1)
    assert process_rows.judge(3, [process], misses_allowed=1) == []


def test_answers_in_the_database_are_found_for_a_round():
    early, late, silent = a_process(), a_process(), a_process()
    process_rows.answer_round(early, 6, connections=0, loop_lag=0.0)
    process_rows.answer_round(late, 8, connections=0, loop_lag=0.0)

    assert process_rows.processes_that_answered(7, [early, late, silent]) == {late}


def test_a_process_that_missed_too_many_rounds_is_lost():
    process = a_process(channel_name="specific.abc", host="web-1", pid=4711)

    assert process_rows.judge(1, [process], misses_allowed=1) == []
    assert process_rows.judge(2, [process], misses_allowed=1) == [
        process_rows.LostProcess(process, "specific.abc", "web-1", 4711)
    ]

    row = Process.objects.get()
    assert (row.missed, row.lost) == (2, True)
    assert row.stopped_at is not None


def test_a_process_that_has_written_its_answer_is_spared():
    answered, silent = a_process(pid=1), a_process(pid=2)
    process_rows.answer_round(answered, 5, connections=0, loop_lag=0.0)

    lost = process_rows.judge(5, [answered, silent], misses_allowed=0)

    assert [process.id for process in lost] == [silent]
    assert Process.objects.get(pk=answered).missed == 0


def test_a_process_that_was_not_accused_is_not_judged():
    a_process()

    assert process_rows.judge(1, [], misses_allowed=0) == []

    assert Process.objects.get().missed == 0


def test_a_process_that_stopped_by_plan_is_not_declared_lost():
    process = a_process()
    process_rows.stop_process(process)

    assert process_rows.judge(1, [process], misses_allowed=0) == []

    assert Process.objects.get().lost is False


def test_of_two_reapers_one_declares_a_process_lost():
    for _ in range(10):
        process = a_process()

        verdicts = race(*[lambda process=process: process_rows.judge(1, [process], misses_allowed=0)] * 2)

        assert sorted(map(len, verdicts)) == [0, 1]


def test_a_process_answers_in_time_or_learns_of_its_loss():
    for number in range(1, 21):
        process = a_process()

        lost, answered = race(
            lambda process=process, number=number: bool(
                process_rows.judge(number, [process], misses_allowed=0)
            ),
            lambda process=process, number=number: process_rows.answer_round(
                process, number, connections=0, loop_lag=0.0
            ),
        )

        assert lost is not answered
        assert Process.objects.get(pk=process).lost is lost


def test_reapers_and_answers_in_any_order_do_not_deadlock():
    processes = [a_process(pid=pid) for pid in range(20)]

    def answer_all(number):
        for process in processes:
            process_rows.answer_round(process, number, connections=0, loop_lag=0.0)

    race(
        *[lambda n=n: process_rows.judge(n, processes[:: (-1) ** n], misses_allowed=100) for n in (1, 2, 3)],
        lambda: answer_all(1),
    )

    assert Process.objects.running().count() == 20


def test_the_databases_clock_says_how_long_ago_a_process_ended():
    running, ended = a_process(pid=1), a_process(pid=2)
    process_rows.stop_process(ended)
    Process.objects.filter(pk=ended).update(stopped_at=Now() - timedelta(seconds=100))

    assert process_rows.has_ended_for(ended, 90) is True
    assert process_rows.has_ended_for(ended, 110) is False
    assert process_rows.has_ended_for(running, 0) is False


# Purging


def test_ended_processes_are_purged_once_their_records_are():
    running, ended, recent, with_history = (a_process(pid=pid) for pid in range(4))
    connection_rows.close_connections(closings(open_connections(with_history, 1)), uuid.uuid4())
    for process in (ended, recent, with_history):
        process_rows.stop_process(process)
    Process.objects.filter(pk__in=[ended, with_history]).update(stopped_at=Now() - timedelta(days=8))

    assert process_rows.purge_processes(7 * DAY) == 1

    assert set(Process.objects.values_list("pk", flat=True)) == {running, recent, with_history}


# Constraints of the tables


def test_a_lost_process_is_a_stopped_one():
    a_process()

    with pytest.raises(IntegrityError):
        Process.objects.update(lost=True)


def test_there_is_one_round():
    with pytest.raises(IntegrityError):
        Round.objects.create(id=2)
