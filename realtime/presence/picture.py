"""The users of one group, as a process knows them from reading and from what it is told.

Changes come from several processes, so two of them may arrive in the wrong order, twice, or not at all. The
ids of stays decide: a user's stay with a higher id is the later one. A later reading repairs what was lost.
"""

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple


class Change(NamedTuple):
    """The users who came and left since the last change. No user is in both."""

    joined: list[str]
    left: list[str]


class Picture:
    """The users of one group, and the part of that which members were not told yet."""

    def __init__(self) -> None:
        self._stays: dict[str, int] = {}
        self._sum = 0
        # The last stays that ended, in case their beginning is told later. Two generations, so that an entry
        # lives for at least the time between two calls of `age`, and not for ever.
        self._ended: dict[str, int] = {}
        self._ended_before: dict[str, int] = {}
        # The users of whom a change came since the current reading began; None if there is none.
        self._changed_since: set[str] | None = None
        # The users that members were told of otherwise, or not at all.
        self._untold: dict[str, None] = {}
        # Those of them whose presence a later member knows, which the others do not know yet.
        self._shown: set[str] = set()

    def __len__(self) -> int:
        return len(self._stays)

    @property
    def sum_of_ids(self) -> int:
        """The sum of the ids of all stays."""
        return self._sum

    @property
    def has_change(self) -> bool:
        """True if members were not told of all users yet."""
        return bool(self._untold)

    def users(self, limit: int) -> list[str]:
        """Return the first users in the order of their arrival, at most `limit`.

        More precisely, this process learned of them in this order. To sort ten thousand users for each client
        that joins would take longer than the rest of the join.
        """
        return list(islice(self._stays, limit))

    # -- what is told ------------------------------------------------------------------------------------

    def began(self, user: str, id: int) -> None:
        """Note that a stay began."""
        self._note(user)
        ended = max(self._ended.get(user, 0), self._ended_before.get(user, 0))
        if id > max(ended, self._stays.get(user, 0)):
            self._set(user, id)

    def ended(self, user: str, id: int) -> None:
        """Note that a stay ended."""
        self._note(user)
        self._ended[user] = max(id, self._ended.get(user, 0))
        if user in self._stays and self._stays[user] <= id:
            self._remove(user)

    def _note(self, user: str) -> None:
        if self._changed_since is not None:
            self._changed_since.add(user)

    # -- what is read ------------------------------------------------------------------------------------

    def begin_reading(self) -> None:
        """Note that the rows are about to be read. Changes that come meanwhile are newer than the rows."""
        self._changed_since = set()

    def age(self) -> None:
        """Forget the stays that had ended when this was called before. Call it now and then."""
        self._ended_before, self._ended = self._ended, {}

    def read(self, stays: Mapping[str, int]) -> None:
        """Take over the rows that were read, except of users who have changed since the reading began.

        Args:
            stays: The id of the stay of each user, in the order of the ids.
        """
        changed, self._changed_since = self._changed_since or set(), None
        for user in [user for user in self._stays if user not in stays and user not in changed]:
            self._remove(user)
        for user, id in stays.items():
            if user not in changed:
                if self._stays.get(user) != id:
                    self._set(user, id)
            else:
                # It may have changed before the reading after all. Its stay with the higher id counts.
                self.began(user, id)

    # -- what members are told ----------------------------------------------------------------------------

    def show(self) -> None:
        """Note that one more member knows all users now.

        A change that was not told yet is told in any case, because this member knows it: if it is undone
        before that, this member must be told so.
        """
        self._shown.update(self._untold)

    def take_change(self, limit: int) -> Change:
        """Return what members were not told yet, and take it for told.

        Args:
            limit: The largest number of users. The rest is left for the next change.
        """
        some = list(self._untold)[:limit]
        for user in some:
            del self._untold[user]
        self._shown.difference_update(some)
        joined = sorted((user for user in some if user in self._stays), key=self._stays.__getitem__)
        return Change(joined, [user for user in some if user not in self._stays])

    def take_as_told(self) -> None:
        """Take everything for told, because there are no members yet."""
        self._untold.clear()
        self._shown.clear()

    def _set(self, user: str, id: int) -> None:
        # Removed first, so that a later stay has its place behind the others.
        before = self._stays.pop(user, None)
        self._stays[user] = id
        self._sum += id - (before or 0)
        if before is None:
            self._toggle(user)

    def _remove(self, user: str) -> None:
        self._sum -= self._stays.pop(user)
        self._toggle(user)

    def _toggle(self, user: str) -> None:
        """Note that the presence of a user has changed. A second change undoes the first one, unless a member
        knows the first one.
        """
        if user not in self._untold:
            self._untold[user] = None
        elif user not in self._shown:
            del self._untold[user]
