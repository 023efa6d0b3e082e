"""The common part of all lists: nothing can be changed, and no page reads a whole table."""

from collections.abc import Sequence
from datetime import MAXYEAR, MINYEAR
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.utils.functional import cached_property
from django.utils.text import capfirst

from realtime.admin import cells
from realtime.admin.calendar import calendar


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # takes none at run time
    """Counts up to `limit` rows, because an exact count would read a large table on every page.

    Rows beyond the limit can be found with filters and the search.
    """

    limit = 10_000

    @cached_property
    def count(self) -> int:
        rows = cast("QuerySet[Any]", self.object_list)
        return rows.order_by().values("pk")[: self.limit].count()


#: The numbers that the date hierarchy accepts in a URL. The day after the last one must also be a date, and
#: the first year may have no counterpart in the time zone of the database.
UNITS: dict[str, Sequence[int]] = {
    "year": range(MINYEAR + 1, MAXYEAR),
    "month": range(1, 13),
    "day": range(1, 32),
}


class BoundedChangeList(ChangeList):
    """A list with a bounded date hierarchy."""

    def get_filters(self, request: HttpRequest) -> Any:
        """Refuse numbers that are no year, month or day with a redirect, as Django refuses other filters."""
        for unit, possible in UNITS.items():
            for text in request.GET.getlist(f"{self.date_hierarchy}__{unit}"):
                try:
                    if int(text) not in possible:
                        raise ValueError(f"{text} is no {unit}")
                except ValueError as error:
                    raise IncorrectLookupParameters(error) from error
        return super().get_filters(request)

    def calendar(self) -> dict[str, Any] | None:
        """Return the variables of Django's template for the date hierarchy; None while there are no rows."""
        field = cast(str, self.date_hierarchy)
        times = self.root_queryset.order_by(field).values_list(field, flat=True)
        first, last = times.first(), times.last()
        if first is None or last is None:
            return None
        chosen = {}
        for unit in UNITS:
            if (name := f"{field}__{unit}") not in self.params:
                # A month without its year, or a day without its month, selects nothing.
                break
            chosen[unit] = int(self.params[name])
        shown = calendar(cells.local(first).date(), cells.local(last).date(), chosen)

        def link(lookup: dict[str, int]) -> str:
            lookups = {f"{field}__{unit}": number for unit, number in lookup.items()}
            return self.get_query_string(lookups, [f"{field}__"])

        return {
            "back": shown.back
            and {"title": shown.back.title, "link": link(cast("dict[str, int]", shown.back.lookup))},
            "choices": [
                {"title": each.title, "link": None if each.lookup is None else link(each.lookup)}
                for each in shown.choices
            ],
        }


def may_view(model: type[Model], site: admin.AdminSite, request: HttpRequest) -> bool:
    """Return True if the user may view the pages of a model. Otherwise no page has links to them."""
    return site.is_registered(model) and site.get_model_admin(model).has_view_permission(request)


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # takes none at run time
    """An admin that permits only to view, to users with Django's `view` permission.

    Each row has `now`, the database's time, to compare its own times with.
    """

    #: Columns that links of the pages compare with one value, beside the filters and the dates of the list.
    linked_columns: tuple[str, ...] = ()
    paginator = BoundedPaginator
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    class Media:
        css = {"all": ("realtime/admin.css",)}  # noqa: RUF012 - Django reads it from the class

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        title = capfirst(str(self.opts.verbose_name_plural))
        return super().changelist_view(request, {"title": title} | (extra_context or {}))

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Allow the lookups that links of the pages have.

        Django also allows all other lookups of the columns. Some of them read the whole table, a regular
        expression may take minutes, and a value of the wrong kind is an error of the server.
        """
        if lookup in self.linked_columns:
            # PostgreSQL refuses to compare with a NUL.
            return "\0" not in str(value)
        if self.date_hierarchy and lookup in {f"{self.date_hierarchy}__{unit}" for unit in UNITS}:
            return True
        for each in self.get_list_filter(request):
            if isinstance(each, type):
                if lookup == getattr(each, "parameter_name", None):
                    return True
                continue
            column = each if isinstance(each, str) else cast("tuple[str, Any]", each)[0]
            if lookup == column or lookup.startswith(f"{column}__"):
                return super().lookup_allowed(lookup, value, request)
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request).annotate(now=Now())
        return rows

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
