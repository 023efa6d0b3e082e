"""A window on processes, connections and memberships: it shows and searches, and changes nothing."""

import uuid
from typing import Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from realtime.closing import CloseReason
from realtime.models import Connection, Membership, Process

NEWEST = 100
"""How many memberships the page of a connection shows; one that joins and leaves all day has many."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # takes none at run time
    """Counts no further than `limit`: an exact count would read a large table on every page.

    Rows beyond the limit are found by filters and search.
    """

    limit = 10_000

    @cached_property
    def count(self) -> int:
        rows = cast("QuerySet[Any]", self.object_list)
        return rows.order_by().values("pk")[: self.limit].count()


class ReadOnly:
    """Nobody adds, changes or deletes here; who may look is Django's `view` permission."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class WindowAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]  # takes none at run time
    """A list that stays cheap however many rows there are."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER


class ConnectionStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("closed", "closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.filter(closed_at__isnull=True)
            case "closed":
                return queryset.filter(closed_at__isnull=False)
        return queryset


class CloseReasonFilter(admin.SimpleListFilter):
    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(reason.value, reason.value) for reason in CloseReason]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(close_reason=self.value()) if self.value() else queryset


class ProcessStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("running", "running"), ("stopped", "stopped"), ("lost", "lost")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "running":
                return queryset.filter(stopped_at__isnull=True)
            case "stopped":
                return queryset.filter(stopped_at__isnull=False, lost=False)
            case "lost":
                return queryset.filter(lost=True)
        return queryset


class NewestMemberships(BaseInlineFormSet):  # type: ignore[type-arg]  # takes none at run time
    def get_queryset(self) -> QuerySet[Any]:
        if not hasattr(self, "_newest"):
            self._newest = super().get_queryset().order_by("-joined_at", "-pk")[:NEWEST]
        return self._newest


class MembershipInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]  # takes none at run time
    model = Membership
    formset = NewestMemberships
    fields = ("group", "joined_at", "left_at")
    extra = 0
    verbose_name_plural = f"newest {NEWEST} memberships"


@admin.register(Connection)
class ConnectionAdmin(WindowAdmin):
    list_display = (
        "id",
        "state",
        "user",
        "path",
        "process",
        "remote_address",
        "opened_at",
        "last_seen_at",
        "closed_at",
        "reason",
    )
    list_filter = (ConnectionStateFilter, CloseReasonFilter)
    list_select_related = ("process",)
    ordering = ("-opened_at",)
    sortable_by = ("opened_at",)  # the only column that has an index
    search_fields = ("user_id__exact", "remote_address__exact", "path__startswith")
    search_help_text = "a connection's id, a user's primary key, an address, or the beginning of a path"
    inlines = (MembershipInline,)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        # Apart from the others, because comparing any other text with the column is an error.
        try:
            return queryset.filter(pk=uuid.UUID(search_term.strip())), False
        except ValueError:
            return super().get_search_results(request, queryset, search_term)

    @admin.display
    def state(self, connection: Connection) -> str:
        return "open" if connection.closed_at is None else "closed"

    @admin.display(empty_value="anonymous")
    def user(self, connection: Connection) -> str | None:
        return connection.user_id or None

    @admin.display(empty_value="")
    def reason(self, connection: Connection) -> str | None:
        return connection.close_reason or None


@admin.register(Process)
class ProcessAdmin(WindowAdmin):
    list_display = (
        "host",
        "pid",
        "state",
        "started_at",
        "answered_at",
        "open_connections",
        "lag",
        "missed",
    )
    list_filter = (ProcessStateFilter,)
    ordering = ("-started_at",)
    search_fields = ("host__startswith",)

    @admin.display
    def state(self, process: Process) -> str:
        if process.stopped_at is None:
            return "running"
        return "lost" if process.lost else "stopped"

    @admin.display(description="connections", ordering="connections")
    def open_connections(self, process: Process) -> SafeString:
        address = reverse("admin:realtime_connection_changelist", current_app=self.admin_site.name)
        query = f"process__id__exact={process.pk}"
        return format_html('<a href="{}?{}">{}</a>', address, query, process.connections)

    @admin.display(description="loop lag", ordering="loop_lag")
    def lag(self, process: Process) -> str:
        return f"{process.loop_lag * 1000:.0f} ms"
