"""The demo page, on which a user controls one connection."""

import math
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from realtime.errors import BadGroup, NoPresence
from realtime.policy import default_policy
from realtime.presence import apresence

#: The defaults of the settings that say how soon a sleeping page is closed.
DEFAULTS = {"PING_INTERVAL": 20.0, "PONG_TIMEOUT": 8.0, "PROBE_AFTER": 5.0}

#: The largest number of users whose names the page asks for in one request.
MAX_NAMES = 100


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    # The same condition as in the default policy, so that the page announces a refusal before the user tries.
    may_publish = settings.DEBUG or request.user.is_authenticated
    context = {"may_publish": may_publish, "max_names": MAX_NAMES, "sleep": sleep()}
    return render(request, "index.html", context)


@never_cache
@require_safe
async def names(request: HttpRequest) -> HttpResponse:
    """Answer with the names of users who are in a group now.

    The protocol has only the ids of users. This view names the users that the visitor sees in the group, and
    no others. Otherwise a stranger could try all ids, and read the names of all users.

    Args:
        request: `group` and any number of `id` in its query, up to MAX_NAMES.

    Returns:
        JSON: `names` has the name of each user by id. It has no entry for a user who is not in the group.
    """
    group, asked = request.GET.get("group", ""), request.GET.getlist("id")
    if len(asked) > MAX_NAMES:
        return JsonResponse({"error": f"Ask for at most {MAX_NAMES} names at a time."}, status=400)
    # The project has no policy of its own, so this is the one that decided about the presence frame.
    if not await default_policy({"user": await request.auser()}, "presence", group):
        return JsonResponse({"error": "You may not know who is in this group."}, status=403)
    try:
        present = await apresence(group)
    except (BadGroup, NoPresence) as error:
        return JsonResponse({"error": str(error)}, status=404)
    users = get_user_model().objects.filter(pk__in=set(asked).intersection(present.users))
    found = {str(user.pk): user.get_full_name() or user.get_username() async for user in users}
    return JsonResponse({"names": found})


def sleep() -> dict[str, object]:
    """Return what the page says about sleeping, in seconds.

    Returns:
        `unnoticed`: a sleep below this is never noticed. `gone`: after this time asleep, any connection is
        closed. `written`: the same, after a message. `choices`: the times for which the page may sleep, in
        order. The last one is always noticed. `choice`: the last one.
    """
    configured: dict[str, Any] = settings.REALTIME
    limits: dict[str, float] = {name: configured.get(name, default) for name, default in DEFAULTS.items()}
    unnoticed = limits["PONG_TIMEOUT"]
    gone = limits["PING_INTERVAL"] + unnoticed
    written = min(limits["PROBE_AFTER"], limits["PING_INTERVAL"]) + unnoticed
    choices = sorted({max(1, round(unnoticed * 0.6)), int((written + gone) / 2), math.ceil(gone * 1.4)})
    return {
        "unnoticed": unnoticed,
        "gone": gone,
        "written": written,
        "choices": choices,
        "choice": choices[-1],
    }
