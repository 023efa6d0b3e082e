"""The acceptance tests run real servers, a real Redis and real clients."""

from tests.support.fixtures import databases, start_shared_site, start_site

__all__ = ["databases", "start_shared_site", "start_site"]
