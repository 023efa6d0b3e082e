"""`realtime.history.retention`: which groups keep history, and which patterns cannot work."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.history import retention
from realtime.history.retention import Retention

KEEP: dict[str, Any] = {"size": 10, "ttl": 60}


@pytest.mark.parametrize(
    ("pattern", "group", "matches"),
    [
        ("public.*", "public.lobby", True),
        ("public.*", "public.", True),
        ("public.*", "publicx", False),
        ("public.*", "a.public.b", False),
        ("*", "anything-at_all.", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "a.x.b-y-c", True),
        ("a*b*c", "a.x.b-y-", False),
        ("lobby", "lobby", True),
        ("lobby", "lobby2", False),
        ("*.log", "x.log", True),
        ("*.log", "xlog", False),
    ],
)
def test_a_star_matches_any_characters(pattern: str, group: str, matches: bool) -> None:
    assert (retention.find({pattern: KEEP}, group) == Retention(10, 60)) is matches


def test_the_first_pattern_that_matches_counts() -> None:
    history = {"a.b": {"size": 1, "ttl": 1}, "a.*": {"size": 2, "ttl": 2}}
    assert retention.find(history, "a.b") == Retention(1, 1)
    assert retention.find(history, "a.c") == Retention(2, 2)
    assert retention.find(history, "b") is None


def test_a_position_is_kept_for_a_day_at_least() -> None:
    assert Retention(1, 60).position_ttl == 86_400
    assert Retention(1, 1e6).position_ttl == 1e6


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"": KEEP}, "no group has such a name"),
        ({"a b": KEEP}, "no group has such a name"),
        ({"gr\u00fc\u00dfe.*": KEEP}, "no group has such a name"),
        ({"a?": KEEP}, "no group has such a name"),
        ({"x" * 100: KEEP}, "no group has such a name"),
        ({"realtime.*": KEEP}, 'names that start with "realtime." are reserved'),
        ({"realtime.check": KEEP}, "reserved"),
        ({"a": 300}, "its value is 300; set"),
        ({"a": {"size": 10}}, "set"),
        ({"a": {"ttl": 10}}, "set"),
        ({"a": {**KEEP, "age": 1}}, "'age': 1"),
        ({"a": {"size": 0, "ttl": 1}}, "a whole number and seconds above zero"),
        ({"a": {"size": 1.5, "ttl": 1}}, "a whole number"),
        ({"a": {"size": True, "ttl": 1}}, "a whole number"),
        ({"a": {"size": "10", "ttl": 1}}, "a whole number"),
        ({"a": {"size": 1, "ttl": 0}}, "seconds above zero"),
        ({"a": {"size": 1, "ttl": -1}}, "seconds above zero"),
        ({"a": {"size": 1, "ttl": float("nan")}}, "seconds above zero"),
        ({"a": {"size": 1, "ttl": float("inf")}}, "seconds above zero"),
        ({"*": KEEP, "a": KEEP}, "the pattern 'a': it is never used, because '*' before it matches"),
        ({"a.*": KEEP, "a.b.*": KEEP}, "because 'a.*' before it"),
        ({"a*": KEEP, "a**": KEEP}, "because 'a*' before it"),
        ({"*b*": KEEP, "a*b": KEEP}, "because '*b*' before it"),
    ],
)
def test_a_pattern_that_cannot_work_is_named(history: dict[str, Any], words: str) -> None:
    (problem,) = retention.problems(history)
    assert problem.startswith("HISTORY has the pattern ")
    assert words in problem


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"*": KEEP},
        {"realtime*": KEEP},
        {"a.*": KEEP, "*": KEEP},
        {"a.*": KEEP, "a*": KEEP},
        {"*a": KEEP, "a*": KEEP},
        {"x" * 99 + "*": {"size": 1, "ttl": 0.001}},
    ],
)
def test_patterns_that_work_have_no_problem(history: dict[str, Any]) -> None:
    assert list(retention.problems(history)) == []


patterns = st.text("ab*", min_size=1, max_size=5)


@given(patterns, patterns, st.text("abc", min_size=1, max_size=6))
def test_a_pattern_that_is_never_used_matches_nothing_new(first: str, second: str, group: str) -> None:
    if first != second and list(retention.problems({first: KEEP, second: KEEP})):
        matches = {each: retention.find({each: KEEP}, group) is not None for each in (first, second)}
        assert matches[first] or not matches[second]
