"""Daphne's debug log, formatted only when somebody reads it.

For each connection, and for each frame that comes in, autobahn formats and colours the arguments of lines of
its debug log, whether they are read or not: a fifth of what it costs to connect.
"""

import functools
import sys
from collections.abc import Callable
from pprint import pformat
from typing import Any

#: The modules that log so, and the names by which each formats the arguments of its log and nothing else;
#: `pformat` is used for more than that.
_WHERE = {
    "autobahn.websocket.protocol": ("hltype", "hlval", "pformat"),
    "autobahn.twisted.websocket": ("hltype", "hlval"),
}


class _Later:
    """Formats a value when it is asked for as text."""

    __slots__ = ("_format", "_value")

    def __init__(self, format: Callable[[Any], str], value: Any) -> None:
        self._format = format
        self._value = value

    def __str__(self) -> str:
        return self._format(self._value)


def format_later() -> None:
    """Make autobahn's modules, where they are loaded, format later; those that are not the ones that are
    known stay as they are.
    """
    util = sys.modules.get("autobahn.util")
    known: dict[str, Any] = {"pformat": pformat}
    known |= {name: getattr(util, name, None) for name in ("hltype", "hlval")}
    for module, names in _WHERE.items():
        for name in names:
            original = getattr(sys.modules.get(module), name, None)
            if original is not None and original is known[name]:
                later = _options if name == "pformat" else functools.partial(_Later, original)
                setattr(sys.modules[module], name, later)


def _options(value: Any) -> Any:
    # The line that lists a connection's options has a list; the rest wants its text at once.
    return _Later(pformat, value) if isinstance(value, list) else pformat(value)
