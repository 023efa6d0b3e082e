"""The list of users online, and the page of one."""

from datetime import datetime
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from realtime import conf
from realtime.admin import cells, filters, people
from realtime.admin.action import DisconnectUsersAction
from realtime.admin.cells import NOTHING
from realtime.admin.present_users import UserDetails, details_of, stays
from realtime.admin.readonly import ReadOnlyAdmin, may_view
from realtime.admin.search import USER_HELP, search_users
from realtime.admin.timeline import reason_text
from realtime.admin.wording import device
from realtime.models import Connection, PresentUser, Process

NEWEST = 20
"""The number of open connections on the page of a user."""
GROUPS = 100
"""The number of groups on the page of a user."""
LAST = 20
"""The number of newest connections among which the page of a user finds the one that closed last. No index
orders the connections of a user by their ends.
"""


class UserChangeList(ChangeList):
    """A page of users online with their names, groups and connections, which are not in their rows."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        cast("PresentUserAdmin", self.model_admin).complete(rows, request)
        self.result_list = cast("QuerySet[Any]", rows)


@admin.register(PresentUser)
class PresentUserAdmin(DisconnectUsersAction, ReadOnlyAdmin):
    change_form_template = "admin/realtime/presentuser/change_form.html"
    list_display = (
        "user",
        "state",
        "online_since",
        "open_connections",
        "groups",
        "devices",
        "dormant",
    )
    list_display_links = None
    list_filter = (filters.UserStateFilter, filters.UserGroupFilter)
    ordering = ("-pk",)
    sortable_by = ()
    search_fields = ("pk",)  # only shows the field; search.py does the search
    search_help_text = USER_HELP
    fieldsets = (
        (None, {"fields": (("state", "user"), ("key", "open_connections"))}),
        (
            "Times",
            {
                "fields": (
                    ("online_since_in_full", "gone_in_full"),
                    ("dormant_in_full", "offline_in_full"),
                    "last_connection",
                )
            },
        ),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[UserChangeList]:
        return UserChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return cast(Any, super().get_queryset(request)).users()  # type: ignore[no-any-return]

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        # In the order of the index of dormant users, of whom there may be few.
        return ("-left_at",) if request.GET.get("state") == "dormant" else self.ordering

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return search_users(queryset, search_term), False

    def complete(self, rows: list[Any], request: HttpRequest) -> None:
        """Give rows what their cells show besides the columns of the row, in two queries."""
        usernames = people.usernames(row.user_id for row in rows)
        found = details_of([row.user_id for row in rows]) if rows else {}
        links = may_view(Connection, self.admin_site, request)
        for row in rows:
            row.username = usernames.get(row.user_id, row.user_id)
            row.details = found.get(row.user_id, UserDetails())
            row.has_links = links

    # -- the columns of the list -------------------------------------------------------------------

    @admin.display
    def user(self, row: Any) -> SafeString:
        return cells.user_link(row, row.username, self.admin_site.name)

    @admin.display
    def state(self, row: Any) -> SafeString:
        return cells.user_state(row, row.now, conf.get().PRESENCE_GRACE)

    @admin.display(description="online since")
    def online_since(self, row: Any) -> SafeString:
        return cells.moment(row.since, row.now)

    @admin.display(description="connections")
    def open_connections(self, row: Any) -> SafeString | str:
        details: UserDetails = row.details
        if not row.has_links:
            return details.number
        return format_html('<a href="{}">{}</a>', self._connections(row), details.number)

    @admin.display
    def groups(self, row: Any) -> SafeString:
        details: UserDetails = row.details
        return cells.chips(details.groups.names, details.groups.more) if details.groups.names else NOTHING

    @admin.display
    def devices(self, row: Any) -> SafeString:
        details: UserDetails = row.details
        return cells.lines(*details.devices, *filter(None, [details.more_devices])) or NOTHING

    @admin.display(description="dormant since")
    def dormant(self, row: Any) -> SafeString:
        return cells.moment(row.dormant_since, row.now)

    def _connections(self, row: PresentUser) -> str:
        """Return the URL of the list of the user's open connections."""
        return cells.list_address("connection", self.admin_site.name, user_id=row.user_id, state="open")

    # -- the page of one ---------------------------------------------------------------------------

    @admin.display
    def key(self, row: PresentUser) -> str:
        return row.user_id

    @admin.display(description="online since")
    def online_since_in_full(self, row: Any) -> str:
        return cells.in_full(row.since, row.now)

    @admin.display(description="last connection gone")
    def gone_in_full(self, row: Any) -> str:
        return cells.in_full(row.gone_at, row.now)

    @admin.display(description="dormant since")
    def dormant_in_full(self, row: Any) -> str:
        return cells.in_full(row.dormant_since, row.now)

    @admin.display(description="offline since")
    def offline_in_full(self, row: Any) -> str:
        return cells.in_full(row.left_at, row.now)

    @admin.display(description="last closed connection")
    def last_connection(self, row: Any) -> SafeString | str:
        last: Connection | None = row.last_connection
        if last is None:
            return ""
        link = cells.connection_link(last, self.admin_site.name) if row.has_links else cells.short(last)
        closed = cells.in_full(last.closed_at, row.now)
        return format_html("{} {}. {}: {}", link, closed, last.close_reason, reason_text(last))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *arguments: Any, **options: Any
    ) -> HttpResponse:
        row = context["original"]
        self.complete([row], request)
        row.last_connection = None if row.gone_at is None else self._last(row)
        joined = list(stays(row.user_id)[: GROUPS + 1])
        context |= {
            "groups": [
                {
                    "name": stay.group,
                    "address": cells.list_address("presentuser", self.admin_site.name, group=stay.group),
                    "since": cells.moment(stay.since, row.now),
                    "gone": cells.moment(stay.gone_at, row.now),
                }
                for stay in joined[:GROUPS]
            ],
            "more_groups": len(joined) > GROUPS,
            "named": GROUPS,
            "connections": self._newest(row, request),
            "list_address": self._connections(row) if row.has_links else "",
            "users_address": cells.list_address("presentuser", self.admin_site.name),
            "may_disconnect": row.details.connections > 0 and self.has_disconnect_permission(request),
            "subtitle": row.username,
        }
        return super().render_change_form(request, context, *arguments, **options)

    def _newest(self, row: Any, request: HttpRequest) -> list[dict[str, Any]]:
        """Return the variables of the page for the newest open connections of the user."""
        site = self.admin_site
        held = Connection.objects.open().filter(user_id=row.user_id).select_related("process")
        to_processes = may_view(Process, site, request)
        return [
            {
                "link": cells.connection_link(each, site.name) if row.has_links else cells.short(each),
                "path": each.path,
                "address": each.remote_address,
                "device": device(each.user_agent),
                "user_agent": each.user_agent,
                "process": cells.process_link(each.process, site.name) if to_processes else each.process,
                "opened": cells.moment(each.opened_at, row.now),
            }
            for each in held.order_by("-opened_at")[:NEWEST]
        ]

    def _last(self, row: PresentUser) -> Connection | None:
        """Return the connection of a user without open ones that closed last."""
        newest = Connection.objects.closed().filter(user_id=row.user_id).order_by("-opened_at")[:LAST]
        return max(newest, key=lambda each: cast(datetime, each.closed_at), default=None)
