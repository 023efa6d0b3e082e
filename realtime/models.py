"""The rows that outlive a crash: processes, the connections they hold, the memberships of these, the round.

Every time in these tables comes from the database's clock, so no two hosts' clocks are ever compared.
Nothing here depends on a project's settings (user model, default primary key, language), so a project never
has to migrate this app itself.
"""

import uuid
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Exists, OuterRef, Q, Subquery


class ProcessQuerySet(models.QuerySet["Process"]):
    """Verbs for server processes."""

    def running(self) -> "ProcessQuerySet":
        """Neither stopped by plan nor declared lost."""
        return self.filter(stopped_at__isnull=True)

    def ended(self) -> "ProcessQuerySet":
        """Stopped by plan or declared lost."""
        return self.filter(stopped_at__isnull=False)

    def to_sweep(self) -> "ProcessQuerySet":
        """Ended processes that left open records or memberships behind."""
        # Counts, because PostgreSQL plans EXISTS as if a row were found soon: where there is none, it reads
        # all of a table, and that for each process which holds nothing.
        records = Connection.objects.open().filter(process=OuterRef("pk"))
        memberships = Membership.objects.to_leave().filter(process=OuterRef("pk"))
        held = {
            name: Subquery(rows.order_by().values("process").annotate(count=Count("pk")).values("count"))
            for name, rows in (("records_held", records), ("memberships_held", memberships))
        }
        return self.ended().alias(**held).filter(Q(records_held__gt=0) | Q(memberships_held__gt=0))

    def to_purge(self, stopped_before: Any) -> "ProcessQuerySet":
        """Ended at or before this time (a datetime or a database expression), with no record left."""
        records = Connection.objects.filter(process=OuterRef("pk"))
        return self.ended().filter(~Exists(records), stopped_at__lte=stopped_before)


class Process(models.Model):
    """One run of one server process. A process that starts anew gets a new row."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    channel_name = models.CharField(max_length=200)
    """The hub's address: its channel, after the alias of the layer and a colon unless that is the default."""
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    pid_namespace = models.CharField(max_length=100, default="")
    """Where `pid` means something (machine, boot, PID namespace); empty where that cannot be known."""
    pid_began = models.BigIntegerField(default=0)
    """Clock ticks from the machine's boot to the start of what has this pid; 0 where unknown."""
    started_at = models.DateTimeField()
    last_round = models.BigIntegerField(default=0)
    """The highest round that this process answered."""
    missed = models.PositiveSmallIntegerField(default=0)
    """How many rounds in a row were delivered to this process and stayed unanswered."""
    connections = models.PositiveIntegerField(default=0)
    """As of the last answer; for display."""
    loop_lag = models.FloatField(default=0.0)
    """Seconds by which the event loop was late, as of the last answer; for display."""
    answered_at = models.DateTimeField(null=True)
    look_every = models.DurationField(default=timedelta)
    """The process looks at least this often for rounds that it was not asked."""
    spared_until = models.DateTimeField(null=True)
    """Since its first missed round, the process has looked for rounds by then; until then it is not lost."""
    heard_at = models.DateTimeField(null=True)
    """When the process last knew that it hears what it sends to itself through the channel layer."""
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
    """Verbs for connection records."""

    def open(self) -> "ConnectionQuerySet":
        return self.filter(closed_at__isnull=True)

    def closed(self) -> "ConnectionQuerySet":
        return self.filter(closed_at__isnull=False)

    def to_purge(self, closed_before: Any) -> "ConnectionQuerySet":
        """Closed at or before this time (a datetime or a database expression), all memberships left."""
        held = Membership.objects.to_leave().filter(connection=OuterRef("pk"))
        return self.closed().filter(~Exists(held), closed_at__lte=closed_before)


class Connection(models.Model):
    """The record of one accepted WebSocket. `closed_at` goes from null to a time once, and never back."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="records", db_index=False)
    user_id = models.CharField(max_length=255, blank=True, default="")
    """The user's primary key as text; no foreign key, so that a deleted user cannot make a batch fail."""
    path = models.CharField(max_length=512)
    remote_address = models.CharField(max_length=64)
    user_agent = models.CharField(max_length=512)
    subprotocol = models.CharField(max_length=100)
    opened_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    """For display; up to a minute old."""
    closed_at = models.DateTimeField(null=True)
    close_reason = models.CharField(max_length=32, default="")
    """The value of a `realtime.closing.CloseReason`; empty while open."""
    close_code = models.PositiveSmallIntegerField(null=True)
    closed_by = models.UUIDField(null=True)
    """The stamp of the write that closed this record: it tells a repeated write that it was the first."""

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
            # What the admin's list is narrowed by; each ends with the time, so that no page is sorted.
            models.Index(fields=["process", "opened_at"], name="realtime_connection_process"),
            models.Index(
                fields=["opened_at"], condition=Q(closed_at__isnull=True), name="realtime_connection_newest"
            ),
            models.Index(
                fields=["close_reason", "opened_at"],
                condition=Q(closed_at__isnull=False),
                name="realtime_connection_reason",
            ),
            # Not partial, without anonymous users: SQLite would not use that for a bound parameter.
            models.Index(fields=["user_id", "opened_at"], name="realtime_connection_user"),
            # Last, because of indexes that seem equally good SQLite takes the one that was made last.
            models.Index(
                fields=["process", "opened_at"],
                condition=Q(closed_at__isnull=True),
                name="realtime_connection_open",
            ),
        )

    def __str__(self) -> str:
        return str(self.pk)


class MembershipQuerySet(models.QuerySet["Membership"]):
    """Verbs for memberships."""

    def to_leave(self) -> "MembershipQuerySet":
        """The to-do list of every cleanup: no `group_discard` has returned for these yet."""
        return self.filter(left_at__isnull=True)

    def leftovers(self) -> "MembershipQuerySet":
        """Still to leave although their connection is closed, in processes that run."""
        return self.to_leave().filter(connection_closed=True, process__stopped_at__isnull=True)

    def to_purge(self, left_before: Any) -> "MembershipQuerySet":
        """Left at or before this time (a datetime or a database expression)."""
        return self.filter(left_at__isnull=False, left_at__lte=left_before)


class Membership(models.Model):
    """A connection in a group.

    Committed before the layer's `group_add`; `left_at` is set only after a `group_discard` that returned.
    """

    id = models.BigAutoField(primary_key=True)
    connection = models.ForeignKey(Connection, on_delete=models.CASCADE, related_name="memberships")
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="memberships")
    """The connection's process again, so that what a lost process held is one indexed query."""
    group = models.CharField(max_length=100)
    joined_at = models.DateTimeField()
    left_at = models.DateTimeField(null=True)
    connection_closed = models.BooleanField(default=False)
    """Set with the record's close, so that finding leftovers costs nothing while there are none."""

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
            # In the order in which rows leave, so that each new entry goes to its end.
            models.Index(
                fields=["left_at"], condition=Q(left_at__isnull=False), name="realtime_membership_left"
            ),
        )

    def __str__(self) -> str:
        return f"{self.connection_id} in {self.group}"


class Round(models.Model):
    """The number of the last round, in the only row of its table. Claimed by a conditional UPDATE."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    number = models.BigIntegerField(default=0)
    started_at = models.DateTimeField(null=True)
    """Null until the first round."""
    finished = models.BigIntegerField(default=0)
    """The highest round that a reaper carried through; 0 before the first."""
    interval = models.FloatField(default=0.0)
    """Seconds between rounds, as the reaper has them that claimed the last one; 0 until the first round."""

    class Meta:
        constraints = (models.CheckConstraint(condition=Q(id=1), name="realtime_round_is_one_row"),)

    def __str__(self) -> str:
        return str(self.number)
