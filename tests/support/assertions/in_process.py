"""The state of this process: metrics, groups of the memory layer, memberships to leave."""

import asyncio

from channels.layers import get_channel_layer
from prometheus_client import Counter, Gauge

from realtime.models import Membership


def value_of(metric: Counter | Gauge, **labels: str) -> float:
    """Read a counter or a gauge of `realtime.metrics`; `labels` choose one child of a labelled metric."""
    child = metric.labels(**labels) if labels else metric
    return float(child._value.get())


async def members_in_layer(group: str) -> set[str]:
    """Return the channels in a group of the memory layer."""
    return set(get_channel_layer().groups.get(group, {}))


async def eventually_left(group: str | None = None, *, within: float = 5.0) -> None:
    """Wait until the to-do list has no membership of this group, or of any group.

    Raises:
        TimeoutError: The list is not empty after `within` seconds.
    """
    waiting = Membership.objects.to_leave()
    if group is not None:
        waiting = waiting.filter(group=group)
    async with asyncio.timeout(within):
        while await waiting.aexists():
            await asyncio.sleep(0.02)
