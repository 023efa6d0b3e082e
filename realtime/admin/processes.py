"""The list of server processes, and the page of one."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from realtime.admin import cells, filters, people
from realtime.admin.readonly import ReadOnlyAdmin
from realtime.admin.wording import device, duration
from realtime.models import Connection, Process

NEWEST = 20
"""The number of open connections on the page of a process."""


@admin.register(Process)
class ProcessAdmin(ReadOnlyAdmin):
    change_form_template = "admin/realtime/process/change_form.html"
    list_display = ("process", "state", "last_answer", "open_connections", "lag", "missed", "started")
    list_display_links = None
    list_filter = (filters.ProcessStateFilter,)
    ordering = ("-started_at",)
    search_fields = ("host__startswith",)
    search_help_text = "the beginning of a host's name"
    fieldsets = (
        (None, {"fields": (("state", "channel_name"), ("host", "pid"))}),
        ("Answers", {"fields": (("last_answer", "last_round"), ("missed", "lag"), "open_connections")}),
        ("Times", {"fields": (("started_in_full", "ended_in_full"), "uptime")}),
    )

    @admin.display(ordering="host")
    def process(self, row: Process) -> SafeString:
        return cells.process_link(row, self.admin_site.name)

    @admin.display
    def state(self, row: Process) -> SafeString:
        return cells.process_state(row)

    @admin.display(ordering="answered_at")
    def last_answer(self, row: Any) -> SafeString:
        return cells.moment(row.answered_at, row.now)

    @admin.display(description="connections", ordering="connections")
    def open_connections(self, row: Process) -> SafeString:
        address = cells.list_address("connection", self.admin_site.name, process=row.pk, state="open")
        return format_html('<a href="{}">{}</a>', address, row.connections)

    @admin.display(description="loop lag", ordering="loop_lag")
    def lag(self, row: Process) -> str:
        return f"{row.loop_lag * 1000:.0f} ms"

    @admin.display(ordering="started_at")
    def started(self, row: Any) -> SafeString:
        return cells.moment(row.started_at, row.now)

    @admin.display(description="started")
    def started_in_full(self, row: Process) -> str:
        return cells.full_time(row.started_at)

    @admin.display(description="ended")
    def ended_in_full(self, row: Process) -> str:
        return "" if row.stopped_at is None else cells.full_time(row.stopped_at)

    @admin.display
    def uptime(self, row: Any) -> str:
        return duration((row.stopped_at or row.now) - row.started_at)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *arguments: Any, **options: Any
    ) -> HttpResponse:
        row = context["original"]
        site = self.admin_site.name
        newest = list(self._newest(row))
        usernames = people.usernames(each.user_id for each in newest)
        context |= {
            "connections": [
                {
                    "link": cells.connection_link(each, site),
                    "user": usernames.get(each.user_id, each.user_id) or "anonymous",
                    "path": each.path,
                    "address": each.remote_address,
                    "device": device(each.user_agent),
                    "opened": cells.moment(each.opened_at, row.now),
                }
                for each in newest
            ],
            "list_address": cells.list_address("connection", site, process=row.pk, state="open"),
            "newest": NEWEST,
            "subtitle": str(row),
        }
        return super().render_change_form(request, context, *arguments, **options)

    def _newest(self, row: Process) -> "QuerySet[Connection]":
        return Connection.objects.open().filter(process=row).order_by("-opened_at")[:NEWEST]
