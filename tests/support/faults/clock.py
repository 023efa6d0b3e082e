"""Programs with a wrong wall clock, as on a host without NTP; their monotonic clocks are right."""

from pathlib import Path

import pytest

_LIBRARIES = ("libfaketime.so.1", "libfaketimeMT.so.1")


def require_faketime() -> None:
    """Skip the test, with the reason, if a clock cannot be made wrong here."""
    if _library() is None:
        pytest.skip("needs libfaketime (apt-get install libfaketime)")


def off_by(seconds: int) -> dict[str, str]:
    """Return the environment of a program with a wall clock that is ahead by `seconds`."""
    library = _library()
    assert library is not None, "see require_faketime"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        # Timers and the event loop stay right: a wrong time of day does not slow a host down.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _library() -> Path | None:
    # The threaded library first: servers have threads.
    for name in reversed(_LIBRARIES):
        if found := next(Path("/usr/lib").glob(f"*/faketime/{name}"), None):
            return found
    return None
