"""The one thing that the admin does: ask for a confirmation, and then ask the processes to disconnect."""

import uuid
from collections.abc import Iterable
from datetime import MAXYEAR, MINYEAR, datetime
from typing import Any, cast

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import BadRequest
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.text import get_text_list

from realtime.admin import disconnect, people
from realtime.models import Connection, Process

NAMED = 20
"""How many connections the confirmation names."""


class DisconnectAction(admin.ModelAdmin):  # type: ignore[type-arg]  # takes none at run time
    """An admin of connections with the action "Disconnect selected"."""

    actions = ("disconnect_selected",)

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """Its own permission, or Django's to change connections, which allows nothing else here."""
        return any(request.user.has_perm(f"realtime.{verb}_connection") for verb in ("disconnect", "change"))

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *arguments: Any, **options: Any
    ) -> HttpResponse | None:
        """Carry out the action, unless the form names what is no id.

        Raises:
            BadRequest: An id is no UUID. Django would answer 500 when it looks for the row.
        """
        for id in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME):
            try:
                uuid.UUID(id)
            except ValueError as error:
                raise BadRequest(f"{id!r} is not the id of a connection.") from error
        response: HttpResponse | None = super().response_action(request, queryset, *arguments, **options)
        return response

    @admin.action(description="Disconnect selected connections", permissions=["disconnect"])
    def disconnect_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Show the page of confirmation; when that is confirmed, ask the processes.

        Raises:
            BadRequest: The form has a `before` that is no time.
        """
        ids = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        across = request.POST.get("select_across") == "1"
        if across:
            # The page of confirmation did not show connections that came after it.
            before = _moment(request.POST.get("before", "")) or _database_time()
            selected = queryset.filter(opened_at__lte=before)
        else:
            # Not narrowed by the filters of the list: a connection that closed meanwhile is named as closed.
            before = None
            selected = self.get_queryset(request).filter(pk__in=ids).order_by("-opened_at")
        made = disconnect.plan(selected)
        if request.POST.get("confirmed"):
            outcome = disconnect.carry_out(made)
            asked = [Connection(pk=row.id) for rows in outcome.asked.values() for row in rows]
            if asked:
                LogEntry.objects.log_actions(
                    cast(Any, request.user).pk, asked, CHANGE, "Asked to disconnect."
                )
            self._tell(request, made, outcome)
            return None
        examples = [row for rows in made.living.values() for row in rows][:NAMED]
        usernames = people.usernames(row.user_id for row in examples)
        context = {
            **self.admin_site.each_context(request),
            "title": "Disconnect connections",
            "opts": self.opts,
            "media": self.media,
            "plan": made,
            "lost": _number(made.lost),
            "examples": [(row, usernames.get(row.user_id, row.user_id)) for row in examples],
            "unnamed": made.asked - len(examples),
            "at_once": disconnect.AT_ONCE,
            "selected": ids[:1] if across else ids,
            "across": across,
            "before": before,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/realtime/connection/disconnect.html", context)

    def _tell(self, request: HttpRequest, made: disconnect.Plan, outcome: disconnect.Outcome) -> None:
        """What happened, in one message for each kind."""
        if outcome.asked:
            told = f"{_count(len(outcome.asked), 'process')} to disconnect"
            self.message_user(
                request, f"Asked {told} {_count(_number(outcome.asked), 'connection')}.", messages.SUCCESS
            )
        for error in sorted(set(map(str, outcome.unreachable.values()))):
            deaf = {
                process: made.living[process]
                for process, why in outcome.unreachable.items()
                if str(why) == error
            }
            left = _count(_number(deaf), "connection")
            self.message_user(
                request, f"{_names(deaf)} could not be asked about {left}: {error}", messages.ERROR
            )
        if made.lost:
            self.message_user(
                request,
                f"{_count(_number(made.lost), 'connection')} of {_names(made.lost)}, which ended: the next"
                " round closes these records.",
                messages.WARNING,
            )
        if made.closed:
            closed = _count(made.closed, "connection")
            self.message_user(request, f"{closed} closed before.", messages.INFO)
        if not (made.living or made.lost or made.closed):
            self.message_user(request, "None of these connections exists any more.", messages.INFO)


def _number(held: dict[Process, list[disconnect.Row]]) -> int:
    return sum(map(len, held.values()))


def _names(processes: Iterable[Process]) -> str:
    """The first ten by name, and how many there are besides."""
    names = list(map(str, processes))
    if len(names) > 10:
        names[10:] = [f"{len(names) - 10} more"]
    return get_text_list(names, "and")


def _count(number: int, what: str) -> str:
    plural = what if number == 1 else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {plural}"


def _moment(text: str) -> datetime | None:
    """Read the time that the page of confirmation has put into its form.

    Returns:
        None when the form has none.

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
    """The database's clock, by which `opened_at` is set; some process exists where there are connections."""
    return Process.objects.annotate(now=Now()).values_list("now", flat=True).first()
