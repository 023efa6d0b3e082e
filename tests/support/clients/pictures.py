"""The users in groups as one client knows them, by the rules of the protocol `realtime.v1`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: Names in one frame, at most.
LIMIT = 1000

Frame = dict[str, Any]


@dataclass(slots=True)
class Picture:
    """The users in one group, from the answer to a join and from the changes after it."""

    users: set[str]
    anonymous: int
    total: int
    """The number of users, as the server says. More than `users` if the answer did not name all of them."""
    joined: Counter[str] = field(default_factory=Counter)
    """For each user, the number of changes that said that the user joined."""
    left: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    """The number of changes."""
    said_again: list[str] = field(default_factory=list)
    """Users who joined although they were here, or left although they were not."""

    @classmethod
    def of(cls, present: Frame) -> "Picture":
        """Return the picture that the answer to a join gives."""
        return cls(set(present["users"]), present["anonymous"], present["total"])

    def change(self, frame: Frame) -> None:
        """Take a frame `presence` without `ref`."""
        joined, left = frame.get("joined", ()), frame.get("left", ())
        self.frames += 1
        self.joined.update(joined)
        self.left.update(left)
        self.said_again += [user for user in joined if user in self.users]
        # A user whom the answer to the join did not name may leave as well.
        if len(self.users) == self.total:
            self.said_again += [user for user in left if user not in self.users]
        self.users.update(joined)
        self.users.difference_update(left)
        self.anonymous, self.total = frame["anonymous"], frame["total"]


class Pictures:
    """The pictures of all groups that a client has joined with `"presence": true`."""

    def __init__(self) -> None:
        self.of: dict[str, Picture] = {}
        self.broken: list[str] = []
        """Sentences about frames that break the protocol."""

    def take(self, frame: Frame) -> None:
        """Take any frame that the server sent."""
        match frame["type"]:
            case "joined" if (present := frame.get("presence")) is not None:
                self._check(frame, present["users"])
                self.of[frame["group"]] = Picture.of(present)
            case "left":
                self.of.pop(frame["group"], None)
            case "presence" if "ref" not in frame:
                self._check(frame, [*frame.get("joined", ()), *frame.get("left", ())])
                if (picture := self.of.get(frame["group"])) is None:
                    self.broken.append(f"a change in a group that is not watched: {_short(frame)}")
                else:
                    picture.change(frame)

    def _check(self, frame: Frame, names: list[str]) -> None:
        if len(set(names)) != len(names):
            self.broken.append(f"a name twice: {_short(frame)}")
        if len(names) > LIMIT:
            self.broken.append(f"{len(names)} names: {_short(frame)}")


Seen = tuple[str, tuple[str, ...], int, int]
"""A picture as a value: the group, its users in order, its anonymous connections, the total."""


def seen(pictures: Iterable[Pictures]) -> Counter[Seen]:
    """Count the clients that have each picture."""
    return Counter(
        (group, tuple(sorted(each.users)), each.anonymous, each.total)
        for some in pictures
        for group, each in some.of.items()
    )


def _short(frame: Frame) -> str:
    return str(frame)[:300]
