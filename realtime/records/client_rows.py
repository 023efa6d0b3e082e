"""Find the connections that newer ones of the same client supersede.

A client names itself by a random id in the URL of each of its connections. Of the open connections with the
same user and client id, the newest remains. Call this after the commit of the newest: two processes that open
a connection of one client at the same time then both see both records, and find the same older one.
"""

import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import timedelta

from django.db import connections
from django.db.models.functions import Now

from realtime.closing import CloseReason
from realtime.models import Connection
from realtime.records import rows
from realtime.records.entries import Client, Opening, Superseded

#: Clients that one statement names. SQLite may limit the number of values to 999.
BATCH = 200


def superseded(clients: Collection[Client]) -> list[Superseded]:
    """Return the open records of some clients, except the newest one of each.

    A record in the result stays superseded, also if the newer one is closed meanwhile. So it may be closed
    after any time.
    """
    connection = connections[rows.database()]
    quote = connection.ops.quote_name
    table = quote(Connection._meta.db_table)
    # SQLite's clock counts milliseconds, and two batches may fall into one. Its rows are numbered as they are
    # inserted.
    then = "rowid" if connection.vendor == "sqlite" else "id"
    ids: list[uuid.UUID] = []
    for some in rows.batches(clients, BATCH):
        values = ", ".join(["(%s, %s)"] * len(some))
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT c.id FROM {table} c"  # noqa: S608 - the name of our own table
                f" WHERE c.closed_at IS NULL AND (c.user_id, c.client_id) IN (VALUES {values})"
                f" AND EXISTS (SELECT 1 FROM {table} n WHERE n.user_id = c.user_id"
                " AND n.client_id = c.client_id AND n.closed_at IS NULL"
                f" AND (n.opened_at, n.{then}) > (c.opened_at, c.{then}))",
                [text for client in some for text in client],
            )
            # SQLite returns them as text.
            ids += [uuid.UUID(str(row[0])) for row in cursor.fetchall()]
    return list(_with_addresses(ids)) if ids else []


def _with_addresses(ids: Sequence[uuid.UUID]) -> Iterator[Superseded]:
    columns = [field.name for field in fields(Opening)]
    for some in rows.batches(ids):
        found = Connection.objects.using(rows.database()).filter(pk__in=some)
        for *values, address in found.values_list(*columns, "process__channel_name"):
            yield Superseded(Opening(*values), address)


def superseded_of(process_id: uuid.UUID, within: float) -> list[uuid.UUID]:
    """Return the connections of a process that were superseded in the last `within` seconds.

    The query reads the entries of an index for everything that was closed since then.
    """
    closed = Connection.objects.using(rows.database()).closed()
    mine = closed.filter(
        closed_at__gt=Now() - timedelta(seconds=within),
        process=process_id,
        close_reason=CloseReason.SUPERSEDED.value,
    )
    return list(mine.values_list("pk", flat=True))


def clients_of(openings: Iterable[Opening]) -> set[Client]:
    """Return the clients of connections as the database stores them, without connections that name none."""
    return {
        Client(rows.cut(each.user_id, Connection, "user_id"), each.client_id)
        for each in openings
        if each.client_id
    }
