"""The pictures that clients of tests keep of the users in groups."""

from typing import Any

from tests.support.clients.pictures import LIMIT, Picture, Pictures, seen

GROUP = "public.room"


def joined(*users: str, anonymous: int = 0, total: int | None = None) -> dict[str, Any]:
    present = {"users": [*users], "anonymous": anonymous, "total": len(users) if total is None else total}
    return {"type": "joined", "ref": 1, "group": GROUP, "presence": present}


def change(total: int, anonymous: int = 0, **names: list[str]) -> dict[str, Any]:
    return {"type": "presence", "group": GROUP, "anonymous": anonymous, "total": total, **names}


def after(*frames: dict[str, Any]) -> Pictures:
    pictures = Pictures()
    for each in frames:
        pictures.take(each)
    return pictures


def picture(*frames: dict[str, Any]) -> Picture:
    return after(*frames).of[GROUP]


def test_the_answer_to_a_join_begins_a_picture() -> None:
    found = picture(joined("1", "2", anonymous=3))
    assert (found.users, found.anonymous, found.total) == ({"1", "2"}, 3, 2)


def test_changes_add_and_remove_users() -> None:
    found = picture(joined("1"), change(2, joined=["2", "3"], left=["1"]), change(1, 4, left=["3"]))
    assert (found.users, found.anonymous, found.total, found.frames) == ({"2"}, 4, 1, 2)
    assert found.said_again == []


def test_a_change_that_is_told_twice_is_noted() -> None:
    found = picture(joined("1"), *[change(1, joined=["2"], left=["1"])] * 2)
    assert found.users == {"2"}
    assert found.said_again == ["2", "1"]


def test_a_user_whom_the_snapshot_did_not_name_may_leave() -> None:
    found = picture(joined("1", total=2), change(1, left=["9"]))
    assert (found.users, found.said_again) == ({"1"}, [])


def test_a_second_join_begins_the_picture_anew() -> None:
    found = picture(joined("1"), change(2, joined=["2"]), joined("3"))
    assert (found.users, found.frames) == ({"3"}, 0)


def test_a_picture_ends_with_the_membership() -> None:
    found = after(joined("1"), {"type": "left", "ref": 2, "group": GROUP})
    assert found.of == {}
    assert found.broken == []


def test_an_answer_to_a_question_changes_no_picture() -> None:
    answer = {"type": "presence", "ref": 4, "group": GROUP, "users": [], "anonymous": 0, "total": 0}
    assert picture(joined("1"), answer).users == {"1"}


def test_frames_that_break_the_protocol_are_noted() -> None:
    for frame in (
        change(1, joined=["1"], left=["1"]),
        change(1, joined=["1", "1"]),
        change(LIMIT + 1, joined=[str(number) for number in range(LIMIT + 1)]),
    ):
        assert after(joined(), frame).broken, frame
    assert after(change(1, joined=["1"])).broken
    assert after(joined(), change(1, joined=["1"])).broken == []


def test_equal_pictures_of_clients_are_counted_together() -> None:
    clients = [after(joined("1", "2")), after(joined("2", "1")), after(joined("1", anonymous=1))]
    assert seen(clients) == {(GROUP, ("1", "2"), 0, 2): 2, (GROUP, ("1",), 1, 1): 1}
