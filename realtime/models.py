"""The rows that outlive a crash: processes, their connections, the memberships of connections, the round.

Every time in these tables comes from the database's clock, so the clocks of two hosts are never compared.
Nothing here depends on a project's settings (user model, default primary key, language), so a project never
has to make a migration for this app.

Private: docs/reference.md lists the public names.
"""

import uuid
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Exists, OuterRef, Q, Subquery


class ProcessQuerySet(models.QuerySet["Process"]):
    """Queries for server processes."""

    def running(self) -> "ProcessQuerySet":
        """Return processes that neither stopped by plan nor were declared lost."""
        return self.filter(stopped_at__isnull=True)

    def ended(self) -> "ProcessQuerySet":
        """Return processes that stopped by plan or were declared lost."""
        return self.filter(stopped_at__isnull=False)

    def to_sweep(self) -> "ProcessQuerySet":
        """Return ended processes that left open records or memberships behind."""
        # Counts and not EXISTS, because PostgreSQL plans EXISTS as if a row were found soon. For each process
        # that holds nothing, it would read all of a table.
        records = Connection.objects.open().filter(process=OuterRef("pk"))
        memberships = Membership.objects.to_leave().filter(process=OuterRef("pk"))
        held = {
            name: Subquery(rows.order_by().values("process").annotate(count=Count("pk")).values("count"))
            for name, rows in (("records_held", records), ("memberships_held", memberships))
        }
        return self.ended().alias(**held).filter(Q(records_held__gt=0) | Q(memberships_held__gt=0))

    def to_purge(self, stopped_before: Any) -> "ProcessQuerySet":
        """Return ended processes without records.

        Args:
            stopped_before: A datetime or a database expression; only processes that ended then or earlier.
        """
        records = Connection.objects.filter(process=OuterRef("pk"))
        return self.ended().filter(~Exists(records), stopped_at__lte=stopped_before)


class Process(models.Model):
    """One run of one server process. A process that starts again gets a new row."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    channel_name = models.CharField(max_length=200)
    """The hub's address: its channel, preceded by the alias of its layer and a colon if that is not the
    default layer.
    """
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    pid_namespace = models.CharField(max_length=100, default="")
    """The scope of `pid` (machine, boot, PID namespace); empty if it cannot be known."""
    pid_began = models.BigIntegerField(default=0)
    """Clock ticks from the machine's boot to the start of the process with this pid; 0 if unknown."""
    started_at = models.DateTimeField()
    last_round = models.BigIntegerField(default=0)
    """The highest round that this process answered."""
    missed = models.PositiveSmallIntegerField(default=0)
    """The number of rounds in a row that were delivered to this process and that it did not answer."""
    connections = models.PositiveIntegerField(default=0)
    """The number of its connections at the last answer; only displayed."""
    loop_lag = models.FloatField(default=0.0)
    """Seconds by which the event loop was late at the last answer; only displayed."""
    answered_at = models.DateTimeField(null=True)
    look_every = models.DurationField(default=timedelta)
    """The longest time between two looks of the process for rounds that it was not asked."""
    spared_until = models.DateTimeField(null=True)
    """The time by which a process that missed a round has looked for rounds. Until then it is not lost."""
    heard_at = models.DateTimeField(null=True)
    """The last time when the process knew that it receives what it sends to itself through the layer."""
    stopped_at = models.DateTimeField(null=True)
    """Set once, by a planned stop or by the round that declared the process lost."""
    lost = models.BooleanField(default=False)

    objects = ProcessQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "processes"
        constraints = (
            models.CheckConstraint(
                condition=Q(lost=False) | Q(stopped_at__isnull=False), name="realtime_lost_is_stopped"
            ),
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class ConnectionQuerySet(models.QuerySet["Connection"]):
    """Queries for connection records."""

    def open(self) -> "ConnectionQuerySet":
        """Return records of connections that are open."""
        return self.filter(closed_at__isnull=True)

    def closed(self) -> "ConnectionQuerySet":
        """Return records of connections that are closed."""
        return self.filter(closed_at__isnull=False)

    def to_purge(self, closed_before: Any) -> "ConnectionQuerySet":
        """Return closed records without memberships that must still be left.

        Args:
            closed_before: A datetime or a database expression; only records that were closed then or earlier.
        """
        held = Membership.objects.to_leave().filter(connection=OuterRef("pk"))
        return self.closed().filter(~Exists(held), closed_at__lte=closed_before)


class Connection(models.Model):
    """The record of one accepted WebSocket. `closed_at` changes once, from null to a time."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="records", db_index=False)
    user_id = models.CharField(max_length=255, blank=True, default="")
    """The user's primary key as text. With a foreign key, a deleted user could make a batch fail."""
    path = models.CharField(max_length=512)
    remote_address = models.CharField(max_length=64)
    user_agent = models.CharField(max_length=512)
    subprotocol = models.CharField(max_length=100)
    client_id = models.CharField(max_length=64, blank=True, default="", db_default="")
    """The id that the client gave itself in the query string; empty if it gave none."""
    opened_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    """The last proof of life. It is only displayed and up to a minute old."""
    closed_at = models.DateTimeField(null=True)
    close_reason = models.CharField(max_length=32, default="")
    """The value of a `realtime.closing.CloseReason`; empty while open."""
    close_code = models.PositiveSmallIntegerField(null=True)
    closed_by = models.UUIDField(null=True)
    """The stamp of the write that closed this record. It shows to a repeated write that it was the first."""

    objects = ConnectionQuerySet.as_manager()

    class Meta:
        permissions = (("disconnect_connection", "Can disconnect connection"),)
        constraints = (
            models.CheckConstraint(
                condition=Q(closed_at__isnull=True, close_reason="")
                | Q(Q(closed_at__isnull=False), ~Q(close_reason="")),
                name="realtime_closed_with_reason",
            ),
        )
        indexes = (
            models.Index(
                fields=["closed_at"], condition=Q(closed_at__isnull=False), name="realtime_connection_closed"
            ),
            models.Index(fields=["opened_at"], name="realtime_connection_opened"),
            # For the filters of the admin's list. Each ends with the time, so that no page has to be sorted.
            models.Index(fields=["process", "opened_at"], name="realtime_connection_process"),
            models.Index(
                fields=["opened_at"], condition=Q(closed_at__isnull=True), name="realtime_connection_newest"
            ),
            models.Index(
                fields=["close_reason", "opened_at"],
                condition=Q(closed_at__isnull=False),
                name="realtime_connection_reason",
            ),
            # A partial index without anonymous users would be smaller. SQLite would not use it for a bound
            # parameter.
            models.Index(fields=["user_id", "opened_at"], name="realtime_connection_user"),
            # To find out if a user is connected, and the other connections of a client.
            models.Index(
                fields=["user_id", "client_id"],
                condition=Q(closed_at__isnull=True),
                name="realtime_connection_client",
            ),
            # Last, because SQLite takes the newest of several indexes that seem equally good.
            models.Index(
                fields=["process", "opened_at"],
                condition=Q(closed_at__isnull=True),
                name="realtime_connection_open",
            ),
        )

    def __str__(self) -> str:
        return str(self.pk)


class MembershipQuerySet(models.QuerySet["Membership"]):
    """Queries for memberships."""

    def to_leave(self) -> "MembershipQuerySet":
        """Return memberships without a `group_discard` that returned: the to-do list of every cleanup."""
        return self.filter(left_at__isnull=True)

    def leftovers(self) -> "MembershipQuerySet":
        """Return memberships of closed connections that a running process must still leave."""
        return self.to_leave().filter(connection_closed=True, process__stopped_at__isnull=True)

    def to_purge(self, left_before: Any) -> "MembershipQuerySet":
        """Return memberships that were left.

        Args:
            left_before: A datetime or a database expression; only memberships that were left then or earlier.
        """
        return self.filter(left_at__isnull=False, left_at__lte=left_before)


class Membership(models.Model):
    """A connection in a group.

    The row is committed before the layer's `group_add`. `left_at` is set only after a `group_discard` that
    returned.
    """

    id = models.BigAutoField(primary_key=True)
    connection = models.ForeignKey(Connection, on_delete=models.CASCADE, related_name="memberships")
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="memberships")
    """The connection's process again, so that one indexed query finds the memberships of a lost process."""
    group = models.CharField(max_length=100)
    user_id = models.CharField(max_length=255, blank=True, default="", db_default="")
    """The connection's user again, so that one index finds the memberships of a user in a group."""
    joined_at = models.DateTimeField()
    left_at = models.DateTimeField(null=True)
    connection_closed = models.BooleanField(default=False)
    """True from the close of the record, so that finding leftovers costs nothing while there are none. Such a
    membership does not count for presence.
    """

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["connection", "group"],
                condition=Q(left_at__isnull=True),
                name="realtime_membership_once",
            ),
        )
        indexes = (
            models.Index(
                fields=["process", "group"],
                condition=Q(left_at__isnull=True),
                name="realtime_membership_to_leave",
            ),
            models.Index(
                fields=["id"],
                condition=Q(left_at__isnull=True, connection_closed=True),
                name="realtime_membership_leftover",
            ),
            # The last two fields are always the same. With them, SQLite counts in the index alone.
            models.Index(
                fields=["group", "user_id", "left_at", "connection_closed"],
                condition=Q(left_at__isnull=True, connection_closed=False),
                name="realtime_membership_present",
            ),
            # Ordered by the time of leaving, so that each new entry goes to its end.
            models.Index(
                fields=["left_at"], condition=Q(left_at__isnull=False), name="realtime_membership_left"
            ),
        )

    def __str__(self) -> str:
        return f"{self.connection_id} in {self.group}"


class PresentUserQuerySet(models.QuerySet["PresentUser"]):
    """Queries for presence."""

    def users(self) -> "PresentUserQuerySet":
        """Return the rows of users who are online or dormant, once each."""
        return self.filter(group="")

    def present(self) -> "PresentUserQuerySet":
        """Return the rows of users who are present, including those in their grace."""
        return self.filter(left_at__isnull=True)


class PresentUser(models.Model):
    """A user who is present in a group, or online. Anonymous clients have no rows.

    A row whose group is empty says that the user is online: some connection of the user is open.

    The row is inserted with the first membership, and its `gone_at` is set with the end of the last one, each
    in the same transaction. When the grace has passed since then, the user has left, and the row is deleted.
    The row of a dormant user stays, to be shown to operators.
    """

    id = models.BigAutoField(primary_key=True)
    """The number of this stay. It is higher than that of every earlier stay of the user in the group."""
    group = models.CharField(max_length=100, blank=True)
    user_id = models.CharField(max_length=255)
    since = models.DateTimeField()
    gone_at = models.DateTimeField(null=True)
    """The end of the last membership, or connection; null while there is one."""
    dormant_since = models.DateTimeField(null=True)
    """Only for users online: the end of the last connection, if that ended by silence."""
    dormant_by = models.UUIDField(null=True)
    """The connection that made the user dormant by its silence. A repeated write finds itself by it."""
    left_at = models.DateTimeField(null=True)
    """Only for dormant users: the end of their grace, at which they went offline."""
    stamp = models.UUIDField()
    """The stamp of the write that began this stay, which thereby knows that it did."""

    objects = PresentUserQuerySet.as_manager()

    class Meta:
        verbose_name = "user online"
        verbose_name_plural = "users online"
        constraints = (
            # The user first, so that it also finds all rows of a user.
            models.UniqueConstraint(fields=["user_id", "group"], name="realtime_present_user_once"),
        )
        indexes = (
            # The users of a group in the order of their arrival. Everything that is read of a group is in
            # the index, because the rows of its users are scattered over the table.
            models.Index(
                fields=["group", "id", "user_id", "gone_at", "left_at"], name="realtime_present_user_group"
            ),
            models.Index(
                fields=["gone_at"],
                condition=Q(gone_at__isnull=False, left_at__isnull=True),
                name="realtime_present_user_gone",
            ),
            # For dormant users, the newest first. No rows of groups are in it; with the column, SQLite also
            # takes it for the admin's list, which names the group.
            models.Index(
                fields=["group", "left_at"],
                condition=Q(left_at__isnull=False),
                name="realtime_present_user_left",
            ),
            # For the admin's list of users online, of whom there may be few among many who are dormant. Last,
            # because SQLite takes the newest of several indexes that seem equally good.
            models.Index(
                fields=["group", "id"],
                condition=Q(group="", left_at__isnull=True),
                name="realtime_present_user_online",
            ),
        )

    def __str__(self) -> str:
        return f"{self.user_id} in {self.group}" if self.group else self.user_id


class PresenceWatch(models.Model):
    """A process with connections that are told who comes to a group and who leaves it."""

    id = models.BigAutoField(primary_key=True)
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="watches", db_index=False)
    group = models.CharField(max_length=100)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["process", "group"], name="realtime_presence_watch_once"),
        )
        indexes = (models.Index(fields=["group", "process"], name="realtime_presence_watch_group"),)

    def __str__(self) -> str:
        return f"{self.process_id} watches {self.group}"


class Round(models.Model):
    """The number of the last round, in the only row of its table. A conditional UPDATE claims a round."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    number = models.BigIntegerField(default=0)
    started_at = models.DateTimeField(null=True)
    """Null until the first round."""
    finished = models.BigIntegerField(default=0)
    """The highest round that a reaper carried through; 0 before the first."""
    interval = models.FloatField(default=0.0)
    """Seconds between rounds, as configured for the reaper that claimed the last one; 0 until the first."""

    class Meta:
        constraints = (models.CheckConstraint(condition=Q(id=1), name="realtime_round_is_one_row"),)

    def __str__(self) -> str:
        return str(self.number)
