"""The random id with which a client names itself in the URL of each of its connections.

A client that knows the id of another anonymous client can close its connection. So no exception and no log
line has the id.
"""

import re
from urllib.parse import parse_qsl

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


def find(query: bytes, parameter: str) -> str:
    """Return the id of the client in a query string; empty if it gives none.

    Args:
        query: The query string of the URL, as ASGI has it.
        parameter: The name of the parameter.

    Raises:
        ValueError: The id is malformed, or there are several. The text does not contain them.
    """
    given = [value for name, value in parse_qsl(query.decode("latin-1"), True) if name == parameter]
    if not given:
        return ""
    if len(given) > 1:
        raise ValueError(f"The query parameter {parameter} occurs {len(given)} times.")
    if not _ID.fullmatch(given[0]):
        raise ValueError(
            f"The query parameter {parameter} is not 8 to 64 of the characters A-Z a-z 0-9 . _ -"
        )
    return given[0]
