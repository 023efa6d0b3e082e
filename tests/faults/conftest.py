"""The fault tests break what real servers stand on; some need root, ip and nft."""

from tests.support.fixtures import breakable_databases, databases, start_shared_site, start_site

__all__ = ["breakable_databases", "databases", "start_shared_site", "start_site"]
