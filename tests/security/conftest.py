"""Attacks on real servers: the fixtures."""

from tests.support.fixtures import databases, start_shared_site, start_site

__all__ = ["databases", "start_shared_site", "start_site"]
