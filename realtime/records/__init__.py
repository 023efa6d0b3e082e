"""Write and read the rows of connections, memberships, processes and rounds."""

from realtime.records.entries import Opening

__all__ = ["Opening"]
