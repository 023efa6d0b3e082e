"""`realtime.hub.run_queue`: the messages of one connection stay in order."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.hub.run_queue import LONGEST_RUN, RunQueue

MEMBERS = {"ann": {"a"}, "ben": {"a", "b"}, "cho": {"b", "c"}}


def test_consecutive_messages_of_one_group_leave_together() -> None:
    waiting: RunQueue[str] = RunQueue()
    for text in ("1", "2", "3"):
        waiting.put("a", text)
    assert waiting.take().texts == ["1", "2", "3"]
    waiting.finish()
    assert not waiting


def test_a_message_of_another_group_ends_a_run() -> None:
    waiting: RunQueue[str] = RunQueue()
    for group, text in (("a", "1"), ("b", "2"), ("a", "3")):
        waiting.put(group, text)
    assert [waiting.take().texts for _ in range(3)] == [["1"], ["2"], ["3"]]


def test_a_run_does_not_grow_without_limit() -> None:
    waiting: RunQueue[str] = RunQueue()
    for _ in range(3):
        waiting.put("a", "x" * (LONGEST_RUN // 2 + 1))
    assert [len(waiting.take().texts) for _ in range(2)] == [2, 1]


def test_the_length_of_waiting_texts_is_counted() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "12")
    waiting.put("b", "345")
    assert waiting.length == 5
    waiting.take()
    assert waiting.length == 3


def test_a_member_that_was_served_early_is_not_served_again() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "1")
    assert [run.texts for run in waiting.serve("ann", {"a"}, 0)] == [["1"]]
    assert waiting.serve("ann", {"a"}, 0) == []
    assert waiting.take().served == {"ann"}


def test_a_run_that_is_being_written_is_served_first() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "1")
    waiting.put("b", "2")
    run = waiting.take()
    assert [each.texts for each in waiting.serve("ben", {"a", "b"}, 0)] == [["1"], ["2"]]
    assert run.served == {"ben"}


def test_a_run_that_a_member_received_is_not_served_again() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "1")
    run = waiting.take()
    waiting.put("a", "2")
    assert [each.texts for each in waiting.serve("ann", {"a"}, run.number)] == [["2"]]


def test_a_run_that_was_written_is_not_served() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "1")
    waiting.take()
    waiting.finish()
    assert waiting.serve("ann", {"a"}, 0) == []
    assert not waiting


def test_a_message_after_a_served_run_starts_a_new_run() -> None:
    waiting: RunQueue[str] = RunQueue()
    waiting.put("a", "1")
    waiting.serve("ann", {"a"}, 0)
    waiting.put("a", "2")
    assert [waiting.take().texts for _ in range(2)] == [["1"], ["2"]]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.just("serve"), st.sampled_from(sorted(MEMBERS))),
        # Writes the current run to its next member, as fan-out does between two turns of the loop.
        st.just(("write", "")),
    ),
    max_size=80,
)


@given(steps=steps)
@settings(deadline=None)
def test_each_member_receives_everything_once_and_in_order(steps: list[tuple[str, str]]) -> None:
    waiting: RunQueue[str] = RunQueue()
    received: dict[str, list[str]] = {member: [] for member in MEMBERS}
    sent: dict[str, list[str]] = {member: [] for member in MEMBERS}
    last = dict.fromkeys(MEMBERS, 0)
    writing: Iterator[None] | None = None

    def write() -> Iterator[None]:
        run = waiting.take()
        for member, groups in MEMBERS.items():
            if run.group in groups and member not in run.served:
                received[member] += run.texts
                last[member] = run.number
                yield
        waiting.finish()

    def step_of_writing() -> None:
        nonlocal writing
        writing = writing or write()
        if next(writing, "done") == "done":
            writing = None

    for number, (step, which) in enumerate(steps):
        if step == "put":
            waiting.put(which, str(number))
            for member, groups in MEMBERS.items():
                if which in groups:
                    sent[member].append(str(number))
        elif step == "serve":
            for run in waiting.serve(which, MEMBERS[which], last[which]):
                received[which] += run.texts
            # No message to this member waits any more.
            assert received[which] == sent[which]
        elif waiting:
            step_of_writing()
    while waiting:
        step_of_writing()
    assert received == sent
    assert waiting.length == 0
