"""`realtime.wire.payload`: what Python code may publish."""

import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import uuid

import msgspec
import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.errors import RealtimeError, UnpublishableData
from realtime.wire import frames
from realtime.wire.payload import MAX_DEPTH, encode_data, nested_deeper_than

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "not what it holds"


class Number(int):
    pass


class Real(float):
    pass


@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date


class Model:
    pass


def encoded(value):
    return bytes(encode_data(value)).decode()


@given(json_values)
@settings(deadline=None)
def test_the_values_of_json_keep_their_value(value):
    assert json.loads(encoded(value)) == value


@given(json_values)
@settings(deadline=None)
def test_published_data_survives_framing_and_parsing(value):
    raw = encode_data(value)
    received = frames.parse_server(frames.build(frames.Message("g", raw)))
    assert bytes(received.data) == bytes(raw)
    sent = frames.parse(frames.build(frames.Publish("g", raw, 1)))
    assert bytes(sent.data) == bytes(raw)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (1, "1"),
        (1.0, "1.0"),
        (2**70, "1180591620717411303424"),
        ("é\u2028", '"é\u2028"'),
        ("a\x00b", '"a\\u0000b"'),
        ((1, 2), "[1,2]"),
        ({1: "a", 2.5: "b"}, '{"1":"a","2.5":"b"}'),
        (datetime.datetime(2024, 2, 29, 12, 1, tzinfo=datetime.UTC), '"2024-02-29T12:01:00Z"'),
        (datetime.date(2024, 2, 29), '"2024-02-29"'),
        (datetime.time(12, 30), '"12:30:00"'),
        (datetime.timedelta(days=1), '"P1D"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (Colour.RED, '"red"'),
        (Point(1, datetime.date(2024, 1, 2)), '{"x":1,"when":"2024-01-02"}'),
        ({"set"}, '["set"]'),
        (b"\xff", '"/w=="'),
        (math.nan, "null"),
        (math.inf, "null"),
        (lazystr("lazy"), '"lazy"'),
        ([lazystr("lazy")], '["lazy"]'),
        (mark_safe("<b>safe</b>"), '"<b>safe</b>"'),
        (Text("text"), '"text"'),
        (Number(7), "7"),
        (Real(1.5), "1.5"),
    ],
)
def test_common_values_of_python_have_a_json_form(value, text):
    assert encoded(value) == text


def test_raw_json_is_taken_as_it_is():
    raw = msgspec.Raw(b'{ "a" : 1.0 }')
    assert encode_data(raw) is raw


def contains_itself():
    value = []
    value.append(value)
    return value


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Model(), "test_payload.Model"),
        ([{"deep": Model()}], "test_payload.Model"),
        (Model, "type"),
        (object(), "object"),
        (fractions.Fraction(1, 2), "fractions.Fraction"),
        (1j, "complex"),
        (range(3), "range"),
        ((n for n in "ab"), "generator"),
        (len, "builtin_function_or_method"),
        (msgspec.UNSET, "msgspec.UnsetType"),
        ({(1, 2): 3}, "tuple"),
        ({None: 1}, "NoneType"),
        ({True: 1}, "bool"),
        ({1j: 1}, "complex"),
        ("\ud800", "str"),
        (["\ud800"], "list"),
        ({"\ud800": 1}, "dict"),
        (10**5000, "int"),
        (contains_itself(), "list"),
        (nested(100_000), "list"),
        (nested(MAX_DEPTH), "list"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_other_values_are_refused_by_the_name_of_their_type(value, named):
    with pytest.raises(UnpublishableData) as caught:
        encode_data(value)
    assert str(caught.value).startswith("A value of type ")
    assert named in str(caught.value).split(" cannot be published: ")[0]
    assert str(caught.value).endswith(".")
    assert isinstance(caught.value, RealtimeError)
    assert isinstance(caught.value, TypeError)


def test_the_deepest_publishable_value_fits_into_a_frame():
    raw = encode_data(nested(MAX_DEPTH - 1))
    assert frames.parse_server(frames.build(frames.Message("g", raw))).data == raw


def depth(value):
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


brackets = st.text(st.sampled_from('[]{}"\\a'), max_size=6)
bracketed = st.recursive(
    brackets,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(brackets, inner, max_size=4),
    max_leaves=30,
)


@given(bracketed, st.integers(0, 6))
@settings(deadline=None)
def test_depth_is_counted_outside_of_strings(value, limit):
    assert nested_deeper_than(limit, json.dumps(value).encode()) == (depth(value) > limit)
