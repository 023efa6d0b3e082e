"""A pytest plugin for suites that are older than Python 3.11: `asyncio.wait` takes coroutines again."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

_wait = asyncio.wait


async def wait(awaitables: Iterable[Awaitable[Any]], **options: Any) -> tuple[set[Any], set[Any]]:
    return await _wait([asyncio.ensure_future(each) for each in awaitables], **options)


asyncio.wait = wait  # type: ignore[assignment] - so that it stands in for the real one
