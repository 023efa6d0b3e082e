"""Patch a process by gevent or eventlet, then run one scenario of `green_scenarios` in it.

`python -m tests.support.greenlets.patched gevent every_call`. Nothing else may be imported before the patch.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any


class Gevent:
    """What the scenarios use of gevent."""

    def patch(self) -> None:
        # gevent warns of a patch that comes late, and eventlet of its own use.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("gevent.monkey").patch_all()

    def sleep(self, seconds: float) -> None:
        importlib.import_module("gevent").sleep(seconds)

    def spawn(self, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Start a greenlet, and return the function that waits for its result."""
        return importlib.import_module("gevent").spawn(work, *arguments).get  # type: ignore[no-any-return]

    def timeout(self, seconds: float) -> Any:
        """Raise what this returns in the greenlet of the caller, after so many seconds."""
        return importlib.import_module("gevent").Timeout.start_new(seconds)

    def in_native_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return importlib.import_module("gevent").get_hub().threadpool.apply(work, arguments)

    def in_hub(self, work: Callable[[], Any]) -> None:
        """Call this soon in a callback of the hub."""
        importlib.import_module("gevent").get_hub().loop.run_callback(work)


class Eventlet:
    """The same of eventlet."""

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
