"""The fault tests break real networks under real servers; they need root, ip and nft."""

from tests.support.fixtures import databases, start_site

__all__ = ["databases", "start_site"]
