"""Presence: the users in a group, and the users online.

The database is the truth. A user is a user of the project, once, with any number of connections in any number
of processes. A user who has been gone for less than PRESENCE_GRACE is still present.
"""

from realtime.presence.asking import Presence, ais_online, apresence, is_online, presence

__all__ = ["Presence", "ais_online", "apresence", "is_online", "presence"]
