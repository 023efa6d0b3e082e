"""The connections that hold places within limits: those of one process, counted by subject.

A *subject* is one user, or one network. A *place* is what a connection takes of the limit of a subject. A
client that names itself by an id may have two connections for a moment: a new one, and one that it lost and
that the server still takes for open. Both together need one place. A third one needs another place.
"""

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

#: A subject; or for a client with an id, its subject and the id.
# Most anonymous clients have no id, and one address each: a tuple for each would take more memory.
Place: TypeAlias = str | tuple[str, str]

Key = TypeVar("Key", str, tuple[str, str])


def subject_of(place: Place) -> str:
    """Return the subject of a place."""
    return place if isinstance(place, str) else place[0]


def client_of(place: Place) -> str:
    """Return the id of the client; empty if it gave none."""
    return "" if isinstance(place, str) else place[1]


def cost(client: str, connections: int) -> int:
    """Return the places that one more connection needs.

    Args:
        client: The id of its client; empty if it has none.
        connections: The connections that this client has already.
    """
    return 0 if client and connections == 1 else 1


class Counts:
    """The connections of one process, by place."""

    def __init__(self) -> None:
        self._plain: dict[str, int] = {}
        self._named: dict[tuple[str, str], int] = {}
        self._of_named: dict[str, int] = {}
        """The places that clients with an id need together, by subject."""

    def __len__(self) -> int:
        return len(self._plain) + len(self._named)

    def number(self, place: Place) -> int:
        """Return the number of connections."""
        return self._plain.get(place, 0) if isinstance(place, str) else self._named.get(place, 0)

    def cost(self, place: Place) -> int:
        """Return the places of the subject that one more connection needs."""
        return cost(client_of(place), self.number(place))

    def taken(self, subject: str) -> int:
        """Return the places of a subject that are taken."""
        return self._plain.get(subject, 0) + self._of_named.get(subject, 0)

    def add(self, place: Place) -> None:
        """Count one more connection."""
        if isinstance(place, str):
            _change(self._plain, place, 1)
        else:
            needed = self.cost(place)
            _change(self._named, place, 1)
            _change(self._of_named, place[0], needed)

    def remove(self, place: Place) -> None:
        """Count one connection less."""
        if isinstance(place, str):
            _change(self._plain, place, -1)
        else:
            _change(self._named, place, -1)
            _change(self._of_named, place[0], -self.cost(place))

    def places(self) -> Iterator[Place]:
        """Iterate over the places that are taken."""
        yield from self._plain
        yield from self._named


def _change(numbers: dict[Key, int], key: Key, by: int) -> None:
    number = numbers.get(key, 0) + by
    if number:
        numbers[key] = number
    else:
        numbers.pop(key, None)
