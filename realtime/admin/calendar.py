"""The years, months and days between the first and the last row, as links that narrow a list.

Django's own date hierarchy asks the database which of them have rows, and that reads all of the table. This
one reads an index twice, so a day may turn out to be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from django.utils.formats import date_format
from django.utils.text import capfirst

Lookup = dict[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """One link of the calendar."""

    title: str
    lookup: Lookup | None
    """The chosen numbers, with some of the keys "year", "month" and "day"; None for the day that is shown."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """The links for one choice: one back and several forward."""

    back: Choice | None
    choices: list[Choice]


def calendar(first: date, last: date, chosen: Lookup) -> Calendar:
    """Return the links for the next choice. The first choice is the first unit with more than one value.

    Args:
        first: The day of the first row.
        last: The day of the last row.
        chosen: The numbers that were chosen so far.
    """
    year, month, day = (chosen.get(unit) for unit in ("year", "month", "day"))
    if year is None:
        if first.year != last.year:
            years = range(first.year, last.year + 1)
            return Calendar(None, [Choice(str(each), {"year": each}) for each in years])
        year = first.year
        if first.month == last.month:
            month = first.month
    if month is None:
        months = [each for each in _months(first, last) if each.year == year]
        back = Choice("All dates", {}) if chosen else None
        return Calendar(back, [_month(each) for each in months])
    if day is None:
        back = Choice(str(year), {"year": year}) if chosen else None
        return Calendar(back, [_day(each) for each in _days(first, last, year, month)])
    here = date(year, month, day)
    return Calendar(_month(here), [Choice(capfirst(date_format(here, "MONTH_DAY_FORMAT")), None)])


def _months(first: date, last: date) -> Iterator[date]:
    each = first.replace(day=1)
    while each <= last:
        yield each
        each = (each + timedelta(days=32)).replace(day=1)


def _days(first: date, last: date, year: int, month: int) -> Iterator[date]:
    each = date(year, month, 1)
    while each.month == month:
        if first <= each <= last:
            yield each
        each += timedelta(days=1)


def _month(each: date) -> Choice:
    title = capfirst(date_format(each, "YEAR_MONTH_FORMAT"))
    return Choice(title, {"year": each.year, "month": each.month})


def _day(each: date) -> Choice:
    title = capfirst(date_format(each, "MONTH_DAY_FORMAT"))
    return Choice(title, {"year": each.year, "month": each.month, "day": each.day})
