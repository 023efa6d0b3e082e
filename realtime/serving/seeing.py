"""Let a consumer see who is in a group."""

from django.db import Error as DatabaseFailure

from realtime.errors import RecordsUnavailable
from realtime.hub.connection import Connection
from realtime.presence import Presence, apresence
from realtime.presence.asking import require_tracked
from realtime.serving import handlers, lifecycle
from realtime.serving.handlers import Target

#: The type of the event that tells a consumer who came and left.
CHANGED = "presence.changed"


async def see(connection: Connection, consumer: type, group: str) -> Presence:
    """Return who is in a group; if the consumer has a handler, have it told from now on who comes and leaves.

    Args:
        connection: The connection of the consumer.
        consumer: Its class.
        group: The name of the group.

    Raises:
        BadGroup: No group can have this name.
        NoPresence: No pattern in PRESENCE matches the group.
        RecordsUnavailable: The database is down.
    """
    require_tracked(group)
    if group in connection.groups and handlers.target(consumer, CHANGED) is Target.HANDLER:
        present = await lifecycle.watch(connection, group, by_event=True)
    elif (known := lifecycle.present(connection, group)) is not None:
        present = known
    else:
        try:
            return await apresence(group)
        except DatabaseFailure as error:
            raise RecordsUnavailable(f"Who is present could not be read ({error!r}).") from error
    return Presence(group, tuple(present.users), present.anonymous, present.total)
