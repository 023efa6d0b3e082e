"""Limit the handshakes of each address per second, in this process.

The decision needs neither Redis nor the database, so a flood of handshakes reaches neither of them.

Private: docs/reference.md lists the public names.
"""

import time
from typing import Any

from realtime import conf, metrics
from realtime.closing import CloseReason
from realtime.limits import refusals, subjects
from realtime.limits.buckets import TokenBucket
from realtime.limits.recent import Recent

#: The key in the ASGI scope that says that a handshake was counted.
COUNTED = "realtime.handshake_counted"
#: Networks that are remembered. Of more, the one that connected least recently is forgotten.
MAX_NETWORKS = 10_000


class Rates:
    """A token bucket for each network.

    Args:
        size: The largest number of networks that are remembered.
    """

    def __init__(self, size: int) -> None:
        self._buckets: Recent[TokenBucket] = Recent(size, TokenBucket.is_full)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, network: str, rate: float, burst: float, now: float) -> bool:
        """Count a handshake; return False if there are too many.

        Args:
            network: The network for which it counts.
            rate: Handshakes per second on average.
            burst: Handshakes that may come together.
            now: The time in seconds, on a clock that never goes back.
        """
        return self._buckets.of(network, now, lambda: TokenBucket(rate, burst, now)).take(1, now)

    def clear(self) -> None:
        """Forget all networks."""
        self._buckets.clear()


_rates = Rates(MAX_NETWORKS)


def admits(scope: dict[str, Any]) -> bool:
    """Count a handshake, unless it was counted before. Return False if its address makes too many.

    A refusal is counted in the metrics and logged, with many others of the same address in one line.

    Args:
        scope: The ASGI scope. It is marked as counted.
    """
    if COUNTED in scope:
        return True
    scope[COUNTED] = True
    settings = conf.get()
    rate = settings.MAX_HANDSHAKES_PER_SECOND
    if rate is None:
        return True
    address = subjects.address_of(scope)
    network = subjects.network_of(scope, address)
    # Clients of a process that stops come back within this window.
    burst = rate * max(1.0, settings.RECONNECT_WINDOW)
    if not network or _rates.take(network, rate, burst, time.monotonic()):
        return True
    metrics.refused.labels(reason=CloseReason.RATE_LIMITED.value).inc()
    refusals.note(
        "MAX_HANDSHAKES_PER_SECOND",
        refusals.client_in_words(network),
        f"It makes more than {rate} handshakes per second. If these are many clients behind one proxy, name "
        "the proxy in TRUSTED_PROXIES; if they are behind one address, raise the limit",
    )
    return False
