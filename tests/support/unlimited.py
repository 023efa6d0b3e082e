"""The settings under which a load of many clients with one address, without Origin, is accepted."""

from typing import Any

UNLIMITED: dict[str, Any] = {
    "ALLOW_MISSING_ORIGIN": True,
    "MAX_CONNECTIONS_PER_USER": None,
    "MAX_CONNECTIONS_PER_ADDRESS": None,
    "MAX_USER_CONNECTIONS_PER_ADDRESS": None,
    "MAX_HANDSHAKES_PER_SECOND": None,
    "MAX_GROUPS": None,
    "MAX_FRAMES_PER_SECOND": None,
    "MAX_BYTES_PER_SECOND": None,
    "MAX_PUBLISHES_PER_SECOND": None,
}
