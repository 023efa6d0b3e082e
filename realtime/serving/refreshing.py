"""Renew the authorization of a connection before it ends."""

import logging
import time

from realtime.errors import BadTicket, ConnectionGone
from realtime.hub.connection import Connection
from realtime.rights import tickets

logger = logging.getLogger("realtime.serving")


async def refresh(connection: Connection, ticket: str | None) -> float | None:
    """Renew the authorization of a connection.

    Args:
        connection: The connection.
        ticket: A new ticket of the same user. None reads again when its session ends.

    Returns:
        Seconds until the authorization ends; None if it does not end by itself, or if that is not known.

    Raises:
        BadTicket: The ticket gives no right to this connection.
        ConnectionGone: The session has ended, and the connection with it.
        LayerUnavailable: Redis cannot say if the ticket was used before.
    """
    if ticket is not None:
        verified = await tickets.verify(ticket)
        if verified.authorization.user_id != connection.user_id:
            raise BadTicket("The ticket is for another user.")
        if verified.user is not None:
            connection.scope["user"] = verified.user
        connection.authorization = verified.authorization
        # A policy that was asked with the earlier groups of the ticket is asked again.
        connection.rights_read += 1
        if connection.hub is not None:
            connection.hub.rights.changed(connection)
    elif connection.hub is not None:
        try:
            await connection.hub.rights.read_session(connection)
        except Exception as error:
            # The end that was read before counts until the next reading.
            logger.warning("A session could not be read: %r", error, extra=connection.log_fields())
        if connection.gone:
            raise ConnectionGone
    if connection.authorization is None or connection.authorization.expires_at is None:
        return None
    return max(0.0, connection.authorization.expires_at - time.time())
