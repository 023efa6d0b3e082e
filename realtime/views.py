"""HTTP views for operators and probes: metrics, liveness, readiness.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging

from channels import DEFAULT_CHANNEL_LAYER
from django.db import Error as DatabaseFailure
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from realtime import readiness
from realtime.errors import LayerUnavailable
from realtime.layers import groups
from realtime.process import drain

logger = logging.getLogger("realtime.views")


async def metrics(request: HttpRequest) -> HttpResponse:
    """Return the instruments of this process, in Prometheus' text format."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


async def live(request: HttpRequest) -> HttpResponse:
    """Answer 200 as long as the event loop runs."""
    return JsonResponse({"live": True})


async def ready(request: HttpRequest, *, within: float = readiness.ANSWER_TIMEOUT) -> HttpResponse:
    """Answer 200 if the database and every channel layer of this package answer in time.

    Otherwise the answer is 503 and names each problem. At any time, one check of the database and one of each
    layer is under way, and all probes share its result.

    Args:
        request: The request of the probe.
        within: Seconds to wait for each answer.
    """
    checks = {"database": readiness.check_database(within)}
    for alias in groups.aliases() or [DEFAULT_CHANNEL_LAYER]:
        name = "channel_layer" if alias == DEFAULT_CHANNEL_LAYER else f"channel_layer:{alias}"
        checks[name] = readiness.check_layer(alias, within)
    # Side by side, so that the probe waits only once if several hang.
    outcomes = await asyncio.gather(*checks.values(), return_exceptions=True)
    # So that a load balancer sends no client to a process that is about to end.
    problems = {"process": "stopping"} if drain.under_way() else {}
    for name, error in zip(checks, outcomes, strict=True):
        if error is None:
            continue
        if not isinstance(error, (TimeoutError, DatabaseFailure, LayerUnavailable)):
            raise error
        problems[name] = type(error.__cause__ or error).__name__
        logger.warning("Not ready: the %s failed: %s", name, error)
    return JsonResponse({"ready": not problems, **problems}, status=503 if problems else 200)
