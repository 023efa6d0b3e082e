"""The small pieces of HTML that lists and pages are made of; what came from a client is escaped."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from realtime.admin.wording import ago
from realtime.models import Connection, Process

NOTHING = SafeString('<span class="rt-nothing">&ndash;</span>')


def badge(tone: str, text: str, why: str = "") -> SafeString:
    """`tone` is "good", "doubt", "bad" or "over"; `why` is read when the pointer rests on it."""
    return format_html('<span class="rt-badge rt-{}" title="{}">{}</span>', tone, why, text)


def moment(at: datetime | None, now: datetime) -> SafeString:
    """How long ago a time was; the time itself is read when the pointer rests on it."""
    if at is None:
        return NOTHING
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', at.isoformat(), full_time(at), ago(now - at)
    )


def full_time(at: datetime) -> str:
    return date_format(local(at), "Y-m-d H:i:s T")


def local(at: datetime) -> datetime:
    """In the time zone of the page; as it is where a project has no time zones."""
    return timezone.localtime(at) if timezone.is_aware(at) else at


def lines(*parts: SafeString | str) -> SafeString:
    """Two or more lines in one cell, the first in front."""
    return format_html_join("", '<span class="rt-line">{}</span>', ([part] for part in parts))


def chips(names: Iterable[str], more: str = "") -> SafeString:
    shown = format_html_join(" ", '<span class="rt-chip">{}</span>', ([name] for name in names))
    return format_html('{} <span class="rt-more">{}</span>', shown, more) if more else shown


def process_link(process: Process, site: str) -> SafeString:
    address = reverse("admin:realtime_process_change", args=[process.pk], current_app=site)
    return format_html('<a href="{}">{}</a>', address, process)


def connection_link(connection: Connection, site: str) -> SafeString:
    address = reverse("admin:realtime_connection_change", args=[connection.pk], current_app=site)
    return format_html(
        '<a class="rt-id" href="{}" title="{}">{}</a>', address, connection.pk, short(connection)
    )


def short(connection: Connection) -> str:
    """Enough of an id to tell the rows of one page apart."""
    return str(connection.pk)[:8]


def list_address(model: str, site: str, **query: Any) -> str:
    """Where the list of this model is, narrowed by `query`."""
    address = reverse(f"admin:realtime_{model}_changelist", current_app=site)
    return f"{address}?{urlencode(query)}" if query else address


def connection_state(connection: Connection) -> SafeString:
    """Open, closed, or suspect: open in the records of a process that ended or did not answer."""
    process = connection.process
    if connection.closed_at is not None:
        return badge("over", "closed")
    if process.stopped_at is not None:
        how = "was lost" if process.lost else "stopped"
        return badge("doubt", "suspect", f"Its process {how}; the next round closes this record.")
    if process.missed:
        return badge("doubt", "suspect", "Its process did not answer the last round.")
    return badge("good", "open")


def process_state(process: Process) -> SafeString:
    if process.stopped_at is None and process.missed:
        return badge("doubt", "silent", f"{process.missed} rounds in a row were not answered.")
    if process.stopped_at is None:
        return badge("good", "running")
    if process.lost:
        return badge("bad", "lost", "It did not answer, or its pid was gone.")
    return badge("over", "stopped", "It stopped by plan.")
