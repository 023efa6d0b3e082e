"""The demo page, on which a user controls one connection."""

import math
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

# The page shows messages of strangers, so only its own files may run in it or load.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

#: The defaults of the settings that say how soon a sleeping page is closed.
DEFAULTS = {"PING_INTERVAL": 20.0, "PONG_TIMEOUT": 8.0, "PROBE_AFTER": 5.0}


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    # The same condition as in the default policy, so that the page announces a refusal before the user tries.
    may_publish = settings.DEBUG or request.user.is_authenticated
    response = render(request, "index.html", {"may_publish": may_publish, "sleep": sleep()})
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


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
