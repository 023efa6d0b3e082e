"""`realtime.wire.frames`: what goes over the wire, and everything that a client may send instead."""

import json
import time
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from realtime.errors import BadFrame, ErrorCode, RealtimeError
from realtime.history.positions import Position
from realtime.wire import frames
from realtime.wire.frames import (
    ClientPing,
    ClientPong,
    Error,
    Goodbye,
    Join,
    Joined,
    Leave,
    Left,
    Message,
    Ping,
    Pong,
    Publish,
    Published,
    Reset,
    Since,
    Welcome,
)
from realtime.wire.payload import MAX_DEPTH

MOST = 2**53 - 1

counts = st.integers(0, MOST)
short_texts = st.text(max_size=64)
publish_ids = st.text(min_size=1, max_size=64)
epochs = st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True)
refs = st.integers(-MOST, MOST) | short_texts
groups = st.text(st.sampled_from("abcXYZ019-_."), min_size=1, max_size=99).filter(frames.valid_group)
seconds = st.floats(0, 1e6)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=10,
)
# With and without escapes and space, as clients of different make write it.
raws = st.builds(
    lambda value, ascii_only, indent: msgspec.Raw(
        json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    ),
    json_values,
    st.booleans(),
    st.none() | st.integers(0, 2),
)

users = st.lists(short_texts, max_size=3)
client_frames = st.one_of(
    st.builds(ClientPong, n=counts),
    st.builds(ClientPing, n=counts),
    st.builds(
        Join,
        group=groups,
        ref=refs,
        since=st.none() | st.builds(Since, epoch=short_texts, offset=counts),
        presence=st.booleans(),
    ),
    st.builds(Leave, group=groups, ref=refs),
    st.builds(Publish, group=groups, data=raws, ref=refs, id=st.none() | publish_ids),
    st.builds(frames.ClientPresence, group=groups, ref=refs),
    st.builds(frames.ClientRefresh, ref=refs, ticket=st.none() | st.text(min_size=1, max_size=40)),
)
server_frames = st.one_of(
    st.builds(
        Welcome,
        connection=st.uuids().map(str),
        max_silence=seconds,
        groups=st.lists(groups),
        positions=st.dictionaries(groups, st.builds(Since, epoch=short_texts, offset=counts), max_size=2),
    ),
    st.builds(Reset, group=groups, epoch=short_texts, offset=counts),
    st.builds(Ping, n=counts),
    st.builds(
        Message,
        group=groups,
        data=raws,
        from_=st.just(msgspec.UNSET) | st.none() | st.text(),
        offset=st.none() | counts,
        epoch=st.none() | short_texts,
    ),
    st.builds(
        Joined,
        ref=refs,
        group=groups,
        epoch=st.none() | short_texts,
        offset=st.none() | counts,
        recovered=st.none() | st.booleans(),
        presence=st.none() | st.builds(frames.Present, users=users, anonymous=counts, total=counts),
    ),
    st.builds(Left, ref=refs, group=groups),
    st.builds(Published, ref=refs, group=groups, offset=st.none() | counts, epoch=st.none() | short_texts),
    st.builds(Error, code=st.sampled_from(ErrorCode).map(str), detail=st.text(), ref=st.none() | refs),
    st.builds(Pong, n=counts),
    st.builds(frames.Notification, data=raws),
    st.builds(Goodbye, reason=st.text(), reconnect=st.booleans(), retry_after=st.none() | seconds),
    st.builds(
        frames.Presence,
        group=groups,
        anonymous=counts,
        total=counts,
        ref=st.none() | refs,
        users=st.none() | users,
        joined=users,
        left=users,
    ),
    st.builds(frames.Refresh, within=seconds),
    st.builds(frames.Refreshed, ref=refs, expires_in=st.none() | seconds),
    st.builds(frames.Removed, group=groups, reason=st.text()),
)
unknown_fields = st.dictionaries(st.text(min_size=1).map("x-{}".format), json_values, max_size=3)


# Both ways.


@given(client_frames)
@settings(deadline=None)
def test_what_a_client_builds_the_server_parses(frame):
    assert frames.parse(frames.build(frame)) == frame


@given(server_frames)
@settings(deadline=None)
def test_what_the_server_builds_a_client_parses(frame):
    assert frames.parse_server(frames.build(frame)) == frame


@given(client_frames, unknown_fields)
@settings(deadline=None)
def test_the_server_ignores_fields_that_it_does_not_know(frame, unknown):
    text = frames.build(frame)
    assert frames.parse(f'{{"x":{json.dumps(unknown)},{text[1:]}') == frame


@given(server_frames, unknown_fields)
@settings(deadline=None)
def test_a_client_ignores_fields_that_it_does_not_know(frame, unknown):
    text = frames.build(frame)
    assert frames.parse_server(f'{{"x":{json.dumps(unknown)},{text[1:]}') == frame


def test_every_type_of_frame_makes_the_round_trip():
    def tags(union):
        return {frame_type.__struct_config__.tag for frame_type in get_args(union)}

    assert tags(frames.ClientFrame) == {"pong", "ping", "join", "leave", "publish", "presence", "refresh"}
    assert tags(frames.ServerFrame) == {
        "welcome", "ping", "message", "joined", "left", "published", "error", "pong", "goodbye",
        "reset", "presence", "notification", "refresh", "refreshed", "removed",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["something_new", "Presence"])
def test_a_client_ignores_types_that_it_does_not_know(kind):
    assert frames.parse_server(json.dumps({"type": kind, "ref": 1})) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"type":7}', '{"n":1}', '{"type":"ping","n":"one"}']
)
def test_a_client_refuses_a_text_that_is_no_frame(text):
    with pytest.raises(BadFrame) as caught:
        frames.parse_server(text)
    assert caught.value.code == ErrorCode.BAD_FRAME


# What the frames look like.


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (
            Welcome("7c9e", 45.0, ["public.a"]),
            '{"type":"welcome","connection":"7c9e","max_silence":45.0,"groups":["public.a"]}',
        ),
        (
            Welcome("7c9e", 45.0, ["public.a"], {"public.a": Since("e", 7)}),
            '{"type":"welcome","connection":"7c9e","max_silence":45.0,"groups":["public.a"],'
            '"positions":{"public.a":{"epoch":"e","offset":7}}}',
        ),
        (Reset("g", "e", 0), '{"type":"reset","group":"g","epoch":"e","offset":0}'),
        (Ping(17), '{"type":"ping","n":17}'),
        (Message("g", msgspec.Raw(b'{"a":1}')), '{"type":"message","group":"g","data":{"a":1}}'),
        (Message("g", msgspec.Raw(b"1"), None), '{"type":"message","group":"g","data":1,"from":null}'),
        (
            Message("g", msgspec.Raw(b"1"), "5", 12, "e"),
            '{"type":"message","group":"g","data":1,"from":"5","offset":12,"epoch":"e"}',
        ),
        (Joined(1, "g"), '{"type":"joined","ref":1,"group":"g"}'),
        (
            Joined("a", "g", "e", 0, False),
            '{"type":"joined","ref":"a","group":"g","epoch":"e","offset":0,"recovered":false}',
        ),
        (Left(2, "g"), '{"type":"left","ref":2,"group":"g"}'),
        (Published(0, "g", 4, "e"), '{"type":"published","ref":0,"group":"g","offset":4,"epoch":"e"}'),
        (Error(ErrorCode.FORBIDDEN, "No.", 3), '{"type":"error","code":"forbidden","detail":"No.","ref":3}'),
        (Error("bad_frame", "No."), '{"type":"error","code":"bad_frame","detail":"No."}'),
        (Pong(1), '{"type":"pong","n":1}'),
        (
            Goodbye("server_restart", True, 1.8),
            '{"type":"goodbye","reason":"server_restart","reconnect":true,"retry_after":1.8}',
        ),
        (Goodbye("kicked", False), '{"type":"goodbye","reason":"kicked","reconnect":false}'),
        (ClientPong(17), '{"type":"pong","n":17}'),
        (Join("g", 1, Since("e", 9)), '{"type":"join","group":"g","ref":1,"since":{"epoch":"e","offset":9}}'),
        (Publish("g", msgspec.Raw(b"null"), 3), '{"type":"publish","group":"g","data":null,"ref":3}'),
    ],
)
def test_frames_are_written_as_the_protocol_says(frame, text):
    assert frames.build(frame) == text


@given(raws, st.just(msgspec.UNSET) | st.none() | st.text(), st.integers(0, 2**53 - 1), epochs)
def test_a_position_is_added_to_a_frame_that_was_built(raw, sender, offset, epoch):
    text = frames.build(Message("g", raw, sender))
    with_position = frames.with_position(text, Position(epoch, offset))
    assert with_position == frames.build(Message("g", raw, sender, offset, epoch))


@pytest.mark.parametrize("id_", ["", "x" * 65, 5])
def test_a_publish_id_has_1_to_64_characters(id_):
    with pytest.raises(frames.BadFrame, match="id"):
        frames.parse(json.dumps({"type": "publish", "group": "g", "data": 1, "ref": 1, "id": id_}))


def test_the_error_codes_are_those_of_the_protocol():
    assert [str(code) for code in ErrorCode] == [
        "bad_frame", "unknown_type", "forbidden", "bad_group", "rate_limited", "not_joined", "no_presence",
        "too_many_groups", "bad_ticket", "internal",
    ]  # fmt: skip


def test_fields_may_come_in_any_order():
    frame = frames.parse('{"data":{"type":"ping"},"ref":1,"group":"g","type":"publish"}')
    assert frame == Publish("g", msgspec.Raw(b'{"type":"ping"}'), 1)


# Data passes through.


@given(raws)
@settings(deadline=None)
def test_published_data_reaches_the_receiver_byte_for_byte(raw):
    published = frames.parse(frames.build(Publish("g", raw, 1)))
    received = frames.parse_server(frames.build(Message("g", published.data)))
    assert bytes(received.data) == bytes(raw)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "true",
        "0",
        "1",
        "1.0",
        "-0.0",
        "1E+2",
        "0.1",
        "1.7976931348623157e308",
        "9007199254740993",
        "123456789012345678901234567890123456789012345678901234567890",
        '""',
        '"\\u0000"',
        '"\\ud83d\\ude00"',
        '"😀 é \u2028"',
        '"\\/"',
        "[]",
        "{}",
        '{"b":1,"a":2}',
        '{"a":1,"a":2}',
        '{ "spaced" : [ 1 , 2 ] }',
        '{"type":"ping","n":1}',
        '"' + "x" * 60_000 + '"',
    ],
)
def test_data_is_not_touched(text):
    frame = frames.parse(f'{{"type":"publish","ref":1,"group":"g","data": {text} }}')
    assert bytes(frame.data) == text.encode()
    assert frames.build(Message("g", frame.data)) == f'{{"type":"message","group":"g","data":{text}}}'


# Bad frames.


def publish_of(data):
    return f'{{"type":"publish","ref":1,"group":"g","data":{data}}}'


def join_of(group, ref="1"):
    return f'{{"type":"join","ref":{ref},"group":{group}}}'


BAD_FRAMES = {
    # name: (text, code, ref)
    "empty": ("", "bad_frame", None),
    "only space": (" \n", "bad_frame", None),
    "not JSON": ("hello", "bad_frame", None),
    "cut off": ('{"type":"ping","n":1', "bad_frame", None),
    "two frames": ('{"type":"ping","n":1}{"type":"ping","n":2}', "bad_frame", None),
    "byte order mark": ('\ufeff{"type":"ping","n":1}', "bad_frame", None),
    "single quotes": ("{'type':'ping','n':1}", "bad_frame", None),
    "trailing comma": ('{"type":"ping","n":1,}', "bad_frame", None),
    "comment": ('{"type":"ping","n":1} // hello', "bad_frame", None),
    "null": ("null", "bad_frame", None),
    "number": ("17", "bad_frame", None),
    "string": ('"ping"', "bad_frame", None),
    "array": ('["ping",1]', "bad_frame", None),
    "array of frames": ('[{"type":"ping","n":1}]', "bad_frame", None),
    "empty object": ("{}", "bad_frame", None),
    "no type": ('{"n":1,"ref":5}', "bad_frame", 5),
    "type is null": ('{"type":null,"n":1}', "bad_frame", None),
    "type is a number": ('{"type":1,"n":1,"ref":"a"}', "bad_frame", "a"),
    "type is an object": ('{"type":{"type":"ping"},"n":1}', "bad_frame", None),
    "type in capitals": ('{"type":"PING","n":1}', "unknown_type", None),
    "type is empty": ('{"type":"","n":1}', "unknown_type", None),
    "unknown type": ('{"type":"subscribe","ref":9}', "unknown_type", 9),
    "unknown type, ref of the wrong type": ('{"type":"subscribe","ref":[9]}', "unknown_type", None),
    "very long unknown type": (f'{{"type":"{"x" * 60_000}","ref":9}}', "unknown_type", 9),
    "type of the server": ('{"type":"welcome","ref":9}', "unknown_type", 9),
    "two types": ('{"type":"ping","type":"pong","n":1}', "bad_frame", None),
    "two types, the first one long": (f'{{"type":"{"x" * 60_000}","type":"pong","n":1}}', "bad_frame", None),
    "no n": ('{"type":"pong"}', "bad_frame", None),
    "n is a string": ('{"type":"pong","n":"1"}', "bad_frame", None),
    "n is a float": ('{"type":"pong","n":1.0}', "bad_frame", None),
    "n is true": ('{"type":"pong","n":true}', "bad_frame", None),
    "n is null": ('{"type":"pong","n":null}', "bad_frame", None),
    "n is negative": ('{"type":"pong","n":-1}', "bad_frame", None),
    "n is above what JavaScript can tell apart": (f'{{"type":"pong","n":{2**53}}}', "bad_frame", None),
    "n is huge": (f'{{"type":"pong","n":{"9" * 60_000}}}', "bad_frame", None),
    "n is NaN": ('{"type":"pong","n":NaN}', "bad_frame", None),
    "no ref": ('{"type":"join","group":"g"}', "bad_frame", None),
    "ref is null": (join_of('"g"', "null"), "bad_frame", None),
    "ref is a float": (join_of('"g"', "1.5"), "bad_frame", None),
    "ref is true": (join_of('"g"', "true"), "bad_frame", None),
    "ref is an object": (join_of('"g"', "{}"), "bad_frame", None),
    "ref is huge": (join_of('"g"', "9" * 60_000), "bad_frame", None),
    "ref is too long": (join_of('"g"', f'"{"r" * 65}"'), "bad_frame", None),
    "no group": ('{"type":"leave","ref":4}', "bad_frame", 4),
    "group is null": (join_of("null"), "bad_frame", 1),
    "group is a number": (join_of("5"), "bad_frame", 1),
    "group is an array": (join_of('["g"]'), "bad_frame", 1),
    "group is empty": (join_of('""'), "bad_group", 1),
    "group is too long": (join_of(f'"{"g" * 100}"'), "bad_group", 1),
    "group is ours": (join_of('"realtime.process"'), "bad_group", 1),
    "group of a publish is ours": (
        '{"type":"publish","ref":1,"group":"realtime.x","data":1}',
        "bad_group",
        1,
    ),
    "group of a leave with a space": ('{"type":"leave","ref":1,"group":"a b"}', "bad_group", 1),
    "group with a line feed at its end": (join_of('"g\\n"'), "bad_group", 1),
    "group with an escaped NUL": (join_of('"g\\u0000"'), "bad_group", 1),
    "group with a raw NUL": (join_of('"g\x00"'), "bad_frame", None),
    "group with a lone surrogate, escaped": (join_of('"g\\ud800 and more"'), "bad_frame", None),
    "group with a lone surrogate": (join_of('"g\ud800"'), "bad_frame", None),
    "group of other letters": (join_of('"grüße"'), "bad_group", 1),
    "group of other digits": (join_of('"room\u0663"'), "bad_group", 1),
    "group of full-width letters": (join_of('"\uff41"'), "bad_group", 1),
    "since is a number": ('{"type":"join","ref":1,"group":"g","since":5}', "bad_frame", 1),
    "since without an offset": ('{"type":"join","ref":1,"group":"g","since":{"epoch":"e"}}', "bad_frame", 1),
    "since a negative offset": (
        '{"type":"join","ref":1,"group":"g","since":{"epoch":"e","offset":-1}}',
        "bad_frame",
        1,
    ),
    "since a long epoch": (
        f'{{"type":"join","ref":1,"group":"g","since":{{"epoch":"{"e" * 65}","offset":1}}}}',
        "bad_frame",
        1,
    ),
    "no data": ('{"type":"publish","ref":1,"group":"g"}', "bad_frame", 1),
    "id is a number": ('{"type":"publish","ref":1,"group":"g","data":1,"id":5}', "bad_frame", 1),
    "id is too long": (
        f'{{"type":"publish","ref":1,"group":"g","data":1,"id":"{"i" * 65}"}}',
        "bad_frame",
        1,
    ),
    "data is undefined": (publish_of("undefined"), "bad_frame", None),
    "data is NaN": (publish_of("NaN"), "bad_frame", None),
    "data is infinite": (publish_of("Infinity"), "bad_frame", None),
    "data begins with zero": (publish_of("01"), "bad_frame", None),
    "data is cut off": (publish_of('"abc'), "bad_frame", None),
    "data with a raw line feed": (publish_of('"a\nb"'), "bad_frame", None),
    "data with a raw NUL": (publish_of('"a\x00b"'), "bad_frame", None),
    "data with a bad escape": (publish_of('"\\x41"'), "bad_frame", None),
    "data with a lone surrogate": (publish_of('"\udfff"'), "bad_frame", None),
    "data with a lone surrogate, escaped": (publish_of('["\\udfff and more"]'), "bad_frame", None),
    "data with a lone surrogate, escaped, in a key": (
        publish_of('{"\\ud800 and more":1}'),
        "bad_frame",
        None,
    ),
    "data with half a surrogate pair": (publish_of('"\\ud83d\\u0041 and more"'), "bad_frame", None),
    "data is a number beyond all receivers": (publish_of("1e400"), "bad_frame", 1),
    "data holds an integer of 5,000 digits": (publish_of(f"[{'9' * 5_000}]"), "bad_frame", 1),
    "data one level too deep": (publish_of("[" * MAX_DEPTH + "]" * MAX_DEPTH), "bad_frame", None),
    "data 100,000 levels deep": (publish_of("[" * 100_000 + "]" * 100_000), "bad_frame", None),
    "objects 100,000 levels deep": (publish_of('{"a":' * 100_000 + "1" + "}" * 100_000), "bad_frame", None),
    "unknown field one level too deep": (
        '{"type":"ping","n":1,"x":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
        "bad_frame",
        None,
    ),
    "ref 100,000 levels deep": (join_of('"g"', "[" * 100_000 + "]" * 100_000), "bad_frame", None),
    "100,000 brackets and nothing else": ("[" * 100_000, "bad_frame", None),
}


@pytest.mark.parametrize(("text", "code", "ref"), BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_answered_with_its_code_and_ref(text, code, ref):
    with pytest.raises(BadFrame) as caught:
        frames.parse(text)
    bad = caught.value
    assert (bad.code, bad.ref) == (code, ref)
    assert isinstance(bad, RealtimeError)
    assert 0 < len(bad.detail) <= 200
    answer = frames.parse_server(frames.build(Error(bad.code, bad.detail, bad.ref)))
    assert answer == Error(code, bad.detail, ref)


def test_a_frame_may_be_as_deep_as_the_limit():
    data = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert bytes(frames.parse(publish_of(data)).data) == data.encode()


def test_brackets_in_strings_are_no_levels():
    data = json.dumps(["[" * 500, '"' + "{" * 500, "\\", "]}" * 500, '\\"[' * 300])
    assert bytes(frames.parse(publish_of(data)).data) == data.encode()


def test_the_depth_limit_ignores_the_callers_stack():
    data = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)

    def parse_below(frames_of_python):
        return below(frames_of_python - 1) if frames_of_python else frames.parse(publish_of(data))

    below = parse_below
    assert below(500) == frames.parse(publish_of(data))


def test_the_last_of_two_equal_keys_counts():
    assert frames.parse('{"type":"join","ref":1,"group":"a","group":"b"}') == Join("b", 1)
    assert frames.parse('{"type":"pong","n":1,"n":2}') == ClientPong(2)


def test_an_object_in_data_that_looks_like_a_frame_is_data():
    frame = frames.parse(publish_of('{"type":"join","group":"staff.x","ref":7}'))
    assert frame.group == "g"
    assert frame.ref == 1


# Anything at all.


def parses_or_is_a_bad_frame(text):
    try:
        frame = frames.parse(text)
    except BadFrame as bad:
        answer = Error(bad.code, bad.detail, bad.ref)
    else:
        assert frames.parse(frames.build(frame)) == frame
        return
    assert frames.parse_server(frames.build(answer)) == answer


@given(
    st.text() | st.text(st.characters(categories=["Cs", "Cc", "L", "N", "P"])) | json_values.map(json.dumps)
)
@settings(deadline=None, max_examples=100)
@example("\ud800")
@example('{"type":"\ud800"}')
def test_any_text_parses_or_is_a_bad_frame(text):
    parses_or_is_a_bad_frame(text)


@given(client_frames.map(frames.build), st.data())
@settings(deadline=None, max_examples=200)
def test_a_frame_with_a_part_replaced_parses_or_is_a_bad_frame(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 10, len(text))))
    part = data.draw(st.text(st.sampled_from('{}[]",:\\ud8\x00\ud80019.-eEtrufalsn é'), max_size=8))
    parses_or_is_a_bad_frame(text[:start] + part + text[end:])


@given(
    st.sampled_from(["pong", "ping", "join", "leave", "publish", "presence", "welcome"]),
    st.dictionaries(st.sampled_from(["n", "ref", "group", "data", "since", "id", "type"]), json_values),
)
@settings(deadline=None, max_examples=100)
def test_fields_of_any_value_parse_or_are_a_bad_frame(kind, fields):
    parses_or_is_a_bad_frame(json.dumps({"type": kind, **fields}))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "{" * 1_000_000,
        '"' * 1_000_000,
        "\\" * 1_000_000,
        '"\\' * 500_000,
        '{"a":' * 200_000,
        '{"type":"ping","n":' + "9" * 1_000_000 + "}",
        '{"type":"' + "\\u0041" * 150_000 + '"}',
        '{"type":"ping","n":1,' + '"type":"ping",' * 70_000 + '"n":2}',
        '{"type":"join","ref":"' + "a" * 1_000_000 + '","group":"g"}',
        '{"type":"join","ref":1,"group":"' + "a" * 1_000_000 + '"}',
        publish_of("[" + "[]," * 300_000 + "[]]"),
        publish_of("[" + '{"":0},' * 150_000 + "{}]"),
        publish_of("[" + '"\\"[",' * 150_000 + "[]]"),
        publish_of('"' + '[\\"' * 300_000 + '"'),
        publish_of('"' + "\\\\" * 500_000 + '"'),
        publish_of("1" * 1_000_000),
        publish_of("0." + "1" * 1_000_000),
        publish_of("1e" + "1" * 1_000_000),
        publish_of("[" + "1" * 4_000 + ("," + "1" * 4_000) * 250 + "]"),
        publish_of("1") + " " * 1_000_000,
    ],
    ids=lambda text: f"{text[:30]}...{len(text)}",
)
def test_a_megabyte_of_malice_takes_no_time(text):
    started_at = time.process_time()
    parses_or_is_a_bad_frame(text)
    # A fraction of a second where the work grows with the length, minutes where it grows with its square.
    assert time.process_time() - started_at < 2


# Groups.


@pytest.mark.parametrize(
    "name", ["a", "A", "0", "-", "_", ".", "public.room-1_x", "realtime", "realtimer.x", "g" * 99]
)
def test_a_group_is_named_as_channels_allows(name):
    assert frames.valid_group(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "g" * 100, "realtime.", "realtime.process.1", "a b", " a", "a\n", "\na", "a/b", "a:b", "a,b",
        "a*", "a\\", "a[b]", "a!b", "a#b", "a\x00", "é", "e\u0301", "ß", "\u0663", "\u00b2", "\uff11",
        "\uff41", "\u2024", "\U0001d7d8", "\ud800", "😀",
    ],
)  # fmt: skip
def test_no_other_name_is_a_group(name):
    assert not frames.valid_group(name)


@given(st.text(st.characters(categories=None)))
@settings(deadline=None, max_examples=100)
def test_every_valid_group_is_one_that_channels_takes(name):
    if frames.valid_group(name):
        assert name.isascii()
        assert 1 <= len(name) < 100
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


# The short way for a pong.


@given(n=st.integers(0, 10**15 - 1), space=st.booleans())
def test_the_number_of_a_pong_is_what_the_whole_parser_reads(n: int, space: bool) -> None:
    text = json.dumps({"type": "pong", "n": n}, separators=None if space else (",", ":"))
    assert frames.pong_number(text.encode()) == n
    assert frames.parse(text) == ClientPong(n=n)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"pong"}',
        '{"type":"pong","n":-1}',
        '{"type":"pong","n":01}',
        '{"type":"pong","n":1.0}',
        '{"type":"pong","n":1}{',
        '{"type":"ping","n":1}',
        '{"n":1,"type":"pong"}',
        '{"type":"pong","n":1,"more":2}',
        f'{{"type":"pong","n":{10**15}}}',
        "",
    ],
)
def test_any_other_text_has_no_number_and_goes_to_the_parser(text: str) -> None:
    assert frames.pong_number(text.encode()) is None
