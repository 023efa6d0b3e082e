"""Patch a process with gevent or eventlet, and then run one function of `tests.support.greenlets.scenarios`.

`python -m tests.support.greenlets.patched gevent every_call`. No other module may be imported before the
patch.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any


class Gevent:
    """The calls of gevent that the scenarios use."""

    def patch(self) -> None:
        # gevent warns of a late patch, and eventlet of any use.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("gevent.monkey").patch_all()

    def sleep(self, seconds: float) -> None:
        importlib.import_module("gevent").sleep(seconds)

    def spawn(self, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Start a greenlet, and return the function that waits for its result."""
        return importlib.import_module("gevent").spawn(work, *arguments).get  # type: ignore[no-any-return]

    def timeout(self, seconds: float) -> Any:
        """Start a timer; after `seconds` it raises the returned object in the greenlet of the caller."""
        return importlib.import_module("gevent").Timeout.start_new(seconds)

    def in_native_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return importlib.import_module("gevent").get_hub().threadpool.apply(work, arguments)

    def in_hub(self, work: Callable[[], Any]) -> None:
        """Call `work` soon in a callback of the hub."""
        importlib.import_module("gevent").get_hub().loop.run_callback(work)


class Eventlet:
    """The same calls of eventlet."""

    def patch(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("eventlet").monkey_patch()

    def sleep(self, seconds: float) -> None:
        importlib.import_module("eventlet").sleep(seconds)

    def spawn(self, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        return importlib.import_module("eventlet").spawn(work, *arguments).wait  # type: ignore[no-any-return]

    def timeout(self, seconds: float) -> Any:
        return importlib.import_module("eventlet").Timeout(seconds)

    def in_native_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return importlib.import_module("eventlet.tpool").execute(work, *arguments)

    def in_hub(self, work: Callable[[], Any]) -> None:
        importlib.import_module("eventlet.hubs").get_hub().schedule_call_global(0, work)


LIBRARIES: dict[str, type[Gevent] | type[Eventlet]] = {"gevent": Gevent, "eventlet": Eventlet}


def main(name: str, scenario: str) -> None:
    library = LIBRARIES[name]()
    if scenario != "patched_later":
        library.patch()
    warnings.simplefilter("error")
    importlib.import_module("django").setup()
    scenarios = importlib.import_module("tests.support.greenlets.scenarios")
    getattr(scenarios, scenario)(library)


if __name__ == "__main__":
    main(*sys.argv[1:])
