"""The groups in a channel layer, for a comparison with the processes and the database."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredMembers:
    """The content of a layer that stores the channels in each group."""

    pairs: frozenset[tuple[str, str]]
    """The name of a group, and a channel or an address that is in it."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The content of a layer that stores no members, but knows how many processes listen to each group."""

    counts: Mapping[str, int]
    """The number of processes that listen, by the name of the group."""


Contents = StoredMembers | Listeners
