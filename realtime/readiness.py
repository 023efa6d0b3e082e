"""Check whether this process can serve: its database answers, and its channel layers carry messages.

One check of each is under way at a time, however many probes ask. A probe that asks meanwhile waits for the
same answer, up to `ANSWER_TIMEOUT`. A database that hangs for an hour costs the process one thread, not one
for each probe. That thread is not one of the event loop's executor, which looks up host names: a Redis named
by its host could not be connected to again while probes hold all threads there.

Private: docs/reference.md lists the public names.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from django.db import connections

from realtime.hub import healing
from realtime.process import tasks
from realtime.records import process_rows

#: Seconds after which a probe is answered, whatever hangs.
ANSWER_TIMEOUT = 5.0

Checks = dict[str, asyncio.Future[None]]

#: The checks under way by event loop, each under the name of what it checks.
_under_way: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Checks] = weakref.WeakKeyDictionary()


async def check_database(within: float = ANSWER_TIMEOUT) -> None:
    """Wait for the answer of the database.

    Args:
        within: Seconds to wait for the answer.

    Raises:
        TimeoutError: It did not answer in this time.
        django.db.Error: It answered with an error.
    """
    await _shared("database", _ask_database_in_a_thread, within)


async def check_layer(alias: str, within: float = ANSWER_TIMEOUT) -> None:
    """Wait until it is known whether this channel layer takes messages, and carries them to this process.

    Args:
        alias: The alias of the layer in CHANNEL_LAYERS.
        within: Seconds to wait until it is known.

    Raises:
        TimeoutError: It is not known after this time.
        LayerUnavailable: The layer does not.
    """
    await _shared(f"channel_layer:{alias}", lambda: tasks.start(healing.require_hearing(alias)), within)


async def _shared(name: str, start: Callable[[], asyncio.Future[None]], within: float) -> None:
    """Wait for the check of this name that is under way, or for one that is started now."""
    here = _under_way.setdefault(asyncio.get_running_loop(), {})
    check = here.get(name)
    if check is None:
        check = here[name] = start()
        check.add_done_callback(partial(_forget, here, name))
    # Neither a timeout nor a cancelled probe cancels the check: other probes wait for it.
    done, _ = await asyncio.wait([check], timeout=within)
    if not done:
        raise TimeoutError(f"no answer within {within:g} s")
    check.result()


def _forget(here: Checks, name: str, check: asyncio.Future[None]) -> None:
    """Have the next probe start a new check."""
    del here[name]
    tasks.retrieve_exception(check)


def _ask_database_in_a_thread() -> asyncio.Future[None]:
    """Start a daemon thread that asks the database; a process that exits does not wait for it."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[None] = loop.create_future()

    def ask() -> None:
        error: BaseException | None = None
        try:
            _ask_database()
        except BaseException as raised:  # The probes raise it.
            error = raised
        # The loop may be closed by now; then no probe waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, answer, error)

    threading.Thread(target=ask, name="realtime-ready", daemon=True).start()
    return answer


def _ask_database() -> None:
    try:
        process_rows.current_round()
    finally:
        # The thread ends, and its connection with it.
        connections.close_all()


def _settle(answer: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)
