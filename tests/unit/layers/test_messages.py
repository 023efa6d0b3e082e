"""`realtime.layers.messages`: messages between processes, also between those of two versions."""

from typing import Any, get_args
from uuid import UUID

import pytest
from channels_redis.core import RedisChannelLayer
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.errors import BadMessage
from realtime.layers import messages
from realtime.layers.messages import (
    Answer,
    AnyMessage,
    Ask,
    EchoPart,
    Explain,
    GroupMessage,
    Heal,
    Holdings,
    Kick,
    Notified,
    Notify,
    PresenceChanges,
    Recheck,
    Revoke,
)

CORE = RedisChannelLayer()
texts = st.text(max_size=20)
numbers = st.integers(0, 2**63)
memberships = st.lists(st.tuples(st.uuids(), texts), max_size=5)
stays = st.lists(st.tuples(numbers, texts, texts), max_size=3)
all_messages = st.one_of(
    st.builds(Ask, round=numbers, reply_to=texts, interval=st.floats(0, 1e6)),
    st.builds(Kick, connections=st.lists(st.uuids()), memberships=memberships, reason=texts),
    st.builds(Explain, request=texts, reply_to=texts),
    st.builds(Heal, stray=st.lists(texts)),
    st.builds(
        Notify,
        request=texts,
        reply_to=texts,
        connections=st.lists(st.uuids(), max_size=3),
        text=texts,
        confirm=st.booleans(),
        within=st.floats(0, 1e6),
    ),
    st.builds(Notified, request=texts, process=st.uuids(), taken=st.booleans()),
    st.builds(Answer, round=numbers, process=st.uuids()),
    st.builds(
        Holdings,
        request=texts,
        process=st.uuids().map(str),
        connections=st.lists(st.tuples(texts, st.lists(texts, max_size=3)), max_size=3),
        page=numbers,
        pages=numbers,
    ),
    st.builds(PresenceChanges, began=stays, ended=stays),
    st.builds(Revoke, user=texts, session=texts),
    st.builds(
        Recheck,
        users=st.none() | st.lists(texts, max_size=3),
        groups=st.none() | st.lists(texts, max_size=3),
        changed_only=st.booleans(),
    ),
    st.builds(EchoPart, number=numbers, part=numbers),
    st.builds(GroupMessage, text=texts),
    st.builds(GroupMessage, text=texts, epoch=texts, offset=numbers),
)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

#: The dicts that the version before this module built in `realtime/groups.py` (commit 9f8f405), and the
#: messages that they are now.
RECORDED: list[tuple[dict[str, Any], AnyMessage]] = [
    (
        {"type": "realtime.ask", "round": 7, "reply_to": "realtime.control.1", "interval": 20.0},
        Ask(7, "realtime.control.1", 20.0),
    ),
    (
        {"type": "realtime.answer", "round": 7, "process": "5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b"},
        Answer(7, UUID("5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b")),
    ),
    (
        {
            "type": "realtime.kick",
            "connections": ["0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11"],
            "memberships": [("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11", "g")],
            "reason": "server_lost",
        },
        Kick(
            [UUID("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11")],
            [(UUID("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11"), "g")],
            "server_lost",
        ),
    ),
    (
        {"type": "realtime.explain", "request": "6a1c", "reply_to": "other:realtime.control.2"},
        Explain("6a1c", "other:realtime.control.2"),
    ),
    (
        {
            "type": "realtime.holdings",
            "request": "6a1c",
            "process": "5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b",
            "connections": [("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11", ["g", "h"])],
            "page": 0,
            "pages": 1,
        },
        Holdings(
            "6a1c",
            "5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b",
            [("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11", ["g", "h"])],
            0,
            1,
        ),
    ),
    ({"type": "realtime.heal", "stray": ["g"]}, Heal(["g"])),
    (
        {"type": "realtime.presence", "began": [(7, "g", "42")], "ended": []},
        PresenceChanges([(7, "g", "42")], []),
    ),
    (
        {
            "type": "realtime.notify",
            "request": "6a1c",
            "reply_to": "realtime.control.2",
            "connections": ["0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11"],
            "text": '{"type":"notification","data":1}',
            "confirm": True,
            "within": 10.0,
        },
        Notify(
            "6a1c",
            "realtime.control.2",
            [UUID("0b9f7f8e-8a5e-4f55-9d3c-6f1f0c9c6a11")],
            '{"type":"notification","data":1}',
            True,
            10.0,
        ),
    ),
    (
        {
            "type": "realtime.notified",
            "request": "6a1c",
            "process": "5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b",
            "taken": True,
        },
        Notified("6a1c", UUID("5b7d0a3c-0d6f-4f0e-9a57-0f4f0e1f2a3b"), True),
    ),
    (
        {"type": "realtime.revoke", "user": "42", "session": "5b7d0a3c0d6f4f0e9a570f4f0e1f2a3b"},
        Revoke("42", "5b7d0a3c0d6f4f0e9a570f4f0e1f2a3b"),
    ),
    (
        {"type": "realtime.recheck", "users": ["42"], "groups": None, "changed_only": False},
        Recheck(["42"]),
    ),
    ({"type": "realtime.echo", "number": 3, "part": 1}, EchoPart(3, 1)),
    (
        {"type": "realtime.message", "text": '{"type":"message","group":"g","data":1}'},
        GroupMessage('{"type":"message","group":"g","data":1}'),
    ),
]


def over_redis(event: dict[str, Any]) -> dict[str, Any]:
    """Return the dict as a Redis layer delivers it: tuples have become lists."""
    received: dict[str, Any] = CORE.deserialize(CORE.serialize(event))
    return received


@given(all_messages)
@settings(deadline=None)
def test_every_message_survives_a_layer(message: AnyMessage) -> None:
    assert messages.decode(messages.encode(message)) == message
    assert messages.decode(over_redis(messages.encode(message))) == message


@pytest.mark.parametrize(("event", "message"), RECORDED)
def test_the_previous_version_is_understood(event: dict[str, Any], message: AnyMessage) -> None:
    assert messages.decode(event) == message
    assert messages.decode(over_redis(event)) == message


@pytest.mark.parametrize(("event", "message"), RECORDED)
def test_the_previous_version_understands(event: dict[str, Any], message: AnyMessage) -> None:
    """It reads keys without asking if they are there, so every key of its own is sent."""
    assert messages.encode(message) == event
    assert over_redis(messages.encode(message)) == over_redis(event)


def test_every_message_was_recorded() -> None:
    assert {type(message) for _, message in RECORDED} == set(get_args(AnyMessage))


def test_a_round_of_an_older_reaper_has_no_interval() -> None:
    assert messages.decode({"type": "realtime.ask", "round": 7, "reply_to": "r"}) == Ask(7, "r", 0.0)


@given(all_messages, st.dictionaries(st.text(min_size=1).map("x-{}".format), plain_values, max_size=3))
@settings(deadline=None)
def test_unknown_fields_are_ignored(message: AnyMessage, unknown: dict[str, Any]) -> None:
    assert messages.decode({**messages.encode(message), **unknown}) == message


@pytest.mark.parametrize("kind", ["realtime.next", "chat.message", "", None, 7, ["realtime.ask"]])
def test_an_unknown_type_is_named(kind: object) -> None:
    with pytest.raises(BadMessage, match="of the unknown type") as refused:
        messages.decode({"type": kind, "round": 1})
    assert repr(kind) in str(refused.value)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "realtime.ask", "reply_to": "r"}, "missing required field `round`"),
        ({"type": "realtime.ask", "round": "1", "reply_to": "r"}, "Expected `int`, got `str` - at `$.round`"),
        ({"type": "realtime.heal", "stray": "g"}, "Expected `array`, got `str` - at `$.stray`"),
        ({"type": "realtime.answer", "round": 1, "process": "it"}, "Invalid UUID - at `$.process`"),
        (
            {"type": "realtime.kick", "connections": [], "memberships": [("c",)], "reason": "kicked"},
            "Expected `array` of length 2, got 1 - at `$.memberships[0]`",
        ),
    ],
)
def test_a_malformed_message_is_refused_with_the_field(event: dict[str, Any], words: str) -> None:
    with pytest.raises(BadMessage) as refused:
        messages.decode(event)
    assert f"a {event['type']} event that cannot be read" in str(refused.value)
    assert words in str(refused.value)


@given(
    st.sampled_from([each.__struct_config__.tag for each in get_args(AnyMessage)]),
    st.dictionaries(
        st.sampled_from(sorted({name for each in get_args(AnyMessage) for name in each.__struct_fields__})),
        plain_values,
    ),
)
@settings(deadline=None)
def test_a_dict_is_a_message_or_refused(kind: object, fields: dict[str, Any]) -> None:
    try:
        message = messages.decode({**fields, "type": kind})
    except BadMessage:
        return
    assert messages.encode(message)["type"] == kind
