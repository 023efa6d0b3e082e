"""The filters of the lists. Each keeps the query on an index."""

import uuid
from collections.abc import Iterator
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.views.main import ORDER_VAR, SEARCH_VAR, ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, PresentUser, Process

#: The number of processes in the filter. The list of processes has links to the connections of each process.
PROCESSES_NAMED = 30
#: The number of members of a group, and of suspects, that a filter reads. A public group may have a million
#: members, a lost process a hundred thousand connections, and no index orders the rows of several processes.
SOUGHT = 1_000


class Pick(admin.SimpleListFilter):
    """A filter above the table that opens on a click: beside the table there is no room for four."""

    template = "admin/realtime/filter.html"


class ConnectionStateFilter(Pick):
    """Open, suspect or closed."""

    title = "state"
    parameter_name = "state"
    limit = SOUGHT

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("suspect", "suspect"), ("closed", "closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.open()  # type: ignore[attr-defined, no-any-return]
            case "suspect":
                silent = Process.objects.filter(Q(stopped_at__isnull=False) | Q(missed__gt=0))
                suspects = Connection.objects.open().filter(process__in=silent.values("pk"))
                return queryset.filter(pk__in=suspects.values("pk")[: self.limit])
            case "closed":
                return queryset.closed()  # type: ignore[attr-defined, no-any-return]
        return queryset


class CloseReasonFilter(Pick):
    """The close reason."""

    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(reason.value, reason.value) for reason in CloseReason]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        # Only closed records have a reason, and its index has only closed records.
        return queryset.closed().filter(close_reason=_plain(self.value()))  # type: ignore[attr-defined, no-any-return]


class ProcessFilter(Pick):
    """The process that holds or held the connection."""

    title = "process"
    parameter_name = "process"
    limit = PROCESSES_NAMED

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        running = Process.objects.running().order_by("host", "pid")[: self.limit]
        named = {str(process.pk): str(process) for process in running}
        if (chosen := _uuid(self.value())) is not None and str(chosen) not in named:
            named |= {str(process.pk): str(process) for process in Process.objects.filter(pk=chosen)}
        return list(named.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        chosen = _uuid(self.value())
        return queryset.none() if chosen is None else queryset.filter(process=chosen)


class GroupFilter(admin.SimpleListFilter):
    """A text field for the name of a group, because there may be a hundred thousand groups."""

    title = "group"
    parameter_name = "group"
    limit = SOUGHT
    template = "admin/realtime/group_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return []

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        kept = {name: values[-1] for name, values in changelist.get_filters_params().items()}
        kept |= {
            name: changelist.params[name] for name in (SEARCH_VAR, ORDER_VAR) if name in changelist.params
        }
        kept.pop(self.parameter_name, None)
        yield {"value": self.value() or "", "kept": kept.items()}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        group = _plain(self.value())
        if not group:
            return queryset
        processes = Process.objects.all()
        if (process := _uuid(request.GET.get(ProcessFilter.parameter_name))) is not None:
            processes = processes.filter(pk=process)
        # The index of memberships begins with the process. If all processes are named, it finds a group.
        members = Membership.objects.to_leave().filter(group=group, process__in=processes.values("pk"))
        return queryset.filter(pk__in=members.values("connection")[: self.limit])


class ProcessStateFilter(Pick):
    """Running, silent, stopped or lost."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("running", "running"), ("silent", "silent"), ("stopped", "stopped"), ("lost", "lost")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "running":
                return queryset.filter(stopped_at__isnull=True)
            case "silent":
                return queryset.filter(stopped_at__isnull=True, missed__gt=0)
            case "stopped":
                return queryset.filter(stopped_at__isnull=False, lost=False)
            case "lost":
                return queryset.filter(lost=True)
        return queryset


class UserStateFilter(Pick):
    """Online (also in the grace) or dormant."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("online", "online"), ("dormant", "dormant")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "online":
                return queryset.present()  # type: ignore[attr-defined, no-any-return]
            case "dormant":
                return queryset.filter(left_at__isnull=False)
        return queryset


class UserGroupFilter(GroupFilter):
    """A text field for the name of a group, whose present users are listed."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        group = _plain(self.value())
        if not group:
            return queryset
        members = PresentUser.objects.present().filter(group=group).order_by("-pk")
        users = PresentUser.objects.users().filter(user_id__in=members.values("user_id")[: self.limit])
        # The limit once more, so that the database finds these rows first and then puts them in order.
        return queryset.filter(pk__in=users.values("pk")[: self.limit])


def _plain(text: str | None) -> str:
    """Return a text without NUL, which no column holds and PostgreSQL refuses to compare with."""
    return (text or "").replace("\0", "").strip()


def _uuid(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(cast(str, text))
    except (AttributeError, TypeError, ValueError):
        return None
