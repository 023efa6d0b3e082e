"""What operators and probes ask over HTTP: metrics, and whether this process lives and can serve."""

import asyncio
import logging

from channels import DEFAULT_CHANNEL_LAYER
from django.db import Error as DatabaseFailure
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from realtime import background, drain, groups, healing, process_records

logger = logging.getLogger("realtime.views")

#: Seconds after which the database counts as down; a channel layer is given `groups.CALL_TIMEOUT`.
DATABASE_TIMEOUT = 5.0


async def metrics(request: HttpRequest) -> HttpResponse:
    """The instruments of this process, in Prometheus' text format."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


async def live(request: HttpRequest) -> HttpResponse:
    """200 as long as the event loop turns."""
    return JsonResponse({"live": True})


async def ready(request: HttpRequest) -> HttpResponse:
    """200 when the database and every channel layer of ours answer in time, else 503 with what does not."""
    checks = {"database": _check_database()}
    for alias in groups.aliases() or [DEFAULT_CHANNEL_LAYER]:
        name = "channel_layer" if alias == DEFAULT_CHANNEL_LAYER else f"channel_layer:{alias}"
        checks[name] = healing.require_hearing(alias)
    # Side by side, so that what hangs is waited for once, and a probe gets its answer.
    outcomes = await asyncio.gather(*checks.values(), return_exceptions=True)
    # A balancer that asks sends nobody to a process that is about to end.
    problems = {"process": "stopping"} if drain.under_way() else {}
    for name, error in zip(checks, outcomes, strict=True):
        if error is None:
            continue
        if not isinstance(error, (TimeoutError, DatabaseFailure, groups.LayerUnavailable)):
            raise error
        problems[name] = type(error.__cause__ or error).__name__
        logger.warning("Not ready: the %s failed: %s", name, error)
    return JsonResponse({"ready": not problems, **problems}, status=503 if problems else 200)


async def _check_database() -> None:
    """In a thread of its own: Django waits, with all its event loop, for those that a request was given."""
    checking = asyncio.get_running_loop().run_in_executor(None, _ask_database)
    # Not cancelled when it takes too long; a thread cannot be.
    done, _ = await asyncio.wait([checking], timeout=DATABASE_TIMEOUT)
    if not done:
        checking.add_done_callback(background.heard)
        raise TimeoutError(f"no answer within {DATABASE_TIMEOUT:g} s")
    checking.result()


def _ask_database() -> None:
    try:
        process_records.current_round()
    finally:
        connections.close_all()
