"""Signals for applications.

The signals of connections are sent with `connection`, a `realtime.records.Opening` (id, user_id, path, …).
`connection_closed` is also sent with `reason`, a `realtime.closing.CloseReason`. The signals of users are
sent with `user_id`, the primary key as text. Receivers may be sync or async. If a receiver raises an
exception, Django logs it, and the other receivers are called.
"""

import asyncio
from typing import Any

from django.dispatch import Signal

__all__ = [
    "connection_closed",
    "connection_dormant",
    "connection_opened",
    "user_offline",
    "user_online",
]

#: Sent after the record is committed and before the client is told.
connection_opened = Signal()

#: Sent once for each record that is closed, in the process that closed it. If the process of the connection
#: was killed, that is a reaper, or a server process that starts.
connection_closed = Signal()

#: Sent after `connection_closed` if the connection of a user ended by silence (`realtime.closing.SILENCE`)
#: and the user has no other open connection: from now on, only a push message reaches the user.
connection_dormant = Signal()

#: Sent once for each user who comes online, in the process that admitted the user's connection.
user_online = Signal()

#: Sent once for each user who has had no open connection for PRESENCE_GRACE, in a server process or a reaper.
user_offline = Signal()

#: Seconds for the receivers of one signal. The sender waits for them.
RECEIVERS_TIMEOUT = 5.0

#: The line of the log about them.
TOO_SLOW = "The receivers of a signal took more than %s s and are no longer waited for"


async def send(signal: Signal, sender: Any, **what: Any) -> bool:
    """Send a signal, and wait for its receivers for a limited time. Django logs the exceptions of receivers.

    Args:
        signal: One of the signals.
        sender: The sender of the signal.
        **what: The arguments of the receivers.

    Returns:
        False if the receivers took too long and are no longer waited for.
    """
    if signal.receivers:
        try:
            async with asyncio.timeout(RECEIVERS_TIMEOUT):
                await signal.asend_robust(sender, **what)
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
