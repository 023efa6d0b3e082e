"""Chromium and whole installations for the attacks in this folder."""

from collections.abc import Iterator

import pytest

from tests.browser.conftest import chromium, chromium_path
from tests.integration.conftest import memory_layer, realtime_settings, site
from tests.support.fixtures import databases, start_shared_site, start_site
from tests.support.programs.actor import Actor
from tests.support.programs.servers import WebServer
from tests.support.programs.site import Site

__all__ = [
    "chromium",
    "chromium_path",
    "databases",
    "memory_layer",
    "realtime_settings",
    "site",
    "start_shared_site",
    "start_site",
]


@pytest.fixture(scope="module")
def servers(request: pytest.FixtureRequest, site: Site) -> list[WebServer]:
    """Two servers of the site of the module, with a reaper. The module says its `INTERVAL` of rounds."""
    interval: float = request.module.INTERVAL
    servers = [site.serve(), site.serve()]
    site.reaper("--interval", str(interval), "--timeout", str(interval / 2)).wait_for_a_round()
    return servers


@pytest.fixture(scope="module")
def actor(site: Site, servers: list[WebServer]) -> Iterator[Actor]:
    """A program of the site that changes users and sessions."""
    with Actor(site) as running:
        yield running
