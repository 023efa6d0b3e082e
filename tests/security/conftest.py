"""Chromium and whole installations for the attacks in this folder."""

from tests.browser.conftest import chromium, chromium_path
from tests.support.fixtures import databases, start_shared_site, start_site

__all__ = ["chromium", "chromium_path", "databases", "start_shared_site", "start_site"]
