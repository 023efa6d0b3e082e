"""`realtime.presence.picture`: the users of a group, from changes in any order and from readings."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from realtime.presence.picture import Change, Picture


def loaded(**stays: int) -> Picture:
    picture = Picture()
    picture.begin_reading()
    picture.read(stays)
    picture.take_as_told()
    return picture


def test_users_are_named_in_the_order_in_which_they_came():
    picture = loaded(anne=1, bob=2, carl=3)

    assert picture.users(10) == ["anne", "bob", "carl"]
    assert picture.users(2) == ["anne", "bob"]
    assert picture.users(0) == []
    assert (len(picture), picture.sum_of_ids) == (3, 6)

    picture.ended("anne", 1)
    picture.began("anne", 4)
    assert picture.users(10) == ["bob", "carl", "anne"]


def test_a_change_is_taken_once():
    picture = loaded(anne=1)
    picture.began("bob", 2)
    picture.ended("anne", 1)

    assert picture.has_change
    assert picture.take_change(10) == Change(["bob"], ["anne"])
    assert not picture.has_change
    assert picture.take_change(10) == Change([], [])


def test_a_user_who_came_and_left_in_between_is_no_change():
    picture = loaded(anne=1)
    picture.began("bob", 2)
    picture.ended("bob", 2)
    picture.ended("anne", 1)
    picture.began("anne", 3)

    assert not picture.has_change
    assert picture.users(10) == ["anne"]


@pytest.mark.parametrize("user", ["anne", "bob"])
def test_a_member_is_told_that_a_change_that_it_knew_is_undone(user: str):
    picture = loaded(anne=1)
    changes = [lambda: picture.ended(user, 1), lambda: picture.began(user, 2), lambda: picture.ended(user, 2)]
    changes = changes[:2] if user == "anne" else changes[1:]
    changes[0]()
    seen = set(picture.users(10))
    picture.show()
    changes[1]()

    change = picture.take_change(10)

    assert (seen | set(change.joined)) - set(change.left) == {"anne"}
    picture.ended("anne", 2)
    picture.began("anne", 3)
    assert not picture.has_change


def test_a_large_change_is_taken_in_parts():
    picture = Picture()
    for number in range(5):
        picture.began(str(number), number + 1)

    parts = [picture.take_change(2).joined for _ in range(3)]

    assert parts == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([("ended", 1), ("began", 1)], id="the end before the beginning"),
        pytest.param([("began", 1), ("began", 1), ("ended", 1), ("ended", 1)], id="all twice"),
        pytest.param([("began", 1), ("ended", 1), ("began", 1)], id="the beginning repeated"),
        pytest.param([("began", 2), ("ended", 2), ("began", 1)], id="an earlier stay, late"),
    ],
)
def test_a_stay_that_ended_does_not_begin_again(events: list[tuple[str, int]]):
    picture = Picture()
    for kind, id in events:
        getattr(picture, kind)("anne", id)

    assert picture.users(10) == []


def test_the_end_of_an_earlier_stay_does_not_end_the_later_one():
    picture = loaded(anne=7)
    picture.ended("anne", 5)

    assert picture.users(10) == ["anne"]


def test_a_reading_repairs_what_was_lost():
    picture = loaded(anne=1, bob=2)
    picture.begin_reading()
    picture.read({"carl": 3, "bob": 4})

    assert picture.users(10) == ["carl", "bob"]
    assert picture.sum_of_ids == 7
    assert picture.take_change(10) == Change(["carl"], ["anne"])


def test_a_change_during_a_reading_is_newer_than_the_rows():
    picture = loaded(anne=1)
    picture.begin_reading()
    picture.ended("anne", 1)
    picture.began("bob", 2)
    picture.read({"anne": 1})

    assert picture.users(10) == ["bob"]


def test_the_ends_of_stays_are_not_remembered_for_ever():
    picture = Picture()
    picture.ended("anne", 1)
    for _ in range(2):
        assert picture._ended or picture._ended_before
        picture.age()

    assert not picture._ended
    assert not picture._ended_before


class Delivery(RuleBasedStateMachine):
    """Stays of a few users in the rows, told in any order, any number of times, or not at all."""

    on_their_way = Bundle("on_their_way")

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, int] = {}
        self.next_id = 1
        self.picture = Picture()
        self.snapshot: dict[str, int] | None = None
        self.complete = True
        """False if a change was not told yet, and no reading has followed it."""
        self.untold: set[tuple[str, str, int]] = set()
        self.members: list[set[str]] = [set()]
        """The users that each member knows."""

    @rule(target=on_their_way, user=st.sampled_from("abc"))
    def come_or_leave(self, user: str) -> tuple[str, str, int]:
        """Write the rows. The process is told later."""
        if user in self.rows:
            change = "ended", user, self.rows.pop(user)
        else:
            change = "began", user, self.next_id
            self.rows[user] = self.next_id
            self.next_id += 1
        self.untold.add(change)
        return change

    @rule(change=consumes(on_their_way))
    def tell(self, change: tuple[str, str, int]) -> None:
        self._tell(change)

    @rule(change=on_their_way)
    def tell_and_repeat_later(self, change: tuple[str, str, int]) -> None:
        self._tell(change)

    def _tell(self, change: tuple[str, str, int]) -> None:
        kind, user, id = change
        getattr(self.picture, kind)(user, id)
        self.untold.discard(change)

    @rule()
    def age(self) -> None:
        self.picture.age()

    @rule()
    def begin_reading(self) -> None:
        self.picture.begin_reading()
        self.snapshot = dict(self.rows)

    @rule()
    def read(self) -> None:
        if self.snapshot is not None:
            self.picture.read(self.snapshot)
            self.snapshot = None

    @rule(limit=st.integers(1, 3))
    def tell_members(self, limit: int) -> None:
        change = self.picture.take_change(limit)
        for user in change.joined:
            assert any(user not in known for known in self.members), "a user came twice"
        for user in change.left:
            assert any(user in known for known in self.members), "a user left who was not there"
        assert not set(change.joined).intersection(change.left)
        self.members = [(known | set(change.joined)) - set(change.left) for known in self.members]

    @rule()
    def join(self) -> None:
        """One more member, which is told all users."""
        self.members.append(set(self.picture.users(10)))
        self.picture.show()

    @invariant()
    def the_sum_is_that_of_the_users(self) -> None:
        assert self.picture.sum_of_ids == sum(self.picture._stays.values())

    @invariant()
    def members_know_all_except_the_rest(self) -> None:
        users = set(self.picture.users(10))
        differing = set[str]().union(*(known ^ users for known in self.members))
        assert differing == set(self.picture._untold)

    def teardown(self) -> None:
        """Read: if changes were lost on the way, the picture is that of the rows now."""
        self.picture.begin_reading()
        self.picture.read(dict(self.rows))
        assert self.picture._stays == self.rows
        while self.picture.has_change:
            self.tell_members(2)
        assert all(known == set(self.rows) for known in self.members)


TestDelivery: Any = Delivery.TestCase
