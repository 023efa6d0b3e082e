"""The admin of processes, connections, memberships and users online.

It shows and searches, and changes nothing. Its one action asks the processes themselves to disconnect.

Private: docs/reference.md lists the public names.
"""

from realtime.admin.connections import ConnectionAdmin
from realtime.admin.processes import ProcessAdmin
from realtime.admin.users import PresentUserAdmin

__all__ = ["ConnectionAdmin", "PresentUserAdmin", "ProcessAdmin"]
