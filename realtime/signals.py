"""Signals for applications.

Both signals are sent with `connection`, a `realtime.records.Opening` (id, user_id, path, …).
`connection_closed` is also sent with `reason`, a `realtime.closing.CloseReason`. Receivers may be sync or
async. If a receiver raises an exception, it is logged, and the other receivers are called.
"""

from django.dispatch import Signal

__all__ = ["connection_closed", "connection_opened"]

#: Sent after the record is committed and before the client is told.
connection_opened = Signal()

#: Sent once for each connection that was opened in this process, after its memberships were left.
connection_closed = Signal()
