"""Encode the JSON that applications send to each other as `data`, and limit its depth."""

import itertools
import re

import msgspec

from realtime.errors import UnpublishableData

MAX_DEPTH = 100
"""The most levels of nested arrays and objects in a frame, counting the frame itself.

The limit is fixed because Python's own depends on the depth of the caller's stack.
"""

# Lazy strings are recognised by name, because this module does not import Django.
_LAZY_STRING = ("django.utils.functional", "Promise")


def encode_data(data: object) -> msgspec.Raw:
    """Encode the data that Python code publishes as JSON.

    Args:
        data: A value of the types of JSON. Other types are dates and times (encoded in ISO 8601), UUIDs,
            decimals (as strings), enums (their values), dataclasses, sets, bytes (in base64) and Django's
            lazy strings. NaN and the infinities become null, as in JavaScript. A `Raw` must hold JSON, and is
            returned unchanged.

    Raises:
        UnpublishableData: The value has no JSON form, or is nested too deep.
    """
    if isinstance(data, msgspec.Raw):
        return data
    try:
        encoded = _encoder.encode(data)
    except UnpublishableData:
        raise
    except RecursionError:
        raise UnpublishableData(data, "it is nested too deep, or contains itself") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UnpublishableData(data, str(error)) from error
    # The frame around the data is one more level.
    if nested_deeper_than(MAX_DEPTH - 1, encoded):
        raise UnpublishableData(data, "it is nested too deep")
    return msgspec.Raw(encoded)


def _encode_other(value: object) -> str | int | float:
    """Convert a value of a type that msgspec does not know."""
    match value:
        case str():  # A subclass. The __str__ of Django's SafeString returns itself.
            return str.__str__(value)
        case int() if not isinstance(value, bool):
            return int(value)
        case float():
            return float(value)
    if any((base.__module__, base.__name__) == _LAZY_STRING for base in type(value).__mro__):
        return str(value)
    raise UnpublishableData(value, "it has no JSON form, or none as the key of an object")


_encoder = msgspec.json.Encoder(enc_hook=_encode_other)

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}
_OTHER_BYTES = bytes(set(range(256)) - set(_STEP))


def nested_deeper_than(limit: int, encoded: bytes) -> bool:
    """Return True if arrays and objects are nested deeper than the limit. `encoded` must be valid JSON."""
    if encoded.count(b"[") + encoded.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", encoded).translate(None, delete=_OTHER_BYTES)
    return max(itertools.accumulate(map(_STEP.__getitem__, brackets)), default=0) > limit
