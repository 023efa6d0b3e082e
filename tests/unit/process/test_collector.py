"""The garbage collector of a server process."""

import gc
from collections.abc import Iterator

import pytest

from realtime.process import collector


@pytest.fixture(autouse=True)
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collector, "_settled", False)
    threshold = gc.get_threshold()
    # A hub may have started in this process.
    gc.unfreeze()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_what_was_loaded_at_the_start_is_not_looked_at_again() -> None:
    collector.settle((12_345, 6, 7))
    assert gc.get_threshold() == (12_345, 6, 7)
    assert gc.get_freeze_count() > 0


def test_it_is_done_once() -> None:
    collector.settle((12_345, 6, 7))
    gc.unfreeze()
    collector.settle((54_321, 6, 7))
    assert gc.get_threshold() == (12_345, 6, 7)
    assert gc.get_freeze_count() == 0


def test_without_a_threshold_python_keeps_its_own() -> None:
    before = gc.get_threshold()
    collector.settle(None)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
