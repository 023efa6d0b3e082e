"""Tune a server process that holds many connections: its garbage collector, and Daphne's debug log.

For each connection, and for each frame that arrives, autobahn formats and colours the arguments of lines of
its debug log, even if the lines are not written. This is a fifth of the cost of a connect.
"""

import functools
import gc
import sys
from collections.abc import Callable
from pprint import pformat
from typing import Any

#: The modules of autobahn that log so, and the functions with which each formats the arguments of its log.
#: `hltype` and `hlval` are used for the log only, `pformat` also for other texts.
_FORMATTERS = {
    "autobahn.websocket.protocol": ("hltype", "hlval", "pformat"),
    "autobahn.twisted.websocket": ("hltype", "hlval"),
}

_tuned = False


def tune_gc(threshold: tuple[int, int, int] | None) -> None:
    """Set the thresholds of the garbage collector, once in a process.

    Each connection is some hundred objects that live as long as the connection. With Python's own thresholds,
    every few connects, or one message to a large group, make the collector examine all of them, and free
    none. The objects that exist now live to the end of the process. The collector no longer examines them,
    either.

    Args:
        threshold: The setting GC_THRESHOLD. None changes nothing.
    """
    global _tuned
    if threshold is None or _tuned:
        return
    _tuned = True
    gc.collect()
    gc.freeze()
    gc.set_threshold(*threshold)


class _Lazy:
    """A value that is formatted when its text is needed."""

    __slots__ = ("_format", "_value")

    def __init__(self, format: Callable[[Any], str], value: Any) -> None:
        self._format = format
        self._value = value

    def __str__(self) -> str:
        return self._format(self._value)


def format_autobahn_log_lazily() -> None:
    """Make autobahn's loaded modules format the arguments of their log only if a line is written.

    A function that is not the known one stays as it is.
    """
    util = sys.modules.get("autobahn.util")
    known: dict[str, Any] = {"pformat": pformat}
    known |= {name: getattr(util, name, None) for name in ("hltype", "hlval")}
    for module, names in _FORMATTERS.items():
        for name in names:
            original = getattr(sys.modules.get(module), name, None)
            if original is not None and original is known[name]:
                lazy = _options if name == "pformat" else functools.partial(_Lazy, original)
                setattr(sys.modules[module], name, lazy)


def _options(value: Any) -> Any:
    # The log line about a connection's options formats a list. All other callers need the text immediately.
    return _Lazy(pformat, value) if isinstance(value, list) else pformat(value)
