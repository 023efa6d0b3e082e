"""The transaction that a test holds, as an event loop sees it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from django.db import connections

from realtime import conf
from realtime.errors import RecordsUnavailable
from realtime.records import rows

IN_A_TRANSACTION = (
    "The test holds a transaction, and connections are recorded in a thread that does not see it. Use "
    'realtime.testing.connect as the client, set REALTIME = {"LEDGER": "inline"} in the settings of the '
    "tests, or derive the test from TransactionTestCase (pytest: django_db(transaction=True)). See "
    "docs/howto/test-your-consumers.md."
)


Result = TypeVar("Result")


async def call(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of `records` on the thread that all synchronous code of the process shares.

    With the ledger of tests, call it where it sees the transaction of the test.
    """
    if conf.get().LEDGER == "inline" and threading.current_thread() is threading.main_thread():
        with off_the_loop():
            return function(*arguments)
    result: Result = await database_sync_to_async(function)(*arguments)
    return result


async def prepare_test() -> None:
    """Prepare a connection of Channels' test client, or fail if its test holds a transaction.

    With the ledger of tests, the connection that holds the transaction is kept open.

    With the other ledger, the test must hold no transaction. On SQLite, the ledger could write nothing until
    the test ends. On other databases, its rows would outlive the test, and its connection would keep the
    database of the tests from being deleted.

    Raises:
        RecordsUnavailable: Such a transaction is open, and LEDGER is not "inline".
    """
    prepare = _keep_open if conf.get().LEDGER == "inline" else _refuse_transaction
    if threading.current_thread() is threading.main_thread():
        # pytest-asyncio: the loop runs in the thread that holds the test's transaction.
        with off_the_loop():
            prepare()
    else:
        # Django's TestCase: the loop runs beside that thread, and this is the way into it.
        await sync_to_async(prepare)()


def _refuse_transaction() -> None:
    if connections[rows.database()].in_atomic_block:
        raise RecordsUnavailable(IN_A_TRANSACTION)


def _keep_open() -> None:
    """Keep Channels from closing this thread's connection in a transaction.

    Around each event, Channels closes old connections, and Django takes one in a transaction for old.
    Channels' test client prevents that only while it waits for an answer.
    """
    connection = connections[rows.database()]
    close = type(connection).close_if_unusable_or_obsolete

    def close_outside_transactions() -> None:
        if not connection.in_atomic_block:
            close(connection)

    connection.close_if_unusable_or_obsolete = close_outside_transactions  # type: ignore[method-assign]


@contextmanager
def off_the_loop() -> Iterator[None]:
    """Hide the running loop from Django, which has other connections on a loop and refuses to use them.

    Meanwhile nothing may wait for the loop; a write does not.
    """
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
