"""A client that recovers holds live messages back until its join is answered, and keeps its own `since`."""

from realtime.history.positions import Position
from tests.support.clients.following import Following, Shown, given, shown


def at(offset: int, epoch: str = "a") -> Position:
    return Position(epoch, offset)


def message(offset: int, epoch: str = "a") -> Shown:
    return Shown(at(offset, epoch), ("s", offset))


def offsets(following: Following) -> list[int]:
    return [each.position.offset for each in shown(following.events)]


def connected(since: Position | None = None) -> Following:
    following = Following(since=since)
    following.connect()
    return following


def test_the_welcome_gives_the_first_position() -> None:
    following = connected()
    assert not following.welcome(at(3), 0.0)
    following.message(message(4))
    assert following.live
    assert (given(following.events)[0].position, following.since) == (at(3), at(4))


def test_a_welcome_without_a_position_has_the_client_join() -> None:
    following = connected()
    assert following.welcome(None, 0.0)
    assert following.ask() == {}
    following.joined(at(2), None, 0.0)
    assert following.since == at(2)


def test_what_was_recovered_comes_before_what_was_held_back() -> None:
    following = connected(at(1))
    assert following.welcome(at(3), 0.0)
    assert following.ask() == {"since": {"epoch": "a", "offset": 1}}
    following.message(message(4))
    following.message(message(5))
    following.joined(at(4), True, 0.0)
    for offset in (2, 3, 4, 6):
        assert following.live is (offset == 6)
        following.message(message(offset))
    assert offsets(following) == [2, 3, 4, 5, 6]
    assert (following.dropped, following.recoveries) == (1, [3])


def test_a_recovery_that_breaks_asks_for_the_rest() -> None:
    following = connected(at(1))
    following.ask()
    following.joined(at(4), True, 0.0)
    following.message(message(2))
    following.connect()
    assert following.ask() == {"since": {"epoch": "a", "offset": 2}}


def test_a_refusal_drops_what_was_held_up_to_its_position() -> None:
    following = connected(at(1))
    following.ask()
    following.message(message(8))
    following.message(message(9))
    following.joined(at(8), False, 0.0)
    assert [each.why for each in given(following.events)] == ["refused"]
    assert offsets(following) == [9]


def test_a_reset_before_the_answer_says_nothing() -> None:
    following = connected(at(1))
    following.ask()
    following.message(message(2))
    following.reset(at(0, "b"), 0.0)
    following.joined(at(1, "b"), False, 0.0)
    assert [(each.why, each.position) for each in given(following.events)] == [("refused", at(1, "b"))]
    assert offsets(following) == []


def test_a_reset_moves_since() -> None:
    following = connected()
    following.welcome(at(3), 0.0)
    following.reset(at(0, "b"), 0.0)
    following.message(message(1, "b"))
    assert following.since == at(1, "b")
    assert [each.why for each in given(following.events)] == ["joined", "reset"]


def test_an_answer_without_its_fields_breaks_the_protocol() -> None:
    following = connected(at(1))
    following.ask()
    following.joined(None, None, 0.0)
    following.joined(at(2), None, 0.0)
    assert len(following.broken) == 2
