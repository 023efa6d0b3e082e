"""How often the garbage collector of a server process looks."""

import gc

_settled = False


def settle(threshold: tuple[int, int, int] | None) -> None:
    """Set the collector for a process that holds many connections; once, and not at all without a threshold.

    Each connection is some hundred objects that live as long as it does. With Python's own thresholds every
    few connects, or one message to a large group, make the collector look at all of them, for nothing.
    What was loaded at the start stays to the end, so it is not looked at again either.
    """
    global _settled
    if threshold is None or _settled:
        return
    _settled = True
    gc.collect()
    gc.freeze()
    gc.set_threshold(*threshold)
