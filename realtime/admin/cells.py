"""Small pieces of HTML for the cells of lists and pages. All text from clients is escaped."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from realtime.admin.wording import ago, duration
from realtime.models import Connection, PresentUser, Process

NOTHING = SafeString('<span class="rt-nothing">&ndash;</span>')


def badge(tone: str, text: str, why: str = "") -> SafeString:
    """Return a coloured label.

    Args:
        tone: "good", "doubt", "bad" or "over".
        text: The text of the label.
        why: The text that the browser shows while the pointer rests on the label.
    """
    return format_html('<span class="rt-badge rt-{}" title="{}">{}</span>', tone, why, text)


def moment(at: datetime | None, now: datetime) -> SafeString:
    """Return how long ago a time was. The browser shows the time itself while the pointer rests on it."""
    if at is None:
        return NOTHING
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', at.isoformat(), full_time(at), ago(now - at)
    )


def full_time(at: datetime) -> str:
    """Return a time with date, seconds and time zone, in the time zone of the page."""
    return date_format(local(at), "Y-m-d H:i:s T")


def in_full(at: datetime | None, now: datetime) -> str:
    """Return a time, and how long ago that was; empty without a time."""
    return "" if at is None else f"{full_time(at)}, {ago(now - at)}"


def local(at: datetime) -> datetime:
    """Return a time in the time zone of the page; unchanged if the project has no time zones."""
    return timezone.localtime(at) if timezone.is_aware(at) else at


def lines(*parts: SafeString | str) -> SafeString:
    """Return a cell of several lines, the most important one first."""
    return format_html_join("", '<span class="rt-line">{}</span>', ([part] for part in parts))


def chips(names: Iterable[str], more: str = "") -> SafeString:
    """Return names as small labels, followed by the text `more`."""
    shown = format_html_join(" ", '<span class="rt-chip">{}</span>', ([name] for name in names))
    return format_html('{} <span class="rt-more">{}</span>', shown, more) if more else shown


def process_link(process: Process, site: str) -> SafeString:
    """Return a link to the page of a process. `site` is the name of the admin site."""
    address = reverse(f"admin:{process._meta.app_label}_process_change", args=[process.pk], current_app=site)
    return format_html('<a href="{}">{}</a>', address, process)


def connection_link(connection: Connection, site: str) -> SafeString:
    """Return a link to the page of a connection. `site` is the name of the admin site."""
    address = reverse(
        f"admin:{connection._meta.app_label}_connection_change", args=[connection.pk], current_app=site
    )
    return format_html(
        '<a class="rt-id" href="{}" title="{}">{}</a>', address, connection.pk, short(connection)
    )


def user_link(row: PresentUser, username: str, site: str) -> SafeString:
    """Return a link to the page of a user online. `site` is the name of the admin site."""
    address = reverse(f"admin:{row._meta.app_label}_presentuser_change", args=[row.pk], current_app=site)
    return format_html('<a href="{}" title="key {}">{}</a>', address, row.user_id, username)


def short(connection: Connection) -> str:
    """Return the first part of an id, which is enough to tell the rows of one page apart."""
    return str(connection.pk)[:8]


def list_address(model: str, site: str, **query: Any) -> str:
    """Return the URL of the list of a model, narrowed by `query`. `site` is the name of the admin site."""
    address = reverse(f"admin:{Process._meta.app_label}_{model}_changelist", current_app=site)
    return f"{address}?{urlencode(query)}" if query else address


def connection_state(connection: Connection) -> SafeString:
    """Return a label: open, closed or suspect. A suspect record is open although its process ended or did
    not answer.
    """
    process = connection.process
    if connection.closed_at is not None:
        return badge("over", "closed")
    if process.stopped_at is not None:
        how = "was lost" if process.lost else "stopped"
        return badge("doubt", "suspect", f"Its process {how}; the next round closes this record.")
    if process.missed:
        return badge("doubt", "suspect", "Its process did not answer the last round.")
    return badge("good", "open")


def user_state(row: PresentUser, now: datetime, grace: float) -> SafeString:
    """Return a label: online, gone for some seconds, or dormant.

    Args:
        row: The row of a user online.
        now: The time of the database's clock.
        grace: The setting PRESENCE_GRACE, in seconds.
    """
    if row.gone_at is None:
        return badge("good", "online")
    if row.left_at is not None:
        return badge("over", "dormant", "Offline: the last connection ended by silence.")
    gone = now - row.gone_at
    if gone < timedelta(seconds=grace):
        why = f"No connection is open. The user stays online until the grace of {grace:g} s is over."
    else:
        why = "No connection is open, and the grace is over. A server or a reaper ends the presence soon."
    return badge("doubt", f"gone for {duration(gone)}", why)


def process_state(process: Process) -> SafeString:
    """Return a label: running, silent, lost or stopped."""
    if process.stopped_at is None and process.missed:
        why = ngettext(
            "It did not answer the last round.",
            "It did not answer the last %(count)d rounds.",
            process.missed,
        )
        return badge("doubt", "silent", why % {"count": process.missed})
    if process.stopped_at is None:
        return badge("good", "running")
    if process.lost:
        return badge("bad", "lost", "It did not answer, or its pid was gone.")
    return badge("over", "stopped", "It stopped by plan.")
