"""The demo page, on which a user controls one connection."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

# The page shows messages of strangers, so only its own files may run in it or load.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    # The same condition as in the default policy, so that the page announces a refusal before the user tries.
    may_publish = settings.DEBUG or request.user.is_authenticated
    response = render(request, "index.html", {"may_publish": may_publish})
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
