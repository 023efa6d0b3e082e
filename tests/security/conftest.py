"""Chromium and whole installations for the attacks in this folder."""

from tests.browser.conftest import chromium, chromium_path
from tests.integration.conftest import memory_layer, realtime_settings, site
from tests.support.fixtures import databases, start_shared_site, start_site

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
