"""HTTP views: metrics, liveness and readiness for operators and probes, and tickets for clients.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging

import msgspec
from channels import DEFAULT_CHANNEL_LAYER
from django.db import Error as DatabaseFailure
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from realtime import conf, operators, readiness, tickets
from realtime.errors import BadGroup, LayerUnavailable
from realtime.layers import groups
from realtime.process import drain

logger = logging.getLogger("realtime.views")


@operators.only_operators
async def metrics(request: HttpRequest) -> HttpResponse:
    """Return the instruments of this process, in Prometheus' text format. Only operators may see them."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


async def live(request: HttpRequest) -> HttpResponse:
    """Answer 200 as long as the event loop runs."""
    return JsonResponse({"live": True})


@operators.only_operators
async def ready(request: HttpRequest, *, within: float = readiness.ANSWER_TIMEOUT) -> HttpResponse:
    """Answer 200 if the database and every channel layer of this package answer in time.

    Otherwise the answer is 503 and names each problem. At any time, one check of the database and one of each
    layer is under way, and all probes share its result. Only operators may ask.

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


@never_cache
@require_POST
def ticket(request: HttpRequest) -> HttpResponse:
    """Answer with a ticket for the user who is logged in, with which a client connects once.

    Django's protection against CSRF stays: a page of another site gets no ticket with the cookies of a user.

    Args:
        request: It may have `groups`, as JSON or as fields of a form: the only groups that the ticket is for.

    Returns:
        JSON: `ticket`, and in `expires_in` the seconds within which it must be used. 401 if the user is not
        logged in.
    """
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return JsonResponse({"error": "Log in first."}, status=401)
    try:
        text = tickets.ticket(user, groups=_groups_of(request))
    except (BadGroup, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"ticket": text, "expires_in": conf.get().TICKET_TTL})


def _groups_of(request: HttpRequest) -> list[str] | None:
    """Return the groups in the body of a request; None if it names none.

    Raises:
        ValueError: The body cannot be read.
    """
    if request.content_type != "application/json":
        return request.POST.getlist("groups") or None
    try:
        return msgspec.json.decode(request.body or b"{}", type=_TicketRequest).groups
    except msgspec.DecodeError as error:
        raise ValueError(f"The body cannot be read: {error}") from None


class _TicketRequest(msgspec.Struct):
    groups: list[str] | None = None
