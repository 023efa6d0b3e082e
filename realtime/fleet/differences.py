"""Compare the database, the channel layer and the server processes.

Each of the three is a snapshot of its own moment. A difference counts only if a second look finds it again.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from realtime.layers.contents import Contents, Listeners, StoredMembers


class Kind(enum.Enum):
    """The ways for the three to differ: a label, the meaning, and the remedy."""

    PROCESS_SILENT = (
        "process_silent",
        "a running process did not say which connections it holds",
        "asked again in rounds, and lost if it stays silent",
    )
    RECORD_OF_ENDED_PROCESS = (
        "record_of_ended_process",
        "a record of an ended process is open",
        "closed by a round",
    )
    MEMBERSHIP_OF_ENDED_PROCESS = (
        "membership_of_ended_process",
        "a membership of an ended process is not left yet",
        "left by a round",
    )
    RECORD_WITHOUT_SOCKET = (
        "record_without_socket",
        "a record is open, but its process has no such connection",
        "closed as server_lost",
    )
    SOCKET_WITHOUT_RECORD = (
        "socket_without_record",
        "a process has a connection that has no open record",
        "its process was told to close it",
    )
    ROW_WITHOUT_MEMBER = (
        "row_without_member",
        "a membership is recorded, but the connection is not in the group",
        "its process was told to leave the group and to record it",
    )
    MEMBER_WITHOUT_ROW = (
        "member_without_row",
        "a connection is in a group, but no membership is recorded",
        "recorded",
    )
    NOT_IN_LAYER = (
        "not_in_layer",
        "a process has members in a group, but the layer does not have the process in it",
        "its process was told to re-add it",
    )
    ONLY_IN_LAYER = (
        "only_in_layer",
        "the layer has a process in a group, but the process has no members there",
        "discarded",
    )
    UNKNOWN_CHANNEL = (
        "unknown_channel",
        "the layer has a channel in a group that belongs to no known process",
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
        """True if a remedy exists."""
        return self not in (Kind.UNKNOWN_CHANNEL, Kind.UNKNOWN_LISTENER)


class Difference(NamedTuple):
    """One difference between two of the three. Ids are text. A field that does not apply is empty."""

    kind: Kind
    process: str = ""
    address: str = ""
    connection: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class StoredProcess:
    """The row of a process."""

    address: str
    name: str
    """host:pid."""
    running: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of the database."""

    processes: Mapping[str, StoredProcess]
    records: Mapping[str, str]
    """The process of each open record."""
    memberships: Mapping[tuple[str, str], str]
    """The process of each (connection, group) that was not left."""


@dataclass(frozen=True, slots=True)
class Held:
    """The connections that one process holds, each with its groups."""

    connections: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def groups(self) -> frozenset[str]:
        """The groups of all connections."""
        return frozenset().union(*self.connections.values())


@dataclass(frozen=True, slots=True)
class LayerSnapshot:
    """The content of one channel layer."""

    alias: str
    """The alias at the beginning of addresses; empty for the default layer."""
    contents: Contents
    """Stored members are given as addresses."""

    def has(self, address: str) -> bool:
        """Return True if the address is one of this layer."""
        return address.rpartition(":")[0] == self.alias


def compare(stored: Stored, layers: Iterable[LayerSnapshot], held: Mapping[str, Held]) -> set[Difference]:
    """Return all differences. The connections of processes that did not answer are not compared.

    Args:
        stored: The content of the database.
        layers: The content of each channel layer.
        held: The answers of processes, by the id of the process.
    """
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
                # A connection without a record is another difference, and cannot have a row.
                if connection in stored.records and (connection, group) not in stored.memberships:
                    address = stored.processes[id].address
                    yield Difference(Kind.MEMBER_WITHOUT_ROW, id, address, connection, group)


def _layer(layer: LayerSnapshot, stored: Stored, held: Mapping[str, Held]) -> Iterator[Difference]:
    here = {id: process for id, process in stored.processes.items() if layer.has(process.address)}
    match layer.contents:
        case StoredMembers(pairs):
            yield from _stored_layer(pairs, here, held, stored)
        case Listeners(counts):
            yield from _listening(counts, here, held)


def _stored_layer(
    members: frozenset[tuple[str, str]],
    here: Mapping[str, StoredProcess],
    held: Mapping[str, Held],
    stored: Stored,
) -> Iterator[Difference]:
    to_leave = {(group, id) for (_, group), id in stored.memberships.items()}
    ids = {process.address: id for id, process in here.items()}
    # Other channels of a living process begin like that of its hub. They belong to consumers.
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
            # Already on the to-do list of cleanups.
            continue
        elif not here[owner].running or (owner in held and group not in held[owner].groups):
            yield Difference(Kind.ONLY_IN_LAYER, owner, address, group=group)


def _listening(
    listening: Mapping[str, int], here: Mapping[str, StoredProcess], held: Mapping[str, Held]
) -> Iterator[Difference]:
    answered = held.keys() & here.keys()
    complete = answered == {id for id, process in here.items() if process.running}
    expected = Counter(group for id in answered for group in held[id].groups)
    for id in answered:
        for group in held[id].groups:
            if listening.get(group, 0) < expected[group]:
                # It is not known which of the processes with members does not listen. Each re-adds itself.
                yield Difference(Kind.NOT_IN_LAYER, id, here[id].address, group=group)
    for group, number in listening.items():
        if complete and number > expected[group]:
            yield Difference(Kind.UNKNOWN_LISTENER, group=group)


def _owner(address: str) -> str:
    """Return the part of a core layer's channel name that all channels of one process have in common."""
    return address.partition("!")[0]


def pages(
    connections: Iterable[tuple[str, Iterable[str]]], size: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Divide connections and their groups into pages.

    There is at least one page. A connection with many groups is in several pages.

    Args:
        connections: Connections, each with its groups.
        size: The most names of connections and groups in one page; two or more.
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
    """Put together what `pages` divided."""
    connections: dict[str, set[str]] = {}
    for connection, groups in parts:
        connections.setdefault(connection, set()).update(groups)
    return Held({connection: frozenset(groups) for connection, groups in connections.items()})
