"""Programs whose wall clock is wrong, as on a host without NTP; monotonic clocks stay as they are."""

from pathlib import Path

import pytest

_LIBRARIES = ("libfaketime.so.1", "libfaketimeMT.so.1")


def require_faketime() -> None:
    """Skip the test, with the reason, where a clock cannot be made wrong."""
    if _library() is None:
        pytest.skip("needs libfaketime (apt-get install libfaketime)")


def off_by(seconds: int) -> dict[str, str]:
    """The environment of a program whose wall clock is so many seconds ahead; below zero it is behind."""
    library = _library()
    assert library is not None, "see require_faketime"
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        # Timers and the event loop go on as they are: a host's wrong time of day does not slow it down.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def _library() -> Path | None:
    # The threaded one first: servers have threads.
    for name in reversed(_LIBRARIES):
        if found := next(Path("/usr/lib").glob(f"*/faketime/{name}"), None):
            return found
    return None
