"""The root of this package's exceptions: `except RealtimeError` catches all that it raises on purpose."""


class RealtimeError(Exception):
    """Something that `realtime` refuses or cannot do; the message says what to do about it."""
