"""Read everything that is open in the database, for a comparison with the layers and the processes."""

from realtime.fleet.differences import Stored, StoredProcess
from realtime.models import Connection, Membership, Process
from realtime.records import rows


def everything() -> Stored:
    """Return all open records, all memberships that are not left, and all processes.

    The cost grows with their number.
    """
    using = rows.database()
    memberships = {
        (str(connection_id), group): str(process_id)
        for connection_id, group, process_id in Membership.objects.using(using)
        .to_leave()
        .values_list("connection_id", "group", "process_id")
    }
    records = {
        str(id): str(process_id)
        for id, process_id in Connection.objects.using(using).open().values_list("id", "process_id")
    }
    # Last, so that the process of every record and membership is found.
    processes = {
        str(id): StoredProcess(address, f"{host}:{pid}", running=stopped_at is None)
        for id, address, host, pid, stopped_at in Process.objects.using(using).values_list(
            "id", "channel_name", "host", "pid", "stopped_at"
        )
    }
    return Stored(processes, records, memberships)
