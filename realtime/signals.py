"""Signals for applications.

Both signals are sent with `connection`, a `realtime.records.Opening` (id, user_id, path, …).
`connection_closed` is also sent with `reason`, a `realtime.closing.CloseReason`. Receivers may be sync or
async. If a receiver raises an exception, Django logs it, and the other receivers are called.
"""

import asyncio
from typing import Any

from django.dispatch import Signal

__all__ = ["connection_closed", "connection_opened"]

#: Sent after the record is committed and before the client is told.
connection_opened = Signal()

#: Sent once for each record that is closed, in the process that closed it. If the process of the connection
#: was killed, that is a reaper, or a server process that starts.
connection_closed = Signal()

#: Seconds for the receivers of one signal. The sender waits for them.
RECEIVERS_TIMEOUT = 5.0

#: The line of the log about them.
TOO_SLOW = "The receivers of a signal took more than %s s and are no longer waited for"


async def send(signal: Signal, connection: Any, **what: Any) -> bool:
    """Send a signal, and wait for its receivers for a limited time. Django logs the exceptions of receivers.

    Args:
        signal: One of the two signals.
        connection: The `Opening` of the connection. Its type is the sender.
        **what: The other arguments of the receivers.

    Returns:
        False if the receivers took too long and are no longer waited for.
    """
    if signal.receivers:
        try:
            async with asyncio.timeout(RECEIVERS_TIMEOUT):
                await signal.asend_robust(type(connection), connection=connection, **what)
        except TimeoutError:
            return False
    return True


def are_all_async(signal: Signal) -> bool:
    """Return True if all receivers of a signal are asynchronous, so that many signals may be sent together.

    Synchronous receivers share a thread. If many signals were sent together, each would wait there for all
    others, and its time limit would pass.
    """
    # The last field of an entry says if the receiver is asynchronous. Django does not document it; a field of
    # another type means one signal after the other, which is slower and always correct.
    return all(entry[-1] is True for entry in signal.receivers)
