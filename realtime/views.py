"""What operators and probes ask over HTTP: metrics, and whether this process lives and can serve."""

import logging

from channels.db import database_sync_to_async
from django.db import Error as DatabaseFailure
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from realtime import groups, records

logger = logging.getLogger("realtime.views")


async def metrics(request: HttpRequest) -> HttpResponse:
    """The instruments of this process, in Prometheus' text format."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


async def live(request: HttpRequest) -> HttpResponse:
    """200 as long as the event loop turns."""
    return JsonResponse({"live": True})


async def ready(request: HttpRequest) -> HttpResponse:
    """200 when the database and the channel layer answer, else 503 with what does not."""
    problems = {}
    try:
        await database_sync_to_async(records.current_round)()
    except DatabaseFailure as error:
        problems["database"] = type(error).__name__
        logger.warning("Not ready: the database failed: %s", error)
    try:
        await groups.check()
    except groups.LayerUnavailable as error:
        problems["channel_layer"] = type(error.__cause__ or error).__name__
        logger.warning("Not ready: %s", error)
    return JsonResponse({"ready": not problems, **problems}, status=503 if problems else 200)
