"""The thread of a ledger, seen from outside."""

from realtime.records.thread import Writer


def is_alive(writer: Writer) -> bool:
    """Return True while the writer has a thread that runs."""
    return writer._thread is not None and writer._thread.is_alive()
