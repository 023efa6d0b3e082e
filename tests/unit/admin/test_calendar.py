"""The admin's date hierarchy, between two dates."""

from datetime import date

from realtime.admin.calendar import Calendar, Choice, calendar

YEARS = date(2024, 11, 30), date(2026, 2, 2)


def titles(shown: Calendar) -> list[str]:
    return [choice.title for choice in shown.choices]


def test_it_begins_where_there_is_a_choice() -> None:
    assert titles(calendar(*YEARS, {})) == ["2024", "2025", "2026"]
    assert titles(calendar(date(2026, 9, 30), date(2026, 11, 1), {})) == [
        "September 2026",
        "October 2026",
        "November 2026",
    ]
    assert titles(calendar(date(2026, 2, 27), date(2026, 2, 28), {})) == ["February 27", "February 28"]
    assert calendar(date(2026, 2, 27), date(2026, 2, 28), {}).back is None


def test_a_choice_narrows_by_all_that_was_chosen_before() -> None:
    shown = calendar(*YEARS, {"year": 2024, "month": 11})
    assert shown == Calendar(
        Choice("2024", {"year": 2024}), [Choice("November 30", {"year": 2024, "month": 11, "day": 30})]
    )


def test_a_year_has_the_months_in_which_there_may_be_rows() -> None:
    shown = calendar(*YEARS, {"year": 2026})
    assert shown.back == Choice("All dates", {})
    assert titles(shown) == ["January 2026", "February 2026"]
    assert len(calendar(*YEARS, {"year": 2025}).choices) == 12


def test_a_month_has_the_days_up_to_its_end() -> None:
    assert len(calendar(*YEARS, {"year": 2025, "month": 12}).choices) == 31
    assert titles(calendar(*YEARS, {"year": 2026, "month": 2})) == ["February 1", "February 2"]


def test_a_day_is_the_end_and_leads_back_to_its_month() -> None:
    shown = calendar(*YEARS, {"year": 2025, "month": 12, "day": 31})
    assert shown.back == Choice("December 2025", {"year": 2025, "month": 12})
    assert shown.choices == [Choice("December 31", None)]


def test_what_is_outside_of_the_rows_is_empty() -> None:
    assert calendar(*YEARS, {"year": 2031}).choices == []
    assert calendar(*YEARS, {"year": 2031, "month": 5}).choices == []
