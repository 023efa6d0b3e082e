"""The groups that keep history, for how long and how much of it, as the setting HISTORY declares.

Private: docs/reference.md lists the public names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from realtime import patterns

#: Seconds for which a position is kept at least, so that a quiet group keeps its epoch.
POSITION_TTL = 86_400.0


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
        if patterns.matches(pattern, group):
            return Retention(values["size"], values["ttl"])
    return None


def problems(history: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each pattern or value in HISTORY that cannot work."""
    earlier: list[str] = []
    for pattern, values in history.items():
        if wrong := patterns.problem(pattern) or _wrong_values(values):
            yield f"HISTORY has the pattern {pattern!r}: {wrong}"
        elif before := next((each for each in earlier if patterns.matches(each, pattern)), None):
            yield (
                f"HISTORY has the pattern {pattern!r}: it is never used, because {before!r} before it "
                "matches the same groups; put it first."
            )
        else:
            earlier.append(pattern)


def _wrong_values(values: Any) -> str | None:
    try:
        msgspec.convert(values, _Values)
    except msgspec.ValidationError:
        return f'its value is {values!r}; set {{"size": …, "ttl": …}}, a whole number and seconds above zero.'
    return None
