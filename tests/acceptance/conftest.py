"""The acceptance tests run real servers, a real Redis and real clients."""

from pathlib import Path

import pytest

from tests.support.fixtures import databases, start_shared_site, start_site
from tests.support.programs.wheels import build_distributions

__all__ = ["databases", "start_shared_site", "start_site"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source distribution and the wheel that was built from it."""
    return build_distributions(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel
