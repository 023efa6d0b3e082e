"""The list of connections, and the page of one."""

from typing import Any, cast
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from realtime.admin import cells, filters, people
from realtime.admin.action import DisconnectAction
from realtime.admin.cells import NOTHING
from realtime.admin.memberships import Groups, current_groups
from realtime.admin.readonly import BoundedChangeList, ReadOnlyAdmin, may_view
from realtime.admin.search import HELP, SOUGHT, search
from realtime.admin.timeline import reason_text, timeline
from realtime.admin.wording import device, duration
from realtime.models import Connection, PresentUser
from realtime.records.entries import ONLINE

NEWEST = 100
"""The number of memberships on the page of a connection. One that joins and leaves all day has many."""


class ConnectionChangeList(BoundedChangeList):
    """A page of connections with their usernames and groups, which are not in the rows themselves."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        usernames = people.usernames(row.user_id for row in rows)
        groups = current_groups([row.pk for row in rows]) if rows else {}
        for row in rows:
            row.username = usernames.get(row.user_id, row.user_id)
            row.groups = groups.get(row.pk, Groups())
        self.result_list = cast("QuerySet[Any]", rows)


@admin.register(Connection)
class ConnectionAdmin(DisconnectAction, ReadOnlyAdmin):
    # Named here, because Django would look for them under a label that a project may have changed.
    change_form_template = "admin/realtime/connection/change_form.html"
    change_list_template = "admin/realtime/connection/change_list.html"
    list_display = (
        "connection",
        "user_and_groups",
        "path_and_process",
        "client",
        "opened",
        "last_seen_and_reason",
    )
    list_display_links = None
    list_filter = (
        filters.ConnectionStateFilter,
        filters.ProcessFilter,
        filters.CloseReasonFilter,
        filters.GroupFilter,
    )
    list_select_related = ("process",)
    ordering = ("-opened_at",)
    sortable_by = ("opened",)  # the only column that has an index
    linked_columns = ("user_id",)
    date_hierarchy = "opened_at"
    search_fields = ("pk",)  # only shows the field; search.py does the search
    search_help_text = HELP
    search_limit = SOUGHT
    fieldsets = (
        (None, {"fields": (("state", "user"), ("path", "process_that_holds_it"))}),
        ("Client", {"fields": (("remote_address", "device"), ("user_agent", "subprotocol"))}),
        (
            "Times",
            {"fields": (("opened_in_full", "last_seen_in_full"), ("closed_in_full", "lifetime"), "ending")},
        ),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ConnectionChangeList]:
        return ConnectionChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("process")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        # If nearly all connections are open, the newest closed ones are found by the time of their close.
        if request.GET.get("state") == "closed" and not set(request.GET) - {"state", "p"}:
            return ("-closed_at",)
        return self.ordering

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if search_term.strip():
            queryset = search(queryset, search_term, self.search_limit)
        return queryset, False

    # -- the columns of the list -------------------------------------------------------------------

    @admin.display
    def connection(self, row: Connection) -> SafeString:
        return cells.lines(cells.connection_state(row), cells.connection_link(row, self.admin_site.name))

    @admin.display(description="user / groups")
    def user_and_groups(self, row: Any) -> SafeString:
        groups: Groups = row.groups
        return cells.lines(
            self._user(row), cells.chips(groups.names, groups.more) if groups.names else NOTHING
        )

    @admin.display(description="path / process")
    def path_and_process(self, row: Connection) -> SafeString:
        return cells.lines(row.path, cells.process_link(row.process, self.admin_site.name))

    @admin.display(description="address / device")
    def client(self, row: Connection) -> SafeString:
        said = format_html('<span title="{}">{}</span>', row.user_agent, device(row.user_agent) or NOTHING)
        return cells.lines(row.remote_address, said)

    @admin.display(description="opened / lifetime", ordering="opened_at")
    def opened(self, row: Any) -> SafeString:
        return cells.lines(cells.moment(row.opened_at, row.now), self.lifetime(row))

    @admin.display(description="last seen / reason")
    def last_seen_and_reason(self, row: Any) -> SafeString:
        seen = cells.moment(row.last_seen_at, row.now)
        if row.closed_at is None:
            return cells.lines(seen)
        why = format_html('<span title="{}">{}</span>', reason_text(row), row.close_reason)
        return cells.lines(seen, why)

    def _user(self, row: Any) -> SafeString:
        if not row.user_id:
            return SafeString('<span class="rt-nothing">anonymous</span>')
        if (online := getattr(row, "user_online", None)) is not None:
            return cells.user_link(online, row.username, self.admin_site.name)
        return format_html('<span title="key {}">{}</span>', row.user_id, row.username)

    # -- the page of one ---------------------------------------------------------------------------

    @admin.display
    def state(self, row: Connection) -> SafeString:
        return cells.connection_state(row)

    @admin.display
    def user(self, row: Any) -> SafeString:
        row.username = people.usernames([row.user_id]).get(row.user_id, row.user_id)
        return self._user(row)

    @admin.display(description="process")
    def process_that_holds_it(self, row: Connection) -> SafeString:
        return cells.process_link(row.process, self.admin_site.name)

    @admin.display
    def device(self, row: Connection) -> str:
        return device(row.user_agent)

    @admin.display(description="opened")
    def opened_in_full(self, row: Any) -> str:
        return cells.in_full(row.opened_at, row.now)

    @admin.display(description="last seen")
    def last_seen_in_full(self, row: Any) -> str:
        return cells.in_full(row.last_seen_at, row.now)

    @admin.display(description="closed")
    def closed_in_full(self, row: Any) -> str:
        return cells.in_full(row.closed_at, row.now)

    @admin.display
    def lifetime(self, row: Any) -> str:
        return duration((row.closed_at or row.now) - row.opened_at)

    @admin.display(description="reason")
    def ending(self, row: Connection) -> str:
        if row.closed_at is None:
            return ""
        code = "" if row.close_code is None else f" ({row.close_code})"
        return f"{row.close_reason}{code}: {reason_text(row)}"

    def _user_online(self, row: Connection, request: HttpRequest) -> PresentUser | None:
        """Return the row of the connection's user, if that is online or dormant and may be viewed."""
        site = self.admin_site
        if not row.user_id or not may_view(PresentUser, site, request):
            return None
        visible = site.get_model_admin(PresentUser).get_queryset(request)
        online: PresentUser | None = visible.filter(group=ONLINE, user_id=row.user_id).first()
        return online

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *arguments: Any, **options: Any
    ) -> HttpResponse:
        row = context["original"]
        row.user_online = self._user_online(row, request)
        memberships = list(row.memberships.order_by("-pk")[: NEWEST + 1])
        address = cells.list_address("connection", self.admin_site.name)
        context |= {
            "timeline": timeline(row, memberships[:NEWEST]),
            "memberships": [
                (membership, f"{address}?{urlencode({'group': membership.group})}")
                for membership in memberships[:NEWEST]
            ],
            "more_memberships": len(memberships) > NEWEST,
            "newest": NEWEST,
            "list_address": address,
            "may_disconnect": row.closed_at is None and self.has_disconnect_permission(request),
            "subtitle": f"{row.path} from {row.remote_address}",
        }
        return super().render_change_form(request, context, *arguments, **options)
