"""By what the lists are narrowed; each filter leaves an index to read."""

import uuid
from collections.abc import Iterator
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.views.main import ORDER_VAR, SEARCH_VAR, ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process

#: How many processes the filter names; the list of processes leads to the connections of each.
PROCESSES_NAMED = 30
#: How many members of a group, and how many suspects, are looked at. A public group may have a million, a
#: lost process a hundred thousand, and no index has the newest of several processes in order.
SOUGHT = 1_000


class Pick(admin.SimpleListFilter):
    """A list that opens beneath what is chosen; beside the table there is no room for four."""

    template = "admin/realtime/filter.html"


class ConnectionStateFilter(Pick):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("suspect", "suspect"), ("closed", "closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.open()  # type: ignore[attr-defined, no-any-return]
            case "suspect":
                silent = Process.objects.filter(Q(stopped_at__isnull=False) | Q(missed__gt=0))
                suspects = Connection.objects.open().filter(process__in=silent.values("pk"))
                return queryset.filter(pk__in=suspects.values("pk")[:SOUGHT])
            case "closed":
                return queryset.closed()  # type: ignore[attr-defined, no-any-return]
        return queryset


class CloseReasonFilter(Pick):
    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(reason.value, reason.value) for reason in CloseReason]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        # Only closed records have a reason, and only those are in its index.
        return queryset.closed().filter(close_reason=_plain(self.value()))  # type: ignore[attr-defined, no-any-return]


class ProcessFilter(Pick):
    title = "process"
    parameter_name = "process"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        running = Process.objects.running().order_by("host", "pid")[:PROCESSES_NAMED]
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
    """A field to type a group's name into, because there may be a hundred thousand."""

    title = "group"
    parameter_name = "group"
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
        # The index of memberships begins with the process: named, they make it an index of groups.
        members = Membership.objects.to_leave().filter(group=group, process__in=processes.values("pk"))
        return queryset.filter(pk__in=members.values("connection")[:SOUGHT])


class ProcessStateFilter(Pick):
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


def _plain(text: str | None) -> str:
    """Without what no column holds: PostgreSQL refuses to compare with a NUL."""
    return (text or "").replace("\0", "").strip()


def _uuid(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(cast(str, text))
    except (AttributeError, TypeError, ValueError):
        return None
