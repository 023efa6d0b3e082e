"""The members of groups, in Redis and in the records, without our own groups (`realtime.*`)."""

from collections import Counter

from tests.support.programs.site import Site

KEYS = {"core": "asgi:group:", "pubsub": "asgi__group__"}


def in_layer(site: Site) -> dict[str, int]:
    """Ask Redis how many processes are in each group; empty groups are left out."""
    prefix = KEYS[site.pairing.layer]
    with site.redis.client() as redis:
        if site.pairing.layer == "core":
            found = {key: redis.zcard(key) for key in redis.scan_iter(f"{prefix}*")}
        else:
            found = dict(redis.pubsub_numsub(*redis.pubsub_channels(f"{prefix}*")))
    names = {key.removeprefix(prefix): int(number) for key, number in found.items() if number}
    return {name: number for name, number in sorted(names.items()) if not name.startswith("realtime.")}


def in_records(site: Site) -> dict[str, int]:
    """Count, by the to-do list, the processes that still have to leave each group."""
    rows = site.database.query(
        'SELECT DISTINCT process_id, "group" AS name FROM realtime_membership WHERE left_at IS NULL'
    )
    return dict(sorted(Counter(row["name"] for row in rows).items()))
