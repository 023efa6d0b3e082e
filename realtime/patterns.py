"""Patterns of group names in settings: `*` stands for any characters.

Private: docs/reference.md lists the public names.
"""

import re
from functools import lru_cache

#: Characters in the longest name of a group.
_LONGEST = 99
_RESERVED = "realtime."
_POSSIBLE = re.compile(r"[A-Za-z0-9._*-]+")


def matches(pattern: str, name: str) -> bool:
    """Return True if the pattern matches the name of a group.

    The name may be a pattern, too. Then it matches if every group of the other pattern matches this one: only
    a `*` matches a `*`.
    """
    return _expression(pattern).fullmatch(name) is not None


@lru_cache(maxsize=1000)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


def problem(pattern: str) -> str | None:
    """Return a sentence that says why no group can match a pattern; None if groups can."""
    if not _POSSIBLE.fullmatch(pattern) or len(pattern.replace("*", "")) > _LONGEST:
        return (
            'no group has such a name; use 1 to 99 ASCII letters, digits, "-", "_" and ".", and "*" for any '
            "characters."
        )
    if pattern.startswith(_RESERVED):
        return f'names that start with "{_RESERVED}" are reserved.'
    return None
