"""Fixtures for tests with real servers, for the `conftest.py` of such tests."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pairings import Pairing
from tests.support.programs.databases import Databases
from tests.support.programs.site import Site

StartSite = Callable[..., Site]

_databases = pytest.StashKey[Databases]()


@pytest.fixture(scope="session")
def databases(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """The databases that all tests of the run share, also tests under another conftest.py."""
    if _databases not in pytestconfig.stash:
        made = pytestconfig.stash[_databases] = Databases(tmp_path_factory.mktemp("databases"))
        pytestconfig.add_cleanup(made.close)
    return pytestconfig.stash[_databases]


@pytest.fixture(scope="module")
def breakable_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Databases with a PostgreSQL for the tests of one module. Each test mends what it breaks."""
    with contextlib.closing(Databases(tmp_path_factory.mktemp("databases"))) as databases:
        yield databases


@pytest.fixture(scope="module")
def start_shared_site(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSite]:
    """`start_shared_site(pairing, **REALTIME)` starts a site for all tests of one module."""
    with _sites(databases, tmp_path_factory.mktemp("site")) as start:
        yield start


@pytest.fixture
def start_site(databases: Databases, tmp_path: Path) -> Iterator[StartSite]:
    """`start_site(pairing, **REALTIME)` starts a site for one test."""
    with _sites(databases, tmp_path) as start:
        yield start


@contextlib.contextmanager
def _sites(databases: Databases, folder: Path) -> Iterator[StartSite]:
    numbers = itertools.count(1)
    with contextlib.ExitStack() as running:

        def start(pairing: Pairing, **options: object) -> Site:
            site_folder = folder / f"site-{next(numbers)}"
            site_folder.mkdir()
            database = databases.new(pairing.database)
            return running.enter_context(Site(site_folder, pairing, database, **options))  # type: ignore[arg-type]

        yield start
