"""The one action of the admin, on connections and on users: show a confirmation, then ask the processes to
disconnect.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, datetime
from typing import Any, cast

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import BadRequest, ValidationError
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.text import get_text_list
from django.utils.translation import ngettext

from realtime.admin import disconnect, people
from realtime.admin.readonly import may_view
from realtime.models import Connection, PresentUser, Process

NAMED = 20
"""The number of connections that the confirmation names."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The connections that the form selects."""

    rows: QuerySet[Any]
    ids: list[str]
    """The ids that the form of the confirmation has to send again."""
    before: Any
    """The time of the confirmation if all rows of the list are selected, otherwise None."""


class DisconnectAction(admin.ModelAdmin):  # type: ignore[type-arg]  # takes none at run time
    """An admin with an action that disconnects the connections of the selected rows."""

    actions = ("disconnect_selected",)
    disconnect_limit = disconnect.AT_ONCE
    disconnect_title = "Disconnect connections"
    nothing_to_disconnect = "None of the selected connections can be disconnected."
    nothing_was_there = "None of these connections exists any more."
    #: The time of a row after which a row of the same list was not shown in the confirmation.
    disconnect_time = "opened_at"

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """Return True if the user has the action's own permission, or Django's to change connections.

        The latter permits only this action here.
        """
        label = self.opts.app_label
        return any(request.user.has_perm(f"{label}.{verb}_connection") for verb in ("disconnect", "change"))

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *arguments: Any, **options: Any
    ) -> HttpResponse | None:
        """Carry out the action.

        Raises:
            BadRequest: The form names an id that no row can have. Django would look for it and answer 500.
        """
        for id in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME):
            try:
                self.opts.pk.clean(id, None)
            except ValidationError as error:
                raise BadRequest(f"{id!r} is not the id of a {self.opts.verbose_name}.") from error
        response: HttpResponse | None = super().response_action(request, queryset, *arguments, **options)
        return response

    @admin.action(description="Disconnect selected connections", permissions=["disconnect"])
    def disconnect_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Show the confirmation. If the form is that of the confirmation, ask the processes.

        Raises:
            BadRequest: The form has a `before` that is no time.
        """
        selection = self._selection(request, queryset)
        plan = disconnect.plan(selection.rows, self.disconnect_limit)
        if request.POST.get("confirmed"):
            self._carry_out(request, plan)
            return None
        return self._confirmation(request, selection, plan)

    def connections_of(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the connections of selected rows."""
        return rows

    def log_disconnect(self, request: HttpRequest, asked: list[disconnect.Row]) -> None:
        """Write into the admin's history which connections were asked for; there is at least one."""
        rows = [Connection(pk=row.id) for row in asked]
        LogEntry.objects.log_actions(cast(Any, request.user).pk, rows, CHANGE, "Asked to disconnect.")

    def _selection(self, request: HttpRequest, queryset: QuerySet[Any]) -> Selection:
        ids = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        if request.POST.get("select_across") == "1":
            # The confirmation did not show rows that came after it.
            before = _moment(request.POST.get("before", "")) or _database_time()
            shown = queryset.filter(**{f"{self.disconnect_time}__lte": before})
            return Selection(self.connections_of(request, shown), ids[:1], before)
        # Not narrowed by the filters of the list, so that a connection that closed meanwhile is named, too.
        named = self.get_queryset(request).filter(pk__in=ids).order_by(f"-{self.disconnect_time}")
        return Selection(self.connections_of(request, named), ids, None)

    def _confirmation(
        self, request: HttpRequest, selection: Selection, plan: disconnect.Plan
    ) -> TemplateResponse:
        examples = [row for rows in plan.living.values() for row in rows][:NAMED]
        usernames = people.usernames(row.user_id for row in examples)
        context = {
            **self.admin_site.each_context(request),
            "title": self.disconnect_title,
            "nothing": self.nothing_to_disconnect,
            "opts": self.opts,
            "media": self.media,
            "plan": plan,
            "lost": _number(plan.lost),
            "examples": [(row, usernames.get(row.user_id, row.user_id)) for row in examples],
            "unnamed": plan.asked - len(examples),
            "at_once": self.disconnect_limit,
            "selected": selection.ids,
            "across": selection.before is not None,
            "before": selection.before,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/realtime/disconnect.html", context)

    def _carry_out(self, request: HttpRequest, plan: disconnect.Plan) -> None:
        outcome = disconnect.carry_out(plan)
        if asked := [row for rows in outcome.asked.values() for row in rows]:
            self.log_disconnect(request, asked)
        self._report(request, plan, outcome)

    def _report(self, request: HttpRequest, plan: disconnect.Plan, outcome: disconnect.Outcome) -> None:
        """Say what happened, in one message for each kind of outcome."""
        if outcome.asked:
            processes, connections = _processes(len(outcome.asked)), _connections(_number(outcome.asked))
            self.message_user(request, f"Asked {processes} to disconnect {connections}.", messages.SUCCESS)
        for error in sorted(set(map(str, outcome.unreachable.values()))):
            deaf = {
                process: plan.living[process]
                for process, why in outcome.unreachable.items()
                if str(why) == error
            }
            connections = _connections(_number(deaf))
            self.message_user(
                request, f"{_names(deaf)} could not be asked about {connections}: {error}", messages.ERROR
            )
        if plan.lost:
            self.message_user(
                request,
                f"{_connections(_number(plan.lost))} of {_names(plan.lost)}, which ended: the next"
                " round closes these records.",
                messages.WARNING,
            )
        if plan.closed:
            self.message_user(request, f"{_connections(plan.closed)} closed before.", messages.INFO)
        if not (plan.living or plan.lost or plan.closed):
            self.message_user(request, self.nothing_was_there, messages.INFO)


class DisconnectUsersAction(DisconnectAction):
    """An admin of users with the action "Disconnect selected users"."""

    disconnect_title = "Disconnect users"
    nothing_to_disconnect = "The selected users have no open connections that can be disconnected."
    nothing_was_there = "These users have no open connections."
    disconnect_time = "since"

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """Return True if the user may disconnect connections and may view them."""
        return super().has_disconnect_permission(request) and may_view(Connection, self.admin_site, request)

    @admin.action(description="Disconnect selected users", permissions=["disconnect"])
    def disconnect_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Show the confirmation. If the form is that of the confirmation, ask the processes.

        Raises:
            BadRequest: The form has a `before` that is no time.
        """
        return super().disconnect_selected(request, queryset)

    def connections_of(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the open connections of users. A project may show its staff only some connections."""
        visible = self.admin_site.get_model_admin(Connection).get_queryset(request)
        keys = rows.order_by().values("user_id")
        return visible.filter(closed_at__isnull=True, user_id__in=keys).order_by("user_id", "client_id")

    def log_disconnect(self, request: HttpRequest, asked: list[disconnect.Row]) -> None:
        """Write into the admin's history which users and which connections were asked for."""
        super().log_disconnect(request, asked)
        users = PresentUser.objects.users().filter(user_id__in={row.user_id for row in asked})
        LogEntry.objects.log_actions(cast(Any, request.user).pk, users, CHANGE, "Asked to disconnect.")


def _number(held: dict[Process, list[disconnect.Row]]) -> int:
    return sum(map(len, held.values()))


def _names(processes: Iterable[Process]) -> str:
    """Return the names of the first ten, and the number of the others."""
    names = list(map(str, processes))
    if len(names) > 10:
        names[10:] = [f"{len(names) - 10} more"]
    return get_text_list(names, "and")


def _connections(count: int) -> str:
    return ngettext("%(count)d connection", "%(count)d connections", count) % {"count": count}


def _processes(count: int) -> str:
    return ngettext("%(count)d process", "%(count)d processes", count) % {"count": count}


def _moment(text: str) -> datetime | None:
    """Read the time that the confirmation has put into its form.

    Returns:
        None if the form has none.

    Raises:
        BadRequest: The text is no time that `opened_at` could have.
    """
    if not text:
        return None
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    # In the first and in the last year, a time may have no counterpart in the time zone of the database.
    if moment is None or timezone.is_aware(moment) != settings.USE_TZ or not MINYEAR < moment.year < MAXYEAR:
        raise BadRequest(f"{text!r} is not a time.")
    return moment


def _database_time() -> Any:
    """Return the time of the database's clock, which also sets `opened_at`.

    It is read from a row of a process. There is one wherever there are connections.
    """
    return Process.objects.annotate(now=Now()).values_list("now", flat=True).first()
