"""What the database, the channel layer and the server processes say of the same connections, compared.

Each of the three is a snapshot of its own moment, so a difference counts only when a second look finds it
again.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from realtime.layers.contents import Contents, Listeners, StoredMembers


class Kind(enum.Enum):
    """Every way in which the three can differ: its label, what it means, and what is done about it."""

    PROCESS_SILENT = (
        "process_silent",
        "a running process did not say what it holds",
        "asked again in rounds, and lost if it stays silent",
    )
    RECORD_OF_ENDED_PROCESS = (
        "record_of_ended_process",
        "a record is open whose process has ended",
        "closed by a round",
    )
    MEMBERSHIP_OF_ENDED_PROCESS = (
        "membership_of_ended_process",
        "a membership is still to be left whose process has ended",
        "left by a round",
    )
    RECORD_WITHOUT_SOCKET = (
        "record_without_socket",
        "a record is open, and its process has no such connection",
        "closed as server_lost",
    )
    SOCKET_WITHOUT_RECORD = (
        "socket_without_record",
        "a process has a connection that has no open record",
        "its process was told to close it",
    )
    ROW_WITHOUT_MEMBER = (
        "row_without_member",
        "a membership is recorded, and the connection is not in the group",
        "its process was told to leave the group and to say so",
    )
    MEMBER_WITHOUT_ROW = (
        "member_without_row",
        "a connection is in a group, and no membership is recorded",
        "recorded",
    )
    NOT_IN_LAYER = (
        "not_in_layer",
        "a process has members in a group, and the layer does not have the process in it",
        "its process was told to assert it again",
    )
    ONLY_IN_LAYER = (
        "only_in_layer",
        "the layer has a process in a group, and the process has no members there",
        "discarded",
    )
    UNKNOWN_CHANNEL = (
        "unknown_channel",
        "the layer has a channel in a group that is no known process's",
        "left alone: a consumer of plain Channels may own it",
    )
    UNKNOWN_LISTENER = (
        "unknown_listener",
        "more processes listen to a group than have members in it",
        "left alone: a consumer of plain Channels may be one",
    )

    def __init__(self, label: str, text: str, remedy: str) -> None:
        self.label = label
        self.text = text
        self.remedy = remedy

    @property
    def repairable(self) -> bool:
        return self not in (Kind.UNKNOWN_CHANNEL, Kind.UNKNOWN_LISTENER)


class Difference(NamedTuple):
    """One thing that two of the three say differently. Ids are text; what does not apply is empty."""

    kind: Kind
    process: str = ""
    address: str = ""
    connection: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """A row of a process; `name` is host:pid."""

    address: str
    name: str
    running: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database says."""

    processes: Mapping[str, Process]
    records: Mapping[str, str]
    """The process of each open record."""
    memberships: Mapping[tuple[str, str], str]
    """The process of each (connection, group) that is not left."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one process says: its connections, each with its groups."""

    connections: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def groups(self) -> frozenset[str]:
        return frozenset().union(*self.connections.values())


@dataclass(frozen=True, slots=True)
class Layer:
    """What one channel layer says."""

    alias: str
    """As processes have it in front of their address; empty for the default layer."""
    contents: Contents
    """Stored members are given as addresses."""

    def has(self, address: str) -> bool:
        return address.rpartition(":")[0] == self.alias


def compare(stored: Stored, layers: Iterable[Layer], held: Mapping[str, Held]) -> set[Difference]:
    """`held` are the processes that answered, by id. What a silent process may hold is not judged."""
    held = {id: each for id, each in held.items() if id in stored.processes}
    return {
        *_silent(stored, held),
        *_records(stored, held),
        *_memberships(stored, held),
        *(difference for layer in layers for difference in _layer(layer, stored, held)),
    }


def _silent(stored: Stored, held: Mapping[str, Held]) -> Iterator[Difference]:
    for id, process in stored.processes.items():
        if process.running and id not in held:
            yield Difference(Kind.PROCESS_SILENT, id, process.address)


def _records(stored: Stored, held: Mapping[str, Held]) -> Iterator[Difference]:
    for connection, id in stored.records.items():
        process = stored.processes[id]
        if not process.running:
            yield Difference(Kind.RECORD_OF_ENDED_PROCESS, id, process.address, connection)
        elif id in held and connection not in held[id].connections:
            yield Difference(Kind.RECORD_WITHOUT_SOCKET, id, process.address, connection)
    for id, each in held.items():
        for connection in each.connections:
            if connection not in stored.records:
                yield Difference(Kind.SOCKET_WITHOUT_RECORD, id, stored.processes[id].address, connection)


def _memberships(stored: Stored, held: Mapping[str, Held]) -> Iterator[Difference]:
    for (connection, group), id in stored.memberships.items():
        process = stored.processes[id]
        if not process.running:
            yield Difference(Kind.MEMBERSHIP_OF_ENDED_PROCESS, id, process.address, connection, group)
        elif id in held and group not in held[id].connections.get(connection, ()):
            yield Difference(Kind.ROW_WITHOUT_MEMBER, id, process.address, connection, group)
    for id, each in held.items():
        for connection, groups in each.connections.items():
            for group in groups:
                # Without a record there is another difference, and no row can be.
                if connection in stored.records and (connection, group) not in stored.memberships:
                    address = stored.processes[id].address
                    yield Difference(Kind.MEMBER_WITHOUT_ROW, id, address, connection, group)


def _layer(layer: Layer, stored: Stored, held: Mapping[str, Held]) -> Iterator[Difference]:
    here = {id: process for id, process in stored.processes.items() if layer.has(process.address)}
    match layer.contents:
        case StoredMembers(pairs):
            yield from _stored_layer(pairs, here, held, stored)
        case Listeners(counts):
            yield from _listening(counts, here, held)


def _stored_layer(
    members: frozenset[tuple[str, str]],
    here: Mapping[str, Process],
    held: Mapping[str, Held],
    stored: Stored,
) -> Iterator[Difference]:
    to_leave = {(group, id) for (_, group), id in stored.memberships.items()}
    ids = {process.address: id for id, process in here.items()}
    # Other channels of a living process begin as its hub's does, and are its consumers' own business.
    owners = {_owner(process.address) for process in here.values() if process.running}
    for id in held.keys() & here.keys():
        for group in held[id].groups:
            if (group, here[id].address) not in members:
                yield Difference(Kind.NOT_IN_LAYER, id, here[id].address, group=group)
    for group, address in members:
        owner = ids.get(address)
        if owner is None:
            if _owner(address) not in owners:
                yield Difference(Kind.UNKNOWN_CHANNEL, address=address, group=group)
        elif (group, owner) in to_leave:
            # On the to-do list of cleanups already.
            continue
        elif not here[owner].running or (owner in held and group not in held[owner].groups):
            yield Difference(Kind.ONLY_IN_LAYER, owner, address, group=group)


def _listening(
    listening: Mapping[str, int], here: Mapping[str, Process], held: Mapping[str, Held]
) -> Iterator[Difference]:
    answered = held.keys() & here.keys()
    complete = answered == {id for id, process in here.items() if process.running}
    expected = Counter(group for id in answered for group in held[id].groups)
    for id in answered:
        for group in held[id].groups:
            if listening.get(group, 0) < expected[group]:
                # Who of those that have members does not listen cannot be told; each may assert it again.
                yield Difference(Kind.NOT_IN_LAYER, id, here[id].address, group=group)
    for group, number in listening.items():
        if complete and number > expected[group]:
            yield Difference(Kind.UNKNOWN_LISTENER, group=group)


def _owner(address: str) -> str:
    """The part of a core layer's channel name that all channels of one process have in common."""
    return address.partition("!")[0]


def pages(
    connections: Iterable[tuple[str, Iterable[str]]], size: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Connections with their groups, in pages of at most `size` names, which is two or more. There is at
    least one page, and a connection with many groups is in several.
    """
    page: list[tuple[str, list[str]]] = []
    room = size
    for connection, groups in connections:
        rest = list(groups)
        while True:
            if room < 1 + min(len(rest), 1):
                yield page
                page, room = [], size
            part, rest = rest[: room - 1], rest[room - 1 :]
            page.append((connection, part))
            room -= 1 + len(part)
            if not rest:
                break
    yield page


def joined(parts: Iterable[tuple[str, Iterable[str]]]) -> Held:
    """What `pages` took apart."""
    connections: dict[str, set[str]] = {}
    for connection, groups in parts:
        connections.setdefault(connection, set()).update(groups)
    return Held({connection: frozenset(groups) for connection, groups in connections.items()})
