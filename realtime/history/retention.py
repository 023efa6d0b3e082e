"""The groups that keep history, for how long and how much of it, as the setting HISTORY declares.

Private: docs/reference.md lists the public names.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: Seconds for which a position is kept at least, so that a quiet group keeps its epoch.
POSITION_TTL = 86_400.0

#: Characters in the longest name of a group.
_LONGEST = 99
_RESERVED = "realtime."
_POSSIBLE = re.compile(r"[A-Za-z0-9._*-]+")


@dataclass(frozen=True, slots=True)
class Retention:
    """The part of its history that a group keeps.

    Attributes:
        size: The number of latest messages that are kept.
        ttl: Seconds for which they are kept after the latest one.
    """

    size: int
    ttl: float

    @property
    def position_ttl(self) -> float:
        """Seconds for which the position of the group is kept after it was last used."""
        return max(self.ttl, POSITION_TTL)


class _Values(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(gt=0)]
    ttl: Annotated[float, Meta(gt=0, le=2**31)]


def find(history: Mapping[str, Mapping[str, Any]], group: str) -> Retention | None:
    """Return what a group keeps by the first pattern that matches its name; None if no pattern does."""
    for pattern, values in history.items():
        if _expression(pattern).fullmatch(group):
            return Retention(values["size"], values["ttl"])
    return None


def problems(history: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each pattern or value in HISTORY that cannot work."""
    earlier: list[str] = []
    for pattern, values in history.items():
        if wrong := _wrong_pattern(pattern) or _wrong_values(values):
            yield f"HISTORY has the pattern {pattern!r}: {wrong}"
        elif before := next((each for each in earlier if _expression(each).fullmatch(pattern)), None):
            yield (
                f"HISTORY has the pattern {pattern!r}: it is never used, because {before!r} before it "
                "matches the same groups; put it first."
            )
        else:
            earlier.append(pattern)


@lru_cache(maxsize=1000)
def _expression(pattern: str) -> re.Pattern[str]:
    """Return the expression for the groups that match a pattern.

    It matches another pattern as well, if every group of the other pattern matches this one: only a `*`
    matches a `*`.
    """
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


def _wrong_pattern(pattern: str) -> str | None:
    if not _POSSIBLE.fullmatch(pattern) or len(pattern.replace("*", "")) > _LONGEST:
        return (
            'no group has such a name; use 1 to 99 ASCII letters, digits, "-", "_" and ".", and "*" for any '
            "characters."
        )
    if pattern.startswith(_RESERVED):
        return f'names that start with "{_RESERVED}" are reserved.'
    return None


def _wrong_values(values: Any) -> str | None:
    try:
        msgspec.convert(values, _Values)
    except msgspec.ValidationError:
        return f'its value is {values!r}; set {{"size": …, "ttl": …}}, a whole number and seconds above zero.'
    return None
