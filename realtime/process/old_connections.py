"""Close stale database connections before handlers run, as Channels does.

All consumers share one thread for synchronous code, and with it their database connections. So one visit to
that thread serves all handlers that wait for one.

Private: docs/reference.md lists the public names.
"""

import asyncio
import weakref
from contextvars import Context

from asgiref.sync import SyncToAsync
from channels.db import aclose_old_connections

from realtime.process import tasks


class _Visit:
    """A visit to the thread: the next one, until it begins."""

    def __init__(self, before: "_Visit | None") -> None:
        self.begun = False
        # In an empty context: that of a caller may end, and other callers wait, too.
        self.task = tasks.start(self._make(before), context=Context())

    async def _make(self, before: "_Visit | None") -> None:
        if before is not None:
            await asyncio.wait([before.task])
        self.begun = True
        try:
            await aclose_old_connections()
        finally:
            # A visit refers to its loop. Kept, it would keep the loop.
            loop = asyncio.get_running_loop()
            if _latest.get(loop) is self:
                del _latest[loop]


_latest: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Visit] = weakref.WeakKeyDictionary()


def has_own_thread(context: Context) -> bool:
    """Return True if synchronous code runs in a thread of this context alone (`ThreadSensitiveContext`)."""
    return context.get(SyncToAsync.thread_sensitive_context) is not None


async def close() -> None:
    """Close the stale database connections of the thread that synchronous code of the caller runs in.

    Calls that wait at the same time share one visit, which begins after each of them.
    """
    if SyncToAsync.thread_sensitive_context.get(None) is not None:
        await aclose_old_connections()
        return
    loop = asyncio.get_running_loop()
    visit = _latest.get(loop)
    if visit is None or visit.begun:
        visit = _latest[loop] = _Visit(visit)
    # A caller that is cancelled leaves the visit to the others.
    await asyncio.shield(visit.task)
