"""Fixtures of the tests that attack real servers."""

from tests.support.fixtures import databases, start_site

__all__ = ["databases", "start_site"]
