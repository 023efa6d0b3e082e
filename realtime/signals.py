"""What an application may listen to.

Both are sent with `connection`, a `realtime.records.Opening` (id, user_id, path, …); `connection_closed`
also with `reason`, a `realtime.closing.CloseReason`. Receivers may be sync or async; what they raise is
logged and stops nobody else.
"""

from django.dispatch import Signal

#: After the record is committed and before the client hears of it.
connection_opened = Signal()

#: Once for each connection that was opened in this process, after its memberships were left.
connection_closed = Signal()
