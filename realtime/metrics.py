"""The Prometheus instruments.

They are declared here. The module that does the counted thing changes the instrument.

Private: docs/reference.md lists the public names.
"""

from prometheus_client import Counter, Gauge, Histogram

connections = Gauge("realtime_connections", "Connections that this process holds.")
unpinged = Gauge(
    "realtime_connections_unpinged",
    "Connections that neither this process nor, as far as it knows, the server pings.",
)
opened = Counter("realtime_connections_opened", "Connections that this process admitted.")
closed = Counter(
    "realtime_connections_closed", "Connections that ended in this process, by close reason.", ["reason"]
)
refused = Counter(
    "realtime_connections_refused", "Connections that were refused before they were admitted.", ["reason"]
)
limited = Counter(
    "realtime_limited",
    "Connections, frames and groups that were refused because of a limit, by the setting that is the limit.",
    ["limit"],
)
groups = Gauge("realtime_groups", "Groups of the channel layer of which this process is a member.")

events = Counter("realtime_events_received", "Events that reached this process's hub, by type.", ["type"])
unstamped = Counter(
    "realtime_events_unstamped", "Events of groups that did not say to which group they were sent."
)
events_dropped = Counter(
    "realtime_events_dropped",
    "Events of the layer that were dropped because a handler was too busy to take them.",
)
messages_dropped = Counter(
    "realtime_messages_dropped",
    "Messages of the channel layer that were dropped because more than MAX_QUEUED_BYTES of them waited.",
)
queued_bytes = Gauge(
    "realtime_queued_bytes", "Memory of the messages that wait until this process takes them."
)
deliveries = Counter("realtime_deliveries", "Frames that fan-out handed to transports.")
published = Counter("realtime_messages_published", "Messages that this process published.")
tickets = Counter(
    "realtime_tickets",
    "Tickets that clients presented, by outcome: accepted, refused, or unknown because Redis did not answer.",
    ["outcome"],
)
notifications = Counter(
    "realtime_notifications",
    "Notifications that this process sent, by outcome: taken by a connection, or not_taken.",
    ["outcome"],
)
presence_changes = Counter(
    "realtime_presence_changes", "Users of whom members of a group were told that they came or left."
)
history_appended = Counter(
    "realtime_history_appended", "Messages that this process appended to the history of a group."
)
history_unsent = Counter(
    "realtime_history_unsent",
    "Messages that the core layer appended to a history but did not send. The hubs read them within a round.",
)
subscribe_unconfirmed = Counter(
    "realtime_subscribe_unconfirmed",
    "Subscriptions to a group that Redis did not acknowledge within a second.",
)
echoes_missed = Counter(
    "realtime_echoes_missed", "Echoes that this process sent to itself and that did not come back in time."
)
deaf = Gauge(
    "realtime_layer_deaf",
    "1 while this process does not hear what it sends to itself, by layer.",
    ["layer"],
)
layer_rebuilds = Counter(
    "realtime_layer_rebuilds",
    "Connections to the layer that were replaced because they carried nothing.",
)
groups_reasserted = Counter(
    "realtime_groups_reasserted", "Memberships that were re-added to the channel layer, by cause.", ["cause"]
)
layer_errors = Counter("realtime_layer_errors", "Calls to the channel layer that failed, by call.", ["call"])
record_errors = Counter(
    "realtime_record_errors", "Writes of records that failed, and were repeated or given up."
)

history_reads = Counter(
    "realtime_history_reads",
    "Readings of the history of a group, by cause: a first member here (join), a gap in what arrived (gap), "
    "a position that differs from the one in Redis (check), messages that are no longer in memory (page).",
    ["cause"],
)
history_repaired = Counter(
    "realtime_history_repaired",
    "Messages that the layer did not deliver and that were read from the history.",
)
history_repeated = Counter(
    "realtime_history_repeated", "Messages that arrived again and were not delivered a second time."
)
history_resets = Counter(
    "realtime_history_resets", "Groups in this process whose history could not be continued."
)
history_recoveries = Counter(
    "realtime_history_recoveries",
    "Joins with a position, by outcome: recovered, or refused because not every missed message is kept.",
    ["outcome"],
)
history_recovered = Counter(
    "realtime_history_recovered_messages", "Messages that were written to members that had missed them."
)
history_tail_bytes = Gauge(
    "realtime_history_tail_bytes", "Memory of the recent messages of groups that keep history."
)

pings = Counter("realtime_pings_sent", "Pings sent to connections.")
round_trip = Histogram(
    "realtime_ping_round_trip_seconds",
    "The time from a ping to its pong.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
zombie_lifetime = Histogram(
    "realtime_zombie_lifetime_seconds",
    "The time from a connection's last proof of life to its removal, by close reason.",
    ["reason"],
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 120),
)
zombie_messages = Counter(
    "realtime_zombie_messages",
    "Messages written to evicted connections after the last ping that they answered, by close reason.",
    ["reason"],
)
zombie_bytes = Counter(
    "realtime_zombie_bytes",
    "Bytes written to evicted connections after the last ping that they answered, by close reason.",
    ["reason"],
)
stalled = Counter(
    "realtime_loop_stalled_seconds",
    "Time for which the event loop was stalled. It counts against no client.",
)
loop_lag = Gauge("realtime_loop_lag_seconds", "The delay with which the event loop ran its last tick.")

rounds = Counter("realtime_rounds", "Rounds that this process ran, by outcome.", ["outcome"])
processes_lost = Counter("realtime_processes_lost", "Processes that this process declared lost.")
