"""The consumers: base classes for applications, and one consumer that speaks the JSON protocol."""

from realtime.consumers.asynchronous import RealtimeConsumer, RealtimeJsonConsumer, RealtimeMixin
from realtime.consumers.group_consumer import GroupConsumer
from realtime.consumers.synchronous import (
    SyncRealtimeConsumer,
    SyncRealtimeJsonConsumer,
    SyncRealtimeMixin,
)

__all__ = [
    "GroupConsumer",
    "RealtimeConsumer",
    "RealtimeJsonConsumer",
    "RealtimeMixin",
    "SyncRealtimeConsumer",
    "SyncRealtimeJsonConsumer",
    "SyncRealtimeMixin",
]
