"""A comparison of all that know who is in a group: they must agree exactly."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from tests.support.assertions.eventually import NeverHappened
from tests.support.clients.pictures import Seen
from tests.support.programs.site import Site

Pictures = Iterable[tuple[Seen, int]]
"""Pictures, each with the number of clients that have it."""

_MEMBERSHIPS = (
    'SELECT "group" AS name, user_id FROM realtime_membership WHERE left_at IS NULL AND NOT connection_closed'
)
_CONNECTIONS = "SELECT DISTINCT user_id FROM realtime_connection WHERE closed_at IS NULL AND user_id <> ''"
_EVER = "SELECT DISTINCT user_id FROM realtime_connection WHERE user_id <> ''"
_PRESENT = 'SELECT "group" AS name, user_id FROM realtime_presentuser WHERE left_at IS NULL'
_ASK = """
import json, sys
from realtime.presence import is_online, presence
groups, users = json.loads({about!r})
found = [presence(group) for group in groups]
print(json.dumps([
    [[each.group, sorted(each.users), each.anonymous, each.total] for each in found],
    [user for user in users if is_online(user)],
]))
"""


@dataclass(frozen=True, slots=True)
class Present:
    """The numbers on which all agree."""

    online: int
    """Users with an open connection; also the rows of users online, and the users for `is_online()`."""
    places: int
    """Pairs of a user and a group, in memberships, in rows, in `presence()` and in pictures."""
    anonymous: int
    """Pairs of an anonymous connection and a group."""
    pictures: int
    """Pictures that clients have."""


def from_memberships(site: Site) -> dict[str, Seen]:
    """Return the picture of each group that follows from the open memberships, which are the truth."""
    users: dict[str, set[str]] = defaultdict(set)
    anonymous: dict[str, int] = defaultdict(int)
    for row in site.database.query(_MEMBERSHIPS):
        if row["user_id"]:
            users[row["name"]].add(row["user_id"])
        else:
            anonymous[row["name"]] += 1
    return {
        group: (group, tuple(sorted(users[group])), anonymous[group], len(users[group]))
        for group in {*users, *anonymous}
    }


def rows_agree(site: Site) -> dict[str, Seen]:
    """Check that the rows of presence agree with memberships and connections, and return the pictures."""
    expected = from_memberships(site)
    online = {row["user_id"] for row in site.database.query(_CONNECTIONS)}
    rows = {(row["name"], row["user_id"]) for row in site.database.query(_PRESENT)}
    wanted = {(group, user_id) for group, users, *_ in expected.values() for user_id in users}
    wanted |= {("", user_id) for user_id in online}
    assert rows == wanted, f"rows of presence without memberships: {rows - wanted}, missing: {wanted - rows}"
    return expected


def pictures_agree(expected: dict[str, Seen], pictures: Pictures) -> int:
    """Check that all pictures of clients are the expected ones, and return their number."""
    found = list(pictures)
    wrong = [
        f"{clients} clients see {seen}, expected {expected.get(seen[0])}"
        for seen, clients in found
        if expected.get(seen[0]) != seen
    ]
    assert not wrong, "; ".join(wrong)
    return sum(clients for _, clients in found)


async def functions_agree(site: Site, expected: dict[str, Seen], groups: Iterable[str] = ()) -> int:
    """Check that `presence()` and `is_online()` agree in a process of their own.

    Args:
        site: The site.
        expected: The picture of each group.
        groups: More groups, without users.

    Returns:
        The number of users online.
    """
    online = sorted(row["user_id"] for row in site.database.query(_CONNECTIONS))
    users = sorted({*online, *(row["user_id"] for row in site.database.query(_EVER)), "no such user"})
    about = json.dumps([sorted({*expected, *groups}), users])
    done = await site.amanage("shell", "-c", _ASK.format(about=about))
    assert done.returncode == 0, done.stderr
    answers, are_online = json.loads(done.stdout.strip().splitlines()[-1])
    for group, who, anonymous, total in answers:
        answer = (group, tuple(who), anonymous, total)
        assert answer == expected.get(group, (group, (), 0, 0)), f"presence() says {answer}"
    assert are_online == online, f"is_online() is true for {are_online}, connections are open of {online}"
    return len(online)


async def all_agree(
    site: Site, pictures: Callable[[], Awaitable[Pictures]], groups: Iterable[str] = (), *, within: float
) -> Present:
    """Wait until memberships, rows, pictures of clients, `presence()` and `is_online()` agree.

    Args:
        site: The site. No client comes or leaves any more.
        pictures: Returns the pictures of all clients.
        groups: Groups that may be empty.
        within: Seconds; longer than PRESENCE_GRACE.

    Raises:
        NeverHappened: They do not agree in time; the message has the last difference.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            expected = rows_agree(site)
            clients = pictures_agree(expected, await pictures())
            online = await functions_agree(site, expected, groups)
        except (AssertionError, OSError) as error:
            if time.monotonic() > deadline:
                raise NeverHappened(f"no agreement after {within} s: {error}") from error
            await asyncio.sleep(0.5)
            continue
        places = sum(total for *_, total in expected.values())
        anonymous = sum(number for _, _, number, _ in expected.values())
        return Present(online, places, anonymous, clients)
