"""Callers that wait at the same time share one visit to the thread in which connections are closed."""

import asyncio
import threading

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async

from realtime.process import old_connections


class Thread:
    """Stands in for the shared thread: a visit lasts until `done` is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.visits = 0
        self.done = asyncio.Semaphore(0)
        monkeypatch.setattr(old_connections, "aclose_old_connections", self._visit)

    async def _visit(self) -> None:
        self.visits += 1
        await self.done.acquire()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_that_wait_share_the_next_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch)
    first = asyncio.create_task(old_connections.close())
    await turns()
    # The visit under way may have begun before these callers had reason to call.
    others = [asyncio.create_task(old_connections.close()) for _ in range(10)]
    await turns()
    assert thread.visits == 1
    thread.done.release()
    await first
    await turns()
    assert thread.visits == 2
    assert not any(other.done() for other in others)
    thread.done.release()
    await asyncio.gather(*others)
    assert not old_connections._latest


async def test_a_cancelled_caller_leaves_the_visit_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch)
    first, second = (asyncio.create_task(old_connections.close()) for _ in range(2))
    await turns()
    first.cancel()
    thread.done.release()
    await second
    assert first.cancelled()
    assert thread.visits == 1


async def test_all_callers_of_a_visit_get_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise OSError("closed")

    monkeypatch.setattr(old_connections, "aclose_old_connections", fail)
    outcomes = await asyncio.gather(*(old_connections.close() for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["closed"] * 3


async def test_a_context_with_its_own_thread_shares_no_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[int] = []

    async def visit() -> None:
        visited.append(await sync_to_async(threading.get_ident)())

    monkeypatch.setattr(old_connections, "aclose_old_connections", visit)
    async with ThreadSensitiveContext():
        await old_connections.close()
        assert visited == [await sync_to_async(threading.get_ident)()]
    await old_connections.close()
    assert visited[1] != visited[0]
