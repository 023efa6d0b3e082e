"""`realtime.waiting`: what one connection receives stays in order, whatever leaves together and when."""

from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.waiting import LONGEST_RUN, Waiting

MEMBERS = {"ann": {"a"}, "ben": {"a", "b"}, "cho": {"b", "c"}}


def test_messages_of_one_group_that_follow_each_other_leave_together() -> None:
    waiting: Waiting[str] = Waiting()
    for text in ("1", "2", "3"):
        waiting.put("a", text)
    assert waiting.take().texts == ["1", "2", "3"]
    assert not waiting


def test_a_message_of_another_group_ends_a_run() -> None:
    waiting: Waiting[str] = Waiting()
    for group, text in (("a", "1"), ("b", "2"), ("a", "3")):
        waiting.put(group, text)
    assert [waiting.take().texts for _ in range(3)] == [["1"], ["2"], ["3"]]


def test_a_run_does_not_grow_without_limit() -> None:
    waiting: Waiting[str] = Waiting()
    for _ in range(3):
        waiting.put("a", "x" * (LONGEST_RUN // 2 + 1))
    assert [len(waiting.take().texts) for _ in range(2)] == [2, 1]


def test_what_waits_is_counted() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.put("a", "12")
    waiting.put("b", "345")
    assert waiting.length == 5
    waiting.take()
    assert waiting.length == 3


def test_who_was_served_ahead_of_the_others_is_not_served_again() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.put("a", "1")
    assert [run.texts for run in waiting.serve("ann", {"a"})] == [["1"]]
    assert waiting.serve("ann", {"a"}) == []
    assert waiting.take().served == {"ann"}


def test_a_message_after_that_is_in_a_run_of_its_own() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.put("a", "1")
    waiting.serve("ann", {"a"})
    waiting.put("a", "2")
    assert [waiting.take().texts for _ in range(2)] == [["1"], ["2"]]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.just("serve"), st.sampled_from(sorted(MEMBERS))),
        st.just(("take", "")),
    ),
    max_size=60,
)


@given(steps=steps)
@settings(deadline=None)
def test_everybody_receives_everything_once_and_in_order(steps: list[tuple[str, str]]) -> None:
    waiting: Waiting[str] = Waiting()
    received: dict[str, list[str]] = {member: [] for member in MEMBERS}
    sent: dict[str, list[str]] = {member: [] for member in MEMBERS}

    def take() -> None:
        run = waiting.take()
        for member, groups in MEMBERS.items():
            if run.group in groups and member not in run.served:
                received[member] += run.texts

    for number, (step, which) in enumerate(steps):
        if step == "put":
            waiting.put(which, str(number))
            for member, groups in MEMBERS.items():
                if which in groups:
                    sent[member].append(str(number))
        elif step == "serve":
            for run in waiting.serve(which, MEMBERS[which]):
                received[which] += run.texts
            # Nothing that was sent to it waits any more.
            assert received[which] == sent[which]
        elif waiting:
            take()
    while waiting:
        take()
    assert received == sent
    assert waiting.length == 0
