"""Hostile input for both parsers: only declared errors, and no harm to others.

The clients' frames are random texts, random bytes and damaged valid frames. The messages between processes
are dicts with damaged values, as a program with access to Redis could send them.
"""

import asyncio
import json
import logging
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from realtime import addresses
from realtime.consumers import GroupConsumer
from realtime.errors import BadFrame, BadMessage, ErrorCode
from realtime.hub.hub import Hub
from realtime.layers import messages
from realtime.rights import presented
from realtime.serving import lifecycle
from realtime.wire import client_id, frames

#: Examples of each property in `make test`, and in `make test-all`.
EXAMPLES = [pytest.param(300, id="everyday"), pytest.param(5_000, id="long", marks=pytest.mark.matrix)]

VALID = [
    '{"type":"pong","n":1}',
    '{"type":"ping","n":2}',
    '{"type":"join","group":"public.a","ref":1,"since":{"epoch":"e","offset":3},"presence":true}',
    '{"type":"leave","group":"public.a","ref":"x"}',
    '{"type":"publish","group":"public.a","data":{"a":[1,2.5e3,null,true,"\\u00e9"]},"ref":2,"id":"i"}',
    '{"type":"presence","group":"public.a","ref":3}',
    '{"type":"refresh","ref":4,"ticket":"abc.def"}',
]
#: Pieces that parsers have fallen over.
PIECES = [
    *("1e400", "-1e400", "NaN", "Infinity", "9" * 400, "-0", "1e-400", "0x1", "01", "9007199254740993"),
    *("[" * 2000, "{" * 2000, '{"a":' * 500, "\\ud800", '"\\ud800"', "\\u0000", "\x00", "\ufeff", "\u2028"),
    *('"type"', '"type":"join"', '"ref":null', '"__proto__"', ",", "}", "]", '"', "\\", "true", "null"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid frame in which some places were changed, repeated, cut out or replaced."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = draw(st.integers(first, min(len(text), first + 12)))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=3) | st.just(text[first:last] * 2))
        text = text[:first] + piece + text[last:]
    return text


texts = damaged() | st.text(max_size=200) | json_values.map(repr) | st.sampled_from(PIECES)


# -- the parsers alone


@pytest.mark.parametrize("number", EXAMPLES)
def test_any_text_of_a_client_is_a_frame_or_a_bad_frame(number: int) -> None:
    @settings(max_examples=number, deadline=None)
    @given(texts)
    @example("\ud800")
    @example("[" * 100_000)
    def check(text: str) -> None:
        for parse in (frames.parse, frames.parse_server):
            bad = None
            try:
                parse(text)
            except BadFrame as error:
                bad = error
            if bad is not None:
                assert bad.code in ErrorCode
                # What goes back to the client can be encoded, and is short.
                assert len(frames.build(frames.Error(bad.code, bad.detail, bad.ref))) < 1000

    check()


kinds = [str(each) for each in messages._TYPES]


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """A dict that claims to be a message between processes: any values, or the fields of a real one."""
    declared = messages._TYPES[draw(st.sampled_from(kinds))]
    fields = [field.encode_name for field in _fields(declared)]
    event: dict[str, Any] = {name: draw(json_values) for name in fields if draw(st.booleans())}
    event |= draw(st.dictionaries(st.text(max_size=8), json_values, max_size=3))
    event["type"] = draw(st.sampled_from(kinds) | st.text(max_size=10) | json_values)
    return event


def _fields(declared: Any) -> Any:
    return msgspec.structs.fields(declared)


@pytest.mark.parametrize("number", EXAMPLES)
def test_any_event_is_a_message_or_a_bad_message(number: int) -> None:
    @settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(events())
    def check(event: dict[str, Any]) -> None:
        with suppress(BadMessage):
            messages.decode(event)

    check()


@pytest.mark.parametrize("number", EXAMPLES)
def test_any_header_gives_an_address_or_the_peer(number: int) -> None:
    @settings(max_examples=number, deadline=None)
    @given(st.text(max_size=40), st.text(max_size=200))
    def check(peer: str, forwarded: str) -> None:
        trusted = ("10.0.0.0/8", "::1", "unix")
        found = addresses.client(peer, forwarded, trusted)
        assert found == peer or addresses.address(found) is not None
        assert addresses.network(found, 32, 64) == "" or addresses.address(found) is not None

    check()


@pytest.mark.parametrize("number", EXAMPLES)
def test_any_query_has_an_id_and_a_ticket_or_none(number: int) -> None:
    @settings(max_examples=number, deadline=None)
    @given(st.binary(max_size=200))
    def check(query: bytes) -> None:
        with suppress(ValueError):
            client_id.find(query, "client")
        assert isinstance(presented.take({"query_string": query}), list)

    check()


# -- a consumer in a process with others


def _cases(seed: int, number: int) -> Iterator[str | bytes]:
    """Random frames without Hypothesis, whose examples would each need a connection of their own."""
    chosen = random.Random(seed)
    for _ in range(number):
        text = chosen.choice(VALID)
        for _ in range(chosen.randrange(1, 5)):
            at, cut = chosen.randrange(len(text) + 1), chosen.randrange(6)
            text = text[:at] + chosen.choice([*PIECES, "", chr(chosen.randrange(0x2FFF))]) + text[at + cut :]
        yield text.encode(errors="replace") if chosen.random() < 0.1 else text


async def _opened() -> WebsocketCommunicator:
    communicator = WebsocketCommunicator(GroupConsumer.as_asgi(), "/ws/", subprotocols=["realtime.v1"])
    communicator.scope["user"] = AnonymousUser()
    assert (await communicator.connect())[0]
    assert json.loads(await communicator.receive_from())["type"] == "welcome"
    return communicator


@pytest.mark.parametrize(
    "number", [pytest.param(400, id="everyday"), pytest.param(8_000, id="long", marks=pytest.mark.matrix)]
)
async def test_hostile_frames_end_at_most_their_own_connection(
    site: None, realtime_settings: Any, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    realtime_settings(MAX_FRAMES_PER_SECOND=None, MAX_BYTES_PER_SECOND=None, MAX_PUBLISHES_PER_SECOND=None)
    caplog.set_level(logging.WARNING)
    healthy = await _opened()
    await healthy.send_json_to({"type": "join", "group": "public.healthy", "ref": 1})
    assert (await healthy.receive_json_from())["type"] == "joined"
    hostile, opened, answered = await _opened(), 1, 0
    for content in _cases(7, number):
        kind = "bytes_data" if isinstance(content, bytes) else "text_data"
        await hostile.send_to(**{kind: content})
        event = await _answer(hostile)
        answered += event is not None
        if event is not None and event["type"] == "websocket.close":
            assert event["code"] in (1000, 4029, 4500, 4513), event
            hostile, opened = await _opened(), opened + 1
    assert answered > number / 2
    assert opened > 1
    await _is_served(healthy)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    await hostile.disconnect()
    await healthy.disconnect()


async def _is_served(communicator: WebsocketCommunicator) -> None:
    """Wait for the answer to a frame. Pings may come before it."""
    await communicator.send_json_to({"type": "presence", "group": "public.healthy", "ref": 2})
    while (await communicator.receive_json_from(timeout=20)).get("ref") != 2:
        pass


async def _answer(communicator: WebsocketCommunicator) -> Any:
    """Return the close, or else the last event that answers a frame; None if nothing does."""
    last = None
    try:
        async with asyncio.timeout(0.02):
            while True:
                event = await communicator.output_queue.get()
                if event["type"] == "websocket.close":
                    return event
                last = event
    except TimeoutError:
        return last


# -- a process that receives hostile messages


def _hostile_events(seed: int, number: int) -> Iterator[dict[str, Any]]:
    chosen = random.Random(seed)
    values: list[Any] = [
        *(
            None,
            True,
            -1,
            2**70,
            math.nan,
            math.inf,
            "",
            "x" * 10_000,
            "\x00",
            b"\xff",
            [],
            {},
            [[]],
            {"a": []},
        ),
        *(
            ["x"],
            [None],
            [["a"]],
            ["00000000-0000-0000-0000-00000000000g"],
            [["id", "group"]],
            [[1, "g", "u"]],
        ),
        *([{"a": 1}] * 3, list(range(5000))),
    ]
    for _ in range(number):
        declared = messages._TYPES[chosen.choice(kinds)]
        event = {field.encode_name: chosen.choice(values) for field in _fields(declared)}
        yield {**event, "type": chosen.choice([*kinds, "x", "", "realtime.unknown"])}


async def test_a_process_outlives_hostile_messages(site: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    healthy = await _opened()
    await healthy.send_json_to({"type": "join", "group": "public.healthy", "ref": 1})
    assert (await healthy.receive_json_from())["type"] == "joined"
    home: Hub = await lifecycle.hub()
    layer, channel = lifecycle.groups.at(home.channel)
    control = lifecycle.groups.control_of(channel)
    for event in _hostile_events(7, 500):
        await layer.send(control, event)
        await layer.send(channel, event)
        await asyncio.sleep(0)
    await _is_served(healthy)
    assert not home.mailbox.reading.done()
    assert all(not task.done() for task in home._tasks if task.get_name().startswith("realtime"))
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in tracebacks] == []
    await healthy.disconnect()
