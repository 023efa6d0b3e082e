"""The years, months and days between the first and the last row, as links that narrow a list.

Django's own asks the database in which of them there are rows, which reads all of the table; this one takes
two looks at an index, so a day may turn out to be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from django.utils.formats import date_format
from django.utils.text import capfirst

Lookup = dict[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """`lookup` has the keys "year", "month" and "day", as far as they are given; None where one stays."""

    title: str
    lookup: Lookup | None


@dataclass(frozen=True, slots=True)
class Calendar:
    back: Choice | None
    choices: list[Choice]


def calendar(first: date, last: date, chosen: Lookup) -> Calendar:
    """What can be chosen next, when `chosen` has been; begins where there is more than one choice."""
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
