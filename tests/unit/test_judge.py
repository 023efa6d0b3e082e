"""The judge of recovery finds every broken rule, and excuses only what a client was told."""

import pytest

from realtime.history.positions import Position
from tests.support.assertions.judge import Publication, Verdict, judge
from tests.support.clients.following import Event, Given, Shown

GROUP = "public.one"


def at(epoch: str, offset: int) -> Position:
    return Position(epoch, offset)


def published(*numbers: int, epoch: str = "a", attempts: int = 1) -> list[Publication]:
    """Each number has the offset that is one above it."""
    return [
        Publication(GROUP, ("s", number), at(epoch, number + 1), at=number, attempts=attempts)
        for number in numbers
    ]


def shown(number: int, epoch: str = "a", offset: int | None = None, when: float = 0.0) -> Shown:
    return Shown(at(epoch, number + 1 if offset is None else offset), ("s", number), when)


def given(epoch: str, offset: int, why: str = "reset", when: float = 0.0) -> Given:
    return Given(at(epoch, offset), why, when)


def verdict(publications: list[Publication], *events: Event) -> Verdict:
    return judge(publications, {"c": {GROUP: events}})


FIRST = given("a", 0, "joined")


def test_everything_in_order_is_whole() -> None:
    found = verdict(published(0, 1, 2), FIRST, shown(0), shown(1), shown(2))
    assert found.whole
    assert (found.shown, found.gaps, found.covered) == (3, 0, 0)


def test_messages_before_the_first_join_are_not_missed() -> None:
    assert verdict(published(0, 1, 2), given("a", 2, "joined"), shown(2)).whole


def test_a_hole_and_a_missing_end_are_lost() -> None:
    assert len(verdict(published(0, 1, 2), FIRST, shown(0), shown(2)).lost) == 1
    assert len(verdict(published(0, 1, 2), FIRST, shown(0)).lost) == 2


def test_a_hole_without_a_publication_is_lost_too() -> None:
    found = verdict(published(0, 2), FIRST, shown(0), shown(2))
    assert "no publish that returned" in found.lost[0]


def test_a_message_that_no_publish_returned_may_be_shown() -> None:
    assert verdict(published(0, 2), FIRST, shown(0), shown(1), shown(2)).whole


@pytest.mark.parametrize("again", [0, 1])
def test_a_message_that_is_shown_twice_is_doubled(again: int) -> None:
    found = verdict(published(0, 1), FIRST, shown(0), shown(1), shown(again))
    assert len(found.doubled) == 1


def test_an_earlier_message_after_a_later_one_is_out_of_order() -> None:
    found = verdict(published(0, 1, 2), FIRST, shown(0), shown(2), shown(1))
    assert len(found.out_of_order) == 2, "of its source, and of its offset"


def test_a_source_that_overtakes_itself_is_out_of_order() -> None:
    swapped = [Publication(GROUP, ("s", 1), at("a", 1)), Publication(GROUP, ("s", 0), at("a", 2))]
    found = judge(swapped, {"c": {GROUP: [FIRST, shown(1, offset=1), shown(0, offset=2)]}})
    assert len(found.out_of_order) == 1


def test_a_reset_covers_what_was_not_shown() -> None:
    publications = [*published(0, 1, 2), Publication(GROUP, ("s", 3), at("b", 1), at=9.0)]
    found = verdict(publications, FIRST, shown(0), given("b", 0, when=8.0), shown(3, "b", 1, 9.0))
    assert found.whole
    assert (found.gaps, found.covered) == (1, 2)


def test_a_refusal_covers_only_what_is_before_its_position() -> None:
    events = [FIRST, shown(0), given("a", 3, "refused"), shown(4)]
    found = verdict(published(0, 1, 2, 3, 4), *events)
    assert (found.covered, len(found.lost)) == (2, 1)


def test_an_epoch_that_changes_without_loss_needs_no_reset() -> None:
    publications = [*published(0, 1), Publication(GROUP, ("s", 2), at("b", 3), at=5.0)]
    assert verdict(publications, FIRST, shown(0), shown(1), shown(2, "b", 3, 5.0)).whole


def test_a_message_recovered_in_a_later_epoch_is_the_same() -> None:
    publications = [*published(0, 1), Publication(GROUP, ("s", 2), at("b", 3), at=5.0)]
    assert verdict(publications, FIRST, shown(0), shown(1, "b", 2, 5.0), shown(2, "b", 3, 5.0)).whole


def test_a_fork_covers_what_only_the_old_redis_had() -> None:
    publications = [*published(0, 1, 2), Publication(GROUP, ("s", 3), at("b", 2), at=9.0)]
    behind = [FIRST, shown(0), given("b", 1, when=8.0), shown(3, "b", 2, 9.0)]
    ahead = [FIRST, shown(0), shown(1), shown(2), given("b", 1, when=8.0), shown(3, "b", 2, 9.0)]
    found = judge(publications, {"behind": {GROUP: behind}, "ahead": {GROUP: ahead}})
    assert found.whole
    assert (found.gaps, found.covered) == (2, 2)


def test_a_repeated_publish_may_be_shown_again_after_a_reset() -> None:
    again = Publication(GROUP, ("s", 0), at("b", 1), at=9.0, attempts=2)
    events = [FIRST, shown(0), given("b", 0, when=8.0), shown(0, "b", 1, 9.0)]
    found = verdict([again], *events)
    assert found.whole
    assert found.repeated == 1
    once = Publication(GROUP, ("s", 0), at("b", 1), at=9.0)
    assert len(verdict([once], *events).doubled) == 1


def test_a_message_at_another_position_has_moved() -> None:
    assert len(verdict(published(0), FIRST, shown(5, offset=1)).moved) == 0, "an unknown message"
    other = [Publication(GROUP, ("s", 0), at("a", 2))]
    assert len(verdict(other, FIRST, shown(0, offset=1)).moved) == 1


def test_two_messages_at_one_position_have_moved() -> None:
    logs = {"one": {GROUP: [FIRST, shown(0)]}, "two": {GROUP: [FIRST, shown(7, offset=1)]}}
    assert len(judge(published(0), logs).moved) == 1
