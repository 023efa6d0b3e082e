"""The admin of processes, connections and memberships.

It shows and searches, and changes nothing. Its one action asks the processes themselves to disconnect.

Private: docs/reference.md lists the public names.
"""

from realtime.admin.connections import ConnectionAdmin
from realtime.admin.processes import ProcessAdmin

__all__ = ["ConnectionAdmin", "ProcessAdmin"]
