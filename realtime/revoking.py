"""End connections, and have rights read again, from anywhere in a project.

Django's own signals of logouts, users, groups and permissions do both without your code
(`realtime.user_events`). Call these functions for rights that Django does not know, such as the members of a
room in a table of yours.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from realtime.closing import CloseReason
from realtime.errors import LayerUnavailable, NoSuchLayer
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS
from realtime.process import background_loop
from realtime.records import connection_rows, process_rows, rows, transactions
from realtime.records.connection_rows import Held

__all__ = ["adisconnect", "arecheck", "disconnect", "recheck"]

#: The number of ids in one message to a process, about 40 KB.
PER_MESSAGE = 1_000


async def adisconnect(
    *,
    user: object = None,
    group: str | None = None,
    connection: object = None,
    reason: CloseReason = CloseReason.KICKED,
) -> int:
    """Ask the processes to close open connections: those that fulfil all conditions that are given.

    A connection that is in its handshake during the call may not be found. So take the right to connect away
    first, for example by a logout, and then call this function.

    Args:
        user: A user, or the primary key of one.
        group: The name of a group. The connections are members of it.
        connection: The id of a connection, as a UUID or as text.
        reason: Gives the close code, and the text of the goodbye frame.

    Returns:
        The number of connections that processes were asked to close. They close them soon.

    Raises:
        TypeError: There is no condition.
        ValueError: The user is anonymous or not saved, the key is empty, or the id is no UUID.
        BadGroup: No group can have this name.
        LayerUnavailable: A process could not be asked. Its connections stay open until you call again: rounds
            do not repeat the call.
        django.db.Error: The database cannot be reached.
    """
    chosen = _chosen(user, group, connection)
    kicks = _Kicks(await transactions.call(connection_rows.open_connections_with, *chosen), reason)
    return kicks.told(await _tell_all(kicks.messages()))


def disconnect(
    *,
    user: object = None,
    group: str | None = None,
    connection: object = None,
    reason: CloseReason = CloseReason.KICKED,
) -> int:
    """Do what `adisconnect` does, from synchronous code.

    Args:
        user: A user, or the primary key of one.
        group: The name of a group. The connections are members of it.
        connection: The id of a connection, as a UUID or as text.
        reason: Gives the close code, and the text of the goodbye frame.

    Returns:
        The number of connections that processes were asked to close. They close them soon.

    Raises:
        TypeError: There is no condition.
        ValueError: The user is anonymous or not saved, the key is empty, or the id is no UUID.
        BadGroup: No group can have this name.
        LayerUnavailable: A process could not be asked. Its connections stay open until you call again: rounds
            do not repeat the call.
        django.db.Error: The database cannot be reached.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    background_loop.require_blocking("disconnect", "adisconnect")
    chosen = _chosen(user, group, connection)
    kicks = _Kicks(connection_rows.open_connections_with(*chosen), reason)
    return kicks.told(_tell_all_now(kicks.messages()))


async def arecheck(*, user: object = None, group: str | None = None) -> None:
    """Have rights read again in all processes, and the policy asked again about joined groups.

    Users that were deactivated or deleted lose their connections. Members that the policy does not allow any
    more are removed from their groups. Without a condition, this is done for all users and groups.

    Args:
        user: A user, or the primary key of one.
        group: The name of a group. Only its members are asked about, and only that group.

    Raises:
        ValueError: The user is anonymous or not saved, or the key is empty.
        BadGroup: No group can have this name.
        LayerUnavailable: A process could not be asked. Rounds find changes of Django's own users, groups and
            permissions. For changes that only the policy knows, call again.
        django.db.Error: The database cannot be reached.
    """
    question = _recheck(user, group)
    addresses = await transactions.call(_addresses, question)
    _require_told(await _tell_all([dict.fromkeys(addresses, question)]))


def recheck(*, user: object = None, group: str | None = None) -> None:
    """Do what `arecheck` does, from synchronous code.

    Args:
        user: A user, or the primary key of one.
        group: The name of a group. Only its members are asked about, and only that group.

    Raises:
        ValueError: The user is anonymous or not saved, or the key is empty.
        BadGroup: No group can have this name.
        LayerUnavailable: A process could not be asked. Rounds find changes of Django's own users, groups and
            permissions. For changes that only the policy knows, call again.
        django.db.Error: The database cannot be reached.
        RealtimeError: The caller runs on an event loop, or in a callback of the hub of gevent or eventlet,
            and would block it.
    """
    background_loop.require_blocking("recheck", "arecheck")
    question = _recheck(user, group)
    _require_told(_tell_all_now([dict.fromkeys(_addresses(question), question)]))


def kick(connections: Mapping[str, Sequence[UUID]], reason: CloseReason) -> dict[str, LayerUnavailable]:
    """Ask processes to close connections, from synchronous code in a thread without an event loop.

    The function does not wait until the processes have closed them.

    Args:
        connections: The ids of the connections, by the address of the living process that holds them.
        reason: Gives the close code, and the text of the goodbye frame.

    Returns:
        The addresses of the processes that could not be asked, each with the reason.
    """
    return _tell_all_now(
        [{address: messages.Kick(ids, [], reason.value) for address, ids in connections.items()}]
    )


# -- conditions ----------------------------------------------------------------------------------------


def _chosen(
    user: object, group: str | None, connection: object
) -> tuple[str | None, str | None, UUID | None]:
    """Check the conditions of `disconnect`, and return them as the columns of records have them."""
    if user is None and group is None and connection is None:
        # Without conditions it would be every connection, which is nearly always a None by mistake.
        raise TypeError("disconnect() needs a condition: user, group or connection.")
    if group is not None:
        groups.require_valid(group)
    found = None
    if connection is not None:
        found = connection if isinstance(connection, UUID) else UUID(str(connection))
    groups.layer()
    return None if user is None else rows.user_key(user), group, found


def _recheck(user: object, group: str | None) -> messages.Recheck:
    if group is not None:
        groups.require_valid(group)
    groups.layer()
    return messages.Recheck(
        users=None if user is None else [rows.user_key(user)], groups=None if group is None else [group]
    )


def _addresses(question: messages.Recheck) -> list[str]:
    """Return the addresses of the processes that a recheck concerns.

    Connections of one user are found by their records; a process reads the rights of a connection again when
    its record is committed, so one that is in its handshake is missed by no recheck. An anonymous connection
    is checked by no process of its own accord. So without a user all processes are asked.
    """
    if question.users is None:
        return process_rows.addresses()
    return process_rows.addresses_of_users(question.users)


# -- messages ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kicks:
    """Connections to close, and the processes that hold them."""

    held: Sequence[Held]
    reason: CloseReason

    def messages(self) -> list[dict[str, messages.Control]]:
        """Return the messages in turns: a process may need several."""
        ids: dict[str, list[UUID]] = defaultdict(list)
        for each in self.held:
            ids[each.channel_name].append(each.connection_id)
        longest = max(map(len, ids.values()), default=0)
        return [
            {
                address: messages.Kick(theirs[first : first + PER_MESSAGE], [], self.reason.value)
                for address, theirs in ids.items()
                if theirs[first:]
            }
            for first in range(0, longest, PER_MESSAGE)
        ]

    def told(self, failed: Mapping[str, LayerUnavailable]) -> int:
        """Return the number of connections that processes were asked to close.

        Raises:
            LayerUnavailable: A process could not be asked.
        """
        _require_told(failed, "Its connections stay open until you call again.")
        return len(self.held)


async def _tell_all(turns: Sequence[Mapping[str, messages.Control]]) -> dict[str, LayerUnavailable]:
    failed: dict[str, LayerUnavailable] = {}
    for turn in turns:
        # A process that could not be told is not told again, because each call may take its whole timeout.
        failed |= await groups.tell_all(
            {address: message for address, message in turn.items() if address not in failed}
        )
    return failed


def _tell_all_now(turns: Sequence[Mapping[str, messages.Control]]) -> dict[str, LayerUnavailable]:
    if not any(turns):
        return {}
    try:
        return background_loop.shared.run(_tell_all(turns))
    except LAYER_ERRORS as error:
        return {address: groups.unavailable("tell a process", error) for turn in turns for address in turn}


def _require_told(failed: Mapping[str, LayerUnavailable], consequence: str = "") -> None:
    """Raise an error if a process could not be told."""
    if not failed:
        return
    first = next(iter(failed.values()))
    kind = NoSuchLayer if isinstance(first, NoSuchLayer) else LayerUnavailable
    sentence = f"{len(failed)} processes could not be asked. The first error: {first} {consequence}"
    raise kind(sentence.rstrip())
